"""The last look: each fault is found, named and left out."""

from __future__ import annotations

import pytest

from firstlight.data.chat.builtin_check import fault, without_faults
from firstlight.data.chat.builtin_example import Example, ask, ask_with_tool
from firstlight.tokens.choices import choices_prompt
from firstlight.tokens.conversation import Message

# "word a" is in train, "word e" in test: see test_builtin_example.py.
GOOD = Example("spelling", "spell", ask('Spell "a".', "a"), "a", ("word a",))


def of(messages, *, kind="docs", answer=None, facts=("word a",)):
    return Example(kind, "t", messages, answer, facts)


def test_a_good_one_has_no_fault():
    assert fault(GOOD, "train") is None
    assert fault(of(ask_with_tool("1+1?", "1+1", "2", "#### 2"), kind="arithmetic", answer="2"), "train") is None
    assert fault(of(ask(choices_prompt("Red?", ["x", "y"]), "B"), kind="choice", answer="B"), "train") is None


@pytest.mark.parametrize(
    ("example", "name"),
    [
        (of(ask("", "Yes.")), "empty part"),
        (of(ask("What?", " ")), "empty part"),
        (of(ask("What is <|bos|>?", "A token.")), "special token"),
        (of(ask("What?", "It is <|assistant_end|>.")), "special token"),
        (of(ask("What?", "long " * 300)), "too long"),
        (of((Message.of("user", "a"), Message.of("user", "b"))), "roles out of order"),
        (of((Message.of("assistant", "a"), Message.of("user", "b"))), "roles out of order"),
        (of((Message.of("user", "a"),)), "no answer"),
        (of(ask("What?", "Yes."), facts=("word a", "word e")), "fact of another split"),
        (of(ask("What?", "No, not it."), answer="Yes, it is."), "reply is not its answer"),
        (of(ask("What?", "yes"), answer="Yes."), "reply is not its answer"),
        (of(ask_with_tool("1+1?", "1+1", "2", "2"), kind="arithmetic", answer="2"), "reply is not its answer"),
        (of(ask(choices_prompt("Red?", ["x", "X"]), "A"), kind="choice", answer="A"), "equal choices"),
    ],
)
def test_faults(example, name):
    assert fault(example, "train") == name


def test_faulty_and_repeated_conversations_are_counted():
    held = Example("spelling", "spell", ask('Spell "e".', "e"), "e", ("word e",))
    again = of(ask('Spell "e".', "It is e."))
    kept, counts = without_faults({"train": [GOOD, again, GOOD, of(ask("", "x"))], "val": [], "test": [held]})
    assert kept == {"train": [GOOD], "val": [], "test": [held]}
    assert counts == {"asked before": 2, "empty part": 1}
