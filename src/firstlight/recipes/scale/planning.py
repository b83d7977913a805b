"""From what a person asks for to a study's plan: depths and budgets that fit this machine and these minutes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from firstlight.errors import ConfigError, Problems
from firstlight.model.config import Preset
from firstlight.recipes.scale.cell import Common
from firstlight.recipes.scale.fit import ASSUMED_SEED_NOISE
from firstlight.recipes.scale.grid import (
    NUM_BUDGETS,
    Rules,
    Speed,
    budgets_for_minutes,
    check,
    check_steps,
    distance_from_best,
    make_cells,
    rules_for,
)  # fmt: skip
from firstlight.recipes.scale.speeds import measure_speed, prepare_text
from firstlight.recipes.scale.study import Study
from firstlight.runtime import environment
from firstlight.runtime.console import Console, format_duration
from firstlight.runtime.context import Runtime, open_runtime
from firstlight.tokens.bpe import Tokenizer
from firstlight.train.dial import depth_for

FIRST_SEED = 1337
FIT_S = 15.0
"""Seconds for the fits and the page."""
SCORED_DOCUMENTS = 200


@dataclass(frozen=True)
class Request:
    """What a person asks for; None: the plan decides. minutes or flops: one of the two."""

    name: str
    data: str = "builtin"
    val: str | None = None
    preset: Preset = "modern"
    depths: tuple[int, ...] | None = None
    minutes: float | None = None
    flops: tuple[float, ...] | None = None
    num_seeds: int = 1
    seed_noise: float | None = None
    val_documents: int = SCORED_DOCUMENTS
    vocab_size: int | None = None
    max_seq_len: int | None = None
    total_batch_size: int | None = None
    head_dim: int = 128
    tokenizer: Path | None = None
    threads: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    compile: str = "auto"


def check_request(request: Request) -> None:
    """Refuse what no plan can be made of, before anything is measured. Raises ConfigError that names every mistake."""
    problems = Problems()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", request.name):
        problems.add(
            f"--name {request.name!r} cannot be the name of a study",
            hint="use letters, digits, '.', '_' and '-' (at most 80, a letter or digit first)",
        )
    if (request.minutes is None) == (request.flops is None):
        problems.add(
            "both --minutes and --flops are given" if request.flops else "neither --minutes nor --flops is given",
            hint="--minutes 35 chooses budgets that fit; --flops 1e13,3e13,1e14 names them",
        )
    if request.minutes is not None and not request.minutes > 0:
        problems.add(f"--minutes {request.minutes:g} must be above zero")
    for flag, value, least in (
        ("--seeds", request.num_seeds, 1), ("--val-documents", request.val_documents, 0),
        ("--vocab-size", request.vocab_size, 1), ("--max-seq-len", request.max_seq_len, 1),
        ("--total-batch-size", request.total_batch_size, 1), ("--threads", request.threads, 1),
    ):  # fmt: skip
        if value is not None and value < least:
            problems.add(f"{flag} {value} is too small", hint=f"the smallest is {least}")
    if request.seed_noise is not None and not request.seed_noise >= 0:
        problems.add(f"--seed-noise {request.seed_noise:g} is below 0", hint="bits per byte, for example 0.005")
    if environment.world_size() > 1:
        problems.add("a scaling study runs its cells one after the other", hint="start it without torchrun")
    if request.depths is not None or request.flops is not None:
        try:
            check(request.depths or (1, 2, 3), request.flops or (1.0,), seeds=range(max(1, request.num_seeds)))
        except ConfigError as error:
            problems.add(error.what, hint=error.hint)
    problems.raise_if_any()


def plan_study(request: Request, *, console: Console, started_s: float) -> Study:
    """Measure this machine, tokenise the text, and choose what was not said. Nothing is trained.

    started_s: time.monotonic() at the launch; what has passed since counts into --minutes.
    Raises ConfigError or DataError for what cannot work.
    """
    check_request(request)
    with open_runtime(device=request.device, dtype=request.dtype, num_threads=request.threads) as runtime:
        notes = list(runtime.notes)
        may_compile = request.compile != "off"
        if may_compile and runtime.device.type == "cpu" and environment.cxx_compiler() is None:
            may_compile = False
            notes.append("no torch.compile: no C++ compiler was found")
        meter = _Meter(runtime, console)
        vocab_size = request.vocab_size
        if request.tokenizer is not None:
            vocab_size = Tokenizer.load(request.tokenizer).vocab_size

        def rules(depths: Sequence[int], num_score_tokens: int) -> Rules:
            return rules_for(
                depths, vocab_size=vocab_size, seq_len=request.max_seq_len, preset=request.preset,
                head_dim=request.head_dim, num_score_tokens=num_score_tokens,
                total_batch_size=request.total_batch_size, may_compile=may_compile,
            )  # fmt: skip

        def budgets(depths: Sequence[int], grid: Rules) -> tuple[float, ...]:
            if request.flops is not None:
                return request.flops
            assert request.minutes is not None
            return tuple(
                budgets_for_minutes(
                    request.minutes, depths, grid, num_seeds=request.num_seeds, speeds=meter.speeds(depths, grid),
                    spent_s=time.monotonic() - started_s + FIT_S,
                )
            )  # fmt: skip

        depths = request.depths
        if depths is None:
            depths = (
                _around(depth_for(request.flops[len(request.flops) // 2]))
                if request.flops is not None
                else _depths_for_time(lambda d: (budgets(d, rules(d, 0)), rules(d, 0)))
            )
            notes.append(
                f"depths {', '.join(map(str, depths))}: the middle one is the nearest to the size that is expected to be "
                "the best at the middle budget"
            )
        if request.flops is not None:
            # Before the text is tokenised, which may take long.
            check_steps(depths, request.flops, rules(depths, 0))
        text = prepare_text(
            request.data, val=request.val, tokenizer_path=request.tokenizer, rules=rules(depths, 0),
            final_documents=request.val_documents, cache_dir=environment.cache_dir(),
            num_workers=environment.num_usable_cpus(), seed=FIRST_SEED, console=console,
        )  # fmt: skip
        grid = rules(depths, text.num_score_tokens)
        chosen = budgets(depths, grid)
        seeds = tuple(FIRST_SEED + i for i in range(request.num_seeds))
        cells = make_cells(request.name, depths, chosen, grid, seeds=seeds, speeds=meter.speeds(depths, grid))
    notes.append(
        f"all cells have one vocabulary of {grid.vocab_size:,} ids, rows of {grid.seq_len} tokens and the same "
        "validation documents: with others, a token or a byte would not be worth the same"
    )
    prepare_s = time.monotonic() - started_s
    return Study(
        name=request.name, rules=grid,
        common=Common(
            data=request.data, val=request.val, final_documents=request.val_documents, threads=request.threads,
            device=request.device, dtype=request.dtype, tokenizer=request.tokenizer,
        ),
        depths=tuple(depths), budgets=chosen, seeds=seeds, cells=cells, minutes=request.minutes,
        seed_noise=ASSUMED_SEED_NOISE if request.seed_noise is None else request.seed_noise,
        num_train_tokens=text.num_train_tokens, num_val_documents=text.num_val_documents,
        num_score_tokens=text.num_score_tokens, prepare_s=round(prepare_s + FIT_S, 1), notes=tuple(notes),
        created_unix_s=time.time(),
    )  # fmt: skip


def show_plan(study: Study, console: Console) -> None:
    """Print the grid: what each cell trains, and how long it is expected to take."""
    rows = [
        [
            cell.run, cell.depth, f"{cell.num_params / 1e6:.3g} M", f"{cell.num_all_params / 1e6:.3g} M", f"{cell.flops:.3g}",
            f"{cell.num_tokens / 1e6:.3g} M", f"{cell.tokens_per_param:.3g}", cell.num_steps,
            f"{cell.num_tokens / study.num_train_tokens:.2f}", "yes" if cell.compile else "no", f"{cell.expected_s / 60:.1f}",
        ]
        for cell in study.cells
    ]  # fmt: skip
    for note in study.notes:
        console.say(note)
    console.table(
        ["cell", "depth", "N", "all params", "FLOPs", "tokens", "tokens/N", "steps", "epochs", "compiled", "minutes"],
        rows,
    )
    console.say("N: matrices and head, the count of all ratios and fits; embeddings are looked up, not multiplied with")
    asked = f" of the {study.minutes:g} asked for" if study.minutes is not None else ""
    console.say(f"expected: {format_duration(study.expected_s)}{asked}, {len(study.cells)} cells one after the other")


class _Meter:
    """Speeds of depths, each measured once."""

    def __init__(self, runtime: Runtime, console: Console) -> None:
        self._runtime, self._console = runtime, console
        self._known: dict[tuple[int, int, int], Speed] = {}

    def speeds(self, depths: Sequence[int], rules: Rules) -> dict[int, Speed]:
        found = {}
        for depth in depths:
            key = (depth, rules.vocab_size, rules.seq_len)
            if key not in self._known:
                with self._console.progress(f"measuring depth {depth}"):
                    self._known[key] = measure_speed(depth, rules, self._runtime)
            found[depth] = self._known[key]
        return found


def _around(depth: int) -> tuple[int, ...]:
    middle = max(2, depth)
    return (middle - 1, middle, middle + 1)


def _depths_for_time(plan: Callable[[tuple[int, ...]], tuple[Sequence[float], Rules]]) -> tuple[int, ...]:
    """Three depths in a row of which the middle one is nearest to the best at its middle budget."""
    best: tuple[float, tuple[int, ...]] | None = None
    refusal: ConfigError | None = None
    for middle in range(2, 32):
        depths = _around(middle)
        try:
            budgets, rules = plan(depths)
        except ConfigError as error:
            refusal = error
            break
        away = distance_from_best(middle, budgets[NUM_BUDGETS // 2], rules)
        if best is not None and away >= best[0]:
            break
        best = (away, depths)
    if best is None:
        assert refusal is not None
        raise refusal
    return best[1]
