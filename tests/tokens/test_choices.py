"""Multiple choice: one wording, and the letter is the same id in the question and in the answer."""

from __future__ import annotations

import pytest

from firstlight.errors import DataError
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.choices import LETTERS, choices_prompt
from firstlight.tokens.conversation import Message, render


def test_the_wording() -> None:
    assert choices_prompt("2 + 2?", ["3", "4", "5"]) == "2 + 2?\nA. 3\nB. 4\nC. 5\nAnswer with the letter only."


@pytest.mark.parametrize("number", range(26))
def test_a_letter_is_one_id_the_same_in_question_and_answer(number: int, tokenizer: Tokenizer) -> None:
    """users.md 26: " A" in the question and "A" in the answer would be two ids."""
    letter = LETTERS[number]
    asked = choices_prompt("Which one?", [f"choice {i}" for i in range(26)])
    document = render([Message.of("user", asked), Message.of("assistant", letter)], tokenizer)
    assert document.loss_mask is not None
    answer_id, _ = document.ids[document.loss_mask].tolist()
    assert answer_id == ord(letter)
    line_end = tokenizer.encode("\n")[0]
    question = document.ids[~document.loss_mask].tolist()
    begins = [question[i + 1] for i, token_id in enumerate(question) if token_id == line_end]
    assert begins[number] == answer_id


@pytest.mark.parametrize("count", [0, 1, 27])
def test_too_few_or_too_many_choices_are_refused(count: int) -> None:
    with pytest.raises(DataError, match=f"a question with {count} choices"):
        choices_prompt("q", ["x"] * count)
