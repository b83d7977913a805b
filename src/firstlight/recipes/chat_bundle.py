"""Where the chat tasks' questions come from: a folder, the hub, or for two of them nothing but what is installed."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from firstlight.data.chat.builtin import BuiltinChat, open_builtin_chat
from firstlight.data.chat.builtin_words import word_name
from firstlight.data.download import RemoteFile, download
from firstlight.data.sources.hub import HubData, _fetch_listing, _file_url, _kept_listing
from firstlight.errors import ConfigError, DataError
from firstlight.eval.chat.builtin_task import builtin_chat
from firstlight.eval.chat.catalog import FROM_FILES, NAMES, OFFLINE, Recipe, chosen
from firstlight.eval.chat.multiple_choice import Row
from firstlight.eval.chat.numbers import spelling
from firstlight.eval.chat.task import ChatTask
from firstlight.recipes.sharing import together
from firstlight.runtime.channel import Channel

WORDS = ("words_alpha.txt.gz", "chat/words_alpha.txt.gz", "words_alpha.txt", "chat/words_alpha.txt")
"""A list of words in the folder of tasks, for ``spelling``; else it takes held-out words of `builtin-chat`."""

Fetch = Callable[[RemoteFile, Path], Path]


def available(data: Path | None) -> tuple[list[str], list[str]]:
    """(names of the tasks that can be asked without the hub, names of those whose file the folder lacks)."""
    if data is None:
        return list(OFFLINE), []
    has = [name for name in NAMES if name not in FROM_FILES or _find(data, FROM_FILES[name].files) is not None]
    return has, [name for name in NAMES if name not in has]


def open_tasks(
    names: Sequence[str],
    *,
    data: Path | None,
    control: Channel,
    cache_dir: Path,
    report: Callable[[str], None] | None = None,
    flags: tuple[str, str] = ("--tasks", "--data"),
    fetch: Fetch = download,
    endpoint: str | None = None,
) -> list[ChatTask]:
    """The tasks, in the order of their names (`chosen`). Collective: a failure on one process is raised on all.

    data: folder with their files; None: from the hub, kept in the cache. flags: how messages name the two. fetch, endpoint:
    for tests. Raises ConfigError for an unknown task and for a folder that is not there, DataError for a file that is missing or damaged, or a failed download.
    """

    names = chosen(names, flag=flags[0])

    def work(note: Callable[[str], None]) -> list[ChatTask]:
        if data is not None and not data.is_dir():
            raise ConfigError(f"{flags[1]} {data} is not a folder", hint="it holds files such as gsm8k_test.jsonl")
        opened = _Opener(data, cache_dir, fetch, endpoint, flags)
        found = []
        for name in names:
            note(f"the questions of {name}")
            found.append(opened.task(name))
        return found

    tasks = together(control, work, report=report)
    hashes = control.gather_texts(json.dumps([task.content_hash for task in tasks]))
    if len(set(hashes)) > 1:
        other = next(rank for rank, each in enumerate(hashes) if each != hashes[0])
        raise DataError(f"rank {other} has other questions than rank 0", hint="give all machines the same files")
    for task in tasks:
        for text in task.notes:
            if report is not None:
                report(f"{task.name}: {text} (docs/sandbox.md)")
    return tasks


class _Opener:
    """Tasks by name; `builtin-chat` is opened once for the two that use it."""

    def __init__(
        self, data: Path | None, cache_dir: Path, fetch: Fetch, endpoint: str | None, flags: tuple[str, str]
    ) -> None:
        self._tasks_flag, self._data_flag = flags
        self._data, self._cache_dir, self._fetch, self._endpoint = data, cache_dir, fetch, endpoint
        self._builtin: BuiltinChat | None = None

    def task(self, name: str) -> ChatTask:
        if name == "builtin-chat":
            return builtin_chat(self._open_builtin().questions("test"))
        if name == "spelling":
            return self._spelling()
        recipe = FROM_FILES[name]
        path, shown = self._file(name, recipe)
        rows = read_rows(path, shown)
        if not rows:
            raise DataError(f"{path} has no rows", hint=f"it should hold the questions of {name}")
        return recipe.make(rows)

    def _file(self, name: str, recipe: Recipe) -> tuple[Path, str]:
        if self._data is None:
            return self._hub_file(name, recipe)
        path = _find(self._data, recipe.files)
        if path is None:
            raise DataError(
                f"{name} has no file in {self._data_flag} {self._data}",
                hint=f"looked for {', '.join(recipe.files)}; leave {self._data_flag} out to take it from the hub, or {name} out of {self._tasks_flag}",
            )
        return path, path.name

    def _hub_file(self, name: str, recipe: Recipe) -> tuple[Path, str]:
        hub = HubData(name, recipe.repo)
        folder = self._cache_dir / "hub" / f"{hub.repo.replace('/', '--')}@{hub.revision}"
        try:
            listing = _kept_listing(folder / "listing.json") or _fetch_listing(
                hub, folder / "listing.json", self._endpoint
            )
            files = [each for each in sorted(listing["files"]) if each.startswith(recipe.hub_file)]
            if not files:
                raise DataError(f"{name}: {recipe.repo} has no file {recipe.hub_file}*")
            facts = listing["files"][files[0]]
            # Its name here is without ending, so that no column of texts is looked for in it.
            remote = RemoteFile(
                _file_url(hub.repo, listing["commit"], files[0], self._endpoint), f"{recipe.repo} {recipe.hub_file}",
                facts["num_bytes"], facts["sha256"], facts["git_sha1"],
            )  # fmt: skip
            return self._fetch(remote, folder / files[0]), f"{recipe.repo}/{files[0]}"
        except DataError as error:
            hint = f"{error.hint}\n  or give a folder that has it with {self._data_flag} DIR, or leave it out of {self._tasks_flag}"
            raise DataError(error.what, hint=hint.lstrip()) from error

    def _spelling(self) -> ChatTask:
        path = None if self._data is None else _find(self._data, WORDS)
        if path is not None:
            return spelling(_lines(path), origin=path.name)
        examples = self._open_builtin().examples("test")
        words = [
            fact.removeprefix(word_name(""))
            for each in examples
            for fact in each.facts
            if fact.startswith(word_name(""))
        ]
        return spelling(words, origin="builtin-chat")

    def _open_builtin(self) -> BuiltinChat:
        if self._builtin is None:
            self._builtin = open_builtin_chat(cache_dir=self._cache_dir)
        return self._builtin


def read_rows(path: Path, name: str) -> list[Row]:
    """("file:row", value) of JSON lines, also in gzip, or Parquet; rows are counted from 0.

    Raises DataError that names the file, and the row of JSON that is none.
    """
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return [(f"{name}:{i}", row) for i, row in enumerate(pq.read_table(path).to_pylist())]
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} cannot be read: {error}", hint="delete it, and it is fetched again") from error
    rows: list[tuple[str, Any]] = []
    for i, line in enumerate(_lines(path)):
        if line.strip():
            try:
                rows.append((f"{name}:{i}", json.loads(line)))
            except ValueError as error:
                raise DataError(f"{path}, line {i + 1} is not JSON: {error}") from None
    return rows


def _lines(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
        # Not splitlines: a text may hold other line separators (U+2028) than the one that ends a row.
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="copy or fetch it again") from error


def _find(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)
