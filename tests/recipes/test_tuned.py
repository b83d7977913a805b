"""Mid-training and SFT at tiny size: what they start from, which ids carry loss, and what they refuse before step 0."""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from words import WORDS

from firstlight.data.chat.sources import open_conversations
from firstlight.data.chat.tokenised import tokenise_conversations
from firstlight.errors import CheckpointError, ConfigError, DataError
from firstlight.recipes import base, tuned
from firstlight.recipes.loading import load_for_inference
from firstlight.recipes.mid import train_mid
from firstlight.recipes.record import read_run
from firstlight.recipes.settings import BaseSettings, MidSettings, SftSettings
from firstlight.recipes.sft import train_sft
from firstlight.runtime.context import Runtime
from firstlight.runtime.metrics import read_metrics

COMMON = {
    "dtype": "fp32", "device": "cpu", "compile": "off", "threads": 1, "workers": 0, "eval_every": 0, "sample_every": 0,
}  # fmt: skip
TINY = {**COMMON, "num_iterations": 3, "total_batch_size": 256, "val_frac": 0.1, "chat_tasks": "none"}


def chats(path: Path, *, num: int = 60, num_chars: int = 20) -> Path:
    draw = random.Random(num)
    lines = []
    for number in range(num):
        words = " ".join(draw.choices(WORDS, k=40))
        lines.append(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": f"say {number}"},
                        {"role": "assistant", "content": words[:num_chars]},
                    ]
                }
            )
        )
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def trained_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a base run of a few steps, made once."""
    folder = tmp_path_factory.mktemp("base")
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=40)) + "." for _ in range(120)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRSTLIGHT_CACHE", str(folder / "cache"))
        patch.setenv("FIRSTLIGHT_RUNS", str(folder / "runs"))
        base.train_base(
            BaseSettings(
                run="start", data=str(folder / "text.jsonl"), val="hash:0.1", depth=1, vocab_size=300, max_seq_len=64,
                total_batch_size=256, num_iterations=4, **COMMON,
            )
        )  # fmt: skip
    return folder / "runs" / "start"


@pytest.fixture
def start(trained_base: Path, own_folders: Path) -> Path:
    """A copy of that run among the test's own."""
    return Path(shutil.copytree(trained_base, own_folders / "start"))


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


def test_sft_begins_with_the_weights_of_the_run_and_says_so_in_its_record(start, own_folders, tmp_path):
    train_sft(SftSettings(run="s", init="start", data=str(chats(tmp_path / "c.jsonl")), lr_frac=1e-9, **TINY))
    before, after = weights(start, 4), weights(own_folders / "s", 3)
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-6
    record = read_run(own_folders / "s")
    assert (record.recipe, record.parents, record.status) == ("sft", ("start",), "done")
    assert record.config["start"] == {"run": "start", "recipe": "base", "checkpoint": "step_00000004"}
    assert record.config["plan"]["matrix_lr"] == pytest.approx(0.02e-9)
    assert record.tokenizer_hash == read_run(start).tokenizer_hash
    assert record.final["val_bpb"] > 0


@pytest.mark.parametrize(("stage", "is_masked"), [("sft", True), ("mid", False)])
def test_the_first_loss_is_the_mean_over_the_ids_that_carry_loss(start, own_folders, tmp_path, stage, is_masked):
    """Beside a plain forward pass of each conversation alone: they are too long for two to share a row."""
    path = chats(tmp_path / "c.jsonl", num=24, num_chars=60)
    loaded = load_for_inference("start", Runtime(device=torch.device("cpu")))
    kept = tokenise_conversations(
        open_conversations(str(path), cache_dir=tmp_path), loaded.tokenizer, cache_dir=tmp_path
    )
    documents = list(kept.split("train", val_frac=0.2))
    longest = max(map(len, documents))
    assert min(map(len, documents)) * 2 + 2 > longest + 1
    nats, num_targets = 0.0, 0
    for document in documents:
        ids = torch.tensor([[loaded.tokenizer.bos_id, *document.ids.tolist()]])
        with torch.no_grad():
            logprobs = loaded.model.logits(loaded.model.hidden(ids[:, :-1])).double().log_softmax(-1)[0]
        for place, target in enumerate(ids[0, 1:].tolist()):
            if document.loss_mask[place] or not is_masked:
                nats -= float(logprobs[place, target])
                num_targets += 1
    settings = {
        "run": stage, "init": "start", "data": str(path), "max_seq_len": longest, **TINY, "val_frac": 0.2,
        "num_iterations": 1, "total_batch_size": longest * len(documents),
    }  # fmt: skip
    train_sft(SftSettings(**settings)) if stage == "sft" else train_mid(MidSettings(**settings))
    [row] = [row for row in read_metrics(own_folders / stage / "metrics.jsonl") if row["kind"] == "train"]
    assert row["num_targets"] == num_targets
    assert row["loss_nats"] == pytest.approx(nats / num_targets, rel=1e-5)


