"""Conversations tokenised once, kept on disk, mapped after.

    <cache>/chat/<key>/ids.bin  mask.bin  offsets.bin  hashes.bin  sources.bin  source_offsets.bin  sides.bin
                       manifest.json    sizes, counts and what all of it is of

The key is a hash of the source's content and file names, of the tokenizer, and of how conversations are rendered. The folder
is made under another name and renamed, so it is whole or not there. The numbers are plain and little-endian.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from firstlight.data.chat.counts import ConversationCounts
from firstlight.data.chat.documents import ConversationTokens, offsets_of
from firstlight.data.chat.sources import ConversationSource
from firstlight.data.lock import one_at_a_time
from firstlight.data.sources.base import Progress
from firstlight.data.split import MAX_FRACTION
from firstlight.data.store import id_dtype, read_json, write_durably
from firstlight.errors import ConfigError, DataError
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import RENDER_VERSION, Message, pieces

FORMAT_VERSION = 1
BATCH_CONVERSATIONS = 2048
# A folder this old under a temporary name belongs to no process that still makes it.
ABANDONED_S = 3600.0

SIDES = ("train", "val")
BY_HASH = 255
"""In sides.bin: the source has no sides of its own."""


@dataclass(frozen=True, eq=False)
class TokenisedConversations:
    """All conversations of a source as ids.

    tokens: all of them, in the source's order. sides: uint8, (num_conversations,): index into SIDES, or BY_HASH.
    counts: what was read and skipped. content_hash: of the source's bytes. folder: where it is kept. was_kept: whether it had
    been made before.
    """

    name: str
    tokens: ConversationTokens
    sides: np.ndarray
    counts: ConversationCounts
    content_hash: str
    folder: Path
    was_kept: bool

    def split(self, side: str, *, val_frac: float = 0.01) -> ConversationTokens:
        """The conversations of one side: ``train`` or ``val``.

        A source's own sides stand, and ``val_frac`` is not used; else a conversation is for validation by the hash of its
        content, so copies fall on the same side, and files that come or go move nothing. A conversation of a source's own
        validation that is also in its training is left out of validation (`num_val_in_train`). Raises ConfigError for a
        fraction that is none, DataError where the side holds no conversation.
        """
        assert side in SIDES, side
        hashes = self.tokens.hashes
        if not 0 < val_frac <= MAX_FRACTION:
            raise ConfigError(
                f"--val-frac {val_frac:g}: it must be above 0 and at most {MAX_FRACTION}", hint="0.01 is usual"
            )
        is_val = np.where(
            self.sides == BY_HASH, hashes < np.uint64(int(val_frac * 2**64)), self.sides == SIDES.index("val")
        )
        which = ~is_val if side == "train" else is_val & ~self._is_val_in_train
        found = self.tokens.select(np.flatnonzero(which))
        if len(found) == 0:
            raise DataError(
                f"{self.name}: none of its {len(self.tokens):,} conversations is for {side}",
                hint=f"--val-frac {val_frac:g} sets that part of them aside, by their content: use another, or more data",
            )
        return found

    @property
    def has_own_sides(self) -> bool:
        """Whether the source says itself what is for validation."""
        return bool((self.sides != BY_HASH).any())

    @property
    def num_val_in_train(self) -> int:
        """Conversations that the source has on both of its own sides: they are used for training only."""
        return int(self._is_val_in_train.sum())

    @cached_property
    def _is_val_in_train(self) -> np.ndarray:
        hashes, sides = self.tokens.hashes, self.sides
        return (sides == SIDES.index("val")) & np.isin(hashes, hashes[sides == SIDES.index("train")])


def tokenise_conversations(
    source: ConversationSource,
    tokenizer: Tokenizer,
    *,
    cache_dir: Path,
    num_threads: int = 1,
    progress: Progress | None = None,
) -> TokenisedConversations:
    """Ids of all conversations of a source; made once, then taken from ``cache_dir``.

    progress: called as ``progress("tokenising conversations", conversations done, None)``.
    Raises DataError where the source has no conversation, a file is damaged, or the cache cannot be written.
    """
    identity = [
        FORMAT_VERSION, RENDER_VERSION, source.name, list(source.names), source.content_hash, tokenizer.content_hash,
    ]  # fmt: skip
    folder = cache_dir / "chat" / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder.with_suffix(".lock"), progress=progress):
            if (kept := _opened(folder, source, was_kept=True)) is not None:
                return kept
            shutil.rmtree(folder, ignore_errors=True)
            _clear_abandoned(folder.parent)
            temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{time.time_ns():x}.tmp")
            try:
                temporary.mkdir()
                _write(temporary, source, tokenizer, num_threads=num_threads, progress=progress)
                temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"cannot write the ids of conversations in {folder.parent}: {error.strerror or error}",
            hint="choose another place for the cache with the environment variable FIRSTLIGHT_CACHE",
        ) from error
    made = _opened(folder, source, was_kept=False)
    assert made is not None, f"{folder} was just written"
    return made


def conversation_hash(messages: Sequence[Message]) -> int:
    """64-bit hash of a conversation's roles, parts and texts (blake2b): what the validation split goes by."""
    content = [[message.role, [[part.kind, part.text] for part in message.parts]] for message in messages]
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def encode_conversations(
    conversations: Sequence[Sequence[Message]], tokenizer: Tokenizer, *, num_threads: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids and mask of several conversations one after another, and the length of each; the same ids as `render` gives.

    Returns uint32 (num_tokens,), bool (num_tokens,) and int64 (num_conversations,).
    """
    rendered = [list(pieces(messages)) for messages in conversations]
    flat = [piece for each in rendered for piece in each]
    texts = iter(tokenizer.encode_batch([piece.text for piece in flat if not piece.is_special], num_threads))
    special = {name: np.array([i], dtype=np.uint32) for name, i in tokenizer.special_ids.items()}
    parts = [special[piece.text] if piece.is_special else next(texts) for piece in flat]
    part_lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
    mask = np.repeat(np.array([piece.carries_loss for piece in flat], dtype=bool), part_lengths)
    ends = np.cumsum([len(each) for each in rendered])
    lengths = np.diff(offsets_of(part_lengths)[np.concatenate([[0], ends]).astype(np.int64)])
    return np.concatenate([*parts, np.empty(0, np.uint32)]), mask, lengths


def _write(
    folder: Path, source: ConversationSource, tokenizer: Tokenizer, *, num_threads: int, progress: Progress | None
) -> None:
    counts = ConversationCounts()
    dtype = id_dtype(tokenizer.vocab_size)
    lengths: list[np.ndarray] = []
    hashes: list[int] = []
    names: list[bytes] = []
    sides: list[int] = []
    with ExitStack() as stack:
        ids_file: BinaryIO = stack.enter_context(open(folder / "ids.bin", "wb"))
        mask_file: BinaryIO = stack.enter_context(open(folder / "mask.bin", "wb"))
        for side, batch in _batches(source, counts):
            ids, mask, batch_lengths = encode_conversations(
                [messages for _, messages in batch], tokenizer, num_threads=num_threads
            )
            ids_file.write(ids.astype(dtype).tobytes())
            mask_file.write(mask.tobytes())
            lengths.append(batch_lengths)
            hashes += [conversation_hash(messages) for _, messages in batch]
            names += [where.encode() for where, _ in batch]
            sides += [side] * len(batch)
            if progress is not None:
                progress("tokenising conversations", len(hashes), None)
    if progress is not None:
        progress("tokenising conversations", len(hashes), len(hashes))
    if not hashes:
        why = ", ".join(f"{count:,} {reason}" for reason, count in counts.skipped.items()) or "it has no rows"
        raise DataError(f"{source.name} has no conversation ({why})", hint="see docs/conversations.md for what is read")
    arrays = {
        "offsets": offsets_of(np.concatenate(lengths)).astype("<i8"),
        "hashes": np.array(hashes, dtype="<u8"),
        "sources": np.frombuffer(b"".join(names), np.uint8),
        "source_offsets": offsets_of([len(name) for name in names]).astype("<i8"),
        "sides": np.array(sides, dtype=np.uint8),
    }
    for name, array in arrays.items():
        (folder / f"{name}.bin").write_bytes(array.tobytes())
    manifest = {
        "version": FORMAT_VERSION,
        "render_version": RENDER_VERSION,
        "source": source.name,
        "source_content_hash": source.content_hash,
        "tokenizer_hash": tokenizer.content_hash,
        "ids_dtype": dtype.str,
        "sizes_bytes": {file.name: file.stat().st_size for file in sorted(folder.glob("*.bin"))},
        "counts": counts.to_dict(),
    }
    write_durably(folder / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False).encode())


def _batches(
    source: ConversationSource, counts: ConversationCounts
) -> Iterator[tuple[int, list[tuple[str, tuple[Message, ...]]]]]:
    for split in source.splits or (None,):
        side = BY_HASH if split is None else SIDES.index(split)
        read = source.read(counts, split)
        while batch := list(islice(read, BATCH_CONVERSATIONS)):
            yield side, batch


def _opened(folder: Path, source: ConversationSource, *, was_kept: bool) -> TokenisedConversations | None:
    """What is kept in a folder, or None where it is not there or not whole."""
    manifest = read_json(folder / "manifest.json")
    if manifest is None:
        return None
    sizes = manifest["sizes_bytes"]
    if any(not (folder / name).is_file() or (folder / name).stat().st_size != size for name, size in sizes.items()):
        return None
    offsets = _mapped(folder / "offsets.bin", "<i8")
    tokens = ConversationTokens(
        ids=_mapped(folder / "ids.bin", manifest["ids_dtype"]),
        mask=_mapped(folder / "mask.bin", "?"),
        offsets=offsets,
        hashes=_mapped(folder / "hashes.bin", "<u8"),
        sources=_mapped(folder / "sources.bin", "u1"),
        source_offsets=_mapped(folder / "source_offsets.bin", "<i8"),
        chosen=np.arange(len(offsets) - 1, dtype=np.int64),
    )
    counts = ConversationCounts(**_fields(manifest["counts"]))
    sides = _mapped(folder / "sides.bin", "u1")
    return TokenisedConversations(source.name, tokens, sides, counts, source.content_hash, folder, was_kept)


def _fields(values: dict[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in ConversationCounts.__dataclass_fields__}


def _mapped(path: Path, dtype: str) -> np.ndarray:
    if path.stat().st_size == 0:
        return np.empty(0, dtype=dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype=dtype, mode="r")


def _clear_abandoned(folder: Path) -> None:
    for left in folder.glob(".*.tmp"):
        if time.time() - left.stat().st_mtime > ABANDONED_S:
            shutil.rmtree(left, ignore_errors=True)
