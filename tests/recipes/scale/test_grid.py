"""The plan of a grid, checked by hand."""

from __future__ import annotations

import itertools

import pytest

from firstlight.errors import ConfigError
from firstlight.recipes.scale import grid
from firstlight.recipes.scale.grid import Rules, Speed

RULES = Rules(vocab_size=2048, seq_len=256)
SLOW = {depth: Speed(train_s=2e-5, score_s=1e-5) for depth in range(1, 9)}

# By hand, V = 2048, T = 256, width 64 a layer, head V * D and 12 * L * D^2 in the blocks:
#   depth 1: 2048 * 64 + 12 * 1 * 64^2 = 131,072 + 49,152 = 180,224; FLOPs a token 6 * that + 12 * 1 * 64 * 256 = 1,277,952
#   depth 2: 2048 * 128 + 12 * 2 * 128^2 = 262,144 + 393,216 = 655,360; 6 * that + 12 * 2 * 128 * 256 = 4,718,592
PARAMS = {1: 180_224, 2: 655_360}
FLOPS = {1: 1_277_952, 2: 4_718_592}


def test_cells_have_the_tokens_that_the_budget_pays_for() -> None:
    cells = grid.make_cells("s", [1, 2], [1e12, 3e12], RULES, seeds=[7], speeds=SLOW)
    assert [cell.run for cell in cells] == ["s-d2-c1", "s-d1-c1", "s-d2-c2", "s-d1-c2"], "cheapest first"
    for cell in cells:
        assert cell.num_params == PARAMS[cell.depth]
        assert cell.flops_per_token == FLOPS[cell.depth]
        assert cell.seed == 7
    by_run = {cell.run: cell for cell in cells}
    # 1e12 / 1,277,952 = 782,502 tokens = 191.04 steps of 4,096; 1e12 / 4,718,592 = 211,928 = 51.74 steps.
    assert (by_run["s-d1-c1"].batch_tokens, by_run["s-d1-c1"].num_steps) == (4096, 191)
    assert (by_run["s-d2-c1"].batch_tokens, by_run["s-d2-c1"].num_steps) == (4096, 52)
    assert by_run["s-d1-c1"].num_tokens == 191 * 4096
    assert by_run["s-d1-c1"].tokens_per_param == pytest.approx(782_336 / 180_224)
    assert by_run["s-d2-c1"].flops == 52 * 4096 * 4_718_592


def test_expected_time_is_a_sum_by_hand() -> None:
    rules = Rules(vocab_size=2048, seq_len=256, num_score_tokens=100_000, may_compile=False)
    cell = grid.make_cells("s", [1, 2], [1e12], rules, seeds=[1], speeds=SLOW)[1]
    # 782,336 tokens at 2e-5 s; 100,000 tokens at 1e-5 s and a fifth more; 6 s to close.
    assert cell.run == "s-d1-c1"
    assert not cell.compile
    assert cell.expected_s == pytest.approx(grid.START_S + 15.64672 + 1.2 + 6.0)


def test_a_depth_is_compiled_in_all_its_cells_or_in_none() -> None:
    cells = grid.make_cells("s", [1, 2], [3e12, 3e13], RULES, seeds=[1], speeds={1: SLOW[1], 2: Speed(1e-6, 1e-6)})
    assert {cell.depth for cell in cells if cell.compile} == {1}
    assert {cell.depth for cell in cells if not cell.compile} == {2}
    first, second = (cell for cell in cells if cell.depth == 1)
    for cell, compiling_s in ((first, grid.COMPILE_S), (second, grid.COMPILED_BEFORE_S)):
        steps_s = cell.num_tokens * 2e-5 * grid.COMPILED_STEP_FRAC
        assert cell.expected_s == pytest.approx(grid.START_S + compiling_s + steps_s + 6.0)