def test_accumulated_passes_weigh_masked_ids_by_their_count(start, own_folders, tmp_path):
    """Conversations of very different numbers of targets, in one pass of four rows and in four of one."""
    path = tmp_path / "c.jsonl"
    lines = [
        [{"role": "user", "content": "say " + "cat " * (14 - n)}, {"role": "assistant", "content": "dog " * n}]
        for n in (1, 2, 5, 9, 12) * 8
    ]
    path.write_text(
        "".join(
            json.dumps(
                {"messages": [*line, {"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "so"}]}
            )
            + "\n"
            for i, line in enumerate(lines)
        )
    )
    found = []
    for rows in (4, 1):
        run = f"rows{rows}"
        train_sft(SftSettings(run=run, init="start", data=str(path), device_batch_size=rows, **TINY))
        found.append(
            (
                weights(own_folders / run, 3),
                [r for r in read_metrics(own_folders / run / "metrics.jsonl") if r["kind"] == "train"],
            )
        )
    (one, rows_one), (four, rows_four) = found
    apart = math.sqrt(sum(float((one[name] - four[name]).double().square().sum()) for name in one))
    assert apart < 1e-5 * math.sqrt(sum(float(tensor.double().square().sum()) for tensor in one.values()))
    assert [row["loss_nats"] for row in rows_one] == pytest.approx([row["loss_nats"] for row in rows_four], abs=1e-6)


def test_passes_over_the_conversations_are_a_number_of_steps(start, own_folders, tmp_path):
    path = chats(tmp_path / "c.jsonl", num=200)
    settings = {name: value for name, value in TINY.items() if name != "num_iterations"}
    record = train_sft(SftSettings(run="s", init="start", data=str(path), epochs=2, **settings))
    rows = record.config["conversations"][str(path)]["rows"]
    assert record.final["steps"] == math.ceil(2 * rows / (256 / 64))


def test_mid_training_takes_the_text_of_the_base_run_and_a_second_stage_finds_it_too(start, own_folders, tmp_path):
    path = chats(tmp_path / "c.jsonl")
    train_mid(MidSettings(run="m", init="start", data=f"{path}:0.5,text:0.5", **TINY))
    record = train_mid(MidSettings(run="m2", init="m", data=f"text,{path}", **TINY))
    assert record.parents == ("m",)
    assert record.status == "done"


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"init": None}, ConfigError, "--init is missing"),
        ({"init": "stort"}, ConfigError, "did you mean start"),
        ({"checkpoint": "77"}, CheckpointError, "no checkpoint of step 77"),
        ({"data": "nothing.jsonl"}, ConfigError, "no conversations of that name"),
        ({"data": "text"}, ConfigError, "has no conversations"),
        ({"data": "builtin-chat:0"}, ConfigError, "not above 0"),
        ({"lr_frac": 0.0}, ConfigError, "--lr-frac 0 must be above zero"),
        ({"lr_frac": math.nan}, ConfigError, "--lr-frac nan"),
        ({"matrix_lr": 0.0}, ConfigError, "--matrix-lr 0.0 must be above zero"),
        ({"embedding_lr": math.nan}, ConfigError, "--embedding-lr nan"),
        ({"max_seq_len": 65}, ConfigError, "context of 64"),
        ({"max_seq_len": 0}, ConfigError, "--max-seq-len 0"),
        ({"epochs": math.nan, "num_iterations": None}, ConfigError, "--epochs nan"),
        ({"epochs": math.inf, "num_iterations": None}, ConfigError, "--epochs inf"),
        ({"minutes": math.nan, "num_iterations": None}, ConfigError, "--minutes nan"),
        ({"total_batch_size": 0, "num_iterations": None}, ConfigError, "--total-batch-size 0"),
        ({"epochs": 1.0}, ConfigError, "2 horizons"),
        ({"epochs": -1.0, "num_iterations": None}, ConfigError, "--epochs -1"),
        ({"chat_tasks": "arc_eazy"}, ConfigError, "arc_easy"),
        ({"total_batch_size": 100}, ConfigError, "not a multiple of 64"),
    ],
)
def test_what_cannot_work_is_refused_before_step_0_and_leaves_no_run(
    start, own_folders, tmp_path, changes, error, words
):
    settings = SftSettings(run="s", init="start", data=str(chats(tmp_path / "c.jsonl")), **TINY)
    with pytest.raises(error, match=words) as raised:
        train_sft(replace(settings, **changes))
    assert "Traceback" not in str(raised.value)
    assert not (own_folders / "s").exists() or not any((own_folders / "s").iterdir())


