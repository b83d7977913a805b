"""Claims of eval/chat/catalog.py: names and groups of tasks."""

from __future__ import annotations

import pytest

from firstlight.errors import ConfigError
from firstlight.eval.chat.catalog import CHAT_CORE, FROM_FILES, NAMES, OFFLINE, chosen


def test_groups_are_taken_apart_and_each_task_comes_once() -> None:
    assert chosen(["spelling", "core"]) == ["spelling", "arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval"]
    assert chosen(["offline", "builtin_chat"]) == ["builtin-chat", "spelling"]
    assert set(chosen(["all"])) == {*CHAT_CORE, "builtin-chat", "svamp"}


@pytest.mark.parametrize(
    ("names", "message"), [(["gsm8"], "gsm8k"), ([], "names no task"), (["xyzzy"], "groups: core")]
)
def test_a_wrong_name_is_named_with_the_right_ones(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        chosen(names, flag="--chat-tasks")
    assert "--chat-tasks" in str(error.value)


def test_every_task_has_a_place() -> None:
    assert set(NAMES) == set(FROM_FILES) | set(OFFLINE)
