"""Claims of cli/evaluate.py, through the command line that users type."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from firstlight.cli.main import run
from firstlight.model.gpt import GPT

CPU = ["--device", "cpu", "--dtype", "fp32", "--workers", "1"]
SECOND_SHARD = [f"second shard: {'x' * i}" for i in range(30)]


def score(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert run(["eval", "bpb", "tiny", *CPU, "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def brute_force_bits(model: GPT, texts: list[str], bos_id: int, window: int) -> float:
    """Bits of all texts, one window at a time, ids being bytes: plain log-softmax of the model's logits in float64."""
    bits = 0.0
    for text in texts:
        ids = list(text.encode())
        for start in range(0, len(ids), window):
            targets = ids[start : start + window]
            logits_TV = model(torch.tensor([[bos_id, *targets[:-1]]]))[0].double()
            bits -= torch.log_softmax(logits_TV, -1)[range(len(targets)), targets].sum().item() / math.log(2)
    return bits


def test_the_runs_own_validation_documents_are_scored_right(make_tiny_run, capsys) -> None:
    from firstlight.recipes.loading import load_for_inference
    from firstlight.runtime.context import Runtime

    made = make_tiny_run()
    result = score(capsys)
    loaded = load_for_inference("tiny", Runtime(device=torch.device("cpu")), runs_dir=made.runs_dir)
    num_bytes = sum(map(len, SECOND_SHARD))
    assert (result["num_documents"], result["num_documents_total"], result["num_bytes"]) == (30, 30, num_bytes)
    bits = brute_force_bits(loaded.model, SECOND_SHARD, loaded.tokenizer.bos_id, 32)
    assert result["val_bpb"] == pytest.approx(bits / num_bytes, rel=1e-5)
    assert (result["run"], result["step"], result["val"], result["max_seq_len"]) == ("tiny", 3, "b.jsonl", 32)
    assert len(result["val_hash"]) == 64
    assert result["val_bpb_stderr"] > 0


def test_the_choice_of_documents_is_the_users(make_tiny_run, capsys, tmp_path: Path) -> None:
    made = make_tiny_run()
    own = score(capsys)
    other = score(capsys, "--val", "a.jsonl")
    assert other["num_documents"] == 20
    assert other["val_hash"] != own["val_hash"]
    assert score(capsys, "--val", "all")["num_documents"] == 50
    one_file = tmp_path / "one.jsonl"
    one_file.write_text('{"text": "a text of its own"}\n{"text": "and another"}\n')
    elsewhere = score(capsys, "--data", str(one_file))
    assert (elsewhere["num_documents"], elsewhere["val"]) == (2, "all")
    assert score(capsys, "--data", str(made.data))["val_hash"] == own["val_hash"]


def test_the_scores_of_the_whole_set_are_kept_by_document(make_tiny_run, capsys) -> None:
    from firstlight.eval.document_scores import find_document_scores, read_document_scores
    from firstlight.recipes.loading import load_for_inference
    from firstlight.runtime.context import Runtime

    made = make_tiny_run()
    score(capsys, "--max-documents", "4")
    assert find_document_scores(made.path) == []
    result = score(capsys)
    [path] = find_document_scores(made.path)
    assert path.name == f"step_00000003-{result['val_hash'][:12]}.jsonl"
    found = read_document_scores(path)
    loaded = load_for_inference("tiny", Runtime(device=torch.device("cpu")), runs_dir=made.runs_dir)
    for text, nats, num_bytes, num_tokens in zip(
        SECOND_SHARD, found.nats, found.num_bytes, found.num_tokens, strict=True
    ):
        bits = brute_force_bits(loaded.model, [text], loaded.tokenizer.bos_id, 32)
        assert nats == pytest.approx(bits * math.log(2), rel=1e-5)
        assert num_bytes == num_tokens == len(text)
    assert set(found.slices) == {"b.jsonl"}
    named = {key: found.header[key] for key in ("run", "step", "val", "max_seq_len", "dtype", "num_documents_total")}
    assert named == {
        "run": "tiny",
        "step": 3,
        "val": "b.jsonl",
        "max_seq_len": 32,
        "dtype": "fp32",
        "num_documents_total": 30,
    }
    assert found.header["val_hash"] == result["val_hash"]
    assert found.header["tokenizer_hash"] == result["tokenizer_hash"]


