"""The tasks by name: what they are made from, and which of them ChatCORE is the mean of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from firstlight.config import did_you_mean
from firstlight.errors import ConfigError
from firstlight.eval.chat import humaneval, multiple_choice, numbers
from firstlight.eval.chat.multiple_choice import Row
from firstlight.eval.chat.task import ChatTask

CHAT_CORE = ("arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval", "spelling")
"""nanochat's six; its SpellingBee is our ``spelling``."""

OFFLINE = ("builtin-chat", "spelling")
"""These need no file."""

GROUPS = {"core": CHAT_CORE, "offline": OFFLINE}


@dataclass(frozen=True)
class Recipe:
    """What a task that is read from a file needs. files: paths inside ``--data``, the first that is there counts.

    repo, hub_file: the same on the hub; the file's name goes on after that. make: rows to task.
    """

    files: tuple[str, ...]
    repo: str
    hub_file: str
    make: Callable[[Sequence[Row]], ChatTask]


def _places(*names: str, core: bool = False) -> tuple[str, ...]:
    folders = ("", "core/eval_data/world_knowledge/", "eval_data/world_knowledge/") if core else ("", "chat/")
    return tuple(f"{folder}{name}" for name in names for folder in folders)


FROM_FILES = {
    "arc_easy": Recipe(
        _places("arc_easy.jsonl", core=True), "allenai/ai2_arc", "ARC-Easy/test-",
        lambda rows: multiple_choice.arc("arc_easy", rows),
    ),
    "arc_challenge": Recipe(
        _places("arc_challenge.jsonl", core=True), "allenai/ai2_arc", "ARC-Challenge/test-",
        lambda rows: multiple_choice.arc("arc_challenge", rows),
    ),
    "mmlu": Recipe(
        _places("mmlu_test.jsonl.gz", "mmlu_test.jsonl"), "cais/mmlu", "all/test-",
        multiple_choice.mmlu,
    ),
    "gsm8k": Recipe(
        _places("gsm8k_test.jsonl", "gsm8k_test.jsonl.gz"), "openai/gsm8k", "main/test-",
        numbers.gsm8k,
    ),
    "humaneval": Recipe(
        _places("humaneval.jsonl", "HumanEval.jsonl", "HumanEval.jsonl.gz"), "openai/openai_humaneval",
        "openai_humaneval/test-", humaneval.humaneval,
    ),
    "svamp": Recipe(
        _places("svamp.jsonl"), "ChilleD/SVAMP", "data/test-", numbers.svamp,
    ),
}  # fmt: skip

NAMES = ("builtin-chat", *CHAT_CORE, "svamp")


def chosen(names: Sequence[str], *, flag: str = "--tasks") -> list[str]:
    """Names of tasks, groups (core, offline, all) taken apart, each once. Raises ConfigError for an unknown one."""
    known = {**GROUPS, "all": NAMES, **{name: (name,) for name in NAMES}, "builtin_chat": ("builtin-chat",)}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ConfigError(
            f"{flag}: {', '.join(unknown)} is not known" if unknown else f"{flag} names no task",
            hint=(did_you_mean(unknown[0], list(known)) if unknown else "")
            or f"tasks: {', '.join(NAMES)}; groups: core, offline, all",
        )
    return list(dict.fromkeys(each for name in names for each in known[name]))
