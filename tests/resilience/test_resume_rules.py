"""What a resumed run refuses: other data, another tokenizer, another model; and what it cannot start with at all."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from resilience.harness import TINY, Place, launch, losses, resumed, run_to_end

FIVE = replace(TINY, num_iterations=5)
LONGER = frozenset({"run", "resume", "num_iterations"})


@pytest.fixture
def own_texts(place: Place, tmp_path) -> Place:
    shutil.copytree(place.texts, tmp_path / "texts", copy_function=shutil.copy2)
    return replace(place, texts=tmp_path / "texts")


def test_r24_a_byte_of_the_text_that_has_changed_is_refused_though_the_size_is_the_same(own_texts):
    run_to_end(own_texts, replace(FIVE, run="once"))
    shard = own_texts.texts / "part_1.jsonl"
    before_bytes = shard.stat().st_size
    shard.write_text(shard.read_text().replace("cat", "cow", 1))
    assert shard.stat().st_size == before_bytes
    job = run_to_end(own_texts, resumed("once", num_iterations=8), given=LONGER, codes=3)
    assert "the data" in job.output()
    assert "has changed" in job.output()
    assert len(losses(own_texts.runs / "once")) == 5


@pytest.mark.slow
def test_r24_files_in_another_order_are_refused(own_texts):
    run_to_end(own_texts, replace(FIVE, run="once"))
    one, other = (own_texts.texts / f"part_{number}.jsonl" for number in (0, 1))
    one.rename(own_texts.texts / "aside")
    other.rename(one)
    (own_texts.texts / "aside").rename(other)
    job = run_to_end(own_texts, resumed("once", num_iterations=8), given=LONGER, codes=3)
    assert "the data" in job.output()
    assert "has changed" in job.output()


@pytest.mark.slow
def test_r24_another_tokenizer_is_refused_on_all_ranks(place):
    run_to_end(place, replace(FIVE, run="once"), 2)
    run_to_end(place, replace(FIVE, run="other", vocab_size=290))
    shutil.copy(place.runs / "other" / "tokenizer.json", place.runs / "once" / "tokenizer.json")
    job = run_to_end(place, resumed("once", num_iterations=8), 2, given=LONGER, codes=3)
    assert "tokenizer" in job.output()


def test_r26_what_would_make_it_another_run_is_refused_and_all_of_it_is_named(place):
    run_to_end(place, replace(FIVE, run="once"))
    other = resumed("once", depth=2, total_batch_size=64 * 24, matrix_lr=0.5)
    given = frozenset({"run", "resume", "depth", "total_batch_size", "matrix_lr"})
    job = run_to_end(place, other, given=given, codes=2)
    for flag in ("--depth 2", "--total-batch-size 1536", "--matrix-lr 0.5"):
        assert flag in job.output()
    allowed = resumed("once", num_iterations=7, save_every=2)
    job = run_to_end(place, allowed, given=frozenset({"run", "resume", "num_iterations", "save_every"}))
    assert "resumed with --num-iterations 7 (was 5)" in job.output()
    assert "resumed with --save-every 2 (was 5)" in job.output()


def test_r14_a_batch_that_the_processes_cannot_share_is_refused_by_all_before_step_0(place):
    job = launch(place, replace(FIVE, run="odd", total_batch_size=64 * 3), 2)
    assert job.wait() == [2, 2], job.everything()
    assert "--total-batch-size" in job.output(0)
    assert not (place.runs / "odd").exists()
