"""Claims of interop/remote_code/modeling_firstlight.py beyond its logits (tests/interop/test_hf_export.py): padding, the
cache, beams, and training. The oracle is our own model, which tests/model checks.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from interop.exported import OPTIONS, model
from torch.nn.functional import cross_entropy

from firstlight.infer.engine import generate
from firstlight.model.gpt import GPT

pytest.importorskip("transformers")


def pair(preset: str) -> tuple[GPT, Any]:
    from firstlight.interop.remote_code.modeling_firstlight import FirstlightConfig, FirstlightForCausalLM

    ours = model(OPTIONS[preset])
    theirs = FirstlightForCausalLM(FirstlightConfig(**asdict(ours.config)))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs.eval()


PROMPTS = ([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7], [2, 7, 1, 8, 2])


@pytest.mark.parametrize("preset", ["modern", "portable", "everything"])
def test_padding_at_either_side_changes_no_row(preset: str) -> None:
    ours, theirs = pair(preset)
    lengths = [len(ids) for ids in PROMPTS]
    for side in ("left", "right"):
        ids_BT = torch.zeros(2, max(lengths), dtype=torch.int64)
        mask_BT = torch.zeros_like(ids_BT)
        places = [slice(-n, None) if side == "left" else slice(n) for n in lengths]
        for row, (place, ids) in enumerate(zip(places, PROMPTS, strict=True)):
            ids_BT[row, place] = torch.tensor(ids)
            mask_BT[row, place] = 1
        with torch.no_grad():
            found_BTV = theirs(ids_BT, attention_mask=mask_BT).logits
            for row, (place, ids) in enumerate(zip(places, PROMPTS, strict=True)):
                assert (found_BTV[row, place] - ours(torch.tensor([ids]))[0]).abs().max() < 1e-4
        if side == "left":
            out = theirs.generate(ids_BT, attention_mask=mask_BT, max_new_tokens=20, do_sample=False)
            for row, ids in enumerate(PROMPTS):
                expected = [step[0] for step in generate(ours, ids, max_new_tokens=20, temperature=0)]
                assert out[row, ids_BT.shape[1] :].tolist() == expected


def test_the_cache_changes_nothing_in_a_search_with_beams() -> None:
    _, theirs = pair("everything")
    row = torch.tensor([PROMPTS[0]])
    options = {"attention_mask": torch.ones_like(row), "max_new_tokens": 12, "do_sample": False, "num_beams": 3}
    assert torch.equal(theirs.generate(row, **options), theirs.generate(row, use_cache=False, **options))


def test_a_text_given_in_parts_has_the_logits_of_the_whole() -> None:
    ours, theirs = pair("everything")
    row = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        first = theirs(row[:, :5], use_cache=True)
        rest = theirs(row[:, 5:], cache=first.cache)
        expected = ours(row)
    assert (torch.cat((first.logits, rest.logits), dim=1) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("recompute", [False, True])
def test_loss_and_gradients_are_ours(recompute: bool) -> None:
    ours, theirs = pair("everything")
    ours.requires_grad_(True).train()
    theirs.train()
    if recompute:
        theirs.gradient_checkpointing_enable()
    ids_BT = torch.tensor([PROMPTS[0]])
    labels_BT = ids_BT.clone()
    labels_BT[0, :3] = -100
    loss = theirs(ids_BT, labels=labels_BT).loss
    expected = cross_entropy(ours(ids_BT)[0, :-1], labels_BT[0, 1:])
    assert abs(loss.item() - expected.item()) < 1e-5
    loss.backward()
    expected.backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        assert (gradients[name].grad - parameter.grad).norm() <= 1e-4 * (1 + parameter.grad.norm()), name


def test_what_is_not_possible_is_refused() -> None:
    _, theirs = pair("modern")
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        theirs()
    with pytest.raises(ValueError, match="by the tokens' ids"):
        theirs(inputs_embeds=torch.zeros(1, 2, 64))
    with pytest.raises(ValueError, match="attention weights"):
        theirs(torch.tensor([[1]]), output_attentions=True)
