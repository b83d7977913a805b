"""The loop: each example once, whatever was done before, in any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from ranks import run_ranks
from tiny_core import make_bundle

from firstlight.errors import DataError
from firstlight.eval.core.bundle import read_bundle
from firstlight.eval.core.evaluate import evaluate_core
from firstlight.eval.core.scorer import Request, Scored
from firstlight.runtime.context import Runtime
from firstlight.train.guard import Dropped

BOS = 256


class HashScorer:
    """A model that has an opinion on every text: a loss from its bytes. Counts what it was asked."""

    def __init__(self, *, max_seq_len: int | None = None, fail_after: int | None = None) -> None:
        self.max_seq_len = max_seq_len
        self.num_groups = 0
        self.fail_after = fail_after

    def score(self, groups: Sequence[Sequence[Request]]) -> list[list[Scored]]:
        self.num_groups += len(groups)
        if self.fail_after is not None and self.num_groups > self.fail_after:
            raise DataError("the device is gone", hint="plug it in")
        return [
            [
                Scored(
                    sum((i + 1) * x for i, x in enumerate(r.ids)) % 97 / 7, len(r.ids) - r.start, sum(r.ids) % 3 == 0
                )
                for r in group
            ]
            for group in groups
        ]


def encode(texts: list[str]) -> list[list[int]]:
    return [list(text.encode()) for text in texts]


def run(path: Path, runtime: Runtime, scorer: HashScorer | None = None, **options):
    records: list[dict] = []
    result = evaluate_core(
        scorer or HashScorer(), encode, BOS, read_bundle(path), runtime=runtime, on_records=records.extend, **options
    )
    return result, records


def cpu() -> Runtime:
    import torch

    return Runtime(device=torch.device("cpu"))


def plain(records: list[dict]) -> list[tuple]:
    return sorted((r["task"], r["index"], r["correct"], r["choice"], r["margin"], tuple(r["marks"])) for r in records)


def test_every_example_once_in_order(tmp_path: Path):
    path = make_bundle(tmp_path / "b")
    shown: list[tuple] = []
    result, records = run(path, cpu(), progress=lambda *values: shown.append(values))
    assert [(r["task"], r["index"]) for r in records] == [
        (task, i) for task in ("choose", "refer", "finish") for i in range(12)
    ]
    assert [task.num_examples for task in result.tasks] == [12, 12, 12]
    assert sum(task.num_correct for task in result.tasks) == sum(r["correct"] for r in records) > 0
    assert shown[0] == (0, 36, "choose")
    assert shown[-1][:2] == (36, 36)


def test_a_limit_cuts_examples_and_the_pool_of_those_shown(tmp_path: Path):
    path = make_bundle(tmp_path / "b")
    result, records = run(path, cpu(), max_per_task=2, tasks=["choose"])
    assert [r["index"] for r in records] == [0, 1]
    # Two shots are asked for and one other example is there.
    assert result.tasks[0].counts["few_shots"] == 2
    assert result.name == "mean over 1 tasks (at most 2 examples a task)"


def test_prompts_longer_than_the_context_are_counted(tmp_path: Path):
    path = make_bundle(tmp_path / "b")
    result, _ = run(path, cpu(), HashScorer(max_seq_len=20))
    assert result.tasks[0].counts["cropped"] == 12
    assert any("longer than the context" in reason for reason in result.not_comparable)


def test_what_was_done_is_not_done_again(tmp_path: Path):
    path = make_bundle(tmp_path / "b")
    whole, records = run(path, cpu())
    scorer = HashScorer()
    again, new = run(path, cpu(), scorer, done=records[:17])
    assert scorer.num_groups == len(new) == 36 - 17
    assert again.mean == whole.mean
    assert plain(records[:17] + new) == plain(records)


def test_a_wish_to_stop_keeps_what_was_done_before(tmp_path: Path):
    path = make_bundle(tmp_path / "b")
    records: list[dict] = []
    calls = iter([False, True])
    with pytest.raises(Dropped):
        evaluate_core(
            HashScorer(), encode, BOS, read_bundle(path), runtime=cpu(), on_records=records.extend,
            should_stop=lambda: next(calls),
        )  # fmt: skip
    assert len(records) == 12


def test_a_wish_to_stop_behind_the_last_example_loses_nothing(tmp_path: Path):
    path = make_bundle(tmp_path / "b")
    done: list[int] = []
    result = evaluate_core(
        HashScorer(), encode, BOS, read_bundle(path), runtime=cpu(), tasks=["finish"],
        on_records=lambda records: done.append(len(records)), should_stop=lambda: True,
    )  # fmt: skip
    assert sum(done) == result.tasks[0].num_examples


def test_malformed_data_of_any_task_is_found_before_anything_is_scored(tmp_path: Path):
    path = make_bundle(tmp_path / "b")
    (path / "eval_data/b/finish.jsonl").write_text('{"context": 1}\n')
    scorer = HashScorer()
    with pytest.raises(DataError, match=r"finish\.jsonl, line 1"):
        run(path, cpu(), scorer)
    assert scorer.num_groups == 0


def on_a_rank(runtime: Runtime, path: Path, done: list[dict]) -> tuple[dict, list[dict], int]:
    scorer = HashScorer()
    result, records = run(path, runtime, scorer, done=done if runtime.is_main else [])
    values = result.to_dict()
    for task in values["tasks"]:
        del task["seconds"]
    return values, records, scorer.num_groups


def test_two_processes_find_what_one_finds_and_share_the_work(tmp_path: Path):
    path = make_bundle(tmp_path / "b", num_examples=11)
    alone = on_a_rank(cpu(), path, [])
    (first, records, one), (second, none, two) = run_ranks(on_a_rank, 2, path, alone[1][:5])
    assert first == second == alone[0]
    assert none == []
    assert one + two == 33 - 5
    assert abs(one - two) <= 3
    assert plain(records + alone[1][:5]) == plain(alone[1])


def one_fails(runtime: Runtime, path: Path, how: str) -> tuple[str, str]:
    scorer = HashScorer(fail_after=8 if runtime.rank == 1 and how == "fails" else None)
    try:
        run(path, runtime, scorer, should_stop=lambda: runtime.rank == 1 and how == "stops")
    except (DataError, Dropped) as error:
        return type(error).__name__, str(error)
    return "nothing", ""


def cannot_keep(runtime: Runtime, path: Path) -> tuple[str, str]:
    def refuse(records: list[dict]) -> None:
        raise DataError("the disk is full")

    try:
        evaluate_core(HashScorer(), encode, BOS, read_bundle(path), runtime=runtime, on_records=refuse)
    except DataError as error:
        return type(error).__name__, str(error)
    return "nothing", ""


def test_decisions_that_cannot_be_kept_end_it_on_all(tmp_path: Path):
    path = make_bundle(tmp_path / "b")
    assert run_ranks(cannot_keep, 2, path) == [
        ("DataError", "the disk is full"),
        ("DataError", "rank 0: the disk is full"),
    ]


def test_an_error_or_a_wish_to_stop_on_one_process_ends_it_on_all(tmp_path: Path):
    path = make_bundle(tmp_path / "b")
    first, second = run_ranks(one_fails, 2, path, "fails")
    assert first == ("DataError", "rank 1: the device is gone\n  plug it in")
    assert second == ("DataError", "the device is gone\n  plug it in")
    assert [kind for kind, _ in run_ranks(one_fails, 2, path, "stops")] == ["Dropped", "Dropped"]
