"""The rows of a run as curves, from a place in its metrics.jsonl on, while the run may be writing it.

A page asks again and again with the place it was told (``next``) and with ``tag``, a hash of the bytes just before that place.
Where they are no longer the same the file was rewound (a resumed run makes some steps again): the answer begins at the start,
and says so. A last line without an end is left for the next time; lines that are no row are counted.

Every answer is bounded: it reads at most ``MOST_BYTES`` (``has_more`` says that there are others); it gives at most its part
of ``max_points`` points a curve for the whole file (means of as many rows as it takes, with the lowest and the highest loss and
gradient norm), and at most ``MOST_ROWS`` rows of each other kind, the newest.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MOST_BYTES = 2 * 2**20
"""Of a file in one answer: some thousand rows, a fifth of a second, during which the engine's thread may have to wait."""
MOST_POINTS = 4000
MOST_ROWS = 400
MOST_CURVES = 40
MOST_SAMPLES = 6
"""Sample rows in an answer; each is every prompt with its completion."""
MOST_CHARS = 2000
TAG_BYTES = 256

RANGED = ("loss_nats", "grad_norm")
"""Of these the lowest and the highest of a stretch are given beside its mean, so that a spike is not averaged away."""
STEPWISE = ("train", "rl")
"""Kinds of rows that come with every step, and so as columns."""
NOT_CURVES = ("step", "time_unix_s")


def read_curves(path: Path, *, start: int, tag: str, max_points: int) -> dict[str, Any]:
    """What was added to a metrics file since the place ``start``; ``tag`` as the last answer had it ("" for none).

    A file that is not there is an empty one: a run may not have made its first row yet.
    """
    try:
        with open(path, "rb") as file:
            is_reset = start > 0 and _tag(file, start) != tag
            start = 0 if is_reset else start
            file.seek(start)
            content = file.read(MOST_BYTES)
            is_end = not file.read(1)
            end = content.rfind(b"\n") + 1
            if not end and len(content) == MOST_BYTES:
                end = len(content)  # one line of two megabytes is no row of ours
            size = max(os.fstat(file.fileno()).st_size, 1)
            answer = shape_rows(content[:end], max_points=max(1, math.ceil(max_points * end / size)))
            return answer | {
                "from": start, "next": start + end, "tag": _tag(file, start + end), "is_reset": is_reset,
                "has_more": not is_end,
            }  # fmt: skip
    except FileNotFoundError:
        return shape_rows(b"", max_points=max_points) | {
            "from": 0, "next": 0, "tag": "", "is_reset": start > 0, "has_more": False,
        }  # fmt: skip


def shape_rows(lines: bytes, *, max_points: int) -> dict[str, Any]:
    """Whole lines -> the curves of every step as columns, the other rows, and counts of what was left out."""
    stepwise: dict[str, list[dict[str, Any]]] = {kind: [] for kind in STEPWISE}
    others, samples = [], []
    num_damaged = 0
    for line in lines.splitlines():
        row = parse_row(line)
        if row is None:
            num_damaged += bool(line.strip())
        elif row["kind"] in stepwise:
            stepwise[row["kind"]].append(row)
        elif row["kind"] == "sample":
            samples.append(row)
        else:
            others.append(row)
    kept = _newest_of_each_kind(others)
    return {
        **{kind: columns(rows, max_points=max_points) for kind, rows in stepwise.items()},
        "rows": [_small(row) for row in kept],
        "samples": [_short(row) for row in samples[-MOST_SAMPLES:]],
        "num_left_out": len(others) - len(kept) + len(samples[:-MOST_SAMPLES]),
        "num_damaged": num_damaged,
    }


def parse_row(line: bytes) -> dict[str, Any] | None:
    """A line as a row, or None. Numbers that no JSON has (NaN) are refused, as are lines nested too deep to read."""
    try:
        row = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("kind"), str) else None


def columns(rows: Sequence[Mapping[str, Any]], *, max_points: int) -> dict[str, list[float | None]]:
    """Rows of training as one list a key, of at most ``max_points`` values.

    With more rows than that each value is the mean over ``num_rows`` rows in a line (those that have the key; None where
    none has), except ``step``, which is the last of them. ``loss_nats_low`` and so on are the extremes.
    """
    stretch = max(1, -(-len(rows) // max_points))
    groups = [rows[i : i + stretch] for i in range(0, len(rows), stretch)]
    keys = [
        key for key in dict.fromkeys(k for row in rows for k in row) if any(is_number(row.get(key)) for row in rows)
    ]
    found: dict[str, list[float | None]] = {"num_rows": [len(group) for group in groups]}
    for key in keys[:MOST_CURVES]:
        values = [[float(row[key]) for row in group if is_number(row.get(key))] for group in groups]
        if key in NOT_CURVES:
            found[key] = [each[-1] if each else None for each in values]
            continue
        found[key] = [sum(each) / len(each) if each else None for each in values]
        if key in RANGED and stretch > 1:
            found[f"{key}_low"] = [min(each) if each else None for each in values]
            found[f"{key}_high"] = [max(each) if each else None for each in values]
    return found


def is_number(value: Any) -> bool:
    """Whether a value can be drawn."""
    # 1e400 is JSON's way to infinity, and an integer may be too long for a float. A bool is of another type.
    return (type(value) is float or type(value) is int) and -1e300 < value < 1e300


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _tag(file: Any, place: int) -> str:
    begin = max(0, place - TAG_BYTES)
    file.seek(begin)
    content = file.read(place - begin)
    return hashlib.sha256(content).hexdigest()[:16] if len(content) == place - begin else "short"


def _newest_of_each_kind(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    seen: dict[str, int] = {}
    kept = []
    for row in reversed(rows):
        seen[row["kind"]] = seen.get(row["kind"], 0) + 1
        if seen[row["kind"]] <= MOST_ROWS:
            kept.append(row)
    return kept[::-1]


def _small(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's numbers and short texts; what is larger (the tasks of a score, lists of ranks) the page does not show."""
    return {
        key: value
        for key, value in list(row.items())[:MOST_CURVES]
        if value is None
        or is_number(value)
        or isinstance(value, bool)
        or (isinstance(value, str) and len(value) < MOST_CHARS)
    }


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    pairs = row.get("samples")
    return {
        "step": row["step"] if is_number(row.get("step")) else None,
        "samples": [
            {key: str(pair.get(key, ""))[:MOST_CHARS] for key in ("prompt", "completion")}
            for pair in (pairs if isinstance(pairs, list) else [])[:8]
            if isinstance(pair, dict)
        ],
    }
