"""Training a tokenizer and encoding a corpus once: ours beside the libraries for it. Exact: all ids are compared.

    python benchmarks/tokenizer.py                                  the built-in corpus
    python benchmarks/tokenizer.py --data DIR --max-mb 100          .parquet (column text), .jsonl or .txt files
    python benchmarks/tokenizer.py --data DIR --rounds 3 --json FILE

Training: rustbpe (ours) and the trainer of `tokenizers`, same texts, vocabulary and pattern. Encoding, with that
vocabulary, the same pattern and the same number of threads, from a fresh instance each round (nothing is remembered from
the round before) and with fresh copies of the texts:

    tiktoken     Encoding.encode_ordinary_batch
    firstlight   Tokenizer.encode_batch: gigatoken where it is installed, the set-up counted in
    without it   Tokenizer.encode_batch with tiktoken alone
    tokenizers   Tokenizer.encode_batch_fast
    gigatoken    Tokenizer.encode_batch with one digit a piece: what ours is built on, other ids where digits stand together

The contestants take turns; the median of the rounds counts. `tokenizers` is slow and gets a part of the texts (--slow-mb).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

NOT_INSTALLED = "not installed"


def threads_from(args: list[str]) -> str:
    """The number after --threads, read before any library starts its threads."""
    return args[args.index("--threads") + 1] if "--threads" in args[:-1] else "2"


# The thread pools in Rust read this once, when they start.
os.environ.setdefault("RAYON_NUM_THREADS", threads_from(sys.argv))

import numpy as np  # noqa: E402
import results  # noqa: E402

from firstlight.data.sources.base import ReadCounts  # noqa: E402
from firstlight.data.sources.reading import read_documents  # noqa: E402
from firstlight.data.sources.resolve import open_source  # noqa: E402
from firstlight.tokens import fast  # noqa: E402
from firstlight.tokens.bpe import SPLIT_PATTERN, Tokenizer, train_tokenizer  # noqa: E402
from firstlight.tokens.special import SPECIAL_TOKENS  # noqa: E402


def read_texts(data: str, cache_dir: Path, max_bytes: int) -> list[str]:
    """Documents in order, until they have ``max_bytes`` bytes."""
    source = open_source(data, cache_dir=cache_dir)
    texts, num_bytes = [], 0
    for shard in source.shards:
        for _, text in read_documents(source.local_path(shard), ReadCounts()):
            texts.append(text)
            num_bytes += len(text.encode())
            if num_bytes >= max_bytes:
                return texts
    return texts


def fresh(texts: list[str]) -> list[str]:
    """Copies: a str keeps its UTF-8 bytes once a library has asked for them, which would help the next one."""
    return [text.encode().decode() for text in texts]


def num_bytes(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def digest(rows) -> str:
    """SHA-256 of the ids of all texts: equal digest, equal ids."""
    found = hashlib.sha256()
    for row in rows:
        ids = np.asarray(row, dtype=np.uint32)
        found.update(len(ids).to_bytes(8, "little") + ids.tobytes())
    return found.hexdigest()


def timed(work: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    value = work()
    return time.perf_counter() - start, value


# Training


def train_tokenizers(texts: list[str], vocab_size: int) -> int:
    """`tokenizers`: the same pattern, bytes and number of merges as ours; returns its number of tokens."""
    import tokenizers
    from tokenizers import Regex, models, pre_tokenizers, trainers

    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(iter(texts), trainer)
    return model.get_vocab_size()


def measure_training(texts: list[str], vocab_size: int, rounds: int) -> tuple[Tokenizer, list[list], dict]:
    """Ours, the rows of the table, and figures."""
    mb = num_bytes(texts) / 1e6
    times: dict[str, list[float]] = {"firstlight (rustbpe)": [], "tokenizers": []}
    has_peer = importlib.util.find_spec("tokenizers") is not None
    for _ in range(rounds):
        seconds, ours = timed(lambda: train_tokenizer(texts, vocab_size=vocab_size, max_bytes=None))
        times["firstlight (rustbpe)"].append(seconds)
        if has_peer:
            times["tokenizers"].append(timed(lambda: train_tokenizers(texts, vocab_size - len(SPECIAL_TOKENS)))[0])
    rows, figures = [], {}
    slowest = statistics.median(times["tokenizers"]) if has_peer else None
    for name, seconds in times.items():
        if not seconds:
            rows.append([f"training, {name}", NOT_INSTALLED, "", "", ""])
            continue
        rate = mb / statistics.median(seconds)
        figures[f"train_mb_per_s_{name.split()[0]}"] = rate
        ratio = f"{slowest / statistics.median(seconds):.2f}x tokenizers" if slowest else ""
        rows.append([f"training, {name}", round(rate, 1), ratio, round(mb, 1), ""])
    if slowest:
        figures["train_ratio_to_tokenizers"] = slowest / statistics.median(times["firstlight (rustbpe)"])
    return ours, rows, figures


# Encoding: each contestant makes itself ready anew, then encodes


def tiktoken_batch(tokenizer: Tokenizer, threads: int) -> Callable[[list[str]], object]:
    import tiktoken

    ranks = {tokenizer.id_bytes(i): i for i in range(tokenizer.bos_id)}
    encoding = tiktoken.Encoding("bench", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})
    return lambda texts: encoding.encode_ordinary_batch(texts, num_threads=threads)


def ours(tokenizer: Tokenizer, threads: int) -> Callable[[list[str]], object]:
    return lambda texts: tokenizer.encode_batch(texts, threads)


def ours_without(tokenizer: Tokenizer, threads: int) -> Callable[[list[str]], object]:
    tokenizer.__dict__["_fast"] = (None, "switched off for this measurement")
    return lambda texts: tokenizer.encode_batch(texts, threads)


def tokenizers_batch(tokenizer: Tokenizer, threads: int) -> Callable[[list[str]], object]:
    import tokenizers

    ranks = [tokenizer.id_bytes(i) for i in range(tokenizer.bos_id)]
    model = tokenizers.Tokenizer.from_str(fast.model_json(ranks, SPLIT_PATTERN).decode())
    return lambda texts: [row.ids for row in model.encode_batch_fast(texts, add_special_tokens=False)]


def gigatoken_bare(tokenizer: Tokenizer, threads: int) -> Callable[[list[str]], object]:
    import gigatoken

    ranks = [tokenizer.id_bytes(i) for i in range(tokenizer.bos_id)]
    model = gigatoken.Tokenizer.from_json(fast.model_json(ranks, fast.QWEN2_PATTERN))
    return lambda texts: model.encode_batch(texts, parallel=True)


# name, library that it needs, how to make it, whether it gets only a part of the texts
CONTESTANTS = (
    ("tiktoken", "tiktoken", tiktoken_batch, False),
    ("firstlight", "tiktoken", ours, False),
    ("firstlight without gigatoken", "tiktoken", ours_without, False),
    ("gigatoken bare", "gigatoken", gigatoken_bare, False),
    ("tokenizers", "tokenizers", tokenizers_batch, True),
)


def measure_encoding(
    tokenizer: Tokenizer, texts: list[str], *, threads: int, rounds: int, slow_bytes: int
) -> tuple[list[list], dict, list[str]]:
    """Rows of the table, figures, notes."""
    share = max(1, round(len(texts) * min(1.0, slow_bytes / num_bytes(texts))))
    amounts = {False: texts, True: texts[:share]}
    rates: dict[str, list[float]] = {name: [] for name, *_ in CONTESTANTS}
    digests: dict[str, str] = {}
    notes: list[str] = []
    for number in range(rounds):
        for name, library, make, is_slow in CONTESTANTS:
            if importlib.util.find_spec(library) is None:
                continue
            own = Tokenizer([tokenizer.id_bytes(i) for i in range(tokenizer.bos_id)])
            encode, given = make(own, threads), fresh(amounts[is_slow])
            seconds, found = timed(lambda encode=encode, given=given: encode(given))
            rates[name].append(num_bytes(given) / 1e6 / seconds)
            if number == 0:
                if name != "gigatoken bare":
                    digests[name] = digest(found)
                if name == "tiktoken":
                    digests["part"] = digest(found[:share])
                if name == "firstlight":
                    counts = own.num_encoded_by
                    notes.append(f"{own.encoder_note}: {counts['fast']:,} and {counts['tiktoken']:,} documents.")
    rows, figures = [], {}
    for name, _, _, is_slow in CONTESTANTS:
        if not rates[name]:
            rows.append([f"encoding, {name}", NOT_INSTALLED, "", "", ""])
            continue
        rate = statistics.median(rates[name])
        expected = digests["part" if is_slow else "tiktoken"]
        same = "other digits" if name == "gigatoken bare" else "equal" if digests[name] == expected else "DIFFERENT"
        ratio = statistics.median(r / t for r, t in zip(rates[name], rates["tiktoken"], strict=True))
        rows.append(
            [
                f"encoding, {name}",
                round(rate, 1),
                f"{ratio:.2f}x tiktoken",
                round(num_bytes(amounts[is_slow]) / 1e6, 1),
                same,
            ]
        )
        figures[f"encode_mb_per_s_{name.replace(' ', '_')}"] = rate
        figures[f"encode_ratio_{name.replace(' ', '_')}"] = ratio
        figures[f"encode_equal_{name.replace(' ', '_')}"] = same == "equal"
    return rows, figures, notes


def versions() -> str:
    found = []
    for name in ("rustbpe", "tiktoken", "tokenizers", "gigatoken"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} {NOT_INSTALLED}")
    return ", ".join(found) + "."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="builtin", help="a folder, a file, or builtin")
    parser.add_argument("--max-mb", type=float, default=50.0, help="megabytes of text to encode")
    parser.add_argument("--train-mb", type=float, default=20.0, help="megabytes of text to train on")
    parser.add_argument("--slow-mb", type=float, default=5.0, help="megabytes of text for tokenizers")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "firstlight-bench")
    parser.add_argument("--json", type=Path, help="write the result here instead of results/tokenizer.json")
    args = parser.parse_args()
    texts = read_texts(args.data, args.cache, int(args.max_mb * 1e6))
    share = max(1, round(len(texts) * min(1.0, args.train_mb * 1e6 / num_bytes(texts))))
    tokenizer, train_rows, train_figures = measure_training(texts[:share], args.vocab_size, min(3, args.rounds))
    encode_rows, encode_figures, notes = measure_encoding(
        tokenizer, texts, threads=args.threads, rounds=args.rounds, slow_bytes=int(args.slow_mb * 1e6)
    )
    columns = ["what", "MB/s", "ratio", "MB of text", "ids"]
    rows = train_rows + encode_rows
    results.show(columns, rows)
    print("\n".join([*notes, versions()]))
    named = "builtin" if args.data == "builtin" else "DIR"
    results.write_result(
        "tokenizer",
        title="Tokenizer: training, and encoding a corpus once",
        command=f"python benchmarks/tokenizer.py --data {named} --max-mb {args.max_mb:g}",
        columns=columns,
        rows=rows,
        notes=[
            f"{len(texts):,} documents, vocabulary {args.vocab_size:,}, {args.threads} threads, median of {args.rounds} "
            "rounds in turns, nothing remembered between rounds.",
            *notes,
            versions(),
        ],
        figures=train_figures | encode_figures,
        path=args.json,
    )
    return 1 if any(row[4] == "DIFFERENT" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
