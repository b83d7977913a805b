"""Small models of all presets with a real tokenizer, and their folders, for the tests of this folder."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from firstlight.interop.hf_export import HfExport, write_hf
from firstlight.interop.model_card import model_card
from firstlight.model.config import GPTConfig
from firstlight.model.gpt import GPT
from firstlight.model.init import build_gpt
from firstlight.tokens.bpe import Tokenizer, train_tokenizer

SIZES: dict[str, Any] = {"n_layer": 4, "n_head": 4, "n_kv_head": 2, "n_embd": 64, "max_seq_len": 128}
PORTABLE: dict[str, Any] = {"mlp": "swiglu", "mlp_width": 192, "embed_norm": False, "softcap": 0.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "classic": {},
    "modern": {"value_embed_every": 2},
    "portable": PORTABLE,
    "classic-otherwise": {"softcap": 7.0, "rope_base": 500.0, "mlp_width": 96},
    "everything": {
        "value_embed_every": 2, "residual_scales": True, "smear": True, "backout": True, "qk_gain": 1.2, "softcap": 7.0,
        "rope_base": 500.0, "mlp": "swiglu", "mlp_width": 100,
    },
}  # fmt: skip
ORIGIN: dict[str, Any] = {"run": "mine", "step": 7, "data": "builtin", "final": {}, "tokenizer_hash": "ab"}


@functools.cache
def tokenizer() -> Tokenizer:
    words = [
        "the cat sat on the mat",
        "It's 12:30 or 1234 o'clock",
        "été naïve 日本語 🙂",
        "\n\n  indented\n",
        "a  b   c",
    ]
    texts = [f"{a} {b} {i}" for i in range(300) for a in words for b in words]
    return train_tokenizer(texts, vocab_size=330, max_bytes=None, facts={"made": "for tests"})


def model(options: dict[str, Any], *, seed: int = 0) -> GPT:
    """Weights of the size that trained ones have: at the start of training the output projections are zero."""
    config = GPTConfig(vocab_size=tokenizer().vocab_size, **SIZES, **options)
    made = build_gpt(config, seed=seed, compute_dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.dim() == 1:
                weight.uniform_(0.5, 1.5, generator=generator)
            else:
                weight.normal_(0.0, 0.3 if name == "lm_head.weight" else weight.shape[1] ** -0.5, generator=generator)
    return made.requires_grad_(False).eval()


def export(made: GPT, directory: Path, **options: Any) -> HfExport:
    return write_hf(
        directory,
        config=made.config,
        weights=made.state_dict(),
        tokenizer=tokenizer(),
        origin=ORIGIN,
        card=lambda done: model_card(done, origin=ORIGIN, sizes=asdict(made.config)),
        **options,
    )
