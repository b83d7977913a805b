"""Claims of recipes/explain/collect.py."""

from __future__ import annotations

import json

import pytest

from firstlight.errors import CheckpointError, ConfigError, DataError, Problems
from firstlight.model import count
from firstlight.recipes.explain import collect
from firstlight.recipes.explain.collect import DEFAULT_TEXT, check_walk, explain_depth, explain_run, sample_tokenizer
from firstlight.runtime.context import open_runtime


@pytest.fixture
def runtime():
    with open_runtime(device="cpu", dtype="fp32", num_threads=1) as opened:
        yield opened


@pytest.mark.parametrize("preset", ["classic", "modern", "portable"])
def test_facts_of_a_run_are_its_own(facts_of_run, preset: str) -> None:
    facts = facts_of_run(preset)
    assert (facts.title, facts.preset, facts.step, facts.is_trained) == ("small", preset, 30, True)
    assert facts.groups == count.num_params(facts.model)
    assert b"".join(piece.raw for piece in facts.pieces) == facts.text.encode()
    assert facts.batch.packing == "stream"
    train = facts.training
    assert (train.device_batch_size, train.seq_len, train.num_micro_batches, train.world_size) == (6, 64, 5, 1)
    assert train.device_batch_size * train.seq_len * train.num_micro_batches == train.total_batch_size
    assert train.whole_logits_bytes == 6 * 64 * facts.model.vocab_size * 4
    assert train.flops_per_token == count.flops_per_token(facts.model, 64)
    assert train.flops_per_token_causal == count.flops_per_token_causal(facts.model, 64)
    assert {stage.shape[:2] for stage in train.stages if stage.symbols.startswith("(B, T")} == {(6, 64)}
    by_name = {weight.name: weight.lr for weight in facts.weights}
    assert by_name["transformer.wte.weight"] == 0.3
    # Update number 29 of 40, the first 4 warming up, the last 20 falling to 5 %.
    assert train.at is not None
    assert train.at.lr_multiplier == pytest.approx((11 / 20) + (9 / 20) * 0.05)
    assert train.at.done == 29 / 40


def test_a_timed_run_stands_where_its_clock_stood(facts_of_run, plan) -> None:
    timed = plan | {"num_steps": None, "estimated_steps": 50, "horizon": {"kind": "minutes", "value": 2.0}}
    row = {
        "kind": "train", "step": 29, "lr_multiplier": 0.4, "momentum": 0.95, "elapsed_s": 60.0, "eta_s": 40.0,
        "step_time_s": 2.0, "tokens_per_s": 500.0,
    }  # fmt: skip
    slow = row | {"step": 28, "tokens_per_s": 100.0}
    fast = row | {"step": 27, "tokens_per_s": 900.0}
    scored = {"kind": "eval", "step": 30, "val_bpb": 1.5, "num_documents": 90, "num_documents_total": 1200}
    lines = "".join(json.dumps(each) + "\n" for each in (fast, slow, row, scored))
    facts = facts_of_run("classic", plan=timed, metrics=lines)
    train = facts.training
    assert train.at is not None
    assert (train.at.done, train.at.lr_multiplier, train.at.momentum) == (0.58, 0.4, 0.95)
    assert train.tokens_per_s == 500.0
    assert (facts.val_bpb, facts.val_of) == (1.5, "90 of 1,200 validation documents")
    assert "2 minutes" in train.total
    # The curve is over the 100 s that the updates had: the first is one second into a warm-up of 10.
    assert train.schedule[0].lr_multiplier == pytest.approx(0.1)
    assert train.schedule[-1].lr_multiplier == pytest.approx(0.05)


def test_a_run_without_a_plan_is_refused(make_run, runtime) -> None:
    make_run(plan=None)
    with pytest.raises(CheckpointError, match="no plan to explain"):
        explain_run("small", runtime)
    with pytest.raises(ConfigError, match="no run 'smal'"):
        explain_run("smal", runtime)


def test_a_long_text_is_cut_and_the_cut_is_counted(make_run, runtime) -> None:
    make_run()
    text = "abc " * 30
    facts = explain_run("small", runtime, text=text, max_tokens=10)
    assert len(facts.pieces) == 10
    assert facts.num_cut == len(text.encode()) - 10
    assert facts.text == text[:10]
    # The context of the model is a limit too.
    assert len(explain_run("small", runtime, text=text, max_tokens=200).pieces) == 64


def test_a_text_of_one_token_is_walked(make_run, runtime) -> None:
    make_run()
    facts = explain_run("small", runtime, text="x")
    assert facts.walk is not None
    assert facts.walk.score.num_bytes == 1
    assert facts.walk.heads[0].weights == ((1.0,),)


def test_a_text_that_is_no_unicode_is_refused(make_run, runtime) -> None:
    make_run()
    with pytest.raises(DataError, match="lone surrogate"):
        explain_run("small", runtime, text="a\ud800")


@pytest.mark.parametrize("preset", ["classic", "modern", "portable"])
def test_an_untrained_depth_is_walked_and_guesses_evenly(runtime, preset) -> None:
    facts = explain_depth(1, runtime, preset=preset)
    assert facts.walk is not None
    assert (facts.step, facts.is_trained, facts.training.at) == (None, False, None)
    assert any("Untrained" in note for note in facts.notes)
    # The head starts so small that every id is about as likely as any other: ln 1024.
    assert facts.walk.score.nats_per_token == pytest.approx(6.931, abs=0.05)
    assert facts.model.vocab_size == 1024


def test_a_large_depth_is_arithmetic_and_says_so(runtime, monkeypatch) -> None:
    def never(*args, **options):
        raise AssertionError("a large model was built")

    monkeypatch.setattr(collect, "build_gpt", never)
    facts = explain_depth(26, runtime)
    assert facts.walk is None
    assert any("No model was built" in note for note in facts.notes)
    assert any("80 GiB" in note for note in facts.notes)
    assert sum(weight.num_params for weight in facts.weights) == sum(count.num_params(facts.model).values())
    train = facts.training
    assert train.device_batch_size * train.seq_len * train.num_micro_batches == train.total_batch_size
    assert sum(part.amount for part in train.memory) < 80 * 2**30


def test_mistakes_are_told_together() -> None:
    problems = Problems()
    check_walk("", max_tokens=1, problems=problems)
    assert len(problems) == 2
    fine = Problems()
    check_walk(None, max_tokens=48, problems=fine)
    check_walk(DEFAULT_TEXT, max_tokens=2, problems=fine)
    assert len(fine) == 0


def test_the_tokenizer_made_on_the_spot_is_always_the_same() -> None:
    first, second = sample_tokenizer(1024), sample_tokenizer(1024)
    assert first.vocab_size == 1024
    assert first.content_hash == second.content_hash
