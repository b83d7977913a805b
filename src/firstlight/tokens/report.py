"""How well a tokenizer compresses text of different scripts and kinds, alone and beside GPT-2's and GPT-4's.

Bytes per token is the measure: with more of them, a context of T tokens holds more text, and a text costs fewer FLOPs.
Bytes are those of UTF-8, so a character of Chinese counts 3, of Hindi 3 and an emoji 4 or more.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.samples import SAMPLES

# tiktoken's names of the tokenizers of GPT-2 (50,257 ids) and GPT-4 (100,277 ids).
REFERENCES = {"GPT-2": "gpt2", "GPT-4": "cl100k_base"}
REFERENCE_TIMEOUT_S = 15.0

# tiktoken downloads a vocabulary that it has not cached, without a time limit. Another process can be stopped.
_COUNT_SCRIPT = """
import json, sys, tiktoken
request = json.load(sys.stdin)
encoding = tiktoken.get_encoding(request["name"])
json.dump([len(encoding.encode_ordinary(text)) for text in request["texts"]], sys.stdout)
"""


@dataclass(frozen=True)
class CompressionRow:
    """One kind of text. reference_tokens: by reference ("GPT-2"), the number of its tokens for the same text."""

    kind: str
    num_chars: int
    num_bytes: int
    num_tokens: int
    reference_tokens: dict[str, int] = field(default_factory=dict)

    @property
    def bytes_per_token(self) -> float:
        return bytes_per_token(self.num_bytes, self.num_tokens)

    def to_dict(self) -> dict:
        """All fields, and ``bytes_per_token`` of this tokenizer and of each reference."""
        ratios = {name: bytes_per_token(self.num_bytes, count) for name, count in self.reference_tokens.items()}
        return {**asdict(self), "bytes_per_token": self.bytes_per_token, "reference_bytes_per_token": ratios}


@dataclass(frozen=True)
class CompressionReport:
    """rows: one per text. total: all texts as one. not_available: why a reference has no numbers, by its name."""

    rows: list[CompressionRow]
    total: CompressionRow
    not_available: dict[str, str]


def bytes_per_token(num_bytes: int, num_tokens: int) -> float:
    """Quotient, 0 for an empty text (never infinity, which JSON does not have)."""
    return num_bytes / num_tokens if num_tokens else 0.0


def compression_report(
    tokenizer: Tokenizer,
    texts: Mapping[str, str] = SAMPLES,
    *,
    compare: bool = False,
    timeout_s: float = REFERENCE_TIMEOUT_S,
) -> CompressionReport:
    """Bytes per token of each text (name -> text).

    compare: also count the tokens of GPT-2 and GPT-4. Their vocabularies come from tiktoken's cache or the network; where
    neither gives them within ``timeout_s`` seconds, the report says so.
    """
    references: dict[str, list[int]] = {}
    not_available: dict[str, str] = {}
    if compare:
        for name, encoding_name in REFERENCES.items():
            counts = reference_token_counts(encoding_name, list(texts.values()), timeout_s=timeout_s)
            if isinstance(counts, str):
                not_available[name] = counts
            else:
                references[name] = counts
    rows = []
    for i, (kind, text) in enumerate(texts.items()):
        counts_of = {name: counts[i] for name, counts in references.items()}
        rows.append(CompressionRow(kind, len(text), len(text.encode()), len(tokenizer.encode(text)), counts_of))
    total = CompressionRow(
        "all",
        sum(row.num_chars for row in rows),
        sum(row.num_bytes for row in rows),
        sum(row.num_tokens for row in rows),
        {name: sum(counts) for name, counts in references.items()},
    )
    return CompressionReport(rows, total, not_available)


def reference_token_counts(encoding_name: str, texts: list[str], *, timeout_s: float) -> list[int] | str:
    """Number of tokens of each text under one of tiktoken's own encodings, or a sentence that says why there is none."""
    request = json.dumps({"name": encoding_name, "texts": texts})
    try:
        done = subprocess.run(
            [sys.executable, "-c", _COUNT_SCRIPT],
            input=request, capture_output=True, text=True, encoding="utf-8", timeout=timeout_s, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return f"not available offline: no answer within {timeout_s:g} s"
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        reason = lines[-1].split(":")[0] if lines else "no answer"
        return f"not available offline: tiktoken has no {encoding_name} in its cache ({reason})"