def test_several_texts_give_a_table_and_the_whole_is_the_ratio_of_sums(make_tiny_run, capsys, tmp_path: Path) -> None:
    from firstlight.eval.document_scores import find_document_scores

    made = make_tiny_run()
    other = tmp_path / "other"
    (other / "inner").mkdir(parents=True)
    (other / "inner" / "c.jsonl").write_text('{"text": "a text of its own"}\n{"text": "and another"}\n')
    both = score(capsys, "--data", str(made.data), "--data", str(other), "--by", "corpus", "--by", "position")
    first, second = score(capsys, "--data", str(made.data)), score(capsys, "--data", str(other))
    assert both["val_bpb"] == pytest.approx(
        (first["nats"] + second["nats"]) / math.log(2) / both["num_bytes"], rel=1e-6
    )
    assert both["num_bytes"] == first["num_bytes"] + second["num_bytes"]
    named = {part["name"]: part for part in both["slices"]["corpus"]}
    assert list(named) == ["texts", "other"]
    for part, alone in [(named["texts"], first), (named["other"], second)]:
        assert part["val_bpb"] == pytest.approx(alone["val_bpb"], rel=1e-6)
        assert part["val_bpb_stderr"] == pytest.approx(alone["val_bpb_stderr"], rel=1e-5)
        assert (part["num_documents"], part["num_bytes"]) == (alone["num_documents"], alone["num_bytes"])
    assert [part["name"] for part in both["slices"]["position"]] == ["places 1 to 16", "from place 17 on"]
    assert [each["data"] for each in both["sets"]] == both["data"] == [str(made.data), str(other)]
    assert len(find_document_scores(made.path)) == 2
    assert run(["eval", "bpb", "tiny", *CPU, "--data", str(made.data), "--data", str(other)]) == 0
    out = capsys.readouterr().out
    assert "corpus" in out
    assert "position" not in out
    assert run(["eval", "bpb", "tiny", *CPU]) == 0
    assert "corpus" not in capsys.readouterr().out


def test_a_limit_says_how_many_of_how_many(make_tiny_run, capsys) -> None:
    make_tiny_run()
    assert run(["eval", "bpb", "tiny", *CPU, "--max-documents", "4"]) == 0
    out = capsys.readouterr().out
    assert "4 of 30 documents" in out
    assert "content hash" in out


def test_window_and_batch_are_the_users_and_batch_changes_nothing(make_tiny_run, capsys) -> None:
    make_tiny_run()
    by_one = score(capsys, "--max-seq-len", "7", "--device-batch-size", "1")
    by_many = score(capsys, "--max-seq-len", "7", "--device-batch-size", "50")
    assert by_one["val_bpb"] == pytest.approx(by_many["val_bpb"], rel=1e-6)
    assert by_one["max_seq_len"] == 7
    assert by_one["num_windows"] == sum(-(-len(text) // 7) for text in SECOND_SHARD)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--max-seq-len", "33"], 2, "context of 32"),
        (["--max-documents", "0"], 2, "nothing to score"),
        (["--val", "c.jsonl"], 2, "no such file"),
        (["--val", "hash:2"], 2, "fraction"),
        (["--data", "nowhere"], 2, "nowhere"),
        (["--checkpoint", "99"], 4, "kept are steps 3"),
        (["--device", "gpu"], 2, "--device gpu"),
    ],
)
def test_mistakes_have_their_message_and_exit_code(
    make_tiny_run, capsys, arguments: list[str], code: int, message: str
) -> None:
    make_tiny_run()
    assert run(["eval", "bpb", "tiny", "--workers", "1", *arguments]) == code
    assert message in capsys.readouterr().err


def test_samples_of_fixed_prompts_are_the_same_each_time(make_tiny_run, capsys) -> None:
    make_tiny_run()
    arguments = ["eval", "samples", "tiny", "--max-new-tokens", "4", "--device", "cpu", "--dtype", "fp32"]
    assert run(arguments) == 0
    first = capsys.readouterr().out
    assert first.startswith("## Step 3\n")
    assert "The capital of France is│" in first
    assert run(arguments) == 0
    assert capsys.readouterr().out == first


def test_samples_of_ones_own_prompts(make_tiny_run, capsys) -> None:
    make_tiny_run()
    assert (
        run(["eval", "samples", "tiny", "-p", "one", "-p", "two", "--max-new-tokens", "2", "--device", "cpu", "--json"])
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert [sample["prompt"] for sample in result["samples"]] == ["one", "two"]
    assert result["step"] == 3


def test_limits_of_nothing_and_a_text_given_twice_are_refused_together_before_any_work(capsys) -> None:
    assert (
        run(["eval", "bpb", "no-such-run", "--max-documents", "0", "--max-tokens", "-1", "--data", "a", "--data", "a"])
        == 2
    )
    said = capsys.readouterr().err
    for part in ("--max-documents 0", "--max-tokens -1", "--data a is given twice"):
        assert part in said


def test_a_text_that_is_not_there_is_found_before_another_is_scored(make_tiny_run, capsys, monkeypatch) -> None:
    from firstlight.recipes import bpb_eval

    made = make_tiny_run()
    monkeypatch.setattr(bpb_eval, "score_documents", lambda *a, **k: pytest.fail("scored although a text is missing"))
    assert run(["eval", "bpb", "tiny", *CPU, "--data", str(made.data), "--data", str(made.data / "missing")]) in (2, 3)
    assert "missing" in capsys.readouterr().err
