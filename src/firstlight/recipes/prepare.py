"""From `--data` to token shards: open the text, train or load its tokenizer, start the token store.

Everything made here is cached by content, so the second run on the same text starts at once.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from firstlight.data import build, split
from firstlight.data.rows import RowRecipe
from firstlight.data.sources.base import ReadCounts, Source
from firstlight.data.sources.reading import read_documents
from firstlight.data.sources.resolve import open_source
from firstlight.data.split import ValSpec
from firstlight.data.store import SourceHashes, TokenStore, content_hash
from firstlight.errors import DataError
from firstlight.recipes.sharing import folder_leaders, together
from firstlight.runtime.console import Console, format_bytes
from firstlight.runtime.context import Runtime
from firstlight.tokens.bpe import SPLIT_PATTERN, Tokenizer, train_tokenizer

# 32 MB of English fix the merges of a small vocabulary; more text changes the rarest tokens only. A vocabulary of 32,768
# gets a thousand bytes an id as well.
TOKENIZER_TRAIN_BYTES = 32_000_000
TOKENIZER_MAX_SHARDS = 8
SMALL_SOURCE_BYTES = 4_000_000
VISIBLE_WITHIN_S = 120.0
"""A network's file system shows a file that another machine has made after a minute at the latest (NFS: acdirmax)."""


@dataclass(frozen=True)
class PreparedData:
    """What a run learns from. ``val`` is resolved: a shard's name or a fraction by hash."""

    source: Source
    tokenizer: Tokenizer
    store: TokenStore
    val: ValSpec


def resolve_source_val(source: Source, val: str | None) -> ValSpec:
    """Validation split of a source: what was asked for, else the shard its publisher sets aside, else hash:0.01.

    Raises ConfigError for a name that fits no shard, DataError where nothing would be left to train on.
    """
    names = [shard.name for shard in source.shards]
    wanted = val or ("last" if source.val_shard else "hash:0.01")
    return split.resolve_val(wanted, names, pinned=source.val_shard)


def training_texts(source: Source, val: ValSpec, *, counts: ReadCounts) -> Iterator[str]:
    """Training documents, a block from each of the first shards in turn, so that every kind of text is seen early."""
    names = [shard.name for shard in source.shards]
    indices = split.split_shards(val, names, "train")[:TOKENIZER_MAX_SHARDS]
    readers = {i: read_documents(source.local_path(source.shards[i]), counts, name=names[i]) for i in indices}
    limit = int(val.fraction * 2**64) if val.kind == "hash" else 0
    for i in cycle(list(readers)):
        if not readers:
            return
        if i not in readers:
            continue
        for _ in range(64):
            row = next(readers[i], None)
            if row is None:
                del readers[i]
                break
            if content_hash(row[1].encode()) >= limit:
                yield row[1]


def tokenizer_key(source: Source, val: ValSpec, *, vocab_size: int, cache_dir: Path) -> str:
    """Cache key of the tokenizer that `train_for` would make: everything that decides its merges."""
    hashes = SourceHashes(cache_dir)
    key = hashlib.sha256(f"{SPLIT_PATTERN}\0{vocab_size}\0{TOKENIZER_TRAIN_BYTES}\0{val}".encode())
    for shard in source.shards[:TOKENIZER_MAX_SHARDS]:
        key.update(f"\0{shard.name}\0{hashes.sha256(source.local_path(shard))}".encode())
    return key.hexdigest()[:32]


def tokenizer_for(source: Source, val: ValSpec, *, vocab_size: int, cache_dir: Path, console: Console) -> Tokenizer:
    """Tokenizer trained on a source's training documents, from the cache where it was trained before.

    Raises DataError where the text cannot give ``vocab_size`` ids.
    """
    folder = cache_dir / "tokenizers"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the cache folder {folder} cannot be made: {error.strerror or error}",
            hint="set FIRSTLIGHT_CACHE to a folder that you may write to",
        ) from error
    path = folder / f"{tokenizer_key(source, val, vocab_size=vocab_size, cache_dir=folder)}.json"
    if path.exists():
        try:
            return Tokenizer.load(path)
        except DataError as error:
            console.warn(f"{path} is damaged ({error.what}); training the tokenizer again")
    counts = ReadCounts()
    with console.progress(f"training a tokenizer of {vocab_size:,} ids", unit="bytes") as bar:

        def counted() -> Iterator[str]:
            for text in training_texts(source, val, counts=counts):
                bar.advance(len(text))
                yield text

        tokenizer = train_tokenizer(counted(), vocab_size=vocab_size, max_bytes=TOKENIZER_TRAIN_BYTES)
    tokenizer.save(path)
    return tokenizer