def test_long_cells_are_saved_on_the_way_and_short_ones_at_the_end() -> None:
    slow = {1: Speed(1e-3, 0.0), 2: Speed(1e-6, 0.0)}
    rules = Rules(vocab_size=2048, seq_len=256, may_compile=False)
    by_depth = {cell.depth: cell for cell in grid.make_cells("s", [1, 2], [1e12], rules, seeds=[1], speeds=slow)}
    # 782 s is five whole intervals of 150 s: six parts of 191 steps.
    assert by_depth[1].save_every == 32
    assert by_depth[2].save_every == 0


def test_seeds_are_cells_of_their_own() -> None:
    cells = grid.make_cells("s", [1, 2], [1e12], RULES, seeds=[5, 6], speeds=SLOW)
    assert sorted(cell.run for cell in cells) == ["s-d1-c1-s1", "s-d1-c1-s2", "s-d2-c1-s1", "s-d2-c1-s2"]
    assert {cell.seed for cell in cells} == {5, 6}


def test_impossible_grids_are_refused_with_all_reasons() -> None:
    with pytest.raises(ConfigError) as caught:
        grid.make_cells("s", [1, 2, 8], [1e11, 1e12], RULES, seeds=[1], speeds=SLOW)
    words = str(caught.value)
    # 1e11 / 1,277,952 / 4,096 = 19.1 steps; depth 8 is short at both budgets.
    assert "depth 1 at 1e+11 FLOPs is 78,250 tokens: 19.1 steps of 4,096" in words
    assert words.count("depth 8") == 2
    assert "30 steps" in words


@pytest.mark.parametrize(
    ("depths", "budgets", "words"),
    [
        ([2], [1e12], "has 1 size"),
        ([2, 2], [1e12], "twice"),
        ([0, 2], [1e12], "outside 1 to 32"),
        ([1, 2], [], "above zero"),
        ([1, 2], [1e12, 1e12], "must rise"),
        ([1, 2], [float("nan")], "above zero"),
    ],
)
def test_a_grid_that_is_none_is_refused(depths, budgets, words) -> None:
    with pytest.raises(ConfigError, match=words):
        grid.check(depths, budgets, seeds=[1])


@pytest.mark.parametrize("minutes", [20.0, 34.0, 120.0])
def test_budgets_for_minutes_fill_the_minutes_and_no_more(minutes) -> None:
    budgets = grid.budgets_for_minutes(minutes, [1, 2, 3], RULES, num_seeds=1, speeds=SLOW, spent_s=30.0)
    ratios = [b / a for a, b in itertools.pairwise(budgets)]
    # Of budgets rounded to two digits.
    assert ratios[1] == pytest.approx(ratios[0], rel=0.1)
    assert min(abs(ratios[0] / ratio - 1) for ratio in grid.BUDGET_RATIOS) < 0.06
    if minutes > 100:
        assert ratios[0] > 2.8

    def total_s(scale: float) -> float:
        made = grid.make_cells("s", [1, 2, 3], [scale * b for b in budgets], RULES, seeds=[0], speeds=SLOW)
        return 30.0 + sum(cell.expected_s for cell in made)

    assert total_s(1.0) <= (1 - grid.ROOM_FRAC) * minutes * 60 + 1e-6
    assert total_s(1.15) > (1 - grid.ROOM_FRAC) * minutes * 60 * 0.97


def test_minutes_that_are_too_few_say_how_many_would_do() -> None:
    with pytest.raises(ConfigError, match=r"--minutes 2 is too short.*takes about \d+ minutes") as caught:
        grid.budgets_for_minutes(2.0, [1, 2, 3], RULES, num_seeds=1, speeds=SLOW)
    needed = float(caught.value.hint.split()[2])
    grid.budgets_for_minutes(needed, [1, 2, 3], RULES, num_seeds=1, speeds=SLOW)


def test_vocabulary_and_rows_are_the_dials_for_the_middle_and_the_deepest() -> None:
    # 640 * 3^1.5 = 3,326 -> 4,096 is the nearest power of two in the logarithm; rows of 512 from depth 5 on.
    rules = grid.rules_for([2, 3, 6])
    assert (rules.vocab_size, rules.seq_len) == (4096, 512)
    assert grid.rules_for([2, 3, 6], vocab_size=500, seq_len=64).vocab_size == 500
