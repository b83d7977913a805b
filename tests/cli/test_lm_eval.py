"""Claims of cli/lm_eval.py, through the command line that users type; what needs the harness is skipped without it."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from firstlight.cli.lm_eval import model_opener
from firstlight.cli.main import run
from firstlight.errors import FirstlightError
from firstlight.runtime import environment
from firstlight.runtime.console import Console

TASK = """
task: own_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list: [{{metric: acc}}]
"""

ROWS = [
    {"question": "ab", "choices": ["c", "dd", "e"], "gold": 0},
    {"question": "two words", "choices": ["and", "or"], "gold": 1},
    {"question": "xyz" * 20, "choices": ["q", "r"], "gold": 1},
]


@pytest.fixture
def harness_installed():
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (the extra eval)")


def arguments(tmp_path: Path, model_args: str) -> list[str]:
    folder = tmp_path / "tasks"
    folder.mkdir(exist_ok=True)
    data = folder / "own.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "own.yaml").write_text(TASK.format(data=data, cache=tmp_path / "cache"))
    return [
        "lm-eval", "--model", "firstlight", "--model_args", model_args, "--tasks", "own_choices",
        "--include_path", str(folder), "--output_path", str(tmp_path / "out"), "--log_samples",
    ]  # fmt: skip


# The harness reads thousands of task definitions first.
@pytest.mark.slow
def test_a_run_is_scored_by_the_harness_command_line(
    harness_installed, make_tiny_run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    made = make_tiny_run(steps=(3, 4))
    before = list(sys.argv)
    assert run(arguments(tmp_path, f"run={made.path},checkpoint=3,device=cpu,dtype=fp32")) == 0
    assert sys.argv == before
    captured = capsys.readouterr()
    assert "own_choices" in captured.out
    assert "2 of 7 contexts are longer than the context of 32 tokens and lost their front" in captured.err
    (results,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(results.read_text())
    assert (found["config"]["run"], found["config"]["step"], found["config"]["model_dtype"]) == ("tiny", 3, "fp32")

    # Each answer beside the plain model of the same checkpoint: bytes are ids, BOS is the first special id.
    from firstlight.recipes.loading import load_for_inference
    from firstlight.runtime.context import Runtime

    loaded = load_for_inference(made.path, Runtime(torch.device("cpu")), checkpoint="3")
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    answers = {row["doc_id"]: row for row in map(json.loads, samples.read_text().splitlines())}
    num_right = 0
    for number, row in enumerate(ROWS):
        logprobs = []
        for choice, answer in zip(row["choices"], answers[number]["filtered_resps"], strict=True):
            scored = f" {choice}".encode()
            ids = [loaded.tokenizer.bos_id, *row["question"].encode(), *scored][-33:]
            table = loaded.model(torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)
            places = range(len(ids) - len(scored), len(ids))
            logprobs.append(sum(float(table[t - 1, ids[t]]) for t in places))
            assert float(answer[0]) == pytest.approx(logprobs[-1], abs=1e-4)
        num_right += max(range(len(logprobs)), key=logprobs.__getitem__) == row["gold"]
    assert found["results"]["own_choices"]["acc,none"] == pytest.approx(num_right / 3)


@pytest.mark.parametrize(
    ("model_args", "messages"),
    [
        ({"checkpoint": "best"}, ["--model_args names no run"]),
        ({"run": "tiny", "chekpoint": 3}, ["--model_args chekpoint=3 is not known", "did you mean 'checkpoint'"]),
        ({"threads": "none", "add_bos": 5}, ["3 things are wrong", "threads=none", "add_bos=5", "names no run"]),
        ({"run": "tiny", "batch_tokens": 0, "threads": True}, ["2 things are wrong", "batch_tokens=0", "threads=True"]),
        ({"run": "nothing-here", "device": "cpu"}, ["nothing-here"]),
        ({"run": "tiny", "device": "cpu", "checkpoint": 77}, ["no checkpoint of step 77"]),
    ],
)
def test_a_mistake_in_the_model_args_is_told(make_tiny_run, model_args: dict, messages: list[str]) -> None:
    make_tiny_run()
    with ExitStack() as stack, pytest.raises(FirstlightError) as error:
        model_opener(stack, Console())(**model_args)
    for message in messages:
        assert message in str(error.value)
    assert error.value.hint or len(messages) > 2


def test_model_args_choose_the_model(make_tiny_run) -> None:
    # A run whose name is a number comes as one.
    make_tiny_run(steps=(3, 4)).path.rename(Path(environment.runs_dir()) / "7")
    with ExitStack() as stack:
        harness = model_opener(stack, Console())(
            run=7, checkpoint=3, device="cpu", dtype="bf16", add_bos=False, batch_tokens=64, seed=5
        )
    assert harness.facts["step"] == 3
    assert (harness.model.compute_dtype, harness.facts["model_dtype"]) == (torch.bfloat16, "bf16")
    assert (harness.add_bos, harness.seed, harness.scorer.batch_tokens) == (False, 5, 64)
    assert harness.facts["model_num_parameters"] == sum(weight.numel() for weight in harness.model.parameters())


def test_help_is_the_harness_own(harness_installed, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lm-eval", "run", "--help"]) == 0
    assert "--model_args" in capsys.readouterr().out


def test_several_processes_are_refused(harness_installed, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(["lm-eval", "ls", "tasks"]) == 2
    assert "without torchrun" in capsys.readouterr().err


def test_without_the_harness_the_extra_is_named(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert run(["lm-eval", "--tasks", "arc_easy"]) == 2
    assert 'pip install "firstlight[eval]"' in capsys.readouterr().err