@dataclass(frozen=True)
class OpenedText:
    """Text that is opened, with its tokenizer; tokenised or not. order: shards in the order of the first epoch."""

    source: Source
    tokenizer: Tokenizer
    val: ValSpec
    order: list[int]


def open_text(
    data: str,
    *,
    val: str | None,
    tokenizer_path: Path | None,
    vocab_size: int,
    cache_dir: Path,
    seed: int,
    packing: str,
    seq_len: int,
    console: Console,
) -> OpenedText:
    """Open the text and get its tokenizer. Raises ConfigError or DataError for what cannot be trained on."""
    with console.progress(f"opening {data}") as bar:
        source = open_source(data, cache_dir=cache_dir, progress=lambda what, done, total: bar.advance(0))
    if source.ignored:
        console.say(
            f"{data}: {len(source.ignored)} files beside the text are not read: {', '.join(source.ignored[:5])}"
        )
    val_spec = resolve_source_val(source, val)
    if tokenizer_path is None:
        tokenizer = tokenizer_for(source, val_spec, vocab_size=vocab_size, cache_dir=cache_dir, console=console)
    else:
        tokenizer = Tokenizer.load(tokenizer_path)
    recipe = RowRecipe(
        bos_id=tokenizer.bos_id, val=val_spec, split="train", packing=packing, row_len=seq_len + 1, seed=seed
    )
    return OpenedText(source, tokenizer, val_spec, recipe.shard_order([shard.name for shard in source.shards], 0))


def prepare_data(
    data: str,
    *,
    val: str | None,
    tokenizer_path: Path | None,
    vocab_size: int,
    cache_dir: Path,
    num_workers: int,
    seed: int,
    packing: str,
    seq_len: int,
    console: Console,
) -> PreparedData:
    """Open the text, get its tokenizer, and start the token store: it is built in the order that training needs.

    Raises ConfigError or DataError for what cannot be trained on.
    """
    text = open_text(
        data, val=val, tokenizer_path=tokenizer_path, vocab_size=vocab_size, cache_dir=cache_dir, seed=seed, packing=packing,
        seq_len=seq_len, console=console,
    )  # fmt: skip
    store = build.start_build(
        text.source, text.tokenizer, cache_dir=cache_dir, num_workers=num_workers, order=text.order
    )
    return PreparedData(text.source, text.tokenizer, store, text.val)


