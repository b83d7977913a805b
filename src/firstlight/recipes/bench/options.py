"""What every `firstlight bench` command may be told. Light to import: the command line reads it before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class BenchOptions:
    """Model, machine and number of measurements."""

    depth: int = 4
    """The dial: layers; width, heads, vocabulary and row length follow from it."""
    preset: Literal["classic", "modern", "portable"] = "modern"
    """Architecture."""
    vocab_size: int | None = None
    """Ids of the vocabulary. [from depth]"""
    max_seq_len: int | None = None
    """Tokens in a row. [from depth]"""
    head_dim: int = 128
    """Size of an attention head."""
    n_kv_head: int | None = None
    """Key/value heads. [n_head]"""
    device_batch_size: int | None = None
    """Rows in one forward pass. [4,096 tokens, the smallest step of a training run]"""
    total_batch_size: int | None = None
    """Tokens in one optimizer step. [one forward pass]"""

    rounds: int = 5
    """Times that each measurement is repeated; the median counts."""
    seed: int = 0
    """Seed of weights and made-up ids."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Dtype of the matmuls."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile: auto is what a long training run would use."""
    threads: int | None = None
    """CPU threads. [all that this process may use]"""
