"""The token store: a corpus tokenised once, memory-mapped after. This file reads it; ``build.py`` writes it.

    <cache>/tokens/<key>/store.json          what the store is of: source, tokenizer, the shards' names in order
                         shard_00000.bin     ids of the documents one after another, without BOS; little-endian uint16,
                                             uint32 where the vocabulary is above 65,536
                         shard_00000.idx     offsets int64 (N + 1), content hash uint64 (N), UTF-8 bytes int64 (N),
                                             row in the source file int64 (N); little-endian, one after another
                         shard_00000.json    the shard's manifest, written last: without it the shard does not exist

Shards are independent of each other, so any of them can be built first, by any process.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from firstlight.errors import DataError

STORE_VERSION = 1
STORE_FILE = "store.json"
FAILURE_FILE = "build_failure.json"
SOURCE_HASHES_FILE = "source_hashes.json"
POLL_S = 0.05


class ShardBuilder(Protocol):
    """What the store needs from the process that builds it."""

    def failure(self) -> DataError | None:
        """Why nothing more will be built, or None while the build runs."""
        ...

    def want(self, index: int) -> None:
        """Build this shard next."""
        ...

    def stop(self) -> None:
        """End all work at once. What is half built is built again next time."""
        ...


class WaitCancelled(Exception):
    """A wait for a shard was called off by ``stop``; never shown to a user."""


def shard_stem(index: int) -> str:
    return f"shard_{index:05d}"


def id_dtype(vocab_size: int) -> np.dtype:
    """The type of the stored ids: uint16 where every id below ``vocab_size`` fits, else uint32."""
    return np.dtype("<u2" if vocab_size <= 65_536 else "<u4")


def idx_bytes(num_documents: int) -> int:
    """Size of an ``.idx`` file: four 8-byte numbers for each document, and the last offset."""
    return 8 * (4 * num_documents + 1)


def content_hash(text_bytes: bytes) -> int:
    """64-bit content hash of one document's UTF-8 text (blake2b): what the validation split goes by."""
    return int.from_bytes(hashlib.blake2b(text_bytes, digest_size=8).digest(), "little")


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where the file is missing, cut short or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_durably(path: Path, data: bytes) -> None:
    """Write a file so that a kill or a power cut leaves either the old one or the new one, never a part."""
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` that no other process or thread uses."""
    return path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident():x}-{time.time_ns():x}.tmp")


def sync_directory(directory: Path) -> None:
    """Make a rename last through a power cut, on systems where a directory can be opened for that."""
    if os.name != "posix":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class StoredShard:
    """One tokenised source shard, memory-mapped. N documents.

    name: the source file's name. lengths: int64 (N,), ids of each document without BOS. doc_hashes: uint64 (N,).
    num_text_bytes: int64 (N,), UTF-8 bytes of each text. source_rows: int64 (N,), row of each in the source file.
    offsets: int64 (N + 1,), where each document begins in ``all_ids``.

    Raises DataError where the files do not have the sizes, or the ids not the range, that the manifest says.
    """

    def __init__(self, directory: Path, index: int, manifest: dict[str, Any], *, vocab_size: int) -> None:
        self.index = index
        self.manifest = manifest
        self.name: str = manifest["source"]["name"]
        self.num_documents: int = manifest["documents"]
        self.num_tokens: int = manifest["tokens"]
        self.max_id: int = manifest["max_id"]
        self.path = directory / f"{shard_stem(index)}.bin"
        dtype = id_dtype(vocab_size)
        problems = size_problems(directory, index, manifest, dtype)
        if problems:
            raise DataError(
                f"the token store is damaged: {problems[0]}", hint=f"delete {directory} to have it built again"
            )
        if self.max_id >= vocab_size:
            raise DataError(
                f"{self.path} (from {self.name}) holds id {self.max_id}, but the vocabulary has {vocab_size} ids",
                hint="the store was made with another tokenizer: delete its folder to have it built again",
            )
        n = self.num_documents
        idx = np.memmap(self.path.with_suffix(".idx"), dtype="<i8", mode="r")
        self.offsets = idx[: n + 1]
        self.doc_hashes = idx[n + 1 : 2 * n + 1].view("<u8")
        self.num_text_bytes = idx[2 * n + 1 : 3 * n + 1]
        self.source_rows = idx[3 * n + 1 :]
        self.lengths = np.diff(self.offsets)
        if self.offsets[0] != 0 or self.offsets[-1] != self.num_tokens or (self.lengths < 0).any():
            raise DataError(
                f"the token store is damaged: the offsets in {self.path.with_suffix('.idx')} do not fit its ids",
                hint=f"delete {directory} to have it built again",
            )
        # A file of no bytes cannot be mapped.
        self.all_ids = np.memmap(self.path, dtype=dtype, mode="r") if self.num_tokens else np.zeros(0, dtype=dtype)

    def ids(self, doc: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Ids [start, stop) of a document, without BOS; memory-mapped, so copy before changing."""
        begin = int(self.offsets[doc])
        end = int(self.offsets[doc + 1]) if stop is None else begin + stop
        return self.all_ids[begin + start : end]

    def source_row(self, doc: int) -> str:
        """Where a document came from, for people: ``"shard_00003.parquet:117"``."""
        return f"{self.name}:{int(self.source_rows[doc])}"

    def verify(self) -> list[str]:
        """Problems found by reading both files in full and comparing their sha256; empty where all is well."""
        problems = []
        for suffix in ("bin", "idx"):
            path = self.path.with_suffix(f".{suffix}")
            if hash_file(path) != self.manifest[f"{suffix}_sha256"]:
                problems.append(f"{path}: its sha256 is not the one in its manifest")
        return problems


def size_problems(directory: Path, index: int, manifest: dict[str, Any], dtype: np.dtype) -> list[str]:
    """What is wrong with the sizes of a shard's files; empty where nothing is."""
    expected = {"bin": manifest["tokens"] * dtype.itemsize, "idx": idx_bytes(manifest["documents"])}
    problems = []
    for suffix, num_bytes in expected.items():
        path = directory / f"{shard_stem(index)}.{suffix}"
        try:
            found = path.stat().st_size
        except OSError:
            problems.append(f"{path} is missing")
            continue
        if found != num_bytes:
            problems.append(f"{path} has {found} bytes, its manifest says {num_bytes}")
    return problems


class TokenStore:
    """The tokenised corpus: shards in the source's canonical order, each there as soon as it is built.

    manifest: the content of ``store.json``. Close it (or use ``with``) to end a build that still runs.
    """

    def __init__(self, directory: Path, manifest: dict[str, Any], *, builder: ShardBuilder | None, wait: bool) -> None:
        self.directory = directory
        self.manifest = manifest
        self._builder = builder
        self._wait = wait
        self._open: dict[int, StoredShard] = {}

    @classmethod
    def open(cls, directory: Path, *, builder: ShardBuilder | None = None, wait: bool = False) -> TokenStore:
        """Open a store that is built, or being built.

        wait: another process builds it (rank 0, a scheduler): ``shard`` waits for what is missing, until that process
        leaves a failure behind. Without ``wait`` or a ``builder`` a missing shard is an error at once.
        Raises DataError where there is no store, or one of another version.
        """
        manifest = read_json(directory / STORE_FILE)
        if manifest is None:
            raise DataError(f"{directory} holds no token store", hint="it is built when training starts on a corpus")
        if manifest.get("version") != STORE_VERSION:
            raise DataError(
                f"{directory} is a token store of version {manifest.get('version')}; this program reads {STORE_VERSION}",
                hint="delete the folder to have it built again",
            )
        return cls(directory, manifest, builder=builder, wait=wait)

    def __enter__(self) -> TokenStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End a build that this store started. Shards that are built stay usable."""
        if self._builder is not None:
            self._builder.stop()

    @property
    def shard_names(self) -> list[str]:
        return self.manifest["shards"]

    @property
    def num_shards(self) -> int:
        return len(self.shard_names)

    @property
    def vocab_size(self) -> int:
        """Ids of the tokenizer that made the store, special ones included."""
        return self.manifest["vocab_size"]

    @property
    def tokenizer_hash(self) -> str:
        return self.manifest["tokenizer_hash"]

    @property
    def pinned_val_shard(self) -> str | None:
        """The validation shard that the source itself names, where it does."""
        return self.manifest.get("val_shard")

    def shard_manifest(self, index: int) -> dict[str, Any] | None:
        """Manifest of shard ``index``, or None where the shard is not (or no longer rightly) built."""
        if index in self._open:
            return self._open[index].manifest
        found = read_json(self.directory / f"{shard_stem(index)}.json")
        return found if found is not None and manifest_fits(found, self.manifest, index) else None

    def is_built(self, index: int) -> bool:
        return self.shard_manifest(index) is not None

    @property
    def is_complete(self) -> bool:
        return all(self.is_built(i) for i in range(self.num_shards))

    def shard(self, index: int, *, stop: threading.Event | None = None) -> StoredShard:
        """Shard ``index``; waits without limit for one that is being built.

        stop: ends the wait with WaitCancelled when it is set.
        Raises DataError where the shard is damaged, where nobody builds it, or where the builder has failed.
        """
        if index in self._open:
            return self._open[index]
        if not 0 <= index < self.num_shards:
            raise DataError(f"there is no shard {index}: the store has {self.num_shards}")
        asked = False
        while True:
            # Asked before the manifest is read, so that a shard finished in between is still seen.
            failure = self._failure()
            manifest = self.shard_manifest(index)
            if manifest is not None:
                return self._open.setdefault(
                    index, StoredShard(self.directory, index, manifest, vocab_size=self.vocab_size)
                )
            if failure is not None:
                raise failure
            if self._builder is None and not self._wait:
                raise DataError(
                    f"{self.shard_names[index]} is not in the token store {self.directory}",
                    hint="its build was not finished: start training again, or build the missing part of the store",
                )
            if self._builder is not None and not asked:
                self._builder.want(index)
                asked = True
            if stop is None:
                time.sleep(POLL_S)
            elif stop.wait(POLL_S):
                raise WaitCancelled

    def shards(self) -> Iterator[StoredShard]:
        """All shards in canonical order; waits for each."""
        for index in range(self.num_shards):
            yield self.shard(index)

    def _failure(self) -> DataError | None:
        if self._builder is not None:
            return self._builder.failure()
        left_behind = read_json(self.directory / FAILURE_FILE) if self._wait else None
        return DataError(left_behind["what"], hint=left_behind["hint"]) if left_behind else None

    def source_sha256(self, index: int) -> str:
        """sha256 of the bytes of source file ``index``: from its manifest, its publisher, the file, or after waiting."""
        manifest = self.shard_manifest(index)
        if manifest is not None:
            return manifest["source"]["sha256"]
        if self.manifest["published_sha256"][index] is not None:
            return self.manifest["published_sha256"][index]
        path = self.manifest["paths"][index]
        if path is not None and Path(path).is_file():
            return SourceHashes(self.directory).sha256(Path(path))
        return self.shard(index).manifest["source"]["sha256"]

    @cached_property
    def data_hash(self) -> str:
        """Content identity of the data: sha256 over (name, sha256 of the source file) of all shards, in order.

        Does not wait for tokenisation where the source files are on this machine: they are hashed (once) instead.
        """
        total = hashlib.sha256()
        for index, name in enumerate(self.shard_names):
            total.update(f"{name}\0{self.source_sha256(index)}\n".encode())
        return total.hexdigest()


def manifest_fits(found: dict[str, Any], store: dict[str, Any], index: int) -> bool:
    """Whether a shard's manifest belongs to this store: same version, source name and tokenizer."""
    return (
        found.get("version") == STORE_VERSION
        and found.get("tokenizer_hash") == store["tokenizer_hash"]
        and found.get("source", {}).get("name") == store["shards"][index]
    )


class SourceHashes:
    """sha256 of source files, remembered by path, size and time of change so that a big file is read once."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / SOURCE_HASHES_FILE

    def sha256(self, path: Path) -> str:
        """sha256 of a file, from memory where its size and time of change are as before.

        Raises DataError where the file cannot be read.
        """
        try:
            facts = path.stat()
            key = f"{path.resolve()}\0{facts.st_size}\0{facts.st_mtime_ns}"
            known = read_json(self._path) or {}
            if key in known:
                return known[key]
            known[key] = hash_file(path)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        # A disk that takes no more costs the next run a second reading of the file, and nothing else.
        with suppress(OSError):
            write_durably(self._path, json.dumps(known, indent=0).encode())
        return known[key]
