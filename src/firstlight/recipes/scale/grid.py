"""The plan of a scaling study: which models are trained on how many tokens, and how long that takes. Pure arithmetic.

An isoFLOP grid (approach 2 of Hoffmann et al. 2022, arXiv 2203.15556): at each budget of C FLOPs one model of each depth,
each trained on the tokens that C pays for, so small models see many tokens and large ones few. The best size of each
budget lies where neither is short.

All cells have one vocabulary, one row length and the same validation documents. A larger vocabulary changes the size of
the head, the bytes in a token and what a token is worth, so cells with different ones would differ in more than N and D.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from firstlight.errors import ConfigError, Problems
from firstlight.model import count
from firstlight.model.config import GPTConfig, Preset
from firstlight.recipes.budget import CLOSING_S, SCORE_OVERHEAD
from firstlight.train.dial import DEPTH_FLOPS, DEPTH_PARAMS, batch_tokens_for, seq_len_for, vocab_size_for

BUDGET_RATIOS = (3.0, 2.5, 2.0)
"""Each budget is this many times the one before: the first of these for which the minutes suffice. At 3, three budgets span
a factor of nine, and the best size about one of three; the less they span, the less is known of how it grows."""
NUM_BUDGETS = 3

FEWEST_STEPS = 30
"""A cell of fewer optimizer steps is refused: its score would tell of the warm-up, not of its size."""
LARGEST_DEPTH = 32

START_S = 16.0
"""Seconds from the start of a cell's process to its first step: imports, the model, the loader, two measurements of the
machine's peak."""
COMPILE_S = 75.0
COMPILED_BEFORE_S = 25.0
"""Seconds that torch.compile adds to a cell's start: for the first of its shape, and for the next, which find the kernels
in its cache on disk."""
COMPILED_STEP_FRAC = 0.6
"""Part of an uncompiled step's time that a compiled one takes on a CPU (lab/LOG.md)."""
SAVE_INTERVAL_S = 150.0
"""About so often a cell is saved, so that one that was interrupted loses little."""
ROOM_FRAC = 0.08
"""Part of the minutes that a plan leaves free, because a machine is not always as fast as it was measured."""


@dataclass(frozen=True)
class Speed:
    """Measured seconds of one depth on this machine, uncompiled: of a training step for each token, of scoring a token."""

    train_s: float
    score_s: float


@dataclass(frozen=True)
class Rules:
    """What holds for the whole grid. num_score_tokens: validation tokens that each cell's final score takes."""

    vocab_size: int
    seq_len: int
    preset: Preset = "modern"
    head_dim: int = 128
    num_score_tokens: int = 0
    total_batch_size: int | None = None
    may_compile: bool = True


@dataclass(frozen=True)
class Cell:
    """One run of a study. budget: number of its FLOP budget, from 1. num_params: matrices and head (N of the fits).

    asked_flops: the budget itself; ``flops`` are those of whole steps. expected_s: from the start of its process to its end.
    """

    run: str
    depth: int
    budget: int
    seed: int
    asked_flops: float
    num_params: int
    num_all_params: int
    flops_per_token: int
    batch_tokens: int
    num_steps: int
    compile: bool
    save_every: int
    expected_s: float

    @property
    def num_tokens(self) -> int:
        return self.batch_tokens * self.num_steps

    @property
    def flops(self) -> float:
        return float(self.flops_per_token) * self.num_tokens

    @property
    def tokens_per_param(self) -> float:
        return self.num_tokens / self.num_params


