"""GSM8K: word problems of grade school mathematics with a whole number as the answer (Cobbe et al. 2021, arXiv 2110.14168).

    reward 1 for an answer whose last ``####`` is followed by the right number, else 0

``gsm8k`` reads the data set on the hub (openai/gsm8k, about 2.5 MB); ``gsm8k:FOLDER`` the files of a folder whose names say
``train`` and ``test``, as JSON lines (also in gzip) or Parquet, with the columns ``question`` and ``answer``.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from firstlight.data.chat.builtin_answers import final_number
from firstlight.data.sources.hub import HubData, open_hub
from firstlight.errors import DataError
from firstlight.rl.environments.base import SPLITS, Problem, Split
from firstlight.rl.environments.listed import ListedEnvironment, check_not_empty
from firstlight.tokens.conversation import Message

HUB = HubData("gsm8k", "openai/gsm8k", folder="main", val_shard="main/test-00000-of-00001.parquet")
"""Its test file takes the place of a validation shard, since files called test are otherwise left out."""

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def open_gsm8k(place: str, *, cache_dir: Path) -> ListedEnvironment:
    """The environment. Raises DataError where its files are missing or hold something else."""
    files = _in_folder(Path(place).expanduser()) if place else _on_hub(cache_dir)
    problems = {split: [_problem(row, where) for where, row in _rows(path)] for split, path in files.items()}
    return check_not_empty(ListedEnvironment("gsm8k", "arithmetic", problems, uses_python=True))


def _on_hub(cache_dir: Path) -> dict[Split, Path]:
    source = open_hub(HUB, cache_dir=cache_dir)
    train = next(shard for shard in source.shards if shard.name != source.val_shard)
    test = next(shard for shard in source.shards if shard.name == source.val_shard)
    return {"train": source.local_path(train, None), "test": source.local_path(test, None)}


def _in_folder(folder: Path) -> dict[Split, Path]:
    if not folder.is_dir():
        raise DataError(
            f"gsm8k:{folder} is no folder", hint="it holds the files of GSM8K, such as train.jsonl, test.jsonl"
        )
    files = sorted(path for path in folder.iterdir() if path.name.lower().endswith(SUFFIXES))
    found: dict[Split, Path] = {}
    for split in SPLITS:
        named = [path for path in files if split in path.name.lower()]
        # A folder may hold other data sets as well; then the name of this one decides.
        named = [path for path in named if "gsm8k" in path.name.lower()] or named
        if len(named) != 1:
            which = ", ".join(path.name for path in named[:5]) or "none"
            raise DataError(
                f"gsm8k:{folder}: one file with {split} in its name is needed, and there is {which}",
                hint=f"for example gsm8k_{split}.jsonl; kinds of files: {', '.join(SUFFIXES)}",
            )
        found[split] = named[0]
    return found


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(file:row, row) of a file, rows counted from 0."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            rows = pq.read_table(path).to_pylist()
        else:
            opened = gzip.open if path.suffix == ".gz" else open
            with opened(path, "rt", encoding="utf-8") as lines:
                rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    for i, row in enumerate(rows):
        yield f"{path.name}:{i}", row


def _problem(row: Any, where: str) -> Problem:
    question, answer = (row.get("question"), row.get("answer")) if isinstance(row, dict) else (None, None)
    number = final_number(answer) if isinstance(answer, str) else None
    if not isinstance(question, str) or not question.strip() or number is None:
        raise DataError(
            f"{where} is no problem of GSM8K",
            hint='{"question": "...", "answer": "... #### 72"} is what a row looks like',
        )
    return Problem((Message.of("user", question),), number, where)
