"""Rows of answers, place by place."""

from __future__ import annotations

import pytest
import torch
from rl.toy import rollout

from firstlight.data.batch import IGNORE
from firstlight.rl.rows import empty_row, pad_rows, row_of

BOS = 256


def test_targets_are_what_the_model_chose_shifted_by_one() -> None:
    # prompt: 256 7 259, answer: 10 (called) 11 | 12 13 forced | 14 260
    answer = rollout(
        1.0,
        ids=(10, 11, 12, 13, 14, 260),
        logprobs=(-0.1, -0.2, -0.3, -0.4, -0.5, -0.6),
        is_forced=(False, False, True, True, False, False),
    )
    row = row_of(answer, 0.25)
    assert row.inputs == (256, 7, 259, 10, 11, 12, 13, 14)
    assert row.targets == (IGNORE, IGNORE, 10, 11, IGNORE, IGNORE, 14, 260)
    assert row.logprobs == (0.0, 0.0, -0.1, -0.2, -0.3, -0.4, -0.5, -0.6)
    assert (row.num_targets, row.advantage) == (4, 0.25)


def test_an_answer_of_the_end_alone_is_one_target() -> None:
    row = row_of(rollout(0.0, ids=(260,), parts=()), -1.0)
    assert row.targets == (IGNORE, IGNORE, 260)


def test_padding_is_bos_without_targets_and_no_longer_than_needed() -> None:
    long = row_of(rollout(1.0, ids=tuple(range(40))), 0.5)
    short = row_of(rollout(1.0, ids=(1, 260)), -0.5)
    padded = pad_rows([long, short, empty_row(BOS)], bos_id=BOS, seq_len=100)
    assert padded.inputs_BT.shape == padded.targets_BT.shape == (3, 64)
    assert padded.inputs_BT[0, :42].tolist() == [256, 7, 259, *range(39)]
    assert padded.inputs_BT[1].tolist() == [256, 7, 259, 1] + [BOS] * 60
    assert padded.targets_BT[1].tolist() == [IGNORE, IGNORE, 1, 260] + [IGNORE] * 60
    assert padded.advantages_BT[1].tolist() == [0, 0, -0.5, -0.5] + [0] * 60
    assert (padded.targets_BT[2] == IGNORE).all()
    assert padded.targets_BT.is_contiguous()
    assert padded.inputs_BT.dtype == padded.targets_BT.dtype == torch.int64


@pytest.mark.parametrize(("seq_len", "fixed", "T"), [(100, False, 32), (20, False, 20), (100, True, 100)])
def test_the_length_of_a_batch(seq_len, fixed, T) -> None:
    rows = [row_of(rollout(1.0), 1.0)]
    assert pad_rows(rows, bos_id=BOS, seq_len=seq_len, fixed=fixed).inputs_BT.shape == (1, T)
