"""R25: every stage after the base run goes on from its own checkpoint, bit for bit, and deals out the same data to any ranks."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from resilience.harness import (
    NUM_ROWS,
    TINY,
    Place,
    assert_close_run,
    assert_same_run,
    launch,
    rows,
    run_to_end,
    wait_for_step,
)
from words import WORDS

from firstlight.recipes.settings import MidSettings, RlSettings, RunSettings, SftSettings

STEPS = 12
COMMON = {
    "num_iterations": STEPS, "dtype": "fp32", "device": "cpu", "compile": "off", "threads": 1, "workers": 0, "save_every": 3,
    "eval_every": 0, "lr_frac": 0.5,
}  # fmt: skip
TUNED = {**COMMON, "sample_every": 0, "total_batch_size": 64 * NUM_ROWS, "chat_tasks": "none", "val_frac": 0.1}


def write_chats(path: Path) -> Path:
    """Made-up conversations of one or two turns, of which only the answers carry loss."""
    draw = random.Random(7)
    lines = []
    for _ in range(120):
        messages = []
        for _ in range(draw.randint(1, 2)):
            word = draw.choice(WORDS)
            messages.append({"role": "user", "content": f"say {word}"})
            messages.append({"role": "assistant", "content": " ".join([word] * draw.randint(1, 4))})
        lines.append(json.dumps({"messages": messages}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def base(home: Place) -> Place:
    """A base run to start from, in a folder that all tests share; and conversations beside it."""
    run_to_end(home, replace(TINY, run="start"))
    write_chats(home.runs / "chats.jsonl")
    return home


def stage_of(name: str, place: Place) -> RunSettings:
    chats = str(place.runs / "chats.jsonl")
    match name:
        case "mid":
            return MidSettings(run=name, init="start", data=f"{chats}:0.5,text:0.5", **TUNED)
        case "sft":
            return SftSettings(run=name, init="start", data=chats, **TUNED)
    return RlSettings(
        run=name, init="start", environment="spelling", prompts_per_step=4, samples_per_prompt=3, max_new_tokens=6,
        format_reward=0.0, reward_problems=4, reward_samples=2, temperature=1.5, **COMMON,
    )  # fmt: skip


@pytest.fixture(scope="session")
def straight(base: Place) -> Callable[[str], Path]:
    """The folder of a stage's run that nothing has disturbed; each is made once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            run_to_end(base, replace(stage_of(name, base), run=f"straight-{name}"), fault=reward_lengths)
            made[name] = base.runs / f"straight-{name}"
        return made[name]

    return get


def reward_lengths(rank: int) -> None:
    """Answers of a model that knows nothing are never right: here a longer one is worth more, and some have no reward."""
    from firstlight.recipes import rl
    from firstlight.rl.environments.base import Problem

    class Lengths:
        name, uses_python = "lengths", False

        def num_problems(self, split):
            return 40

        def problem(self, split, index):
            from firstlight.tokens.conversation import Message

            return Problem((Message.of("user", f"say {WORDS[index % len(WORDS)]}"),), "", f"{split}:{index}")

        def reward(self, problem, text, parts):
            return float("nan") if len(text) % 5 == 4 else min(1.0, len(text) / 10)

        def has_format(self, problem, text):
            return True

    rl.open_environment = lambda *_, **__: Lengths()  # type: ignore[assignment]
    real = rl.RolloutBatches

    def lenient(*args, **options):
        return real(*args, **options, only_ended=False)

    rl.RolloutBatches = lenient  # type: ignore[assignment]


@pytest.mark.parametrize("name", ["mid", "sft", "rl"])
def test_r25_a_stage_killed_at_random_and_resumed_ends_as_one_that_was_not(base, straight, name):
    run = f"killed-{name}"
    settings = replace(stage_of(name, base), run=run)
    draw = random.Random(name)
    for _ in range(2):
        job = launch(base, settings, fault=reward_lengths)
        wait_for_step(base.runs / run, draw.randint(1, STEPS - 2), job)
        job.kill()
        job.wait()
        settings = replace(type(settings)(), run=run, resume=True)
    run_to_end(base, settings, fault=reward_lengths)
    assert_same_run(straight(name), base.runs / run)
    assert len({loss for _, loss in ((row["step"], row["loss_nats"]) for row in rows(base.runs / run, "train"))}) > 1


@pytest.mark.parametrize("name", ["mid", "sft", "rl"])
def test_r25_two_processes_train_a_stage_on_the_same_rows_in_the_same_order(base, straight, name):
    run = f"two-{name}"
    run_to_end(base, replace(stage_of(name, base), run=run), 2, fault=reward_lengths)
    one, two = straight(name), base.runs / run
    # Targets of each step: another row anywhere would change their number.
    counts = [[row["num_targets"] for row in rows(each, "train")] for each in (one, two)]
    assert counts[0] == counts[1]
    assert len(set(counts[0])) > 1
    # An answer is sampled again where two ids are nearly as likely; the first steps come before that can matter.
    assert_close_run(one, two, rel=1e-4)


def test_r25_ids_that_carry_loss_weigh_the_same_in_four_passes_of_one_process_and_in_two_of_two(base):
    """Rows have different numbers of targets: means of passes or of processes would give another loss and another gradient."""
    found = {}
    for world_size, passes in ((1, 4), (2, 2)):
        run = f"passes-{world_size}"
        settings = replace(stage_of("sft", base), run=run, device_batch_size=3, num_iterations=2)
        run_to_end(base, settings, world_size)
        assert f"grad_accum_steps   {passes} " in next(base.runs.glob(f"*-{run}-rank0.out")).read_text()
        found[world_size] = rows(base.runs / run, "train")
    for one, two in zip(found[1], found[2], strict=True):
        assert one["num_targets"] == two["num_targets"]
        assert one["loss_nats"] == pytest.approx(two["loss_nats"], abs=1e-6)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-6)
