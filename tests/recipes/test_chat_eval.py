"""Claims of recipes/chat_eval.py: kept answers are those of the same model and questions; a killed evaluation goes on."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from firstlight.errors import ConfigError, DataError
from firstlight.eval.chat import answers
from firstlight.eval.chat.task import ChatTask, Grade, Item, choice_item
from firstlight.model.gpt import GPTConfig
from firstlight.model.init import build_gpt
from firstlight.recipes.chat_eval import evaluate_chat, evaluate_run, show_chat
from firstlight.recipes.loading import LoadedRun, load_for_inference
from firstlight.recipes.record import new_record, new_run_dir, write_run
from firstlight.runtime.console import Console
from firstlight.runtime.context import Runtime
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import Message
from firstlight.train.checkpoint import save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
CPU = Runtime(device=torch.device("cpu"))
TOKENIZER = Tokenizer([bytes([b]) for b in range(256)])


class NoOptimizer:
    def state_tensors(self) -> dict:
        return {}


def make_run(runs: Path, name: str = "m", seed: int = 1) -> LoadedRun:
    config = GPTConfig(TOKENIZER.vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=16, max_seq_len=64)
    path = new_run_dir(runs, name)
    TOKENIZER.save(path / "tokenizer.json")
    settings = {"model": asdict(config), "settings": {}}
    write_run(path, new_record(name, status="done", config=settings, tokenizer_hash=TOKENIZER.content_hash))
    model = build_gpt(config, device=torch.device("cpu"), compute_dtype=torch.float32, seed=seed)
    with torch.no_grad():
        model.lm_head.weight.add_(
            torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(seed))
        )
    save_checkpoint(path / "checkpoints", step=3, model=model, optimizer=NoOptimizer(), state={"step": 3})
    return load_for_inference(name, CPU, runs_dir=runs)


def the_tasks(num: int = 40) -> list[ChatTask]:
    letters = tuple(choice_item(f"number {i}?", ["one", "two", "three"], i % 3, where=str(i)) for i in range(num))

    def grade(text: str) -> Grade:
        return Grade(len(text) % 2 == 0, text.isascii())

    words = tuple(
        Item((Message.of("user", f"say {i}"),), str(i), str(i), grade=grade, group="ab"[i % 2]) for i in range(num)
    )
    return [ChatTask("letters", "categorical", letters), ChatTask("words", "generative", words, 6)]


def evaluate(loaded: LoadedRun, tasks: list[ChatTask] | None = None, **options):
    said = io.StringIO()
    result, facts = evaluate_run(loaded, tasks or the_tasks(), runtime=CPU, console=Console(file=said), **options)
    return result, facts, said.getvalue()


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], sys.argv[3]]
import test_chat_eval as here
from firstlight.eval.chat import evaluate
asked = here.answers.Asker.ask
def ask(self, task, items, indices, **more):
    if task.name == "words" and 33 in indices:
        os.kill(os.getpid(), signal.SIGKILL)
    return asked(self, task, items, indices, **more)
here.answers.Asker.ask = ask
here.evaluate(here.load_for_inference("m", here.CPU, runs_dir=Path(sys.argv[1])))
"""


def test_killed_half_way_it_goes_on_and_ends_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = make_run(tmp_path / "runs")
    whole, _, _ = evaluate(loaded, folder=tmp_path / "whole")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "runs"), str(ROOT / "tests/recipes"), str(ROOT / "tests")],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    [log] = (loaded.path / "chat").glob("words-*.jsonl")
    kept = log.read_text().splitlines()[1:]
    assert 0 < len(kept) < 40
    assert "answer" in json.loads(kept[0])
    # What a kill in the middle of a write leaves.
    log.write_text(log.read_text() + '{"task": "words", "ind')
    asked: list[int] = []
    original = answers.Asker.ask

    def ask(self, task, items, indices, **more):
        asked.extend(indices)
        return original(self, task, items, indices, **more)

    monkeypatch.setattr(answers.Asker, "ask", ask)
    again, facts, said = evaluate(loaded)
    assert len(asked) == 40 - len(kept)
    assert facts["num_resumed"] == 40 + len(kept)
    assert "cut short" in said
    assert [task.right for task in again.tasks] == [task.right for task in whole.tasks]
    assert [task.ends for task in again.tasks] == [task.ends for task in whole.tasks]
    asked.clear()
    evaluate(loaded)
    assert asked == []
    # More questions begin with those that were asked already, and fewer are among them.
    assert evaluate(loaded, max_per_task=5)[0].tasks[0].right == whole.tasks[0].right[:5]
    assert asked == []
    evaluate(loaded, fresh=True)
    assert len(asked) == 80