def test_an_unknown_task_is_told_before_conversations_are_read(start, own_folders, tmp_path, monkeypatch):
    monkeypatch.setattr(tuned.TunedRun, "open_mixture", lambda self: pytest.fail("conversations were read"))
    settings = SftSettings(run="s", init="start", data=str(chats(tmp_path / "c.jsonl")), **TINY)
    with pytest.raises(ConfigError, match="arc_easy"):
        train_sft(replace(settings, chat_tasks="arc_eazy"))


def test_a_run_of_one_stage_is_not_resumed_as_another(start, own_folders, tmp_path):
    train_sft(SftSettings(run="s", init="start", data=str(chats(tmp_path / "c.jsonl")), **TINY))
    with pytest.raises(ConfigError, match="`firstlight train sft`, not of `firstlight train mid`"):
        train_mid(MidSettings(run="s", resume=True), given=frozenset({"run", "resume"}))


@pytest.mark.parametrize("what", ["gone", "another"])
def test_a_run_goes_on_bit_for_bit_without_the_run_that_it_started_from(start, own_folders, tmp_path, what):
    """The start, its text included, is known to the run's own folder; a start of other rates changes nothing either."""
    path = chats(tmp_path / "c.jsonl")
    settings = MidSettings(
        init="start", data=f"{path}:0.5,text:0.5", **{**TINY, "num_iterations": 4}, save_every=2, keep=9, lr_frac=0.5
    )
    train_mid(replace(settings, run="whole"))
    train_mid(replace(settings, run="two"))
    shutil.rmtree(own_folders / "two" / "checkpoints" / "step_00000004")
    if what == "gone":
        shutil.rmtree(start)
    else:
        record = json.loads((start / "run.json").read_text())
        record["config"]["plan"] |= {"scalar_lr": 7.0, "matrix_lr": 7.0}
        (start / "run.json").write_text(json.dumps(record))
    record = train_mid(replace(settings, run="two", resume=True), given=frozenset({"run", "resume"}))
    assert record.parents == ("start",)
    assert record.config["start"] == {"run": "start", "recipe": "base", "checkpoint": "step_00000004"}
    whole, two = weights(own_folders / "whole", 4), weights(own_folders / "two", 4)
    assert all(torch.equal(whole[name], two[name]) for name in whole)


def test_a_run_without_a_checkpoint_needs_the_run_that_it_started_from(start, own_folders, tmp_path):
    settings = SftSettings(run="s", init="start", data=str(chats(tmp_path / "c.jsonl")), **TINY)
    train_sft(settings)
    shutil.rmtree(own_folders / "s" / "checkpoints")
    shutil.rmtree(start)
    with pytest.raises(ConfigError, match="no run 'start'"):
        train_sft(replace(settings, resume=True), given=frozenset({"run", "resume"}))


def test_conversations_that_have_changed_are_refused_on_resume(start, own_folders, tmp_path):
    path = chats(tmp_path / "c.jsonl")
    settings = SftSettings(run="s", init="start", data=str(path), **TINY, save_every=2)
    train_sft(settings)
    path.write_text(path.read_text().replace("say", "tell"))
    with pytest.raises(DataError, match="has changed"):
        train_sft(
            replace(settings, resume=True, num_iterations=5), given=frozenset({"run", "resume", "num_iterations"})
        )


def test_weights_that_are_damaged_are_named(start, own_folders, tmp_path):
    path = start / "checkpoints" / "step_00000004" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        train_sft(SftSettings(run="s", init="start", data=str(chats(tmp_path / "c.jsonl")), **TINY))
