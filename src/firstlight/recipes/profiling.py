"""`train base --profile`: where a step's time goes, from a few steps after the first ones.

torch.profiler notes every operator of these steps. Two files are left in the run's folder ``profile/``: trace.json, each
operator on a time line (open it at https://ui.perfetto.dev), and table.txt, the time by kind. An operator's own time is what
it takes without the operators that it calls. On a CPU that is time of the calling thread, which waits for the others; on a
GPU it is the time of its kernels. Profiled steps are somewhat slower than others. What is trained does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from firstlight.runtime.console import Console, format_table
from firstlight.train.state import TrainState
from firstlight.train.trainer import Trainer

WARM_UP_STEPS = 5
NUM_STEPS = 3
STEP = "firstlight step"
OPTIMIZER = "firstlight optimizer"
LOSS = "_SummedCrossEntropy"
"""The loss layer's autograd function (train/loss.py), under whose name torch notes its time."""

MATRICES, ATTENTION, LOSS_KERNEL = "matrix products", "attention", "loss, without its products"
COMPILED, OPTIMIZER_KIND, COPIES = "other compiled code", "optimizer, with its products", "copies and casts"
OTHER, BETWEEN = "other operators", "Python and waiting"
KINDS = (MATRICES, ATTENTION, LOSS_KERNEL, COMPILED, OPTIMIZER_KIND, COPIES, OTHER, BETWEEN)

_MATRICES = ("aten::mm", "aten::addmm", "aten::linear", "aten::_scaled_mm", "mkldnn::_linear", "mkl::_mkl_linear")
# The native kernel with norms and rotation; of torch's kernels what is not fused into other compiled code.
_ATTENTION = (
    "firstlight::attention",
    "_AttentionBranch",
    "aten::bmm",
    "aten::baddbmm",
    "aten::_scaled_dot_product",
    "aten::_flash_attention",
    "aten::_efficient_att",
)
_COPIES = ("aten::copy_", "aten::_to_copy", "aten::to", "aten::clone", "aten::contiguous", "aten::_foreach_copy_")
_COMPILED = (
    "## Call CompiledFxGraph", "CompiledFunction", "Torch-Compiled Region", "triton_", "_MLPBranch", "_GatedBranch", "_Norm",
)  # fmt: skip


def kind_of(names: Sequence[str]) -> str:
    """Kind of an operator's own time. names: its own, then those of the operators that called it, inner ones first.

    >>> kind_of(["aten::mm", "CompiledFunction", "firstlight step"])
    'matrix products'
    >>> kind_of(["aten::bmm", "firstlight optimizer", "firstlight step"])
    'optimizer, with its products'
    >>> kind_of(["_MLPBranchBackward", "firstlight step"]), kind_of(["aten::mm", "_MLPBranchBackward", "firstlight step"])
    ('other compiled code', 'matrix products')
    """
    own = names[0]
    if OPTIMIZER in names:
        return OPTIMIZER_KIND
    if own.startswith(_ATTENTION):
        return ATTENTION
    if own.startswith(_MATRICES):
        return MATRICES
    if any(name.startswith(LOSS) for name in names):
        return LOSS_KERNEL
    if own.startswith(_COPIES):
        return COPIES
    if any(name.startswith(_COMPILED) for name in names):
        return COMPILED
    return OTHER


def times_by_kind(events: Sequence[Any], *, on_gpu: bool) -> tuple[dict[str, float], float]:
    """Microseconds of each kind and of all steps together. events: a profiler's; only those inside a step count.

    The kinds add up to the whole: what no operator accounts for is "Python and waiting".
    """
    found = dict.fromkeys(KINDS, 0.0)
    here = [event for event in events if event.device_type == torch.autograd.DeviceType.CPU]
    # By time and not by caller: on a GPU the backward pass has a thread of its own.
    steps = [event.time_range for event in here if event.name == STEP]
    for event in here:
        at = event.time_range
        if event.name != STEP and any(step.start <= at.start and at.end <= step.end for step in steps):
            names, above = [event.name], event.cpu_parent
            while above is not None:
                names.append(above.name)
                above = above.cpu_parent
            found[kind_of(names)] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    whole = sum(step.elapsed_us() for step in steps)
    found[BETWEEN] = max(0.0, whole - sum(found.values()))
    return found, whole


