"""A small random model of each preset, walked once; and a run of one on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from firstlight.model.config import GPTConfig, Preset, preset_options
from firstlight.model.gpt import GPT
from firstlight.model.init import build_gpt
from firstlight.recipes.explain.facts import Facts, Walk
from firstlight.recipes.explain.walk import walk_text
from firstlight.tokens.bpe import Tokenizer

TEXT = "The list of the words.\nAn é is <b>two</b> bytes & more."
PRESETS: tuple[Preset, ...] = ("classic", "modern", "portable")


@dataclass(frozen=True)
class Case:
    """A model with numbers in every weight (a new one has zeros), and what the walk of TEXT found."""

    preset: Preset
    config: GPTConfig
    model: GPT
    tokenizer: Tokenizer
    text: str
    ids: list[int]
    inputs_BT: torch.Tensor
    walk: Walk


def small_config(preset: Preset, vocab_size: int, **changes: Any) -> GPTConfig:
    sizes: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 64, "max_seq_len": 64} | changes
    return GPTConfig(vocab_size=vocab_size, **sizes, **preset_options(preset, n_embd=sizes["n_embd"]))


def filled(config: GPTConfig) -> GPT:
    model = build_gpt(config, seed=3)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.empty_like(weight).normal_(0, 0.2, generator=draw))
    return model.requires_grad_(False)


def small_tokenizer() -> Tokenizer:
    return Tokenizer([*(bytes([b]) for b in range(256)), b" t", b"he", b" the", b"is", b"wo", b"An"])


@pytest.fixture(scope="session", params=PRESETS)
def case(request: pytest.FixtureRequest) -> Case:
    tokenizer = small_tokenizer()
    config = small_config(request.param, tokenizer.vocab_size)
    model = filled(config)
    ids = tokenizer.encode(TEXT)
    inputs_BT = torch.tensor([[tokenizer.bos_id, *ids[:-1]]])
    return Case(request.param, config, model, tokenizer, TEXT, ids, inputs_BT, walk_text(model, tokenizer, ids))


PLAN = {
    "device_batch_size": 6, "num_micro_batches": 5, "total_batch_size": 6 * 5 * 64, "seq_len": 64, "num_steps": 40,
    "estimated_steps": 40, "embedding_lr": 0.3, "unembedding_lr": 0.005, "matrix_lr": 0.02, "weight_decay": 0.0,
    "grad_clip": 1.0, "warmup_frac": 0.1, "warmdown_frac": 0.5, "final_lr_frac": 0.05, "momentum_start": 0.85,
    "momentum_end": 0.95, "horizon": {"kind": "steps", "value": 40},
}  # fmt: skip


@pytest.fixture
def plan() -> dict[str, Any]:
    """The plan that the run's record has."""
    return dict(PLAN)


class NoOptimizer:
    def state_tensors(self) -> dict:
        return {}


@pytest.fixture
def make_run(own_folders: Path) -> Callable[..., Path]:
    """Makes the run ``small`` of a preset with a checkpoint after 30 updates; returns its folder."""

    def make(preset: Preset = "modern", *, plan: dict[str, Any] | None = PLAN, metrics: str = "") -> Path:
        from firstlight.recipes.record import new_record, new_run_dir, write_run
        from firstlight.train.checkpoint import save_checkpoint

        tokenizer = small_tokenizer()
        config = small_config(preset, tokenizer.vocab_size)
        path = new_run_dir(own_folders, "small")
        tokenizer.save(path / "tokenizer.json")
        settings = {"data": "mytext", "packing": "stream", "seed": 7}
        values: dict[str, Any] = {"model": asdict(config), "settings": settings}
        if plan is not None:
            values["plan"] = plan
        record = new_record("small", status="done", config=values, tokenizer_hash=tokenizer.content_hash)
        write_run(path, record)
        (path / "metrics.jsonl").write_text(metrics)
        save_checkpoint(
            path / "checkpoints", step=30, model=filled(config), optimizer=NoOptimizer(), state={"step": 30}
        )
        return path

    return make


@pytest.fixture
def facts_of_run(make_run: Callable[..., Path]) -> Callable[..., Facts]:
    """Facts of such a run."""

    def explain(preset: Preset = "modern", *, text: str = TEXT, **options: Any) -> Facts:
        from firstlight.recipes.explain.collect import explain_run
        from firstlight.runtime.context import open_runtime

        make_run(preset, **options)
        with open_runtime(device="cpu", dtype="fp32", num_threads=1) as runtime:
            return explain_run("small", runtime, text=text)

    return explain
