"""Depth -> the shape of a new model, each number with its reason."""

from __future__ import annotations

from collections.abc import Callable

from firstlight.model.config import GPTConfig, Preset, preset_options
from firstlight.train.dial import seq_len_for, vocab_size_for


def derive_shape(
    depth: int,
    *,
    vocab_size: int | None,
    seq_len: int | None,
    head_dim: int,
    n_kv_head: int | None,
    preset: Preset,
    line: Callable[[str, str, str], None],
) -> tuple[GPTConfig, int]:
    """The shape of a new model and its row length T. line: told of each number, its value as text, and why."""
    line("depth", f"{depth}", "the dial; you chose it")
    vocab = vocab_size or vocab_size_for(depth)
    line(
        "vocab_size",
        f"{vocab:,}",
        "given" if vocab_size else "power of two nearest to 640 * depth^1.5, at most 32,768 (lab/LOG.md)",
    )
    rows_len = seq_len or seq_len_for(depth)
    line(
        "max_seq_len",
        f"{rows_len:,}",
        "given" if seq_len else "attention stays a small part of a block's work at this width",
    )
    model = GPTConfig.from_depth(
        depth, vocab_size=vocab, max_seq_len=rows_len, head_dim=head_dim, n_kv_head=n_kv_head, preset=preset
    )
    options = ", ".join(f"{name} {value}" for name, value in preset_options(preset, n_embd=model.n_embd).items())
    reason = {"classic": "the plain architecture", "modern": f"{options}: lab/LOG.md"}.get(
        preset, f"the shape of the qwen3 type, which other programs run: {options}"
    )
    line("preset", preset, reason)
    line("n_layer", f"{model.n_layer}", "n_layer = depth")
    line(
        "n_embd",
        f"{model.n_embd}",
        "64 * depth: at a fixed budget an aspect ratio of 64 beat 128 (nanochat dev/LOG.md 2026-01-17)",
    )
    line("n_head", f"{model.n_head} of {model.n_embd // model.n_head}", f"max(1, ceil(n_embd / {head_dim}))")
    line("n_kv_head", f"{model.n_kv_head}", "given" if n_kv_head else "no grouping by default")
    return model, rows_len