def table_of(times_us: dict[str, float], whole_us: float, *, num_steps: int) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: milliseconds a step and share of each kind, the largest first."""
    rows = [
        [kind, f"{time_us / 1e3 / num_steps:,.2f}", f"{time_us / whole_us:.1%}" if whole_us else "-"]
        for kind, time_us in sorted(times_us.items(), key=lambda item: -item[1])
        if time_us > 0
    ]
    rows.append(["step", f"{whole_us / 1e3 / num_steps:,.2f}", "100.0%"])
    return ["where a step's time goes", "ms", "share"], rows


class StepProfiler:
    """Profiles `NUM_STEPS` of the steps that `advance` is called for, after `WARM_UP_STEPS`, and then writes both files."""

    def __init__(self, trainer: Trainer, folder: Path, console: Console) -> None:
        self._trainer, self._folder, self._console = trainer, folder, console
        self._advance: Callable[[TrainState], TrainState] = trainer.advance
        self._on_gpu = trainer.runtime.device.type == "cuda"
        self._profiler: profile | None = None
        self._num_seen = 0
        self._num_profiled = 0

    def advance(self, state: TrainState) -> TrainState:
        """The trainer's `advance`, noted where it is this step's turn."""
        self._num_seen += 1
        if self._num_seen <= WARM_UP_STEPS or self._num_profiled >= NUM_STEPS:
            return self._advance(state)
        if self._profiler is None:
            activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self._on_gpu else [])
            self._profiler = profile(activities=activities)
            self._profiler.start()
        optimizer = self._trainer.optimizer
        with _replaced(optimizer, "step", noted(optimizer.step, OPTIMIZER)), record_function(STEP):
            state = self._advance(state)
        self._num_profiled += 1
        if self._num_profiled == NUM_STEPS:
            self.finish()
        return state

    def finish(self) -> None:
        """Stop and write what there is, once. Files that cannot be written cost a warning and never the run."""
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            if self._num_profiled == 0:
                self._console.warn(
                    f"--profile: the run ended before step {WARM_UP_STEPS + 1}, the first that is profiled"
                )
            return
        profiler.stop()
        if self._num_profiled == 0:
            return
        times_us, whole_us = times_by_kind(profiler.events() or [], on_gpu=self._on_gpu)
        columns, rows = table_of(times_us, whole_us, num_steps=self._num_profiled)
        title = f"{self._num_profiled} steps, profiled after {WARM_UP_STEPS}"
        self._console.table(columns, rows, title=title)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(self._folder / "trace.json"))
            text = format_table(columns, rows, title=title)
            (self._folder / "table.txt").write_text(text + "\n", encoding="utf-8")
        except (OSError, RuntimeError) as error:
            self._console.warn(f"the profile could not be written to {self._folder}: {error}")
            return
        self._console.say(f"profile: {self._folder / 'table.txt'}, and trace.json beside it for ui.perfetto.dev")


def noted(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    """``method``, whose calls are under ``name`` in the profile."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return method(*args, **kwargs)

    return call


@contextmanager
def profiled(trainer: Trainer, folder: Path, *, console: Console) -> Iterator[None]:
    """While inside, ``trainer`` profiles some of its steps, and ``folder`` gets trace.json and table.txt."""
    profiler = StepProfiler(trainer, folder, console)
    with _replaced(trainer, "advance", profiler.advance):
        try:
            yield
        finally:
            profiler.finish()


@contextmanager
def _replaced(owner: Any, method: str, other: Callable[..., Any]) -> Iterator[None]:
    """While inside, ``owner.method`` is ``other``."""
    setattr(owner, method, other)
    try:
        yield
    finally:
        delattr(owner, method)
