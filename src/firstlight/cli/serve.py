"""`firstlight serve`: a run's model behind an OpenAI-compatible interface, and the studio in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from firstlight.recipes.loading import LoadedRun
    from firstlight.runtime.console import Console


def serve(
    run: str,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    api_key_file: Path | None = None,
    allow_origin: tuple[str, ...] = (),
    max_rows: int = 32,
    queue: int = 64,
    max_new_tokens: int | None = None,
    time_limit_s: float = 600.0,
    tools: str = "auto",
    studio: bool = True,
    checkpoint: str = "latest",
    device: str = "auto",
    dtype: str = "run",
    threads: int | None = None,
) -> None:
    """Serve a run's model over HTTP: OpenAI's interface under /v1, and the studio for a browser.

    Ctrl-C ends it; answers that are being written get a few seconds. Only this machine can reach it unless --host says
    otherwise.

    For example:

        firstlight serve quickstart
        firstlight serve mine --port 9000 --max-rows 8
        firstlight serve mine --host 0.0.0.0 --api-key-file key.txt

    Parameters
    ----------
    run
        Name of a run, or its folder.
    host
        Address to listen on. 0.0.0.0 is every network this machine is in.
    port
        Port to listen on; 0 takes a free one.
    api_key
        Ask every client for this key. Other users of this machine can see it in the list of processes.
    api_key_file
        A file that holds the key.
    allow_origin
        A site whose pages may use the server from a browser, as https://example.org; may be given several times.
    max_rows
        Answers written at the same time.
    queue
        Answers that may wait for that; further ones are refused with status 429.
    max_new_tokens
        Longest answer. [the model's context]
    time_limit_s
        An answer that takes longer ends as it stands.
    tools
        auto: the calculator where the run has learned to call it; python: always; off.
    studio
        Serve the studio's pages too.
    checkpoint
        latest, best (lowest bits per byte) or a step's number.
    device
        auto, cpu, cuda or mps.
    dtype
        Dtype of the matmuls: run (that of the training), auto, fp32, bf16 or fp16.
    threads
        CPU threads. [all that this process may use]
    """
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console

    _check(port, max_rows, queue, max_new_tokens, time_limit_s, tools, allow_origin)
    key = _key(api_key, api_key_file)

    from firstlight.recipes.loading import dtype_for, load_for_inference, slow_writing
    from firstlight.runtime.context import open_runtime
    from firstlight.serve.assembly import assemble
    from firstlight.serve.guard import is_loopback
    from firstlight.serve.running import Server, open_socket, run_server, url_of
    from firstlight.serve.service import Limits

    console = Console(is_terminal=environment.is_terminal())
    with open_runtime(device=device, dtype=dtype_for(run, dtype, device=device), num_threads=threads) as runtime:
        # First: a port that is taken should not cost the time to load a model.
        listener = open_socket(host, port)
        try:
            loaded = load_for_inference(run, runtime, checkpoint=checkpoint, report=console.warn)
            for sentence in slow_writing(runtime):
                console.warn(sentence)
            made = assemble(
                loaded,
                host=host,
                max_rows=max_rows,
                queue=queue,
                limits=Limits(max_new_tokens=max_new_tokens, time_limit_s=time_limit_s),
                api_key=key,
                origins=allow_origin,
                tools=tools,
                studio=studio,
            )
        except BaseException:
            listener.close()
            raise
        if not is_loopback(host) and key is None:
            console.warn(
                f"--host {host} lets every machine that can reach this one use the model and read the runs, and there is "
                "no --api-key: anyone may. Traffic is not encrypted either way; put a TLS proxy in front for more than a "
                "home network"
            )
        url = url_of(listener)
        server = Server(
            made.app,
            made.service.worker,
            on_start=lambda: _say(console, url, loaded, made.service.warning, studio=studio),
        )
        try:
            run_server(server, listener)
        finally:
            made.close()
        console.say("the server has ended")


def _say(console: Console, url: str, loaded: LoadedRun, warning: str | None, *, studio: bool) -> None:
    name = loaded.record.name
    console.say(
        f"{name}, step {loaded.step:,}: {url}"
        + ("  (the studio; " if studio else "  (")
        + f"OpenAI's interface: {url}/v1)"
    )
    if warning:
        console.warn(warning)
    console.say("Ctrl-C ends it")


def _check(
    port: int,
    max_rows: int,
    queue: int,
    max_new_tokens: int | None,
    time_limit_s: float,
    tools: str,
    origins: tuple[str, ...],
) -> None:
    from firstlight.errors import Problems

    problems = Problems()
    if not 0 <= port <= 65535:
        problems.add(f"--port {port} is no port", hint="8000 is usual; 0 takes a free one")
    if max_rows < 1:
        problems.add(f"--max-rows {max_rows} leaves no row to answer in", hint="the smallest is 1")
    if queue < 0:
        problems.add(f"--queue {queue} is negative", hint="0 lets nothing wait")
    if max_new_tokens is not None and max_new_tokens < 1:
        problems.add(f"--max-new-tokens {max_new_tokens} leaves no answer", hint="at least 1, or leave it out")
    if not 0 < time_limit_s < float("inf"):
        problems.add(f"--time-limit-s {time_limit_s} is no time", hint="600 is ten minutes")
    if tools not in ("auto", "python", "off"):
        problems.add(f"--tools {tools} is not known", hint="auto, python or off")
    for origin in origins:
        scheme, _, rest = origin.partition("://")
        if scheme not in ("http", "https") or not rest or "/" in rest or "*" in rest:
            problems.add(f"--allow-origin {origin} is no origin", hint="as https://example.org, without a path")
    problems.raise_if_any()


def _key(api_key: str | None, file: Path | None) -> str | None:
    """The key that clients must send. Raises ConfigError for two of them, an empty one, or a file that cannot be read."""
    from firstlight.errors import ConfigError

    if api_key is not None and file is not None:
        raise ConfigError("--api-key and --api-key-file are both given", hint="one of them")
    if file is not None:
        try:
            api_key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-key-file {file} cannot be read: {error}") from None
    if api_key is not None and (not api_key.strip() or not api_key.isascii() or not api_key.isprintable()):
        raise ConfigError(
            "the API key is empty, or has characters that no HTTP header can carry", hint="letters and digits"
        )
    return None if api_key is None else api_key.strip()
