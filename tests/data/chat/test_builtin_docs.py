"""Questions about functions: answers stand in the documentation, held-out functions stay out of training."""

from __future__ import annotations

from chat_entries import made_up_entries

from firstlight.data.chat.builtin_docs import (
    closed_book,
    excerpt,
    of_split,
    open_book,
    questions_about,
    several_turns,
    usable,
)
from firstlight.data.chat.builtin_facts import Facts
from firstlight.data.chat.builtin_reading import Entry

ENTRIES = made_up_entries()
ALL = dict.fromkeys(("does", "returns", "param", "raises", "when"), 10_000)
FULL = Entry(
    "open_door", "housework", False,
    Facts("Open the door of it.", (("house", "The house."), ("speed", "How fast."), ("hand", "Which hand.")),
          "The open door.", (("ValueError", "If there is none."),)),
)  # fmt: skip


def by_name(examples):
    return {example.facts[0].split()[-1] for example in examples}


def test_what_can_be_asked():
    asked = [(each.task, each.name, each.answer) for each in questions_about(FULL)]
    assert asked == [
        ("does", "", "Open the door of it."),
        ("returns", "", "The open door."),
        ("param", "house", "The house."),
        ("param", "speed", "How fast."),
        ("param", "hand", "Which hand."),
        ("raises", "ValueError", "It raises ValueError."),
        ("when", "ValueError", "If there is none."),
    ]


def test_two_exceptions_are_no_single_answer():
    facts = Facts("Do a thing well.", raises=(("ValueError", "If bad."), ("TypeError", "If worse.")))
    assert [each.task for each in questions_about(Entry("f", "m", False, facts))] == ["does"]


def test_the_excerpt_has_the_asked_parameter_and_one_more():
    hand = next(each for each in questions_about(FULL) if each.name == "hand")
    assert excerpt(FULL, hand) == (
        "Documentation of `open_door` in housework:\n"
        "Open the door of it.\n"
        "`house`: The house.\n"
        "`hand`: Which hand.\n"
        "Returns: The open door.\n"
        "Raises ValueError: If there is none."
    )


def test_usable_leaves_out_what_is_ambiguous():
    def entry(name, module, does):
        return Entry(name, module, False, Facts(does=does))

    kept = usable(
        [
            entry("f", "a", "Do the first thing."),
            entry("f", "a", "Do the second thing."),
            entry("g", "a", "Do the third thing."),
            entry("h", "b", "Do the third thing."),
            entry("k" * 50, "b", "Do the fourth thing."),
            entry("m", "b", ""),
            entry("f", "b", "Do the fifth thing."),
        ]
    )
    assert len(kept) == 2
    assert ("f", "b") in {(each.name, each.module) for each in kept}
    assert {each.facts.does for each in kept} == {"Do the third thing.", "Do the fifth thing."}


def test_the_answer_of_an_open_question_stands_in_its_prompt():
    for split in ("train", "val", "test"):
        examples = open_book(ENTRIES, split, ALL)
        assert {example.task for example in examples} == {f"{task} open" for task in ALL}
        for example in examples:
            user, assistant = example.messages
            assert assistant.text == example.answer
            assert example.answer.removeprefix("It raises ").rstrip(".") in user.text.split("\n\n")[0]
            assert example.answer.endswith(".")


def test_no_function_is_in_two_splits_and_none_is_lost():
    train = by_name([*open_book(ENTRIES, "train", ALL), *closed_book(ENTRIES, ALL), *several_turns(ENTRIES, 10_000)])
    val, test = (by_name(open_book(ENTRIES, split, ALL)) for split in ("val", "test"))
    assert len(train) + len(val) + len(test) == len(train | val | test)
    assert train | val | test == {entry.name for entry in ENTRIES}


def test_limits_are_kept():
    examples = closed_book(ENTRIES, {"does": 7, "returns": 3})
    assert sorted(example.task for example in examples) == ["does closed"] * 7 + ["returns closed"] * 3
    assert all(example.answer is None for example in examples)


def test_several_turns_ask_about_one_function():
    examples = several_turns(ENTRIES, 40)
    assert len(examples) == 40
    facts = {entry.name: entry.facts for entry in of_split(ENTRIES, "train")}
    for example in examples:
        known = facts[example.facts[0].split()[-1]]
        replies = [message.text for message in example.messages if message.role == "assistant"]
        assert 2 <= len(replies) <= 3
        answers = [known.does, known.returns, *dict(known.params).values()]
        answers += [text for name, when in known.raises for text in (f"It raises {name}.", when)]
        assert replies[0] == known.does
        assert set(replies) <= set(answers)


def test_the_same_every_time():
    assert open_book(ENTRIES, "train", ALL) == open_book(list(ENTRIES), "train", dict(ALL))
