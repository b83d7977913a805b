"""`firstlight data fetch|import|info`: get text, convert text, and look at text before training on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstlight.data.sources.base import Progress
    from firstlight.runtime.console import Console


def fetch(name: str, /, *, num_parallel: int = 4, json: bool = False) -> None:
    """Download a data set from the hub, and verify each file's size, hash and footer.

    What is there already is verified and kept; what was cut short is continued. NAME builtin makes the built-in text.

    For example:

        firstlight data fetch tinystories
        firstlight data fetch climbmix:20
        firstlight data fetch hf:roneneldan/TinyStories:data

    Parameters
    ----------
    name
        builtin, fineweb-edu, climbmix, tinystories, or hf:owner/name[@revision][:folder][:N]; NAME:N takes the first
        N training shards and the validation shard.
    num_parallel
        Files to download at the same time.
    json
        Print one JSON object.
    """
    from concurrent.futures import ThreadPoolExecutor

    from firstlight.data.sources.resolve import open_source
    from firstlight.errors import ConfigError
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console, format_bytes

    if num_parallel < 1:
        raise ConfigError(f"--num-parallel {num_parallel} is too small", hint="the smallest is 1")
    console = Console(is_terminal=environment.is_terminal())
    with _bars(console, quiet=json) as progress:
        source = open_source(name, cache_dir=environment.cache_dir(), progress=progress)
        # Threads, because the work is waiting for the network.
        pool = ThreadPoolExecutor(num_parallel)
        try:
            paths = list(pool.map(lambda shard: source.local_path(shard, progress), source.shards))
        finally:
            # After an error only the files that are under way are finished.
            pool.shutdown(cancel_futures=True)
    shards = [
        {"name": shard.name, "path": str(path), "num_bytes": path.stat().st_size, "sha256": shard.sha256}
        for shard, path in zip(source.shards, paths, strict=True)
    ]
    num_bytes = sum(path.stat().st_size for path in paths)
    if json:
        console.json(
            {
                "source": source.name, "facts": source.facts, "val_shard": source.val_shard, "num_bytes": num_bytes,
                "shards": shards,
            }
        )  # fmt: skip
        return
    console.say(f"{source.name}: {len(paths)} files, {format_bytes(num_bytes)}, all verified, in {paths[0].parent}")
    if source.val_shard is not None:
        console.say(f"validation shard: {source.val_shard}")
    console.say(f"next: firstlight train base --data {source.name} --depth 4 --minutes 10")


def import_(path: str, /, *, out: Path, shard_mb: float = 100.0, json: bool = False) -> None:
    """Convert your own files into verified Parquet shards (column text), and say what was skipped.

    Training reads the same kinds of files directly; importing is for many small files, or to see problems first.

    For example:

        firstlight data import my_texts/ --out my_corpus
        firstlight data import dump.jsonl.zst --out my_corpus --shard-mb 50 --json

    Parameters
    ----------
    path
        A directory (with all folders below it) or a file: .parquet with a column text, .jsonl with a field text, .txt;
        the last two also as .gz or .zst.
    out
        New directory for shard_00000.parquet and on, and import.json with all counts.
    shard_mb
        Text per shard in millions of bytes.
    json
        Print one JSON object.
    """
    from firstlight.data.sources.convert import RECORD_FILE, convert
    from firstlight.data.sources.resolve import open_source
    from firstlight.errors import ConfigError
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console, format_bytes

    if not shard_mb > 0:
        raise ConfigError(f"--shard-mb {shard_mb} is not a size", hint="it is a number above 0; 100 is usual")
    console = Console(is_terminal=environment.is_terminal())
    with _bars(console, quiet=json) as progress:
        source = open_source(path, cache_dir=environment.cache_dir(), progress=progress)
        record = convert(source, out, shard_bytes=max(1, round(shard_mb * 1e6)), progress=progress)
    if json:
        console.json(record)
        return
    console.say(
        f"{record['documents']:,} documents, {format_bytes(record['text_bytes'])} of text, in "
        f"{len(record['shards'])} shards in {out} (counts in {RECORD_FILE})"
    )
    _say_skipped(console, record)
    console.say(f"next: firstlight data info {out}")


def info(
    data: str, /, *, tokenizer: Path | None = None, max_seq_len: int = 1024, val: str | None = None, json: bool = False
) -> None:
    """Documents, bytes, lengths, what is skipped, hashes; with a tokenizer also tokens and what packing makes of them.

    For example:

        firstlight data info builtin
        firstlight data info my_texts/ --tokenizer tokenizer.json --max-seq-len 512 --json

    Parameters
    ----------
    data
        builtin, a directory, a file, or a hub data set (of that only the files that are fetched are looked at).
    tokenizer
        A tokenizer.json, of a run or of `firstlight tokenizer train`.
    max_seq_len
        Tokens of a training row, for the packing numbers.
    val
        Split off as in training (last, hash:0.01 or a file's name) and count both sides; needs --tokenizer.
    json
        Print one JSON object.
    """
    from firstlight.data.build import build_store
    from firstlight.data.measure import local_part, measure_text
    from firstlight.data.sources.resolve import open_source
    from firstlight.data.stats import store_stats
    from firstlight.errors import ConfigError
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console
    from firstlight.tokens.bpe import Tokenizer

    if max_seq_len < 1:
        raise ConfigError(f"--max-seq-len {max_seq_len} is too small", hint="the smallest is 1; 512 to 2048 is usual")
    if val is not None and tokenizer is None:
        raise ConfigError(f"--val {val} needs --tokenizer FILE", hint="the split is counted in tokens")
    console = Console(is_terminal=environment.is_terminal())
    loaded = Tokenizer.load(tokenizer) if tokenizer is not None else None
    with _bars(console, quiet=json) as progress:
        cache_dir = environment.cache_dir()
        source = open_source(data, cache_dir=cache_dir, progress=progress)
        found = measure_text(source, progress=progress)
        if loaded is not None:
            with build_store(local_part(source), loaded, cache_dir=cache_dir, progress=progress) as store:
                found["tokens"] = store_stats(store, seq_len=max_seq_len, val_spec=val)
    if json:
        console.json(found)
    else:
        _say_info(console, found)


def _say_info(console: Console, found: dict[str, Any]) -> None:
    from firstlight.runtime.console import format_bytes

    tokens = found.get("tokens")
    rows = [
        ["documents", f"{found['documents']:,}"],
        ["text", f"{found['text_bytes']:,} bytes ({format_bytes(found['text_bytes'])})"],
        ["files", f"{len(found['shards'])}"],
        ["validation shard", found["val_shard"] or "none named by the source"],
        ["data hash", found["data_hash"]],
    ]
    if tokens is not None:
        rows += [
            ["tokens", f"{tokens['tokens']:,}"],
            ["bytes per token", f"{tokens['bytes_per_token']:.4f}"],
            ["copies of documents", f"{tokens['duplicate_documents']:,}"],
            ["tokenizer", f"{tokens['vocab_size']:,} ids, hash {tokens['tokenizer_hash']}"],
        ]
    console.table(["what", "value"], rows, title=found["source"])
    names = list(found["document_bytes_percentiles"])
    lengths: list[list[object]] = [["bytes", *found["document_bytes_percentiles"].values()]]
    if tokens is not None:
        lengths.append(["tokens", *(round(tokens["tokens_per_document"][name]) for name in names)])
    console.say()
    console.table(["in a document", *names], lengths, title="length percentiles of the documents")
    if tokens is not None:
        for side in ("train", "val"):
            if side in tokens:
                console.say(f"{side}: {tokens[side]['documents']:,} documents, {tokens[side]['tokens']:,} tokens")
        console.say()
        columns = ["packing", "rows", "tokens used", "dropped", "positions filled", "empty", "documents cut"]
        packings = [
            [
                name, each["rows"], f"{100 * each['tokens_used_frac']:.3f} %", each["tokens_dropped"],
                f"{100 * each['positions_filled_frac']:.3f} %", each["positions_padded"], each["crops"],
            ]
            for name, each in tokens["packing"].items()
        ]  # fmt: skip
        console.table(columns, packings, title=f"packing into rows of {tokens['seq_len']} tokens")
    console.say()
    shards = [
        [
            each["name"], each["documents"], each["text_bytes"], each["num_bytes"], sum(each["skipped"].values()),
            each["sha256"][:16],
        ]
        for each in found["shards"]
    ]  # fmt: skip
    console.table(["file", "documents", "text bytes", "file bytes", "skipped", "sha256"], shards)
    _say_skipped(console, found)
    if found["not_fetched"]:
        missing = _some(found["not_fetched"])
        console.say(f"not fetched yet, and so not counted: {missing} (firstlight data fetch {found['source']})")


def _say_skipped(console: Console, found: dict[str, Any]) -> None:
    if found["skipped"]:
        reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in found["skipped"].items())
        console.say(f"skipped {sum(found['skipped'].values()):,} rows: {reasons}")
        for example in found["skipped_examples"]:
            console.say(f"  {example}")
    if found["ignored"]:
        console.say(f"files not read (of another kind): {_some(found['ignored'])}")


def _some(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


@contextmanager
def _bars(console: Console, *, quiet: bool) -> Iterator[Progress | None]:
    """A progress callback that draws one bar for each kind of work, from any thread; None where ``quiet``."""
    if quiet:
        yield None
        return
    lock = threading.Lock()
    with ExitStack() as stack:
        shown: dict[str, tuple[ExitStack, Any]] = {}

        def progress(what: str, done: int, total: int | None) -> None:
            with lock:
                if what not in shown:
                    one = stack.enter_context(ExitStack())
                    shown[what] = (one, one.enter_context(console.progress(what, total)))
                one, bar = shown[what]
                bar.advance(done - bar.done)
                if total is not None and done >= total:
                    one.close()

        yield progress
