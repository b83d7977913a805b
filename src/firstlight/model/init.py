"""How every weight starts: one table, and the code that reads it."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from typing import Literal

import torch

from firstlight.model.config import GPTConfig
from firstlight.model.gpt import GPT


@dataclass(frozen=True)
class InitRow:
    """Start of all parameters whose name matches ``pattern`` (a regular expression for the whole name).

    std: a number, or ``fan_in`` for 1 / sqrt(columns of the matrix). The value itself for ``constant``.
    """

    pattern: str
    kind: Literal["normal", "uniform", "constant"]
    std: float | Literal["fan_in"]
    why: str
    source: str


INIT_TABLE: tuple[InitRow, ...] = (
    InitRow(
        r"transformer\.wte\.weight", "normal", 1.0,
        "the norm behind it takes the scale away; the scale decides how fast a learning rate turns the vectors. Without that "
        "norm blocks still read normed states, and 1 is the size that it would give",
        "nanochat gpt.py, 2025",
    ),
    InitRow(
        r"lm_head\.weight", "normal", 0.001,
        "logits start at 0.001 * sqrt(n_embd), so the loss starts at ln(vocab_size), yet gradients reach the trunk",
        "nanochat gpt.py, 2025",
    ),
    InitRow(
        r"transformer\.h\.\d+\.attn\.c_[qkv]\.weight", "uniform", "fan_in",
        "keeps unit variance from input to output; uniform has no outliers",
        "LeCun et al. 1998, Efficient BackProp; nanochat gpt.py, 2025",
    ),
    InitRow(
        r"transformer\.h\.\d+\.mlp\.(c_gate|c_fc)\.weight", "uniform", "fan_in",
        "as for queries, keys and values",
        "LeCun et al. 1998, Efficient BackProp; nanochat gpt.py, 2025",
    ),
    InitRow(
        r"transformer\.h\.\d+\.(attn|mlp)\.c_proj\.weight", "constant", 0.0,
        "every block starts as the identity, so depth does not change the signal at the start",
        "Zhang et al. 2019, Fixup (arXiv 1901.09321); modded-nanogpt, 2024",
    ),
    InitRow(
        r"transformer\.value_embeds\.\d+\.weight", "uniform", "fan_in",
        "as large as the values that c_v makes of a normed input at the start is not needed: a small share that can grow",
        "nanochat gpt.py, 2026",
    ),
    InitRow(
        r"(transformer\.h\.\d+\.attn\.value_gate|smear_gate)\.weight", "constant", 0.0,
        "gates start in the middle of their range, the same for every token",
        "ours",
    ),
    InitRow(
        r"residual_scales", "constant", 1.0,
        "the plain residual stream",
        "ours",
    ),
    InitRow(
        r"x0_scales", "constant", 0.1,
        "a little of the embedding, so that the number gets a gradient of either sign",
        "modded-nanogpt, 2024; nanochat gpt.py, 2026",
    ),
    InitRow(
        r"smear_scale", "constant", 0.0,
        "off at first",
        "nanochat gpt.py, 2026",
    ),
    InitRow(
        r"backout_scale", "constant", 0.2,
        "a part of the middle state is always too much for the head",
        "nanochat gpt.py, 2026",
    ),
)  # fmt: skip
"""Which row starts which weight. Every parameter must match exactly one row."""


def init_row(name: str) -> InitRow:
    """The table's row for a parameter's name. Exactly one matches, else it is our mistake."""
    rows = [row for row in INIT_TABLE if re.fullmatch(row.pattern, name)]
    assert len(rows) == 1, f"{name} matches {len(rows)} rows of INIT_TABLE"
    return rows[0]


def init_weights(model: GPT, *, seed: int) -> None:
    """Fill all weights and the rotary tables of a model that lies on a real device.

    Numbers are drawn on the CPU and copied, so they are the same on every device. Each parameter has its own generator,
    seeded by ``seed`` and its name, so they do not depend on the order or the number of the other parameters either.
    The global random state is not used.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(draw_weight(name, parameter.shape, seed=seed))
    model.reset_rope()


def draw_weight(name: str, shape: torch.Size, *, seed: int) -> torch.Tensor:
    """The start of one weight of the whole ``shape``, float32 on the CPU. Depends on ``seed`` and the name only."""
    return _draw(init_row(name), shape, _generator(seed, name))


def build_gpt(
    config: GPTConfig,
    *,
    device: torch.device | str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    seed: int,
) -> GPT:
    """A model on ``device`` with its weights at their start.

    Built where it will be, so the peak is one copy of the weights. (From the meta device, ``to_empty`` would make the same
    and import sympy: 0.4 s and 35 MB.)
    """
    with torch.device(device):
        model = GPT(config, compute_dtype=compute_dtype)
    init_weights(model, seed=seed)
    return model


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def _draw(row: InitRow, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if row.kind == "constant":
        assert not isinstance(row.std, str)
        return torch.full(shape, row.std)
    std = shape[-1] ** -0.5 if row.std == "fan_in" else row.std
    if row.kind == "normal":
        return torch.empty(shape, device="cpu").normal_(0.0, std, generator=generator)
    # A uniform distribution over -b..b has standard deviation b / sqrt(3).
    bound = math.sqrt(3.0) * std
    return torch.empty(shape, device="cpu").uniform_(-bound, bound, generator=generator)
