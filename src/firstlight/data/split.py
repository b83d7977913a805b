"""Which documents are for validation: one whole shard, or a fraction of all documents by the hash of their text.

The hash split goes by content, so copies of one text fall on the same side, and adding or removing files never moves a
document from one side to the other.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from firstlight.data.store import StoredShard, TokenStore
from firstlight.errors import ConfigError, DataError
from firstlight.tokens.document import Document

MAX_FRACTION = 0.5
HINT = "use --val last, --val hash:0.01 (a fraction of the documents) or --val NAME of a file of the data"

Split = Literal["train", "val"]


@dataclass(frozen=True)
class ValSpec:
    """How validation is chosen. kind: ``last`` (not yet resolved), ``shard`` (by name) or ``hash`` (fraction)."""

    kind: Literal["last", "shard", "hash"]
    shard: str = ""
    fraction: float = 0.0

    def __str__(self) -> str:
        return {"last": "last", "shard": self.shard, "hash": f"hash:{self.fraction:g}"}[self.kind]


def parse_val(text: str) -> ValSpec:
    """The value of ``--val``: ``last``, ``hash:FRACTION`` with a fraction in (0, 0.5], or a shard's name.

    Raises ConfigError for a fraction that is none.
    """
    if text == "last":
        return ValSpec("last")
    if text.startswith("hash:"):
        try:
            fraction = float(text.removeprefix("hash:"))
        except ValueError:
            fraction = float("nan")
        if not 0 < fraction <= MAX_FRACTION:
            raise ConfigError(
                f"--val {text}: the fraction must be above 0 and at most {MAX_FRACTION}", hint="for example hash:0.01"
            )
        return ValSpec("hash", fraction=fraction)
    if not text:
        raise ConfigError("--val is empty", hint=HINT)
    return ValSpec("shard", shard=text)


def resolve_val(val: ValSpec | str, shard_names: Sequence[str], *, pinned: str | None = None) -> ValSpec:
    """A specification of kind ``shard`` or ``hash`` that fits these shards.

    ``last`` becomes the shard that the source itself sets aside (``pinned``) where it does, else the last one. A shard
    may be given by its full name, by its file name, or by either without its suffix where only one shard fits.
    Raises ConfigError for a name that fits no shard, DataError where nothing would be left to train on.
    """
    spec = parse_val(val) if isinstance(val, str) else val
    if spec.kind == "hash":
        return spec
    if spec.kind == "last":
        name = pinned if pinned is not None and pinned in shard_names else shard_names[-1]
    else:
        name = _find_shard(spec.shard, shard_names)
    if len(shard_names) == 1:
        raise DataError(
            f"--val {spec}: the data is one file, {name}, so nothing would be left to train on",
            hint="use --val hash:0.01 to set aside a hundredth of its documents, or split the file",
        )
    return ValSpec("shard", shard=name)


def _find_shard(asked: str, shard_names: Sequence[str]) -> str:
    if asked in shard_names:
        return asked

    def short_forms(name: str) -> set[str]:
        file_name = name.rsplit("/", 1)[-1]
        return {file_name, name.split(".", 1)[0], file_name.split(".", 1)[0]}

    matches = [name for name in shard_names if asked.rsplit("/", 1)[-1] == name or asked in short_forms(name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ConfigError(
            f"--val {asked} fits {len(matches)} files: {', '.join(matches[:5])}", hint="give the full name"
        )
    close = difflib.get_close_matches(asked, ["last", *shard_names], n=1, cutoff=0.5)
    did_you_mean = f"did you mean {close[0]}? Or " if close else ""
    raise ConfigError(f"--val {asked}: the data has no such file", hint=did_you_mean + HINT)


def resolve_for(store: TokenStore, val: ValSpec | str) -> ValSpec:
    """``resolve_val`` for the shards of a store."""
    return resolve_val(val, store.shard_names, pinned=store.pinned_val_shard)


def split_shards(val: ValSpec, shard_names: Sequence[str], split: Split) -> list[int]:
    """Indices of the shards that can hold documents of a split, in canonical order. val: resolved."""
    assert val.kind != "last", "resolve_val first"
    if val.kind == "hash":
        return list(range(len(shard_names)))
    return [i for i, name in enumerate(shard_names) if (name == val.shard) == (split == "val")]


def val_mask(doc_hashes: np.ndarray, val: ValSpec, shard_name: str) -> np.ndarray:
    """True for each validation document of a shard; bool, shape (N,). doc_hashes: uint64, (N,). val: resolved."""
    assert val.kind != "last", "resolve_val first"
    if val.kind == "shard":
        return np.full(len(doc_hashes), shard_name == val.shard)
    return np.asarray(doc_hashes) < np.uint64(int(val.fraction * 2**64))


def split_documents(shard: StoredShard, val: ValSpec, split: Split) -> np.ndarray:
    """Indices of a shard's documents of one side of the split; int64, ascending. val: resolved."""
    mask = val_mask(shard.doc_hashes, val, shard.name)
    return np.flatnonzero(mask if split == "val" else ~mask)


def iter_documents(store: TokenStore, val: ValSpec | str, *, split: Split = "val") -> Iterator[tuple[Document, int]]:
    """(document, bytes of its UTF-8 text) of one side of the split: shards in canonical order, documents as stored.

    Waits for shards that are being built. Raises DataError where the side holds no document.
    """
    spec = resolve_for(store, val)
    found = 0
    for index in split_shards(spec, store.shard_names, split):
        shard = store.shard(index)
        for doc in split_documents(shard, spec, split).tolist():
            found += 1
            yield Document(shard.ids(doc), source=shard.source_row(doc)), int(shard.num_text_bytes[doc])
    if not found:
        raise empty_split(spec, split)


def val_documents(store: TokenStore, val: ValSpec | str) -> Iterator[Document]:
    """The validation documents in their defined order. Raises DataError where there are none."""
    for document, _ in iter_documents(store, val, split="val"):
        yield document


def val_content_hash(store: TokenStore, val: ValSpec | str) -> str:
    """sha256 (hex) over the sorted content hashes of the validation documents: two scores with the same one compare.

    Raises DataError where there are none.
    """
    spec = resolve_for(store, val)
    hashes = [
        shard.doc_hashes[split_documents(shard, spec, "val")]
        for shard in map(store.shard, split_shards(spec, store.shard_names, "val"))
    ]
    ordered = np.sort(np.concatenate(hashes))
    if len(ordered) == 0:
        raise empty_split(spec, "val")
    return hashlib.sha256(ordered.astype("<u8").tobytes()).hexdigest()


def empty_split(val: ValSpec, split: Split) -> DataError:
    """The error for a side of the split without any document. val: resolved."""
    side = {"train": "training", "val": "validation"}[split]
    hints = {
        (
            "hash",
            "val",
        ): f"the data is small: use a larger fraction than {val.fraction:g} (up to {MAX_FRACTION}), or --val last",
        ("hash", "train"): f"use a smaller fraction than {val.fraction:g}, or more text",
        ("shard", "val"): "choose another file with --val NAME, or use --val hash:0.01",
        ("shard", "train"): "the other files hold no text: add some, or use --val hash:0.01",
    }
    return DataError(f"--val {val}: there is no {side} document", hint=hints[val.kind, split])
