"""Which parameter is updated by which rule, at which rate.

Matrices inside the blocks go to Muon; embeddings, the head, gates and everything with fewer than two dimensions to AdamW.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

BLOCK_PREFIX = "transformer.h."
EMBEDDING_NAME = "transformer.wte.weight"
VALUE_EMBED_PREFIX = "transformer.value_embeds."
HEAD_NAME = "lm_head.weight"
RESIDUAL_NAME = "residual_scales"
# Not `mlp.c_gate`, which is a matrix like the others of an MLP.
SMALL_GATES = ("attn.value_gate.weight", "smear_gate.weight")

# Rates of the options of the preset `modern`, as parts of embedding_lr or scalar_lr (nanochat gpt.py, 2026, has
# them nearly so).
VALUE_EMBED_LR_SCALE = 0.5
RESIDUAL_LR_SCALE = 0.01
GATE_LR_SCALE = 0.4

Named = tuple[tuple[str, torch.nn.Parameter], ...]


@dataclass(frozen=True)
class MuonGroup:
    """Matrices of one shape (M, N), updated together as a stack.

    lr: rate before `Hyper.lr_multiplier` and before the shape factor max(1, M / N)^0.5.
    weight_decay_scale: factor on `Hyper.weight_decay`.
    cautious: decay only the entries that the update moves towards zero.
    variance_beta2: memory of the row-wise second moment (NorMuon), 0 for none.
    """

    name: str
    parameters: Named
    lr: float
    weight_decay_scale: float = 1.0
    cautious: bool = False
    variance_beta2: float = 0.0


@dataclass(frozen=True)
class AdamWGroup:
    """Parameters of any shape that share AdamW's numbers.

    lr: rate before `Hyper.lr_multiplier`. weight_decay_scale: factor on `Hyper.weight_decay`.
    """

    name: str
    parameters: Named
    lr: float
    betas: tuple[float, float] = (0.8, 0.95)
    eps: float = 1e-10
    weight_decay_scale: float = 0.0


Group = MuonGroup | AdamWGroup


def make_groups(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    *,
    n_embd: int = 768,
    embedding_lr: float = 0.2,
    unembedding_lr: float = 0.004,
    matrix_lr: float = 0.02,
    scalar_lr: float = 0.5,
    betas: tuple[float, float] = (0.8, 0.95),
    eps: float = 1e-10,
    weight_decay_scale_adamw: float = 0.0,
    cautious: bool = False,
    variance_beta2: float = 0.0,
) -> tuple[Group, ...]:
    """Groups of all trainable parameters of a GPT, each parameter in exactly one.

    n_embd: width of the model; the rates of embedding and head are for a width of 768 and follow (n_embd / 768)^-0.5,
    the dependence that Adam's rates have in nanochat. Muon's needs none: its update has a fixed spectral norm.

    Raises ValueError for a parameter that has no rule or appears twice: silence would leave it untrained.
    """
    trainable = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    width_factor = (n_embd / 768) ** -0.5
    rates = {
        "embedding": embedding_lr * width_factor,
        "value embeddings": embedding_lr * width_factor * VALUE_EMBED_LR_SCALE,
        "head": unembedding_lr * width_factor,
        "residual scales": scalar_lr * RESIDUAL_LR_SCALE,
        "gates": scalar_lr * GATE_LR_SCALE,
        "scalars": scalar_lr,
    }
    by_rule: dict[str, list[tuple[str, torch.nn.Parameter]]] = {name: [] for name in rates}
    matrices: dict[tuple[int, ...], list[tuple[str, torch.nn.Parameter]]] = {}
    for name, parameter in trainable:
        if name == EMBEDDING_NAME:
            by_rule["embedding"].append((name, parameter))
        elif name.startswith(VALUE_EMBED_PREFIX):
            by_rule["value embeddings"].append((name, parameter))
        elif name == HEAD_NAME:
            by_rule["head"].append((name, parameter))
        elif name == RESIDUAL_NAME:
            by_rule["residual scales"].append((name, parameter))
        elif name.endswith(SMALL_GATES):
            by_rule["gates"].append((name, parameter))
        elif parameter.ndim < 2:
            by_rule["scalars"].append((name, parameter))
        elif parameter.ndim == 2 and name.startswith(BLOCK_PREFIX):
            matrices.setdefault(tuple(parameter.shape), []).append((name, parameter))
        else:
            raise ValueError(f"no optimizer rule for parameter {name} of shape {tuple(parameter.shape)}")

    groups: list[Group] = []
    for name, members in by_rule.items():
        if members:
            groups.append(AdamWGroup(name, tuple(members), rates[name], betas, eps, weight_decay_scale_adamw))
    for shape, members in matrices.items():
        groups.append(
            MuonGroup(
                f"matrices {shape[0]}x{shape[1]}",
                tuple(members),
                matrix_lr,
                cautious=cautious,
                variance_beta2=variance_beta2,
            )
        )
    check_partition(groups, trainable)
    return tuple(groups)


def check_partition(groups: Iterable[Group], trainable: Iterable[tuple[str, torch.nn.Parameter]]) -> None:
    """Raise ValueError unless every trainable parameter is in exactly one group, and no other is in any."""
    wanted = [id(parameter) for _, parameter in trainable]
    grouped = [id(parameter) for group in groups for _, parameter in group.parameters]
    if len(set(grouped)) != len(grouped):
        raise ValueError("a parameter is in two optimizer groups (or two names share one tensor)")
    if sorted(grouped) != sorted(wanted):
        raise ValueError(f"the groups hold {len(grouped)} parameters, the model has {len(wanted)} trainable ones")
