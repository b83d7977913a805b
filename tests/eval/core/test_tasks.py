"""Requests and decisions, by hand."""

from __future__ import annotations

import pytest

from firstlight.errors import DataError
from firstlight.eval.core.scorer import Request, Scored
from firstlight.eval.core.tasks import Question, decide, make_question

BOS = 99


def ask(
    kind: str, texts: list[list[int]], *, gold: int = 0, bos: int | None = BOS, most: int | None = None
) -> Question:
    return make_question(kind, texts, gold=gold, bos_id=bos, max_seq_len=most)  # pyrefly: ignore


def parts(question: Question) -> list[tuple[list[int], list[int]]]:
    """What comes before, and what is scored."""
    return [(list(r.ids[: r.start]), list(r.ids[r.start :])) for r in question.requests]


def test_choices_are_scored_behind_their_common_beginning():
    question = ask("multiple_choice", [[1, 2, 3, 4], [1, 2, 5]])
    assert parts(question) == [([BOS, 1, 2], [3, 4]), ([BOS, 1, 2], [5])]
    assert question.marks == frozenset()


def test_the_common_end_is_scored_behind_each_context():
    question = ask("schema", [[1, 2, 7, 8], [1, 3, 4, 7, 8]])
    assert parts(question) == [([BOS, 1, 2], [7, 8]), ([BOS, 1, 3, 4], [7, 8])]


def test_a_continuation_is_what_is_more():
    question = ask("language_modeling", [[1, 2], [1, 2, 3, 4]])
    assert parts(question) == [([BOS, 1, 2], [3, 4])]
    assert question.marks == frozenset()


def test_ids_that_change_where_the_continuation_begins_are_scored_and_counted():
    question = ask("language_modeling", [[1, 2, 3], [1, 2, 34, 5]])
    assert parts(question) == [([BOS, 1, 2], [34, 5])]
    assert question.marks == {"not_a_prefix"}


@pytest.mark.parametrize(
    ("kind", "texts", "expected"),
    [
        # One choice is the beginning of the other: each has its end scored, from the shorter one's last id on.
        ("multiple_choice", [[1, 2], [1, 2, 3]], [([BOS, 1], [2]), ([BOS, 1], [2, 3])]),
        ("multiple_choice", [[1, 2], [1, 2]], [([BOS, 1], [2]), ([BOS, 1], [2])]),
        ("schema", [[1, 2], [1, 2]], [([BOS], [1, 2]), ([BOS], [1, 2])]),
        # Nothing in common at the end: the last id of each.
        ("schema", [[1, 2], [1, 3]], [([BOS, 1], [2]), ([BOS, 1], [3])]),
        # An empty continuation.
        ("language_modeling", [[1, 2], [1, 2]], [([BOS, 1], [2])]),
    ],
)
def test_where_nothing_is_left_to_score_the_last_is_and_it_is_counted(kind: str, texts: list, expected: list):
    question = ask(kind, texts)
    assert parts(question) == expected
    assert question.marks == {"nothing_between"}


def test_without_bos_the_first_id_cannot_be_scored():
    question = ask("multiple_choice", [[1, 2, 3], [4, 5]], bos=None)
    assert parts(question) == [([1], [2, 3]), ([4], [5])]
    assert question.marks == {"nothing_between"}
    with pytest.raises(DataError, match="no text"):
        ask("multiple_choice", [[1], [4, 5]], bos=None)


def test_a_long_text_loses_its_beginning():
    question = ask("multiple_choice", [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 7]], most=5)
    assert parts(question) == [([2, 3, 4], [5, 6]), ([1, 2, 3, 4], [7])]
    assert question.marks == {"cropped"}


def test_what_is_scored_may_lose_its_beginning_too():
    question = ask("language_modeling", [[1], [1, 2, 3, 4, 5, 6]], most=4)
    assert parts(question) == [([3], [4, 5, 6])]
    assert question.marks == {"cropped", "cut_scored"}
    just = ask("language_modeling", [[1], [1, 2, 3, 4]], most=4)
    assert parts(just) == [([1], [2, 3, 4])]
    assert just.marks == {"cropped"}


def question(kind: str = "multiple_choice", gold: int = 1) -> Question:
    return Question(kind, (Request((1, 2), 1),), gold, frozenset({"cropped"}))  # pyrefly: ignore


def test_the_lowest_loss_per_id_wins():
    found = decide(question(), [Scored(3.0, 1, False), Scored(4.0, 2, False), Scored(9.0, 3, False)])
    assert (found.is_correct, found.choice, found.margin_nats, found.marks) == (True, 1, 1.0, {"cropped"})


def test_the_first_of_equals_wins_by_nothing():
    found = decide(question(), [Scored(2.0, 1, False), Scored(4.0, 2, False)])
    assert (found.is_correct, found.choice, found.margin_nats) == (False, 0, 0.0)


def test_a_loss_that_is_no_number_is_never_chosen():
    nan = float("nan")
    assert decide(question(), [Scored(nan, 1, False), Scored(9.0, 1, False)]).choice == 1
    assert decide(question(), [Scored(nan, 1, False), Scored(9.0, 1, False)]).margin_nats is None
    found = decide(question(gold=0), [Scored(nan, 1, False), Scored(nan, 1, False)])
    assert (found.is_correct, found.choice) == (False, -1)


def test_a_continuation_is_right_where_it_would_be_said():
    assert decide(question("language_modeling", 0), [Scored(50.0, 2, True)]).is_correct
    assert not decide(question("language_modeling", 0), [Scored(0.1, 2, False)]).is_correct