def rules_for(
    depths: Sequence[int], *, vocab_size: int | None = None, seq_len: int | None = None, preset: Preset = "modern",
    head_dim: int = 128, num_score_tokens: int = 0, total_batch_size: int | None = None, may_compile: bool = True,
) -> Rules:  # fmt: skip
    """Rules of a grid: the dial's vocabulary of the middle depth and row length of the deepest, where none are given."""
    ordered = sorted(depths)
    return Rules(
        vocab_size=vocab_size or vocab_size_for(ordered[len(ordered) // 2]),
        seq_len=seq_len or seq_len_for(ordered[-1]),
        preset=preset, head_dim=head_dim, num_score_tokens=num_score_tokens, total_batch_size=total_batch_size,
        may_compile=may_compile,
    )  # fmt: skip


def model_of(depth: int, rules: Rules) -> GPTConfig:
    """Config of the model of a depth under the grid's rules."""
    return GPTConfig.from_depth(
        depth, vocab_size=rules.vocab_size, max_seq_len=rules.seq_len, head_dim=rules.head_dim, preset=rules.preset
    )


def make_cells(
    name: str, depths: Sequence[int], budgets: Sequence[float], rules: Rules, *, seeds: Sequence[int],
    speeds: Mapping[int, Speed],
) -> tuple[Cell, ...]:  # fmt: skip
    """All cells of a grid, the cheapest first.

    The batch follows from the tokens by the dial; the tokens are rounded to whole steps. One depth is compiled in all its
    cells or in none: in all where the time saved pays for compiling.

    Raises ConfigError that names every depth and budget that cannot be.
    """
    check(depths, budgets, seeds=seeds)
    check_steps(depths, budgets, rules)
    cells: list[Cell] = []
    for depth in depths:
        model = model_of(depth, rules)
        flops_per_token = count.flops_per_token(model, rules.seq_len)
        counted = [
            (number, budget, *batch_and_steps(budget / flops_per_token, rules))
            for number, budget in enumerate(budgets, 1)
        ]
        speed = speeds[depth]
        steps_s = [speed.train_s * batch * steps for _, _, batch, steps in counted]
        compiled = rules.may_compile and pays(steps_s, num_seeds=len(seeds))
        is_first = True
        for (number, budget, batch, steps), step_s in zip(counted, steps_s, strict=True):
            for seed in seeds:
                train_s = step_s * (COMPILED_STEP_FRAC if compiled else 1.0)
                extra_s = 0.0 if not compiled else COMPILE_S if is_first else COMPILED_BEFORE_S
                score_s = SCORE_OVERHEAD * speed.score_s * rules.num_score_tokens
                num_saves = int(train_s / SAVE_INTERVAL_S)
                cells.append(
                    Cell(
                        run=f"{name}-d{depth}-c{number}" + (f"-s{seeds.index(seed) + 1}" if len(seeds) > 1 else ""),
                        depth=depth, budget=number, seed=seed, asked_flops=budget,
                        num_params=count.num_scaling_params(model),
                        num_all_params=sum(count.num_params(model).values()),
                        flops_per_token=flops_per_token, batch_tokens=batch, num_steps=steps, compile=compiled,
                        save_every=math.ceil(steps / (num_saves + 1)) if num_saves else 0,
                        expected_s=START_S + extra_s + train_s + score_s + CLOSING_S,
                    )
                )  # fmt: skip
                is_first = False
    return tuple(sorted(cells, key=lambda cell: (cell.budget, cell.expected_s, cell.seed)))


def batch_and_steps(num_tokens: float, rules: Rules) -> tuple[int, int]:
    """Tokens of an optimizer step, in whole rows, and the number of steps nearest to so many tokens."""
    batch = rules.total_batch_size or batch_tokens_for(max(1.0, num_tokens))
    batch = max(rules.seq_len, batch // rules.seq_len * rules.seq_len)
    return batch, round(num_tokens / batch)


def check_steps(depths: Sequence[int], budgets: Sequence[float], rules: Rules) -> None:
    """Refuse cells that would be too short. Raises ConfigError that names each."""
    problems = Problems()
    for depth in depths:
        flops_per_token = count.flops_per_token(model_of(depth, rules), rules.seq_len)
        for budget in budgets:
            tokens = budget / flops_per_token
            batch, steps = batch_and_steps(tokens, rules)
            if steps < FEWEST_STEPS:
                problems.add(
                    f"depth {depth} at {budget:.3g} FLOPs is {tokens:,.0f} tokens: {tokens / batch:.1f} steps of {batch:,}",
                    hint=f"a cell needs {FEWEST_STEPS} steps ({FEWEST_STEPS * batch * flops_per_token:.2g} FLOPs at this "
                    "depth): give larger --flops, more --minutes, smaller --depths or a smaller --total-batch-size",
                )
    problems.raise_if_any()


def pays(steps_s: Sequence[float], *, num_seeds: int) -> bool:
    """Whether compiling all cells of a depth saves time. steps_s: seconds of the uncompiled steps of each.

    >>> pays([20.0, 60.0, 180.0], num_seeds=1), pays([60.0, 180.0, 540.0], num_seeds=1)
    (False, True)
    """
    saved_s = (1 - COMPILED_STEP_FRAC) * num_seeds * sum(steps_s)
    return saved_s > COMPILE_S + (num_seeds * len(steps_s) - 1) * COMPILED_BEFORE_S


def check(depths: Sequence[int], budgets: Sequence[float], *, seeds: Sequence[int]) -> None:
    """Refuse a grid that no study can be made of. Raises ConfigError that names every mistake."""
    problems = Problems()
    shown = ",".join(map(str, depths))
    if len(depths) < 2:
        problems.add(
            f"--depths {shown} has {len(depths)} size", hint="give two at least; three show where the best size lies"
        )
    if len(set(depths)) < len(depths):
        problems.add(f"--depths {shown} names a depth twice", hint="for repeats of each cell give --seeds")
    if any(not 1 <= depth <= LARGEST_DEPTH for depth in depths):
        problems.add(f"--depths {shown} is outside 1 to {LARGEST_DEPTH}")
    written = ",".join(f"{budget:g}" for budget in budgets)
    if not budgets or any(not (math.isfinite(budget) and budget > 0) for budget in budgets):
        problems.add(f"--flops {written} must be numbers above zero", hint="for example --flops 1e13,3e13,1e14")
    elif any(b <= a for a, b in itertools.pairwise(budgets)):
        problems.add(f"--flops {written} must rise", hint="from the smallest budget to the largest, each once")
    if not seeds:
        problems.add("--seeds 0 would train nothing", hint="1 or more")
    problems.raise_if_any()


def geometric(middle: float, *, num: int = NUM_BUDGETS, ratio: float = BUDGET_RATIOS[0]) -> list[float]:
    """Budgets around a middle one, each ``ratio`` times the one before.

    >>> geometric(6e12)
    [2000000000000.0, 6000000000000.0, 18000000000000.0]
    """
    return [middle * ratio ** (i - (num - 1) / 2) for i in range(num)]


def budgets_for_minutes(
    minutes: float,
    depths: Sequence[int],
    rules: Rules,
    *,
    num_seeds: int,
    speeds: Mapping[int, Speed],
    spent_s: float = 0.0,
) -> list[float]:
    """The largest geometric budgets, to two digits, with which a whole study is expected to end in time.

    spent_s: what preparing takes beside the cells. Raises ConfigError where the smallest possible grid takes longer.
    """
    allowed_s = (1 - ROOM_FRAC) * minutes * 60 - spent_s
    # The deepest model at the smallest budget is the cell with the fewest steps.
    per_token = max(count.flops_per_token(model_of(depth, rules), rules.seq_len) for depth in depths)
    batch = rules.total_batch_size or batch_tokens_for(1.0)
    least = 1.05 * FEWEST_STEPS * batch * per_token

    def rounded(middle: float, ratio: float) -> list[float]:
        return [float(f"{budget:.2g}") for budget in geometric(middle, ratio=ratio)]

    def total_s(middle: float, ratio: float) -> float:
        made = make_cells("x", depths, rounded(middle, ratio), rules, seeds=list(range(num_seeds)), speeds=speeds)
        return sum(cell.expected_s for cell in made)

    lowest_s = math.inf
    for ratio in BUDGET_RATIOS:
        low = math.log(least * ratio ** ((NUM_BUDGETS - 1) / 2))
        lowest_s = total_s(math.exp(low), ratio)
        if lowest_s > allowed_s:
            continue
        high = low + 40.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if total_s(math.exp(middle), ratio) <= allowed_s else (low, middle)
        return rounded(math.exp(low), ratio)
    needed = math.ceil((lowest_s + spent_s) / (1 - ROOM_FRAC) / 60)
    raise ConfigError(
        f"--minutes {minutes:g} is too short for depths {', '.join(map(str, depths))}: the smallest grid, of "
        f"{FEWEST_STEPS} steps in its shortest cell, takes about {needed} minutes on this machine",
        hint=f"give --minutes {needed} or more, or smaller --depths",
    )


def distance_from_best(depth: int, flops: float, rules: Rules) -> float:
    """How far a depth is from the size that is expected to be the best for a budget: |ln(N / N_best)|.

    N_best by the rule of `firstlight.train.dial.depth_for`, which is from runs of minutes on a CPU.
    """
    best = DEPTH_PARAMS * (flops / DEPTH_FLOPS) ** 0.5
    return abs(math.log(count.num_scaling_params(model_of(depth, rules)) / best))
