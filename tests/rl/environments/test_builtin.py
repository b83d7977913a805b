"""Questions of builtin-chat as environments, with a stand-in for the conversations that take a while to make."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from firstlight.errors import ConfigError
from firstlight.rl.environments import builtin
from firstlight.rl.environments.table import open_environment
from firstlight.tokens.conversation import Message


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    def question(kind, ask, answer):
        return SimpleNamespace(kind=kind, messages=(Message.of("user", ask),), answer=answer)

    def questions(split):
        word = {"train": "cat", "test": "dog"}[split]
        return [
            question("spelling", f'Spell the word "{word}".', " - ".join(word)),
            question("docs", "What does len do?", "Return the number of items."),
            question("counting", f'How many "o" are in "{word}"?', str(word.count("o"))),
            question("choice", "Which?", "B"),
            question("spelling", f'Spell "{word}s".', " - ".join(word + "s")),
        ]

    monkeypatch.setattr(builtin, "open_builtin_chat", lambda *, cache_dir: SimpleNamespace(questions=questions))


@pytest.mark.parametrize(
    ("name", "num", "right", "uses_python"),
    [("spelling", 2, "d - o - g", False), ("counting", 1, "#### 1", True), ("choice", 1, "B", False)],
)
def test_an_environment_has_the_questions_of_its_kind(tmp_path, name, num, right, uses_python) -> None:
    environment = open_environment(name, cache_dir=tmp_path)
    assert (environment.name, environment.uses_python) == (name, uses_python)
    assert [environment.num_problems(split) for split in ("train", "test")] == [num, num]
    problem = environment.problem("test", 0)
    assert [environment.reward(problem, text, ()) for text in (right, "wrong")] == [1, 0]
    assert environment.has_format(problem, right)
    assert environment.problem("train", 0).source == f"builtin-chat-train:{name}:0"


def test_they_read_nothing_else(tmp_path) -> None:
    with pytest.raises(ConfigError, match="builtin-chat"):
        open_environment("spelling:words.txt", cache_dir=tmp_path)
