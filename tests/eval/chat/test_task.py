"""Claims of eval/chat/task.py: the wording of choices, an order that grows, hashes of what is asked, letters of one id."""

from __future__ import annotations

import pytest

from firstlight.errors import DataError
from firstlight.eval.chat.task import ChatTask, Item, choice_item, letter_ids
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import Message


def items(num: int) -> tuple[Item, ...]:
    return tuple(Item((Message.of("user", f"q{i}"),), f"a{i}", f"f:{i}") for i in range(num))


def test_a_question_with_choices_is_asked_as_it_is_trained() -> None:
    item = choice_item("Which is red?", ["grass", "blood", "snow"], 1, where="f:0", group="colours")
    assert item.messages[0].text == "Which is red?\nA. grass\nB. blood\nC. snow\nAnswer with the letter only."
    assert (item.answer, item.num_choices, item.chance, item.group) == ("B", 3, pytest.approx(1 / 3), "colours")


@pytest.mark.parametrize(("choices", "gold"), [(["a"], 0), (["a", "b"], 2), (["a", "b"], -1), (["x"] * 27, 0)])
def test_what_cannot_be_asked_is_named(choices: list[str], gold: int) -> None:
    with pytest.raises(DataError, match="f:7"):
        choice_item("q", choices, gold, where="f:7")


def test_more_questions_begin_with_the_fewer() -> None:
    task = ChatTask("t", "generative", items(50))
    whole = task.ordered()
    assert task.ordered(7) == whole[:7]
    assert sorted(item.where for item in whole) == sorted(item.where for item in task.items)
    assert whole != list(task.items)
    assert ChatTask("t", "generative", items(50), is_mixed=True).ordered(3) == list(items(50)[:3])


def test_the_hash_is_of_what_is_asked_and_what_is_right() -> None:
    one = ChatTask("t", "generative", items(3))
    moved = tuple(Item(item.messages, item.answer, "elsewhere") for item in items(3))
    assert ChatTask("t", "generative", moved).content_hash == one.content_hash
    other = (*items(2), Item(items(3)[2].messages, "another", "f:2"))
    assert ChatTask("t", "generative", other).content_hash != one.content_hash
    assert ChatTask("u", "generative", items(3)).content_hash != one.content_hash
    assert ChatTask("t", "generative", items(2)).content_hash != one.content_hash


def test_letters_are_single_ids() -> None:
    assert letter_ids(Tokenizer([bytes([b]) for b in range(256)]), 4) == [65, 66, 67, 68]

    class Split(Tokenizer):
        def encode(self, text: str) -> list[int]:
            return [1, 2] if text == "C" else [ord(text)]

    with pytest.raises(DataError, match="letter C is 2 ids"):
        letter_ids(Split([bytes([b]) for b in range(256)]), 4)
