"""ARC and MMLU: questions of school and college with choices, answered by a letter.

ARC (Clark et al. 2018, arXiv 1803.05457) comes in two forms: the rows of CORE's bundle (``query``, ``choices``, ``gold``)
and those of the hub (``question``, ``choices`` of texts and labels, ``answerKey``). MMLU (Hendrycks et al. 2021,
arXiv 2009.03300): ``question``, ``choices``, ``answer`` counted from 0, ``subject``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from firstlight.errors import DataError
from firstlight.eval.chat.task import ChatTask, Item, choice_item

QUERY_PREFIX = "Question: "
"""Of CORE's rows; here the question stands in a user's turn and needs none."""

Row = tuple[str, Any]
"""("file:row", value)."""


def arc(name: str, rows: Sequence[Row]) -> ChatTask:
    """``arc_easy`` or ``arc_challenge``. Raises DataError for a row of neither form."""
    return ChatTask(name, "categorical", tuple(_arc_item(where, row) for where, row in rows))


def mmlu(rows: Sequence[Row]) -> ChatTask:
    """Raises DataError for a row of another form."""
    return ChatTask("mmlu", "categorical", tuple(_mmlu_item(where, row) for where, row in rows))


def _arc_item(where: str, row: Any) -> Item:
    try:
        if "query" in row:
            return choice_item(
                str(row["query"]).removeprefix(QUERY_PREFIX), row["choices"], int(row["gold"]), where=where
            )
        labels, texts = row["choices"]["label"], row["choices"]["text"]
        return choice_item(row["question"], texts, list(labels).index(row["answerKey"]), where=where)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where} is no question of ARC: {error!r}",
            hint='{"query": ..., "choices": [...], "gold": 0} or {"question": ..., "choices": {"text", "label"}, "answerKey"}',
        ) from error


def _mmlu_item(where: str, row: Any) -> Item:
    try:
        subject = str(row.get("subject", ""))
        return choice_item(row["question"], list(row["choices"]), int(row["answer"]), where=where, group=subject)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where} is no question of MMLU: {error!r}",
            hint='{"question": ..., "choices": [...], "answer": 0, "subject": ...}',
        ) from error
