"""Claims of recipes/core_probe.py: CORE during a run is what `eval core` gives, and what cannot work is refused before step 0."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_core import make_bundle

from firstlight.errors import ConfigError
from firstlight.eval.core.bundle import read_bundle
from firstlight.eval.core.engine import GPTScorer
from firstlight.eval.core.evaluate import evaluate_core
from firstlight.model.gpt import GPTConfig
from firstlight.model.init import build_gpt
from firstlight.recipes import base
from firstlight.recipes.core_probe import CoreProbe, core_bundle
from firstlight.recipes.loading import load_for_inference
from firstlight.recipes.settings import BaseSettings
from firstlight.runtime.console import Console
from firstlight.runtime.context import Runtime
from firstlight.runtime.metrics import read_metrics
from firstlight.tokens.bpe import Tokenizer
from firstlight.train.guard import Dropped
from firstlight.train.probing import Budget

CPU = Runtime(device=torch.device("cpu"))
TINY = BaseSettings(
    depth=1, vocab_size=320, max_seq_len=32, total_batch_size=128, num_iterations=4, dtype="fp32", device="cpu", compile="off",
    threads=1, workers=0, val="last", save_every=0, eval_every=0, sample_every=0,
)  # fmt: skip


def make(bundle: Path, *, stop=lambda: False) -> tuple[CoreProbe, Any]:
    tokenizer = Tokenizer([bytes([b]) for b in range(256)])
    config = GPTConfig.from_depth(1, vocab_size=tokenizer.vocab_size, max_seq_len=64)
    probe = CoreProbe(
        read_bundle(bundle), tokenizer, every=4, max_per_task=6, console=Console(is_main=False), runtime=CPU,
        beat=lambda phase: None, should_stop=stop, budget=Budget(0),
    )  # fmt: skip
    return probe, build_gpt(config, seed=1)


def test_it_is_due_every_n_steps_and_at_the_end(tmp_path: Path) -> None:
    probe, _ = make(make_bundle(tmp_path))
    assert [step for step in range(11) if probe.due(step, is_last=step == 10)] == [4, 8, 10]


def test_over_its_budget_there_is_no_score_but_how_far_it_came(tmp_path: Path) -> None:
    probe, model = make(make_bundle(tmp_path))
    row = probe.measure(model, 4, is_over=lambda: True)
    assert row["cut"].startswith("by its budget: ")
    assert row["cut"].endswith(" of 18 examples")
    assert not {"core", "mean_centered"} & set(row)


def test_a_stop_drops_it(tmp_path: Path) -> None:
    probe, model = make(make_bundle(tmp_path), stop=lambda: True)
    with pytest.raises(Dropped):
        probe.measure(model, 4, is_over=lambda: False)


def test_during_a_run_it_is_what_the_final_weights_score_and_changes_nothing(
    tiny_corpus, own_folders, tmp_path
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    tiny = replace(TINY, data=str(tiny_corpus))
    base.train_base(replace(tiny, run="without"))
    base.train_base(replace(tiny, run="with", core_every=3, core_max_per_task=8, core_bundle=bundle))
    rows = [row for row in read_metrics(own_folders / "with" / "metrics.jsonl") if row["kind"] == "core"]
    assert [row["step"] for row in rows] == [3, 4]
    loaded = load_for_inference("with", CPU, runs_dir=own_folders)
    direct = evaluate_core(
        GPTScorer(loaded.model), lambda texts: [loaded.tokenizer.encode(text) for text in texts],
        loaded.tokenizer.bos_id, read_bundle(bundle), runtime=CPU, max_per_task=8,
    )  # fmt: skip
    assert rows[-1]["tasks"] == {task.label: task.num_correct / 8 for task in direct.tasks}
    assert rows[-1]["bundle_hash"] == direct.bundle_hash
    assert rows[-1]["num_examples"] == 24
    other = load_for_inference("without", CPU, runs_dir=own_folders).model.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in loaded.model.state_dict().items())
    events = [row for row in read_metrics(own_folders / "with" / "metrics.jsonl") if row["kind"] == "event"]
    assert events == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"core_bundle": Path("nowhere")}, "--core-bundle nowhere"), ({"shard_weights": True}, "--shard-weights")],
)
def test_what_cannot_work_is_refused_before_step_0_and_leaves_no_run(
    tiny_corpus, own_folders, changes: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        base.train_base(replace(TINY, data=str(tiny_corpus), run="refused", core_every=3, **changes))
    assert not (own_folders / "refused").exists()


def test_a_run_that_asks_for_none_needs_no_bundle(tmp_path: Path) -> None:
    nowhere = replace(TINY, core_bundle=Path("nowhere"))
    assert core_bundle(nowhere, runtime=CPU, cache_dir=tmp_path, console=Console(is_main=False)) is None
