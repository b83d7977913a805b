"""Servers for tests: a tiny random model, or an engine that writes what it is told, on a free port of this machine."""

from __future__ import annotations

import faulthandler
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CONTEXT = 160


class NoOptimizer:
    """An optimizer without state: a run that is used is not trained on."""

    def state_tensors(self) -> dict:
        return {}


def write_run_folder(runs_dir: Path, name: str, *, recipe: str, seed: int = 1, context: int = CONTEXT) -> Path:
    """A finished run with a random model and a tokenizer of bytes and a few words."""
    import torch

    from firstlight.model.gpt import GPTConfig
    from firstlight.model.init import build_gpt
    from firstlight.recipes.record import new_record, new_run_dir, write_run
    from firstlight.train.checkpoint import save_checkpoint

    tokenizer = make_tokenizer()
    config = GPTConfig(tokenizer.vocab_size, n_layer=1, n_head=2, n_kv_head=1, n_embd=32, max_seq_len=context)
    path = new_run_dir(runs_dir, name)
    tokenizer.save(path / "tokenizer.json")
    config_dict = {"model": asdict(config), "settings": {"data": "builtin", "val": "last"}}
    write_run(
        path,
        new_record(name, recipe=recipe, status="done", config=config_dict, tokenizer_hash=tokenizer.content_hash),
    )
    model = build_gpt(config, device=torch.device("cpu"), compute_dtype=torch.float32, seed=seed)
    # Larger weights at the head: a random model's choices are then far apart, and no rounding decides between two.
    with torch.no_grad():
        model.lm_head.weight.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(seed))
    save_checkpoint(path / "checkpoints", step=3, model=model, optimizer=NoOptimizer(), state={"step": 3})
    return path


def load(path: Path) -> Any:
    from firstlight.recipes.loading import load_for_inference
    from firstlight.runtime.context import open_runtime

    with open_runtime(device="cpu", dtype="fp32", num_threads=1) as runtime:
        return load_for_inference(str(path), runtime)


@dataclass(frozen=True)
class Running:
    """A server that runs in a thread of this process."""

    url: str
    loaded: Any
    service: Any
    server: Any

    def ask(
        self, path: str, body: Any = None, *, headers: dict[str, str] | None = None, method: str | None = None
    ) -> Reply:
        """One request. body: bytes as they are, anything else as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} | (headers or {})
        request = urllib.request.Request(self.url + path, data=data, headers=sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return Reply(response.status, dict(response.headers), response.read())
        except urllib.error.HTTPError as error:
            return Reply(error.code, dict(error.headers), error.read())

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        for line in self.ask("/metrics").body.decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
        raise AssertionError(f"no metric {name}")

    def until(self, name: str, value: float) -> None:
        """Wait until a metric has a value."""
        ends_s = time.monotonic() + 60
        while self.metric(name) != value:
            assert time.monotonic() < ends_s, f"{name} is {self.metric(name)}, not {value}"
            time.sleep(0.01)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]


class ScriptedEngine:
    """An engine that writes what it is told, one id a step for each of its rows: no model, no chance.

    script: the ids that a request gets (the last ones again and again, if it asks for more). step_s: how long a step takes.
    """

    def __init__(self, script: Callable[[Any], list[int]], *, max_rows: int = 4, step_s: float = 0.0) -> None:
        self.script = script
        self.max_rows = max_rows
        self.step_s = step_s
        self.failure: Exception | None = None
        self.cancelled: list[int] = []
        self.threads: set[int] = set()
        self._rows: dict[int, Any] = {}
        self._next = 0

    @property
    def num_active(self) -> int:
        return min(len(self._rows), self.max_rows)

    @property
    def num_waiting(self) -> int:
        return len(self._rows) - self.num_active

    def submit(self, request: Any) -> int:
        from firstlight.errors import ConfigError

        if not request.prompt_ids:
            raise ConfigError("the prompt has no tokens")
        self._next += 1
        tool = request.tool() if request.tool else None
        self._rows[self._next] = {
            "request": request,
            "ids": list(self.script(request)),
            "tool": tool,
            "n": 0,
            "forced": [],
        }
        return self._next

    def cancel(self, handle: int) -> None:
        self.cancelled.append(handle)
        self._rows.pop(handle, None)

    def step(self) -> list[Any]:
        from firstlight.infer.batch import Token

        self.threads.add(threading.get_ident())
        time.sleep(self.step_s)
        if self.failure is not None:
            raise self.failure
        tokens = []
        for handle, row in list(self._rows.items())[: self.max_rows]:
            request = row["request"]
            is_forced = bool(row["forced"])
            token_id = (
                row["forced"].pop(0) if is_forced else row["ids"].pop(0) if len(row["ids"]) > 1 else row["ids"][0]
            )
            row["n"] += 1
            reason = None
            if not is_forced and token_id in request.stop_ids:
                reason = "stop_id"
            elif row["n"] == request.max_new_tokens:
                reason = "max_new_tokens"
            if not is_forced and row["tool"] is not None:
                row["forced"] += row["tool"].after(token_id)
            if reason is not None:
                del self._rows[handle]
            top = ((token_id, -0.5), (65, float("-inf")))[: request.num_top]
            tokens.append(Token(handle, token_id, -0.5, top, is_forced, reason))
        return tokens


def make_tokenizer() -> Any:
    """The bytes and a few words, as the tiny run's."""
    from firstlight.tokens.bpe import Tokenizer

    return Tokenizer([*(bytes([b]) for b in range(256)), b"th", b"the", b" a", b" the"])


