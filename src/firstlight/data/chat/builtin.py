"""`builtin-chat`: conversations made from the documentation that every install carries, checked, the same every time.

The counterpart of the corpus `builtin` (data/sources/builtin.py) for the stages after the base model. It is made once for
the versions of Python and its packages and kept in the cache as three JSON-lines files with their hashes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from firstlight.data.chat import builtin_answers
from firstlight.data.chat.builtin_answers import KINDS, Kind
from firstlight.data.chat.builtin_arithmetic import arithmetic
from firstlight.data.chat.builtin_check import without_faults
from firstlight.data.chat.builtin_choices import choices
from firstlight.data.chat.builtin_docs import closed_book, open_book, several_turns, usable
from firstlight.data.chat.builtin_example import SPLITS, Example, Split, parse_line
from firstlight.data.chat.builtin_reading import Reading, read_all
from firstlight.data.chat.builtin_talk import talk
from firstlight.data.chat.builtin_words import counting, frequent_words, spelling
from firstlight.data.lock import one_at_a_time, put_in_place
from firstlight.data.sources import builtin as builtin_corpus
from firstlight.data.sources.base import Progress
from firstlight.errors import DataError
from firstlight.tokens.conversation import Message

FORMAT_VERSION = 1
"""Raise when the same versions of Python and packages should give other conversations."""
NAME = "builtin-chat"
MANIFEST = "manifest.json"
MIN_ENTRIES = 500
"""Fewer documented functions mean an install without sources."""

NUM_TRAIN = {"spelling": 5_000, "counting": 4_000, "arithmetic": 5_000}
NUM_HELD_OUT: dict[Split, int] = {"val": 100, "test": 200}
"""Questions of each kind."""
OPEN_LIMITS = {"does": 1_200, "returns": 1_200, "param": 2_000, "raises": 400, "when": 400}
CLOSED_LIMITS = {"does": 3_000, "returns": 500, "param": 700, "raises": 150, "when": 150}
NUM_SEVERAL_TURNS = 1_500
NUM_TALK = 500
CHOICE_LIMITS = {"raises": 400, "name": 1_600, "does": 1_500, "word": 1_500}


@dataclass(frozen=True)
class Question:
    """A question with a checkable answer.

    messages: up to the user's turn that asks. answer: what a right reply gives (a sentence, letters, a number, a letter).
    is_right, has_format: of a reply, the text of the assistant's turn; see builtin_answers.py.
    """

    kind: Kind
    messages: tuple[Message, ...]
    answer: str
    is_right: Callable[[str], bool]
    has_format: Callable[[str], bool]


@dataclass(frozen=True)
class BuiltinChat:
    """The conversations of a cache folder that was found whole."""

    folder: Path
    manifest: dict

    name = NAME

    @property
    def content_hash(self) -> str:
        """sha256 over all conversations."""
        return self.manifest["content_sha256"]

    def examples(self, split: Split) -> list[Example]:
        """All of a split, with what is known about each."""
        return self._examples[split]

    def conversations(self, split: Split) -> list[tuple[str, tuple[Message, ...]]]:
        """(where, messages) in a fixed mixed order."""
        return [(f"{NAME}/{split}.jsonl:{i}", each.messages) for i, each in enumerate(self.examples(split))]

    def questions(self, split: Split) -> list[Question]:
        """What can be asked and checked, in a fixed order; in val and test each run of five has all five kinds."""
        return [
            Question(
                each.kind,
                each.messages[:-1],
                each.answer,
                partial(builtin_answers.is_right, each.kind, each.answer),
                partial(builtin_answers.has_format, each.kind),
            )
            for each in self.examples(split)
            if each.answer is not None and each.kind != "talk"
        ]

    @cached_property
    def _examples(self) -> dict[Split, list[Example]]:
        found: dict[Split, list[Example]] = {}
        for split in SPLITS:
            lines = (self.folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
            found[split] = [parse_line(line, where=f"{NAME}/{split}.jsonl:{i}") for i, line in enumerate(lines)]
        return found


def open_builtin_chat(*, cache_dir: Path, progress: Progress | None = None) -> BuiltinChat:
    """The conversations; makes them first where the cache has none for these versions (about 15 s).

    Raises DataError where too little documentation is found (an install without sources), or the cache cannot be written.
    """
    versions = builtin_corpus._versions()
    key = hashlib.sha256(json.dumps([FORMAT_VERSION, versions], sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir / f"{NAME}-{key}"
    manifest = _whole_manifest(folder)
    if manifest is None:
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            with one_at_a_time(cache_dir / f"{NAME}-{key}.lock", progress=progress):
                if _whole_manifest(folder) is None:
                    if folder.exists() and progress is not None:
                        progress(f"{folder} is damaged; making {NAME} again", 0, None)
                    _build(folder, versions, progress)
        except OSError as error:
            raise DataError(
                f"{NAME} cannot be written to {cache_dir}: {error.strerror or error}",
                hint="set FIRSTLIGHT_CACHE to a folder with 50 MB of space",
            ) from error
        manifest = _whole_manifest(folder)
        if manifest is None:
            raise DataError(f"{NAME} in {folder} is damaged again after it was made", hint="check the disk")
    return BuiltinChat(folder, manifest)


def _whole_manifest(folder: Path) -> dict | None:
    """The manifest of a folder whose files are all there, whole and unchanged; else None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format_version"] != FORMAT_VERSION or set(manifest["files"]) != {f"{s}.jsonl" for s in SPLITS}:
            return None
        for name, sha256 in manifest["files"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != sha256:
                return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest


# Making


def read_installed(versions: dict[str, str], progress: Progress | None) -> Reading:
    """What the installed documentation has for conversations."""
    files = [
        (package.name, path.relative_to(package.root).as_posix(), str(path))
        for package in builtin_corpus.find_packages(versions)
        for path in package.files
    ]
    return read_all(files, progress)


def make(reading: Reading) -> dict[Split, list[Example]]:
    """All conversations of each split, in their final order."""
    entries = usable(reading.entries)
    words = frequent_words(reading.words)
    if len(entries) < MIN_ENTRIES:
        raise DataError(
            f"{NAME} found only {len(entries)} documented functions: this install has no sources to read",
            hint="name your own conversations with --data FILE.jsonl",
        )
    found: dict[Split, list[Example]] = {}
    found["train"] = [
        *open_book(entries, "train", OPEN_LIMITS),
        *closed_book(entries, CLOSED_LIMITS),
        *several_turns(entries, NUM_SEVERAL_TURNS),
        *spelling(words, "train", NUM_TRAIN["spelling"]),
        *counting(words, "train", NUM_TRAIN["counting"]),
        *arithmetic("train", NUM_TRAIN["arithmetic"]),
        *choices(entries, words, "train", CHOICE_LIMITS),
        *talk(entries, NUM_TALK),
    ]
    random.Random("builtin-chat order train").shuffle(found["train"])
    for split, number in NUM_HELD_OUT.items():
        held = [
            *open_book(entries, split, dict.fromkeys(OPEN_LIMITS, number)),
            *spelling(words, split, number),
            *counting(words, split, number),
            *arithmetic(split, number),
            *choices(entries, words, split, dict.fromkeys(CHOICE_LIMITS, number)),
        ]
        found[split] = balanced(held, number, random.Random(f"builtin-chat order {split}"))
    return found


def balanced(examples: Iterable[Example], number: int, rng: random.Random) -> list[Example]:
    """``number`` of each kind, its tasks as even as they last, in a mixed order in which the kinds take turns."""
    examples = list(examples)
    rng.shuffle(examples)
    queues = [_tasks_in_turn([each for each in examples if each.kind == kind])[:number] for kind in KINDS]
    found: list[Example] = []
    for place in range(number):
        row = [queue[place] for queue in queues if place < len(queue)]
        rng.shuffle(row)
        found += row
    return found


def _tasks_in_turn(examples: list[Example]) -> list[Example]:
    """The first of each task, then the second of each, and so on."""
    seen: Counter[str] = Counter()
    placed = []
    for place, example in enumerate(examples):
        placed.append((seen[example.task], place, example))
        seen[example.task] += 1
    return [example for _, _, example in sorted(placed, key=lambda each: each[:2])]


def _build(folder: Path, versions: dict[str, str], progress: Progress | None) -> None:
    reading = read_installed(versions, progress)
    examples, left_out = without_faults(make(reading))
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    temporary.mkdir(parents=True)
    try:
        files: dict[str, str] = {}
        for split in SPLITS:
            data = "".join(example.to_line() + "\n" for example in examples[split]).encode()
            (temporary / f"{split}.jsonl").write_bytes(data)
            files[f"{split}.jsonl"] = hashlib.sha256(data).hexdigest()
        manifest = {
            "format_version": FORMAT_VERSION,
            "versions": versions,
            "content_sha256": hashlib.sha256("".join(files[name] for name in sorted(files)).encode()).hexdigest(),
            "counts": {split: dict(sorted(Counter(e.kind for e in examples[split]).items())) for split in SPLITS},
            "tasks": {
                split: dict(sorted(Counter(f"{e.kind}: {e.task}" for e in examples[split]).items())) for split in SPLITS
            },
            "left_out": dict(sorted(left_out.items())),
            "reading": dict(sorted(reading.counts.items())),
            "files": files,
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        put_in_place(temporary, folder, is_whole=lambda each: _whole_manifest(each) is not None)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
