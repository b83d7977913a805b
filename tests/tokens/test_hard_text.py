"""The collection of hard text beside the checkout: every string comes back, and its bytes add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firstlight.tokens.bpe import Tokenizer


def _strings(path: Path) -> dict[str, str]:
    """Name -> text of one file of the collection."""
    if path.name == "blns.json":
        return {str(i): text for i, text in enumerate(json.loads(path.read_text(encoding="utf-8")))}
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {row.get("lang") or row["name"]: row["text"] for row in rows}
    whole = path.read_bytes().decode("utf-8")
    return {"whole file": whole, **{f"line {i}": line for i, line in enumerate(whole.splitlines())}}


@pytest.mark.parametrize(
    ("name", "at_least"),
    [
        ("udhr.jsonl", 50),
        ("blns.json", 400),
        ("blns.txt", 400),
        ("edge_cases.jsonl", 20),
        ("emoji_sequences.txt", 1000),
    ],
)
def test_every_string_round_trips_and_its_bytes_add_up(
    tokenizer: Tokenizer, shared_data: Path, name: str, at_least: int
) -> None:
    strings = _strings(shared_data / "tokenizer" / name)
    assert len(strings) >= at_least
    lengths = tokenizer.token_bytes()
    batch = tokenizer.encode_batch(list(strings.values()), num_threads=2)
    for (label, text), ids in zip(strings.items(), batch, strict=True):
        assert tokenizer.decode(ids) == text, label
        assert lengths[ids].sum() == len(text.encode()), label
        assert (ids < tokenizer.bos_id).all(), label
        assert ids.tolist() == tokenizer.encode(text), label


def _invalid(folder: Path) -> dict[str, bytes]:
    lines = (folder / "invalid_utf8.jsonl").read_text(encoding="utf-8").splitlines()
    cases = {row["name"]: bytes.fromhex(row["hex"]) for row in map(json.loads, lines)}
    return {**cases, "utf8_stress_test.txt": (folder / "utf8_stress_test.txt").read_bytes()}


def test_bytes_that_are_not_utf8_are_ids_of_single_bytes_and_decode_with_replacement_signs(
    tokenizer: Tokenizer, shared_data: Path
) -> None:
    cases = _invalid(shared_data / "tokenizer")
    assert len(cases) > 20
    for label, data in cases.items():
        # The vocabulary has every byte, so ids for any bytes exist, though no str leads to these.
        ids = list(data)
        assert tokenizer.decode_bytes(ids) == data, label
        assert tokenizer.decode(ids) == data.decode("utf-8", errors="replace"), label
        assert tokenizer.token_bytes()[ids].sum() == len(data), label


def test_invalid_bytes_read_with_replacement_signs_are_text_like_any_other(
    tokenizer: Tokenizer, shared_data: Path
) -> None:
    for label, data in _invalid(shared_data / "tokenizer").items():
        text = data.decode("utf-8", errors="replace")
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text, label
        assert tokenizer.token_bytes()[ids].sum() == len(text.encode()), label
