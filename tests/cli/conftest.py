"""A finished run on disk, small enough for every test of a command that uses one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class TinyRun:
    """A run whose tokenizer has the 256 bytes and the special tokens only. data: the folder of text that it names."""

    name: str
    runs_dir: Path
    path: Path
    data: Path


class NoOptimizer:
    """An optimizer without state: a run that is used is not trained on."""

    def state_tensors(self) -> dict:
        return {}


@pytest.fixture
def make_tiny_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TinyRun]:
    """Makes a run named ``tiny`` with a random model, checkpoints at the given steps, and two shards of text."""

    def make(*, steps: tuple[int, ...] = (3,), context: int = 32) -> TinyRun:
        import torch

        from firstlight.model.gpt import GPTConfig
        from firstlight.model.init import build_gpt
        from firstlight.recipes.record import new_record, new_run_dir, write_run
        from firstlight.tokens.bpe import Tokenizer
        from firstlight.train.checkpoint import save_checkpoint

        monkeypatch.setenv("FIRSTLIGHT_RUNS", str(tmp_path / "runs"))
        monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
        data = tmp_path / "texts"
        data.mkdir()
        (data / "a.jsonl").write_text("".join(f'{{"text": "first shard, document {i}"}}\n' for i in range(20)))
        (data / "b.jsonl").write_text("".join(f'{{"text": "second shard: {"x" * i}"}}\n' for i in range(30)))
        tokenizer = Tokenizer([bytes([b]) for b in range(256)])
        config = GPTConfig(tokenizer.vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=16, max_seq_len=context)
        path = new_run_dir(tmp_path / "runs", "tiny")
        tokenizer.save(path / "tokenizer.json")
        record = new_record(
            "tiny",
            status="done",
            config={"model": asdict(config), "settings": {"data": str(data), "val": "last"}},
            tokenizer_hash=tokenizer.content_hash,
        )
        write_run(path, record)
        for step in steps:
            model = build_gpt(config, device=torch.device("cpu"), compute_dtype=torch.float32, seed=step)
            save_checkpoint(path / "checkpoints", step=step, model=model, optimizer=NoOptimizer(), state={"step": step})
        return TinyRun("tiny", tmp_path / "runs", path, data)

    return make
