"""`firstlight tokenizer train|eval|show`: make a tokenizer, measure it, look at what it does to a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from firstlight.data.sources.base import ReadCounts, Source
    from firstlight.tokens.bpe import Tokenizer


def train(
    *,
    data: str = "builtin",
    vocab_size: int = 8192,
    out: Path = Path("tokenizer.json"),
    max_bytes: int = 200_000_000,
    force: bool = False,
    json: bool = False,
) -> None:
    """Train a byte-level BPE tokenizer on text and write it as one readable JSON file.

    A shard that the data set's publisher sets aside for validation is not read.

    For example:

        firstlight tokenizer train
        firstlight tokenizer train --data my_texts/ --vocab-size 4096 --out my_texts.json
        firstlight tokenizer train --data tinystories --vocab-size 32768 --max-bytes 500_000_000 --json

    Parameters
    ----------
    data
        builtin, a directory of .parquet, .jsonl or .txt files, or a hub data set.
    vocab_size
        Number of ids, the 256 bytes and 9 special tokens included.
    out
        File to write.
    max_bytes
        Read at most this many bytes of text (at most 2147483647).
    force
        Replace the file where it exists.
    json
        Print one JSON object.
    """
    import time

    from firstlight.data.sources.base import ReadCounts
    from firstlight.data.sources.resolve import open_source
    from firstlight.errors import ConfigError
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console, format_bytes, format_duration
    from firstlight.tokens.bpe import check_train_limits, train_tokenizer

    if out.is_dir():
        raise ConfigError(f"--out {out} is a directory", hint=f"name a file: --out {out / 'tokenizer.json'}")
    if out.exists() and not force:
        raise ConfigError(f"--out {out} exists", hint="models trained with it need it: choose another name, or --force")
    check_train_limits(vocab_size=vocab_size, max_bytes=max_bytes)
    console = Console()
    start_s = time.monotonic()
    source = open_source(data, cache_dir=environment.cache_dir())
    counts = ReadCounts()
    with console.progress("reading text", max_bytes, unit="bytes") as progress:
        texts = _counted(read_training_texts(source, counts), progress.advance)
        tokenizer = train_tokenizer(texts, vocab_size=vocab_size, max_bytes=max_bytes, facts={"data": source.name})
    tokenizer.save(out)
    elapsed_s = time.monotonic() - start_s
    facts = tokenizer.facts
    if json:
        console.json(
            {
                "path": str(out),
                "vocab_size": tokenizer.vocab_size,
                "content_hash": tokenizer.content_hash,
                "elapsed_s": elapsed_s,
                "skipped": counts.skipped_by_reason(),
                "training": facts,
            }
        )
        return
    console.say(f"wrote {out}: {tokenizer.vocab_size:,} ids, content hash {tokenizer.content_hash[:16]}")
    stopped = " (stopped at --max-bytes)" if facts["stopped_at_max_bytes"] else ""
    console.say(
        f"trained on {facts['num_documents']:,} texts, {format_bytes(facts['num_bytes'])}{stopped}, "
        f"in {format_duration(elapsed_s)}"
    )
    if counts.skipped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.skipped_by_reason().items())
        console.say(f"skipped rows: {reasons}; for example {counts.examples[0]}")
    console.say(f"next: firstlight tokenizer eval --tokenizer {out}")


def evaluate(
    *,
    tokenizer: Path = Path("tokenizer.json"),
    file: list[Path] | None = None,
    compare: bool = False,
    json: bool = False,
) -> None:
    """Print bytes per token for texts of many scripts and kinds. More is better: a context then holds more text.

    For example:

        firstlight tokenizer eval
        firstlight tokenizer eval --tokenizer runs/mine/tokenizer.json --compare
        firstlight tokenizer eval --file book.txt --file letters.txt --json

    Parameters
    ----------
    tokenizer
        A tokenizer.json, or a directory that holds one (a run).
    file
        Measure this text instead of the built-in samples; may be given more than once.
    compare
        Also count the tokens of GPT-2 and GPT-4; tiktoken needs the network for these once.
    json
        Print one JSON object.
    """
    from firstlight.runtime.console import Console
    from firstlight.tokens.bpe import Tokenizer
    from firstlight.tokens.report import REFERENCES, bytes_per_token, compression_report
    from firstlight.tokens.samples import SAMPLES

    loaded = Tokenizer.load(tokenizer)
    texts = {str(path): read_text(path) for path in file} if file else SAMPLES
    report = compression_report(loaded, texts, compare=compare)
    console = Console()
    if json:
        console.json(
            {
                "tokenizer": str(tokenizer),
                "content_hash": loaded.content_hash,
                "vocab_size": loaded.vocab_size,
                "texts": [row.to_dict() for row in report.rows],
                "all": report.total.to_dict(),
                "not_available": report.not_available,
            }
        )
        return
    names = [name for name in REFERENCES if name in report.total.reference_tokens]
    columns = ["text", "bytes", "tokens", "bytes/token", *(f"{name} bytes/token" for name in names)]
    rows = []
    for row in [*report.rows, report.total]:
        ratios = [bytes_per_token(row.num_bytes, row.reference_tokens[name]) for name in names]
        rows.append([row.kind, row.num_bytes, row.num_tokens, *(round(r, 2) for r in (row.bytes_per_token, *ratios))])
    console.table(columns, rows, title=f"{tokenizer}: {loaded.vocab_size:,} ids, hash {loaded.content_hash[:16]}")
    for name, reason in report.not_available.items():
        console.say(f"{name}: {reason}")


def show(
    text: str | None = None,
    *,
    tokenizer: Path = Path("tokenizer.json"),
    file: Path | None = None,
    json: bool = False,
) -> None:
    """Show a text cut into its tokens, with their ids.

    Blanks are shown as `·`, tabs as `→`, line ends as `↵`; bytes that are only part of a character as \\\\xNN.

    For example:

        firstlight tokenizer show "It's 12345 degrees outside."
        firstlight tokenizer show --file poem.txt --tokenizer runs/mine
        firstlight tokenizer show "naïve 🙂" --json

    Parameters
    ----------
    text
        The text itself.
    tokenizer
        A tokenizer.json, or a directory that holds one (a run).
    file
        Read the text from this file.
    json
        Print one JSON object.
    """
    from firstlight.errors import ConfigError
    from firstlight.runtime.console import Console
    from firstlight.tokens.bpe import Tokenizer
    from firstlight.tokens.report import bytes_per_token
    from firstlight.tokens.tokenizer_file import escape

    if (text is None) == (file is None):
        raise ConfigError(
            "give a text or --file, not both" if file else "no text to show",
            hint='firstlight tokenizer show "some text", or --file FILE',
        )
    shown = read_text(file) if file is not None else text or ""
    loaded = Tokenizer.load(tokenizer)
    ids = loaded.encode(shown)
    pieces = [loaded.id_bytes(i) for i in ids]
    num_bytes = sum(len(piece) for piece in pieces)
    ratio = bytes_per_token(num_bytes, len(ids))
    console = Console()
    if json:
        console.json(
            {
                "content_hash": loaded.content_hash,
                "text": shown,
                "num_bytes": num_bytes,
                "num_tokens": len(ids),
                "bytes_per_token": ratio,
                "ids": ids,
                "tokens": [escape(piece) for piece in pieces],
            }
        )
        return
    _print_tokens(loaded, ids)
    console.say(f"{num_bytes:,} bytes, {len(ids):,} tokens, {ratio:.2f} bytes per token")


def read_text(path: Path) -> str:
    """Text of a UTF-8 file; raises DataError naming the file, and the byte where it is not UTF-8."""
    from firstlight.errors import DataError

    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise DataError(f"--file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"--file {path} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}",
            hint="convert it first, for example: iconv -f LATIN1 -t UTF-8",
        ) from None


def read_training_texts(source: Source, counts: ReadCounts) -> Iterator[str]:
    """Texts of all shards but the pinned validation shard; a shard is fetched when it is reached, so no more than needed."""
    from firstlight.data.sources.reading import read_documents

    for shard in source.shards:
        if shard.name != source.val_shard:
            for _, text in read_documents(source.local_path(shard), counts):
                yield text


def _counted(texts: Iterator[str], advance: Callable[[float], None]) -> Iterator[str]:
    """The same texts, telling a progress bar their bytes (characters, where counting bytes would cost a copy)."""
    for text in texts:
        advance(len(text))
        yield text


def visible(token: bytes) -> str:
    """A token for people: blanks, tabs and line ends as signs, bytes that are no text as ``\\xNN``.

    >>> visible(b" the"), visible(b"\\r\\n"), visible(b"\\xf0\\x9f")
    ('·the', '\\\\x0d↵\\n', '\\\\xf0\\\\x9f')
    """
    from firstlight.tokens.tokenizer_file import escape

    return escape(token).replace(" ", "·").replace("\\x0a", "↵\n").replace("\\x09", "→")


def _print_tokens(tokenizer: Tokenizer, ids: list[int]) -> None:
    """The tokens in two alternating colours on a terminal, with bars between them elsewhere; the ids below."""
    import sys

    from rich.console import Console
    from rich.text import Text

    from firstlight.runtime import console as console_module

    pieces = [visible(tokenizer.id_bytes(i)) for i in ids]
    if not sys.stdout.isatty():
        plain = console_module.Console()
        plain.say("│".join(pieces))
        plain.say(" ".join(map(str, ids)))
        return
    styles = ("black on bright_cyan", "black on bright_yellow")
    console = Console(highlight=False)
    console.print(Text.assemble(*((piece, styles[i % 2]) for i, piece in enumerate(pieces))))
    console.print(Text(" ".join(map(str, ids)), style="dim"))
