"""Claims of interop/model_card.py: the card says what is known, and a score only where it is the checkpoint's."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from firstlight.interop.hf_export import HfExport
from firstlight.interop.model_card import model_card
from firstlight.model.config import GPTConfig

SIZES = asdict(GPTConfig(vocab_size=300, n_layer=1, n_head=1, n_kv_head=1, n_embd=16, max_seq_len=8))
ORIGIN = {
    "run": "mine", "step": 40, "data": "builtin", "val_hash": "c0ffee", "versions": {"torch": "2.13"},
    "final": {"steps": 40, "tokens": 1234567, "val_bpb": 1.25, "val_bpb_stderr": 0.01},
}  # fmt: skip


def card(kind: str, **changes: object) -> str:
    exported = HfExport(Path("out"), kind, "some", "fp32", 4321, 9, (), ())
    return model_card(exported, origin=ORIGIN | changes, sizes=SIZES)


def test_it_says_data_score_hashes_and_that_the_licence_is_unknown() -> None:
    text = card("nanochat")
    for part in ("license: unknown", "4,321 parameters", "`builtin`", "1.2500 ± 0.0100", "c0ffee", "1,234,567 tokens"):
        assert part in text
    assert "trust_remote_code" not in text


def test_code_of_its_own_is_named() -> None:
    assert "trust_remote_code=True" in card("remote-code")


def test_another_checkpoint_has_not_the_final_score() -> None:
    assert "1.2500" not in card("nanochat", step=20)
    assert "bits per byte" not in card("nanochat", final={})