def test_other_weights_questions_or_sampling_are_another_evaluation(tmp_path: Path) -> None:
    loaded = make_run(tmp_path / "runs")
    folder = tmp_path / "chat"
    assert evaluate(loaded, the_tasks(4), folder=folder)[1]["num_resumed"] == 0
    assert evaluate(loaded, the_tasks(4), folder=folder)[1]["num_resumed"] == 8
    # Letters do not depend on how answers are written.
    assert evaluate(loaded, the_tasks(4), folder=folder, temperature=0.5)[1]["num_resumed"] == 4
    assert evaluate(loaded, the_tasks(4), folder=folder, max_new_tokens=3)[1]["num_resumed"] == 4
    assert evaluate(loaded, the_tasks(5), folder=folder)[1]["num_resumed"] == 0
    other = make_run(tmp_path / "runs", "n", seed=2)
    assert evaluate(other, the_tasks(4), folder=folder)[1]["num_resumed"] == 0


def test_the_result_is_a_file_with_all_that_it_rests_on(tmp_path: Path) -> None:
    loaded = make_run(tmp_path / "runs")
    result, facts, _ = evaluate(loaded, the_tasks(6))
    found = json.loads(Path(facts["result"]).read_text())
    assert Path(facts["result"]).parent == loaded.path / "chat"
    assert found["tokenizer_hash"] == TOKENIZER.content_hash
    assert found["tasks_hashes"] == {task.name: task.content_hash for task in the_tasks(6)}
    assert found["mean_centered"] == result.mean
    assert (found["model"], found["step"], found["chat_core"]) == ("m", 3, None)
    assert Path(found["answers"]["words"]).exists()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    loaded = make_run(tmp_path / "runs")
    _, facts, _ = evaluate(loaded, the_tasks(4))
    path = Path(facts["answers"]["letters"])
    path.write_text(path.read_text().replace('"index": ', '"indx": ', 1))
    with pytest.raises(DataError, match="line 2 is damaged"):
        evaluate(loaded, the_tasks(4))


def test_two_models_are_shown_beside_each_other_with_a_verdict(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "runs"), make_run(tmp_path / "runs", "n", seed=2)
    results = [evaluate(loaded, the_tasks(12))[0] for loaded in (one, two)]
    said = io.StringIO()
    gains = show_chat(Console(file=said), "one", results[0], beside=("two", results[1]))
    text = said.getvalue()
    assert [gain.name for gain in gains] == ["letters", "words", "words, form", "mean over 2 tasks"]
    assert "one: mean over 2 tasks:" in text
    assert all(f"{gain.name}: one against two: {gain.words()}" in text for gain in gains)
    lines = [line.split() for line in text.splitlines() if line.startswith("words")]
    assert [line[1] for line in lines[:2]] == ["one", "two"]
    assert "kind of question" in text
    with pytest.raises(DataError, match="same questions"):
        show_chat(Console(file=said), "one", results[0], beside=("two", evaluate(two, the_tasks(5))[0]))


def test_the_model_is_left_as_it_was_and_no_task_is_an_error(tmp_path: Path) -> None:
    model = make_run(tmp_path / "runs").model
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    said = io.StringIO()
    evaluate_chat(model, TOKENIZER, the_tasks(3), runtime=CPU, console=Console(file=said), temperature=1.0)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ConfigError, match="no task"):
        evaluate_chat(model, TOKENIZER, [], runtime=CPU, console=Console(file=said))
