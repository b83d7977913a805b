"""Build the token store: read a source shard, tokenise it, write it so that a kill at any point leaves nothing to trust.

The order for one shard: ids and index go to temporary names and are synced; an old manifest is removed; the two files
are renamed; the manifest is written last. A shard without a manifest does not exist, so a second run builds it anew.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from firstlight.data.build_pool import BuildJob, PoolBuilder
from firstlight.data.sources.base import Progress, ReadCounts, Source, SourceShard
from firstlight.data.sources.reading import read_documents
from firstlight.data.store import (
    FAILURE_FILE,
    STORE_FILE,
    STORE_VERSION,
    SourceHashes,
    TokenStore,
    content_hash,
    hash_file,
    id_dtype,
    manifest_fits,
    read_json,
    shard_stem,
    size_problems,
    sync_directory,
    temporary_name,
    write_durably,
)
from firstlight.errors import ConfigError, DataError
from firstlight.tokens.bpe import Tokenizer

TOKENIZER_FILE = "tokenizer.json"
BATCH_CHARS = 4 << 20
BATCH_DOCUMENTS = 1024
# Workers that build ahead get about a third of a core that training wants as well (Linux: weight 335 against 1024).
BACKGROUND_NICENESS = 5
# A temporary file this old belongs to no build that still runs.
ABANDONED_S = 3600.0


def store_directory(source: Source, tokenizer: Tokenizer, *, cache_dir: Path) -> Path:
    """Folder of the token store of a source under a tokenizer: its name is a hash of what both are.

    The source is identified by its name, its facts (versions, the hub's commit), its shards' names, and the paths of
    local files; the bytes of each file are compared with its manifest (``stale_shards``).
    """
    paths = [str(shard.path.resolve()) if shard.path and not shard.fetch else None for shard in source.shards]
    names = [shard.name for shard in source.shards]
    identity = [STORE_VERSION, source.name, sorted(source.facts.items()), names, paths, tokenizer.content_hash]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    return cache_dir / "tokens" / key


def prepare_store(source: Source, tokenizer: Tokenizer, *, cache_dir: Path) -> Path:
    """Make the store's folder with ``store.json`` and the tokenizer, clear what dead builds left; return the folder.

    Raises DataError where the folder cannot be written.
    """
    directory = store_directory(source, tokenizer, cache_dir=cache_dir)
    manifest = {
        "version": STORE_VERSION,
        "source": source.name,
        "source_facts": source.facts,
        "shards": [shard.name for shard in source.shards],
        "paths": [str(shard.path.resolve()) if shard.path else None for shard in source.shards],
        "published_sha256": [shard.sha256 for shard in source.shards],
        "val_shard": source.val_shard,
        "tokenizer_hash": tokenizer.content_hash,
        "vocab_size": tokenizer.vocab_size,
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for left in directory.glob("*.tmp"):
            if time.time() - left.stat().st_mtime > ABANDONED_S:
                left.unlink(missing_ok=True)
        (directory / FAILURE_FILE).unlink(missing_ok=True)
        tokenizer.save(directory / TOKENIZER_FILE)
        if read_json(directory / STORE_FILE) != manifest:
            write_durably(directory / STORE_FILE, json.dumps(manifest, indent=1).encode())
    except OSError as error:
        raise storage_error(error, directory) from error
    return directory


def storage_error(error: OSError, directory: Path) -> DataError:
    """A DataError for an operating system's refusal to write below ``directory``."""
    hint = "choose another place for the cache with the environment variable FIRSTLIGHT_CACHE"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = f"free some space (tokens take about half the space of their text), or {hint}"
    return DataError(f"cannot write the token store in {directory}: {error.strerror or error}", hint=hint)


def stale_shards(source: Source, directory: Path) -> list[int]:
    """Indices of the shards that must be built: not there, cut short, of another tokenizer, or their source has changed.

    The manifest of a shard whose source has changed is removed here, so that nobody trusts it meanwhile.
    """
    store = TokenStore.open(directory)
    dtype = id_dtype(store.vocab_size)
    stale = []
    for index, shard in enumerate(source.shards):
        path = directory / f"{shard_stem(index)}.json"
        found = read_json(path)
        if (
            found is not None
            and manifest_fits(found, store.manifest, index)
            and not size_problems(directory, index, found, dtype)
            and source_is_unchanged(shard, found["source"], directory)
        ):
            continue
        path.unlink(missing_ok=True)
        stale.append(index)
    return stale


def source_is_unchanged(shard: SourceShard, known: dict[str, Any], directory: Path) -> bool:
    """Whether a source file still has the bytes that its stored shard was made of.

    A file of the same path, size and time of change is taken to be the same (as ``make`` does); else it is hashed. A
    file that is not here is judged by the digest that its publisher states, and trusted where none is stated.
    """
    if shard.sha256 is not None:
        return shard.sha256 == known["sha256"]
    if shard.path is None or not shard.path.is_file():
        return True
    facts = shard.path.stat()
    if [str(shard.path.resolve()), facts.st_size, facts.st_mtime_ns] == [
        known[k] for k in ("path", "bytes", "mtime_ns")
    ]:
        return True
    return SourceHashes(directory).sha256(shard.path) == known["sha256"]


def build_shard(path: Path, *, name: str, index: int, directory: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Tokenise one source file into shard ``index`` of the store in ``directory``; returns its manifest.

    name: the shard's name in its source. Raises DataError for a damaged file, ids beyond the vocabulary, a file that
    changed while it was read, or a disk that is full.
    """
    stem = directory / shard_stem(index)
    bin_path, idx_path = stem.with_suffix(".bin"), stem.with_suffix(".idx")
    temporary = {target: temporary_name(target) for target in (bin_path, idx_path)}
    try:
        before = path.stat()
        source_sha256 = hash_file(path)
        counts = ReadCounts()
        encoded_before = tokenizer.num_encoded_by.copy()
        offsets, hashes, text_bytes, rows = [0], [], [], []
        bin_hash, max_id = hashlib.sha256(), -1
        dtype = id_dtype(tokenizer.vocab_size)
        with open(temporary[bin_path], "wb") as bin_file:
            for row, text, ids in _encoded(path, name, counts, tokenizer):
                if len(ids) == 0:
                    counts.documents -= 1
                    counts.skip("empty", f"{name}:{row}", "has no ids")
                    continue
                max_id = max(max_id, int(ids.max()))
                data = ids.astype(dtype).tobytes()
                bin_file.write(data)
                bin_hash.update(data)
                encoded = text.encode()
                offsets.append(offsets[-1] + len(ids))
                hashes.append(content_hash(encoded))
                text_bytes.append(len(encoded))
                rows.append(row)
            _sync(bin_file)
        if max_id >= tokenizer.vocab_size:
            raise DataError(f"{name}: the tokenizer gave id {max_id}, its vocabulary has {tokenizer.vocab_size} ids")
        after = path.stat()
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise DataError(f"{path} changed while it was read", hint="start again when nothing writes to it")
        idx_data = b"".join(
            np.asarray(values, dtype=kind).tobytes()
            for values, kind in ((offsets, "<i8"), (hashes, "<u8"), (text_bytes, "<i8"), (rows, "<i8"))
        )
        with open(temporary[idx_path], "wb") as idx_file:
            idx_file.write(idx_data)
            _sync(idx_file)
        manifest = {
            "version": STORE_VERSION,
            "source": {
                "name": name, "path": str(path.resolve()), "bytes": before.st_size, "mtime_ns": before.st_mtime_ns,
                "sha256": source_sha256,
            },
            "tokenizer_hash": tokenizer.content_hash,
            "documents": len(rows),
            "tokens": offsets[-1],
            "text_bytes": sum(text_bytes),
            "max_id": max_id,
            "counts": counts.to_dict(),
            # For the reader; the ids, and so the store's identity, are the same with each encoder.
            "encoder": tokenizer.encoder_note,
            "encoded_by": dict(tokenizer.num_encoded_by - encoded_before),
            "bin_sha256": bin_hash.hexdigest(),
            "idx_sha256": hashlib.sha256(idx_data).hexdigest(),
        }  # fmt: skip
        stem.with_suffix(".json").unlink(missing_ok=True)
        for target, name_until_now in temporary.items():
            os.replace(name_until_now, target)
        sync_directory(directory)
        write_durably(stem.with_suffix(".json"), json.dumps(manifest, indent=1).encode())
    except OSError as error:
        # The store's own files are the only ones written; a source that cannot be read says so by its name.
        if error.filename == str(path):
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        raise storage_error(error, directory) from error
    finally:
        for left in temporary.values():
            left.unlink(missing_ok=True)
    return manifest


def _sync(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def _encoded(path: Path, name: str, counts: ReadCounts, tokenizer: Tokenizer) -> Iterator[tuple[int, str, np.ndarray]]:
    """(row, text, ids) of each document; texts are encoded some megabytes at a time."""
    rows: list[int] = []
    texts: list[str] = []
    num_chars = 0
    for row, text in read_documents(path, counts, name=name):
        rows.append(row)
        texts.append(text)
        num_chars += len(text)
        if num_chars >= BATCH_CHARS or len(texts) >= BATCH_DOCUMENTS:
            yield from zip(rows, texts, tokenizer.encode_batch(texts), strict=True)
            rows, texts, num_chars = [], [], 0
    yield from zip(rows, texts, tokenizer.encode_batch(texts), strict=True)


def encoder_notes(store: TokenStore) -> list[str]:
    """Which encoder made the shards that are built, and how many documents each took: a sentence or more, for a log."""
    manifests = [m for i in range(store.num_shards) if (m := store.shard_manifest(i)) and "encoder" in m]
    counts = sum((Counter(manifest["encoded_by"]) for manifest in manifests), Counter())
    # A shard of little text says that it was too little for the faster encoder: no news beside one that used it.
    notes = list(dict.fromkeys(m["encoder"] for m in manifests if "fast" in m["encoded_by"] or not counts["fast"]))
    if counts["fast"]:
        notes.append(f"documents encoded: {counts['fast']:,} by the fast encoder, {counts['tiktoken']:,} by tiktoken")
    return notes


def parse_shard_range(text: str, num_shards: int) -> list[int]:
    """Shards that part ``i`` of ``n`` builds, written ``i/n`` with 0 <= i < n: every n-th, starting at i.

    >>> parse_shard_range("1/3", 7)
    [1, 4]
    """
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise ConfigError(
            f"--shard {text} is not a part of the build", hint="write i/n with i from 0 to n-1, like --shard 0/4"
        )
    return list(range(int(part), num_shards, int(parts)))


def start_build(
    source: Source,
    tokenizer: Tokenizer,
    *,
    cache_dir: Path,
    num_workers: int = 1,
    order: Sequence[int] | None = None,
    shard_range: str | None = None,
    niceness: int = BACKGROUND_NICENESS,
    progress: Progress | None = None,
) -> TokenStore:
    """Open the token store at once; what it lacks is built in the background, in ``order``.

    num_workers: processes that tokenise; 0 builds in a thread of this process. order: shard indices in the order that
    training needs them (the rest follow); canonical where None. shard_range: build only part ``i/n``. niceness: how
    far workers step back for training after their first shard.
    progress: called from another thread with ("tokenising", shards built, shards in all).
    Raises DataError for a source without shards, or a cache that cannot be written.
    """
    if not source.shards:
        raise DataError(f"{source.name} has no shards")
    directory = prepare_store(source, tokenizer, cache_dir=cache_dir)
    mine = set(range(len(source.shards)) if shard_range is None else parse_shard_range(shard_range, len(source.shards)))
    stale = set(stale_shards(source, directory)) & mine
    first = [i for i in order or () if i in stale]
    indices = list(dict.fromkeys([*first, *sorted(stale)]))
    return start_listed(
        source, tokenizer, directory=directory, indices=indices, num_workers=num_workers, niceness=niceness,
        num_built=len(mine) - len(indices), progress=progress,
    )  # fmt: skip


def start_listed(
    source: Source,
    tokenizer: Tokenizer,
    *,
    directory: Path,
    indices: Sequence[int],
    num_workers: int = 1,
    niceness: int = 0,
    num_built: int = 0,
    progress: Progress | None = None,
) -> TokenStore:
    """Open the store in ``directory``, made by ``prepare_store``; these shards of it are built in the background, in order.

    For several builders of one store: one of them asks ``stale_shards`` and the list is dealt out, so that none judges a
    shard that another is writing. num_built: shards that were there before, for ``progress``.
    """
    if not indices:
        return TokenStore.open(directory)
    builder = PoolBuilder(
        [BuildJob(index=i, name=source.shards[i].name) for i in indices],
        directory=directory,
        tokenizer=tokenizer,
        tokenizer_path=directory / TOKENIZER_FILE,
        fetch=lambda i: source.local_path(source.shards[i], progress),
        build_here=build_shard,
        num_workers=num_workers,
        niceness=niceness,
        num_built=num_built,
        progress=progress,
    )
    builder.start()
    return TokenStore.open(directory, builder=builder)


def build_store(
    source: Source,
    tokenizer: Tokenizer,
    *,
    cache_dir: Path,
    num_workers: int = 1,
    shard_range: str | None = None,
    progress: Progress | None = None,
) -> TokenStore:
    """Build all that the token store lacks (or part ``i/n`` of it) and return it. Arguments and errors as in ``start_build``."""
    store = start_build(
        source, tokenizer, cache_dir=cache_dir, num_workers=num_workers, shard_range=shard_range, niceness=0,
        progress=progress,
    )  # fmt: skip
    mine = range(store.num_shards) if shard_range is None else parse_shard_range(shard_range, store.num_shards)
    try:
        for index in mine:
            store.shard(index)
    finally:
        store.close()
    return TokenStore.open(store.directory)
