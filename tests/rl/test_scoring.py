"""Log-probabilities and entropies against a plain softmax of the whole logits in float64."""

from __future__ import annotations

import pytest
import torch

from firstlight.data.batch import IGNORE
from firstlight.rl import scoring
from firstlight.rl.scoring import score_targets


@pytest.mark.parametrize("chunk_rows", [1000, 3])
def test_equals_a_plain_softmax(model, monkeypatch, chunk_rows) -> None:
    monkeypatch.setattr(scoring, "default_chunk_rows", lambda vocab_size: chunk_rows)
    generator = torch.Generator().manual_seed(0)
    inputs_BT = torch.randint(0, 265, (3, 8), generator=generator)
    targets_BT = torch.randint(0, 265, (3, 8), generator=generator)
    targets_BT[0, 2:] = IGNORE
    scores = score_targets(model, inputs_BT, targets_BT)
    with torch.no_grad():
        p_BTV = model(inputs_BT).double().softmax(-1)
    for b in range(3):
        for t in range(8):
            target = int(targets_BT[b, t])
            expected = (0.0, 0.0)
            if target != IGNORE:
                p_V = p_BTV[b, t]
                expected = (float(p_V[target].log()), float(-(p_V * p_V.log()).sum()))
            assert scores.logprobs_BT[b, t].item() == pytest.approx(expected[0], abs=2e-5)
            assert scores.entropies_BT[b, t].item() == pytest.approx(expected[1], abs=2e-5)
    assert not scores.logprobs_BT.requires_grad


def test_no_target_needs_no_pass(model, monkeypatch) -> None:
    monkeypatch.setattr(type(model), "hidden", lambda *a: pytest.fail("a forward pass for nothing"))
    ids_BT = torch.zeros(2, 4, dtype=torch.int64)
    scores = score_targets(model, ids_BT, torch.full((2, 4), IGNORE))
    assert scores.logprobs_BT.abs().sum() == scores.entropies_BT.abs().sum() == 0
