"""Runs on disk for the studio's tests: a tiny model, a tokenizer, a record, and rows of metrics."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from firstlight.model.config import GPTConfig, preset_options
from firstlight.model.init import build_gpt
from firstlight.recipes.record import new_record, write_run
from firstlight.tokens.bpe import Tokenizer
from firstlight.train.checkpoint import save_checkpoint

PLAN = {
    "depth": 2, "device_batch_size": 6, "num_micro_batches": 5, "total_batch_size": 6 * 5 * 64, "seq_len": 64,
    "num_steps": 40, "estimated_steps": 40, "embedding_lr": 0.3, "unembedding_lr": 0.005, "matrix_lr": 0.02,
    "weight_decay": 0.0, "grad_clip": 1.0, "warmup_frac": 0.1, "warmdown_frac": 0.5, "final_lr_frac": 0.05,
    "momentum_start": 0.85, "momentum_end": 0.95, "horizon": {"kind": "steps", "value": 40},
}  # fmt: skip


class NoOptimizer:
    def state_tensors(self) -> dict:
        return {}


def tiny_tokenizer() -> Tokenizer:
    """256 bytes, five merges (ids 256 to 260), and the special tokens from 261 on."""
    return Tokenizer([*(bytes([b]) for b in range(256)), b" t", b"he", b" the", b"is", b"wo"])


def train_row(step: int, **changes: Any) -> dict[str, Any]:
    """The row of a step whose loss is 4 - step / 100, after which 1920 more tokens and 0.5 more seconds are behind."""
    return {
        "kind": "train", "step": step, "time_unix_s": 1e9 + step, "loss_nats": 4 - step / 100, "grad_norm": 0.5,
        "lr_multiplier": 1.0, "tokens_per_s": 3840.0, "mfu": 0.25, "elapsed_s": 0.5 * (step + 1),
        "tokens_seen": 1920 * (step + 1),
    } | changes  # fmt: skip


def lines_of(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def make_run(
    runs_dir: Path, name: str, *, rows: bytes = b"", with_model: bool = False, seq_len: int = 64, **facts: Any
) -> Path:
    """The folder of a run; with weights where it is to be served or explained."""
    folder = runs_dir / name
    folder.mkdir(parents=True)
    tokenizer = tiny_tokenizer()
    tokenizer.save(folder / "tokenizer.json")
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, n_kv_head=2, n_embd=32, max_seq_len=seq_len,
        **preset_options("modern", n_embd=32),
    )  # fmt: skip
    settings = {"data": "mytext", "packing": "stream", "seed": 7, "preset": "modern"}
    values = {"model": asdict(config), "settings": settings, "plan": PLAN}
    facts = {"status": "done", "config": values, "tokenizer_hash": tokenizer.content_hash} | facts
    write_run(folder, new_record(name, **facts))
    (folder / "metrics.jsonl").write_bytes(rows)
    if with_model:
        model = build_gpt(config, seed=3)
        draw = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.empty_like(weight).normal_(0, 0.2, generator=draw))
        save_checkpoint(folder / "checkpoints", step=30, model=model, optimizer=NoOptimizer(), state={"step": 30})
    return folder
