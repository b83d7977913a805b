"""Decisions on disk: killed half-way an evaluation goes on, and nothing is taken from another one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny_core import make_bundle

from firstlight.errors import DataError
from firstlight.eval.core.bundle import read_bundle
from firstlight.eval.core.scorer import Request, Scored
from firstlight.recipes.core_eval import DecisionLog, Subject, run_core, weights_hash
from firstlight.runtime.context import Runtime

ROOT = Path(__file__).resolve().parents[2]


class SumScorer:
    """Losses from the ids. die_after: examples after which the process kills itself."""

    max_seq_len = None

    def __init__(self, die_after: int | None = None) -> None:
        self.num = 0
        self.die_after = die_after

    def score(self, groups: Sequence[Sequence[Request]]) -> list[list[Scored]]:
        self.num += len(groups)
        if self.die_after is not None and self.num > self.die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return [[Scored(sum(r.ids) % 89 / 3, len(r.ids) - r.start, sum(r.ids) % 2 == 0) for r in g] for g in groups]


def score(bundle: Path, folder: Path, *, scorer: SumScorer | None = None, weights: str = "w" * 64, **options):
    said: list[str] = []
    subject = Subject(
        name="m",
        scorer=scorer or SumScorer(),
        encode=lambda texts: [list(text.encode()) for text in texts],
        bos_id=256,
        weights_hash=weights,
        tokenizer_hash="t" * 64,
        folder=folder,
    )
    runtime = Runtime(device=torch.device("cpu"))
    result, facts = run_core(subject, read_bundle(bundle), runtime=runtime, report=said.append, **options)
    return result, facts, said


CHILD = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[3], sys.argv[4]]
from test_core_eval import SumScorer, score
score(Path(sys.argv[1]), Path(sys.argv[2]), scorer=SumScorer(die_after=40))
"""


def test_killed_half_way_it_goes_on_and_ends_with_the_same_result(tmp_path: Path):
    bundle = make_bundle(tmp_path / "b", num_examples=24)
    whole, _, _ = score(bundle, tmp_path / "whole")
    places = [str(ROOT / "tests/recipes"), str(ROOT / "tests")]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(bundle), str(tmp_path / "killed"), *places],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    [log] = (tmp_path / "killed").glob("*.jsonl")
    kept = log.read_text().splitlines()[1:]
    assert len(kept) == 24
    # What a kill in the middle of a write leaves.
    log.write_text(log.read_text() + '{"task": "refer", "ind')
    scorer = SumScorer()
    again, facts, said = score(bundle, tmp_path / "killed", scorer=scorer)
    assert scorer.num == 72 - 24
    assert facts["num_resumed"] == 24
    assert any("cut short" in line for line in said)
    assert [t.num_correct for t in again.tasks] == [t.num_correct for t in whole.tasks]
    assert again.mean == whole.mean
    assert len(log.read_text().splitlines()) == 73
    third = SumScorer()
    score(bundle, tmp_path / "killed", scorer=third)
    assert third.num == 0


def test_the_result_is_a_file_with_all_that_it_rests_on(tmp_path: Path):
    bundle = make_bundle(tmp_path / "b")
    result, facts, _ = score(bundle, tmp_path / "core", tasks=["choose"])
    found = json.loads(Path(facts["result"]).read_text())
    assert found["weights_hash"] == "w" * 64
    assert found["bundle_hash"] == read_bundle(bundle).content_hash
    assert found["tokenizer_hash"] == "t" * 64
    assert found["versions"]["torch"] == torch.__version__
    assert found["mean_centered"] == result.mean
    assert found["core"] is None
    assert not found["is_comparable"]


def test_other_weights_settings_or_data_are_another_evaluation(tmp_path: Path):
    bundle = make_bundle(tmp_path / "b")
    score(bundle, tmp_path / "core")
    changes = [{"weights": "v" * 64}, {"max_per_task": 5}, {"long_prompts": "extend"}]
    for change in changes:
        scorer = SumScorer()
        score(bundle, tmp_path / "core", scorer=scorer, **change)
        assert scorer.num == 3 * change.get("max_per_task", 12)
    with (bundle / "eval_data/a/choose.jsonl").open("a") as file:
        file.write(json.dumps({"query": "q", "choices": ["a", "b"], "gold": 0}) + "\n")
    scorer = SumScorer()
    score(bundle, tmp_path / "core", scorer=scorer)
    assert scorer.num == 37
    scorer = SumScorer()
    score(bundle, tmp_path / "core", scorer=scorer, tasks=["refer"])
    assert scorer.num == 0
    score(bundle, tmp_path / "core", scorer=scorer, fresh=True)
    assert scorer.num == 37


def test_a_damaged_file_is_named_with_its_line(tmp_path: Path):
    bundle = make_bundle(tmp_path / "b")
    _, facts, _ = score(bundle, tmp_path / "core")
    log = Path(facts["decisions"])
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:4], "x", *lines[5:]]) + "\n")
    with pytest.raises(DataError, match="line 5 is damaged"):
        score(bundle, tmp_path / "core")
    log.write_text("\n".join(['{"kind": "core_decisions"}', *lines[1:]]) + "\n")
    with pytest.raises(DataError, match="another evaluation"):
        score(bundle, tmp_path / "core")
    log.write_text(lines[0][:20])
    assert score(bundle, tmp_path / "core")[0].tasks[0].num_examples == 12


def test_the_hash_of_weights_is_the_files(tmp_path: Path):
    import hashlib

    from firstlight.model.config import GPTConfig
    from firstlight.model.init import build_gpt
    from firstlight.train.checkpoint import save_checkpoint

    class NoOptimizer:
        def state_tensors(self) -> dict:
            return {}

    model = build_gpt(GPTConfig(9, 1, 1, 1, 8, 8), device=torch.device("cpu"), compute_dtype=torch.float32, seed=0)
    save_checkpoint(tmp_path, step=1, model=model, optimizer=NoOptimizer(), state={"step": 1})
    [file] = tmp_path.rglob("model.safetensors")
    assert weights_hash(file.parent) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_two_evaluations_at_once_add_to_one_file_and_lose_nothing(tmp_path: Path):
    def record(task: str, index: int) -> dict:
        return {"task": task, "index": index, "correct": True, "choice": 0, "margin": 0.5, "marks": [], "seconds": 0.1}

    path, facts = tmp_path / "key.jsonl", {"weights_hash": "w"}
    one, two = DecisionLog(path, facts), DecisionLog(path, facts)
    assert (one.open(fresh=False), two.open(fresh=False)) == ([], [])
    for i in range(3):
        one.append([record("one", i)])
        two.append([record("two", i), record("two", 10 + i)])
    one.close()
    two.close()
    # As two that began at the same moment leave it.
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines]) + "\n")
    found = DecisionLog(path, facts).open(fresh=False)
    assert len(found) == 9
    assert sorted((r["task"], r["index"]) for r in found) == sorted(
        [("one", i) for i in range(3)] + [("two", i) for i in (0, 1, 2, 10, 11, 12)]
    )
