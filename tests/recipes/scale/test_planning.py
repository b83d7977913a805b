"""From what is asked to a plan: refusals before any work, and the whole way on a little text."""

from __future__ import annotations

import time

import pytest

from firstlight.errors import ConfigError
from firstlight.recipes.scale import planning
from firstlight.recipes.scale.grid import Speed
from firstlight.recipes.scale.planning import Request
from firstlight.runtime.console import Console


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(name="x"), "neither --minutes nor --flops"),
        (Request(name="x", minutes=5, flops=(1e12, 2e12)), "both --minutes and --flops"),
        (Request(name="../x", minutes=5), "cannot be the name"),
        (Request(name="x", minutes=-1), "must be above zero"),
        (Request(name="x", minutes=5, num_seeds=0), "--seeds 0"),
        (Request(name="x", minutes=5, seed_noise=-0.1), "--seed-noise"),
        (Request(name="x", minutes=5, depths=(2, 2)), "twice"),
    ],
)
def test_a_wrong_request_is_refused_before_any_work(request_, words) -> None:
    with pytest.raises(ConfigError, match=words):
        planning.check_request(request_)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match="3 things are wrong"):
        planning.check_request(Request(name="", depths=(2,)))


def test_a_plan_names_budgets_tokens_and_time(tiny_corpus, own_folders, capsys) -> None:
    request = Request(
        name="p", data=str(tiny_corpus), val="last", depths=(1, 2), flops=(1e11, 2e11), vocab_size=300, max_seq_len=32,
        total_batch_size=256, val_documents=20, threads=1, device="cpu", dtype="fp32", compile="off",
    )  # fmt: skip
    console = Console()
    study = planning.plan_study(request, console=console, started_s=time.monotonic())
    # Cheap budgets first; which depth is the faster of two depends on measured speeds.
    assert [cell.run[-2:] for cell in study.cells] == ["c1", "c1", "c2", "c2"]
    assert {cell.run for cell in study.cells} == {"p-d2-c1", "p-d1-c1", "p-d2-c2", "p-d1-c2"}
    assert study.budgets == (1e11, 2e11)
    # Depth 1 by hand: 6 * (300 * 64 + 12 * 64^2) + 12 * 64 * 32 = 434,688 FLOPs a token.
    cell = next(cell for cell in study.cells if cell.run == "p-d1-c1")
    assert cell.flops_per_token == 434_688
    assert cell.num_steps == round(1e11 / 434_688 / 256)
    assert study.num_val_documents == 120
    assert 0 < study.num_score_tokens < study.num_train_tokens
    assert not any(cell.compile for cell in study.cells)
    planning.show_plan(study, console)
    shown = capsys.readouterr().out
    assert "p-d1-c2" in shown
    assert "tokens/N" in shown
    assert "expected: " in shown


def test_depths_follow_the_time(tiny_corpus, own_folders, monkeypatch) -> None:
    # A machine of 1e11 FLOP/s at all depths: a token of depth d costs flops_per_token / 1e11 seconds.
    from firstlight.model import count

    def measured(depth, rules, runtime):
        per_token = count.flops_per_token(planning_model(depth, rules), rules.seq_len)
        return Speed(train_s=per_token / 1e11, score_s=per_token / 3e11)

    from firstlight.recipes.scale.grid import model_of as planning_model

    monkeypatch.setattr(planning, "measure_speed", measured)
    chosen = {}
    for minutes in (20, 2000):
        request = Request(
            name="p", data=str(tiny_corpus), val="last", minutes=minutes, vocab_size=300, threads=1, device="cpu",
            dtype="fp32", compile="off",
        )  # fmt: skip
        study = planning.plan_study(request, console=Console(), started_s=time.monotonic())
        assert study.expected_s <= minutes * 60
        assert study.expected_s > 0.8 * minutes * 60
        assert len(study.cells) == 9
        chosen[minutes] = study.depths
    assert chosen[20] == (1, 2, 3) or chosen[20][1] < chosen[2000][1]
    assert chosen[2000][1] > chosen[20][1], "more time, larger models"
