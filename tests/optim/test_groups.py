"""Every parameter in exactly one group, with the right rule and rate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from firstlight.optim.groups import AdamWGroup, MuonGroup, check_partition, make_groups


def named(*shapes_by_name):
    return [(name, nn.Parameter(torch.zeros(shape))) for name, shape in shapes_by_name]


GPT_PARAMETERS = [
    ("transformer.wte.weight", (50, 8)),
    ("transformer.h.0.attn.c_q.weight", (8, 8)),
    ("transformer.h.0.attn.c_k.weight", (4, 8)),
    ("transformer.h.0.mlp.c_fc.weight", (32, 8)),
    ("transformer.h.0.mlp.c_proj.weight", (8, 32)),
    ("transformer.h.1.attn.c_q.weight", (8, 8)),
    ("resid_lambdas", (2,)),
    ("transformer.h.1.gate", ()),
    ("lm_head.weight", (50, 8)),
]


def test_each_parameter_gets_its_rule():
    groups = make_groups(named(*GPT_PARAMETERS))
    rule = {name: group for group in groups for name, _ in group.parameters}
    assert len(rule) == len(GPT_PARAMETERS)
    assert rule["transformer.wte.weight"].name == "embedding"
    assert rule["lm_head.weight"].name == "head"
    assert rule["resid_lambdas"] is rule["transformer.h.1.gate"]
    for name in rule:
        if name.startswith("transformer.h.") and name.endswith(".weight"):
            assert isinstance(rule[name], MuonGroup)
        else:
            assert isinstance(rule[name], AdamWGroup)


def test_matrices_are_stacked_by_equal_shape():
    stacks = [group for group in make_groups(named(*GPT_PARAMETERS)) if isinstance(group, MuonGroup)]
    shapes = [{tuple(parameter.shape) for _, parameter in stack.parameters} for stack in stacks]
    assert shapes == [{(8, 8)}, {(4, 8)}, {(32, 8)}, {(8, 32)}]
    assert len(stacks[0].parameters) == 2


def test_the_gate_of_an_mlp_is_a_matrix_and_the_small_gates_are_not():
    parameters = named(
        ("transformer.h.0.mlp.c_gate.weight", (24, 8)),
        ("transformer.h.0.mlp.c_fc.weight", (24, 8)),
        ("transformer.h.0.mlp.c_proj.weight", (8, 24)),
        ("transformer.h.1.mlp.c_gate.weight", (24, 8)),
        ("transformer.h.0.attn.value_gate.weight", (2, 8)),
        ("smear_gate.weight", (1, 8)),
    )
    groups = {group.name: [name for name, _ in group.parameters] for group in make_groups(parameters)}
    assert groups == {
        "gates": ["transformer.h.0.attn.value_gate.weight", "smear_gate.weight"],
        "matrices 24x8": [f"transformer.h.{part}.weight" for part in ("0.mlp.c_gate", "0.mlp.c_fc", "1.mlp.c_gate")],
        "matrices 8x24": ["transformer.h.0.mlp.c_proj.weight"],
    }


def test_rates_are_nanochats_at_width_768_and_follow_the_width():
    at_768 = {g.name: g.lr for g in make_groups(named(*GPT_PARAMETERS), n_embd=768)}
    at_192 = {g.name: g.lr for g in make_groups(named(*GPT_PARAMETERS), n_embd=192)}
    assert at_768["embedding"] == pytest.approx(0.2)
    assert at_768["head"] == pytest.approx(0.004)
    assert at_768["matrices 8x8"] == pytest.approx(0.02)
    assert at_192["embedding"] == pytest.approx(0.4)
    assert at_192["head"] == pytest.approx(0.008)
    assert at_192["matrices 8x8"] == pytest.approx(0.02)


def test_a_parameter_without_a_rule_is_refused_by_name():
    with pytest.raises(ValueError, match=r"vision\.weight"):
        make_groups(named(*GPT_PARAMETERS, ("vision.weight", (3, 3))))


def test_one_tensor_under_two_names_is_refused():
    tied = nn.Parameter(torch.zeros(50, 8))
    with pytest.raises(ValueError, match="two optimizer groups"):
        make_groups([("transformer.wte.weight", tied), ("lm_head.weight", tied)])


def test_a_forgotten_parameter_is_refused():
    parameters = named(*GPT_PARAMETERS)
    groups = make_groups(parameters)
    with pytest.raises(ValueError, match="8 parameters, the model has 9"):
        check_partition(groups[1:], parameters)


def test_frozen_parameters_are_left_out():
    parameters = named(*GPT_PARAMETERS)
    parameters[0][1].requires_grad_(False)
    names = [name for group in make_groups(parameters) for name, _ in group.parameters]
    assert "transformer.wte.weight" not in names
    assert len(names) == 8
