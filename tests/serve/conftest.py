"""A tiny random model behind a real server on a free port: one for all tests of the folder."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

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
    from firstlight.tokens.bpe import Tokenizer
    from firstlight.train.checkpoint import save_checkpoint

    tokenizer = Tokenizer([*(bytes([b]) for b in range(256)), b"th", b"the", b" a", b" the"])
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


@contextmanager
def running(loaded: Any, **changes: Any) -> Iterator[Running]:
    """Serve a run until the block ends. changes: of `assemble`'s arguments, and grace_s."""
    from firstlight.serve.assembly import assemble
    from firstlight.serve.running import Server, open_socket, run_server, url_of
    from firstlight.serve.service import Limits

    grace_s = changes.pop("grace_s", 5.0)
    options: dict[str, Any] = {
        "host": "127.0.0.1", "max_rows": 32, "queue": 64, "limits": Limits(), "api_key": None, "origins": (),
        "tools": "auto", "studio": False,
    }  # fmt: skip
    made = assemble(loaded, **(options | changes))
    listener = open_socket("127.0.0.1", 0)
    url = url_of(listener)
    is_ready = threading.Event()
    server = Server(made.app, made.service.worker, grace_s=grace_s, on_start=is_ready.set)
    thread = threading.Thread(target=run_server, args=(server, listener), daemon=True)
    thread.start()
    assert is_ready.wait(60)
    try:
        yield Running(url, loaded, made.service, server)
    finally:
        server.should_exit = True
        thread.join(60)
        made.close()
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that was taught to chat, as far as its record says."""
    return load(write_run_folder(tmp_path_factory.mktemp("runs"), "tiny", recipe="sft"))


@pytest.fixture(scope="session")
def server(loaded: Any) -> Iterator[Running]:
    with running(loaded) as found:
        yield found
