"""Minutes divided by hand."""

from __future__ import annotations

import pytest

from firstlight.errors import ConfigError
from firstlight.recipes import budget

FACTS = {
    "spent_s": 20.0, "train_s": 0.4, "score_s": 0.1, "num_micro_batches": 1, "micro_batch_tokens": 4096,
    "num_val_tokens": 409_600, "is_resumed": False,
}  # fmt: skip


def test_ten_minutes_by_hand():
    found = budget.divide(10, **FACTS)
    # 100 batches of 0.1 s and a fifth more: 12 s of scoring; 600 - 20 - 12 - 6 = 562 s are left; a step is 1.15 * 0.4 s.
    assert found.training_s == pytest.approx(562.0)
    assert found.num_steps == int(562.0 / 0.46)
    assert found.final_tokens is None


def test_score_that_would_take_too_long_is_cut_and_said():
    found = budget.divide(1, **(FACTS | {"num_val_tokens": 4_096_000}))
    # 1000 batches are 120 s; 12 % of a minute are 7.2 s: 6 % of the tokens.
    assert found.final_tokens == pytest.approx(0.06 * 4_096_000, rel=1e-6)
    assert found.training_s == pytest.approx(60 - 20 - 7.2 - 6)
    assert "first 245,760 of 4,096,000" in found.notes[0]


def test_accumulation_makes_a_step_longer_not_the_run():
    one, four = budget.divide(10, **FACTS), budget.divide(10, **(FACTS | {"num_micro_batches": 4}))
    assert one.training_s == four.training_s
    assert four.num_steps == one.num_steps // 4


def test_no_time_left_is_refused_with_the_minutes_that_would_do():
    with pytest.raises(ConfigError) as caught:
        budget.divide(0.4, **FACTS)
    assert "no time is left to train" in str(caught.value)
    # 20 + 2.88 + 6 + 20 * 0.46 s are under a minute.
    assert "at least --minutes 1" in caught.value.hint


def test_a_resumed_run_at_its_end_gets_a_step_and_no_error():
    assert budget.divide(0.4, **(FACTS | {"is_resumed": True})).num_steps == 1
