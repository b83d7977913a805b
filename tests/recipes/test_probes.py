"""When a base run is scored and sampled, and that a score names what it was measured on."""

from __future__ import annotations

import torch

from firstlight.data.split import iter_documents, val_content_hash
from firstlight.eval.bpb import evaluate_bpb
from firstlight.eval.samples import default_prompts
from firstlight.model.gpt import GPTConfig
from firstlight.model.init import build_gpt
from firstlight.recipes.prepare import prepare_data
from firstlight.recipes.probes import BpbProbe, SampleProbe, Validation, continuing
from firstlight.runtime.console import Console
from firstlight.runtime.context import Runtime

ALONE = Runtime(device=torch.device("cpu"))


def never() -> bool:
    return False


def parts(tiny_corpus, tmp_path):
    data = prepare_data(
        str(tiny_corpus), val="last", tokenizer_path=None, vocab_size=300, cache_dir=tmp_path / "cache", num_workers=0, seed=1,
        packing="bestfit", seq_len=32, console=Console(),
    )  # fmt: skip
    model = build_gpt(GPTConfig.from_depth(1, vocab_size=300, max_seq_len=32), seed=1)
    runtime = Runtime(device=torch.device("cpu"))
    validation = Validation(
        lambda: [document for document, _ in iter_documents(data.store, data.val)],
        lambda: val_content_hash(data.store, data.val), data.tokenizer, val="last", seq_len=32, batch_rows=4, runtime=runtime, console=Console(),
        hidden=model.hidden, compiled=False,
    )  # fmt: skip
    return data, model, runtime, validation


def test_score_is_the_evaluations_and_carries_the_hashes(tiny_corpus, tmp_path):
    data, model, runtime, validation = parts(tiny_corpus, tmp_path)
    result = validation.score(model)
    direct = evaluate_bpb(
        model, validation.documents, data.tokenizer.token_bytes(), bos_id=data.tokenizer.bos_id, seq_len=32, batch_rows=1,
        runtime=runtime,
    )  # fmt: skip
    assert abs(result.val_bpb - direct.val_bpb) < 1e-5
    facts = validation.facts(result)
    assert facts["val_hash"] == val_content_hash(data.store, data.val)
    assert facts["tokenizer_hash"] == data.tokenizer.content_hash
    assert facts["num_documents"] == 120
    data.store.close()


def test_limits_take_the_first_documents(tiny_corpus, tmp_path):
    data, model, _, validation = parts(tiny_corpus, tmp_path)
    assert validation.score(model, max_documents=7).num_documents == 7
    assert validation.num_tokens() == sum(len(document) for document in validation.documents)
    data.store.close()


def test_bpb_is_due_every_n_steps_but_the_end_is_the_recipes():
    probe = BpbProbe(None, every=5, max_documents=None, console=Console())
    assert [step for step in range(12) if probe.due(step, is_last=step == 11)] == [0, 5, 10]
    assert not probe.due(10, is_last=True)
    assert not BpbProbe(None, every=0, max_documents=None, console=Console()).due(0, is_last=False)


def test_samples_are_due_every_n_steps_and_at_the_end_not_at_the_start():
    probe = SampleProbe(None, ("a",), every=5, console=Console(), runtime=ALONE)
    assert [step for step in range(12) if probe.due(step, is_last=step == 11)] == [5, 10, 11]
    assert SampleProbe(None, ("a",), every=0, console=Console(), runtime=ALONE).due(3, is_last=True)


def test_samples_go_on_from_their_prompts_and_are_the_same_each_time(tiny_corpus, tmp_path):
    data, model, _, _ = parts(tiny_corpus, tmp_path)
    prompts = default_prompts("builtin")[:2]
    probe = SampleProbe(continuing(data.tokenizer), prompts, every=1, console=Console(is_main=False), runtime=ALONE)
    first, again = probe.measure(model, 1, is_over=never), probe.measure(model, 1, is_over=never)
    assert [sample["prompt"] for sample in first["samples"]] == list(prompts)
    assert first == again
    data.store.close()


def test_a_score_over_its_budget_is_a_part_and_never_passes_for_a_whole_one(tiny_corpus, tmp_path, capsys):
    data, model, _, validation = parts(tiny_corpus, tmp_path)
    answers = iter([False] * 9)
    probe = BpbProbe(validation, every=1, max_documents=100, console=Console())
    row = probe.measure(model, 3, is_over=lambda: next(answers, True))
    n = row["num_documents"]
    assert 0 < n < 100
    assert row["cut"] == f"by its budget: {n} of 100 documents"
    assert "val_bpb" not in row
    assert abs(row["partial_val_bpb"] - validation.score(model, max_documents=n).val_bpb) < 1e-5
    said = capsys.readouterr().out
    assert f"part of a val bpb: {row['partial_val_bpb']:.4f}" in said
    assert "cut by its time budget" in said
    whole = probe.measure(model, 3, is_over=never)
    assert (whole["num_documents"], "cut" in whole, "partial_val_bpb" in whole) == (100, False, False)
    assert abs(whole["val_bpb"] - validation.score(model, max_documents=100).val_bpb) < 1e-6
    data.store.close()


def test_samples_over_their_budget_are_those_that_are_there(tiny_corpus, tmp_path):
    data, model, _, _ = parts(tiny_corpus, tmp_path)
    prompts = default_prompts("builtin")[:4]
    probe = SampleProbe(continuing(data.tokenizer), prompts, every=1, console=Console(is_main=False), runtime=ALONE)
    answers = iter([False] * 2)
    row = probe.measure(model, 1, is_over=lambda: next(answers, True))
    assert row["cut"] == "by its budget: 2 of 4 prompts"
    assert row["samples"] == probe.measure(model, 1, is_over=never)["samples"][:2]
    data.store.close()
