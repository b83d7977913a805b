"""Numbers about tokenised conversations, and one of them stretch by stretch with what carries loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from firstlight.data.chat.tokenised import TokenisedConversations
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import Message, pieces
from firstlight.tokens.document import Document
from firstlight.tokens.special import BOS

PERCENTILES = (0, 10, 50, 90, 99, 100)


@dataclass(frozen=True)
class Mark:
    """A stretch as people see it. id: of its only token, None where the text is not tokenised."""

    raw: bytes
    is_special: bool
    carries_loss: bool
    id: int | None = None


def marks_of_ids(document: Document, tokenizer: Tokenizer) -> list[Mark]:
    """BOS and each id of a conversation. document: as `tokens.conversation.render` gives it."""
    special = set(tokenizer.special_ids.values())
    mask = np.ones(len(document), bool) if document.loss_mask is None else document.loss_mask
    bos = Mark(BOS.encode(), True, False, tokenizer.bos_id)
    ids = zip(document.ids.tolist(), mask.tolist(), strict=True)
    return [bos, *(Mark(tokenizer.id_bytes(i), i in special, carries, i) for i, carries in ids)]


def marks_of_text(messages: Sequence[Message]) -> list[Mark]:
    """BOS, each special token and each text of a conversation, without a tokenizer."""
    return [
        Mark(BOS.encode(), True, False),
        *(Mark(piece.text.encode(), piece.is_special, piece.carries_loss) for piece in pieces(messages)),
    ]


def token_facts(tokenised: TokenisedConversations) -> dict[str, Any]:
    """Tokens, targets, lengths, copies and sides of all conversations. Tokens are without BOS.

    targets_frac: part of the tokens that carries loss. The sides are those that training has by default (`--val-frac 0.01`).
    """
    tokens = tokenised.tokens
    lengths, targets = tokens.lengths, tokens.num_targets
    val = int((tokenised.sides == 1).sum()) - tokenised.num_val_in_train
    if not tokenised.has_own_sides:
        val = int((tokens.hashes < np.uint64(int(0.01 * 2**64))).sum())
    return {
        "tokens": int(lengths.sum()),
        "targets": int(targets.sum()),
        "targets_frac": float(targets.sum() / max(1, lengths.sum())),
        "without_target": int((targets == 0).sum()),
        "duplicates": tokens.num_duplicates,
        "train": len(tokens) - val - tokenised.num_val_in_train,
        "val": val,
        "val_in_train": tokenised.num_val_in_train,
        "sides": "of the source" if tokenised.has_own_sides else "by content hash",
        "tokens_per_conversation": _percentiles(lengths),
        "targets_per_conversation": _percentiles(targets),
        "bytes_per_token": tokenised.counts.text_bytes / max(1, int(lengths.sum())),
    }


def _percentiles(values: np.ndarray) -> dict[str, int]:
    names = ["min" if p == 0 else "max" if p == 100 else f"p{p}" for p in PERCENTILES]
    found = np.percentile(values, PERCENTILES, method="nearest").astype(int).tolist()
    return dict(zip(names, found, strict=True))