def scripted_service(engine: ScriptedEngine, *, queue: int = 4, context: int = CONTEXT, **changes: Any) -> Any:
    """A service over a scripted engine."""
    from firstlight.serve.meters import Meters
    from firstlight.serve.service import Limits, Service
    from firstlight.serve.worker import EngineWorker

    worker = EngineWorker(engine, max_open=engine.max_rows + queue)
    options = {"model_id": "tiny", "limits": Limits(), "created_unix_s": 0.0} | changes
    return Service(
        tokenizer=make_tokenizer(), context=context, worker=worker, meters=Meters(worker), **options
    )  # fmt: skip


@contextmanager
def serving(app: Any, service: Any, *, loaded: Any = None, grace_s: float = 5.0) -> Iterator[Running]:
    """Serve an application on a free port until the block ends."""
    from firstlight.serve.running import Server, open_socket, run_server, url_of

    listener = open_socket("127.0.0.1", 0)
    url = url_of(listener)
    is_ready = threading.Event()
    server = Server(app, service.worker, grace_s=grace_s, on_start=is_ready.set)
    thread = threading.Thread(target=run_server, args=(server, listener), daemon=True)
    thread.start()
    assert is_ready.wait(60)
    try:
        yield Running(url, loaded, service, server)
    finally:
        server.should_exit = True
        thread.join(60)
        if thread.is_alive():
            faulthandler.dump_traceback(all_threads=True)
        assert not thread.is_alive(), "the server did not end; the stacks of all threads are on standard error"


@contextmanager
def scripted(engine: ScriptedEngine, **changes: Any) -> Iterator[Running]:
    """Serve a scripted engine."""
    from firstlight.serve.app import make_app

    guard = {name: changes.pop(name) for name in ("api_key", "hosts", "origins") if name in changes}
    grace_s = changes.pop("grace_s", 5.0)
    service = scripted_service(engine, **changes)
    with serving(make_app(service, **guard), service, grace_s=grace_s) as found:
        yield found


@contextmanager
def running(loaded: Any, **changes: Any) -> Iterator[Running]:
    """Serve a run. changes: of `assemble`'s arguments."""
    from firstlight.serve.assembly import assemble
    from firstlight.serve.service import Limits

    options: dict[str, Any] = {
        "host": "127.0.0.1", "max_rows": 32, "queue": 64, "limits": Limits(), "api_key": None, "origins": (),
        "tools": "auto", "studio": False,
    }  # fmt: skip
    made = assemble(loaded, **(options | changes))
    try:
        with serving(made.app, made.service, loaded=loaded) as found:
            yield found
    finally:
        made.close()