def prepare_data_together(
    data: str,
    *,
    val: str | None,
    tokenizer_path: Path | None,
    vocab_size: int,
    cache_dir: Path,
    num_workers: int,
    seed: int,
    packing: str,
    seq_len: int,
    console: Console,
    runtime: Runtime,
) -> PreparedData:
    """`prepare_data` for all processes of a training: the work is shared, and all of the text is tokenised at the end.

    In each cache folder (one that all share, or one a machine) one rank makes the tokenizer and lists the shards to be
    built; then one rank of each machine builds its part of them with ``num_workers`` processes. Nobody waits past a
    timeout, however long that takes. On one process it is `prepare_data`, which builds behind the training.

    Raises on every rank what went wrong on any.
    """

    def open_it(path: Path | None) -> OpenedText:
        return open_text(
            data, val=val, tokenizer_path=path, vocab_size=vocab_size, cache_dir=cache_dir, seed=seed, packing=packing,
            seq_len=seq_len, console=console,
        )  # fmt: skip

    control, rank = runtime.control, runtime.rank
    if runtime.world_size == 1:
        return prepare_data(
            data, val=val, tokenizer_path=tokenizer_path, vocab_size=vocab_size, cache_dir=cache_dir,
            num_workers=num_workers, seed=seed, packing=packing, seq_len=seq_len, console=console,
        )  # fmt: skip
    leaders = folder_leaders(control, cache_dir)
    local_ranks = control.gather_texts(str(runtime.local_rank))
    leader = leaders[rank]
    builders = [r for r, each in enumerate(leaders) if each == leader and (local_ranks[r] == "0" or r == leader)]

    def lead(note: Callable[[str], None]) -> tuple[OpenedText, str, list[int]] | None:
        if rank != leader:
            return None
        note("making the tokenizer")
        text = open_it(tokenizer_path)
        directory = build.prepare_store(text.source, text.tokenizer, cache_dir=cache_dir)
        note("looking for what is tokenised")
        stale = set(build.stale_shards(text.source, directory))
        return text, str(directory), [i for i in dict.fromkeys([*text.order, *sorted(stale)]) if i in stale]

    led = together(control, lead, report=console.say)
    told = control.gather_texts(json.dumps({"directory": led[1], "stale": led[2]} if led else {}))
    found = json.loads(told[leader])
    directory = Path(found["directory"])

    def build_part(note: Callable[[str], None]) -> OpenedText:
        text = led[0] if led else open_it(directory / build.TOKENIZER_FILE)
        if rank not in builders:
            return text
        mine = found["stale"][builders.index(rank) :: len(builders)]
        with console.progress("tokenising", len(mine), unit="shards") as bar:

            def show(what: str, done: int, total: int | None) -> None:
                note(f"{what}, {done} of {total}" if total else what)
                if what == "tokenising":
                    bar.advance(done - bar.done)

            with build.start_listed(
                text.source, text.tokenizer, directory=directory, indices=mine, num_workers=num_workers, progress=show
            ) as store:
                for index in mine:
                    store.shard(index)
        return text

    text = together(control, build_part, report=console.say)
    store = together(control, lambda note: _complete_store(directory), report=console.say)
    return PreparedData(text.source, text.tokenizer, store, text.val)


def _complete_store(directory: Path) -> TokenStore:
    """The store, once this machine sees all that the others have built. Raises DataError where it does not."""
    end_s = time.monotonic() + VISIBLE_WITHIN_S
    store = TokenStore.open(directory)
    for index in range(store.num_shards):
        while not store.is_built(index):
            if time.monotonic() > end_s:
                raise DataError(
                    f"{store.shard_names[index]} was tokenised by another process, but is not in {directory} here",
                    hint="if the cache folder is on a network's disk, start again; else set FIRSTLIGHT_CACHE to another",
                )
            time.sleep(0.1)
    return store


def check_amounts(data: PreparedData, *, seq_len: int) -> None:
    """Refuse, before anything is trained, text without a validation document or without one row to train on.

    Waits until the first validation document is tokenised; and for all of the text where that is little.
    Raises DataError.
    """
    next(split.iter_documents(data.store, data.val))
    if sum(shard.num_bytes or 0 for shard in data.source.shards) > SMALL_SOURCE_BYTES:
        return
    num_tokens = sum(len(document) for document, _ in split.iter_documents(data.store, data.val, split="train"))
    if num_tokens < seq_len:
        raise DataError(
            f"the training text of {data.source.name} has {num_tokens:,} tokens, less than one row of {seq_len:,}",
            hint=f"use --max-seq-len {max(1, num_tokens // 4)} or less, or more text",
        )


def describe_skips(store: TokenStore) -> str | None:
    """What was skipped while tokenising the shards that are built, by reason and with examples; None for nothing."""
    total = ReadCounts()
    for index in range(store.num_shards):
        manifest = store.shard_manifest(index)
        if manifest is not None:
            total.add(ReadCounts(**manifest["counts"]))
    if not total.skipped:
        return None
    reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in total.skipped_by_reason().items())
    return f"rows skipped: {total.skipped:,} ({reasons}), for example {'; '.join(total.examples)}"


def store_notes(store: TokenStore) -> list[str]:
    """What to say once about the shards that are built: which encoder made them, and what was skipped."""
    skipped = describe_skips(store)
    return [*build.encoder_notes(store), *([skipped] if skipped else [])]


def describe_source(source: Source) -> str:
    """The data in one line, for people."""
    sizes = [shard.num_bytes for shard in source.shards]
    known = sum(size for size in sizes if size is not None)
    return f"{source.name}: {len(sizes)} shard{'s' * (len(sizes) != 1)}, {format_bytes(known)} on disk"
