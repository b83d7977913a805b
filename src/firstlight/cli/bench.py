"""`firstlight bench`: how fast this machine does each part of the work, beside the most that it can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from firstlight.recipes.bench.options import BenchOptions

if TYPE_CHECKING:
    from firstlight.recipes.bench.common import Report
    from firstlight.runtime.context import Runtime

Options = Annotated[BenchOptions | None, Parameter(name="*")]


def step(*, options: Options = None, steps: int = 20, json: bool = False) -> None:
    """Time the training step on random ids: tokens/s, step time, MFU, gemm_fraction, peak memory, and where the time goes.

    The first steps, which compile, are left out; their time is stated apart.

    For example:

        firstlight bench step
        firstlight bench step --depth 4 --vocab-size 8192 --max-seq-len 512 --device-batch-size 8 --head-dim 64
        firstlight bench step --depth 2 --compile off --steps 10 --json

    Parameters
    ----------
    steps
        Steps that are timed.
    json
        Print one JSON object.
    """
    from firstlight.recipes.bench.step import bench_step

    _run(options, lambda chosen, runtime: [bench_step(chosen, runtime, num_steps=steps)], json=json)


def loss(*, options: Options = None, json: bool = False) -> None:
    """Time the loss layer, forward and backward, against its three matrix products alone.

    For example:

        firstlight bench loss
        firstlight bench loss --vocab-size 8192 --dtype fp32

    Parameters
    ----------
    json
        Print one JSON object.
    """
    from firstlight.recipes.bench.loss import bench_loss

    _run(options, lambda chosen, runtime: [bench_loss(chosen, runtime)], json=json)


def optim(*, options: Options = None, json: bool = False) -> None:
    """Time one call of the optimizer at the shapes of a depth, beside its matrix products alone.

    For example:

        firstlight bench optim --depth 6 --vocab-size 8192

    Parameters
    ----------
    json
        Print one JSON object.
    """
    from firstlight.recipes.bench.optim import bench_optim

    _run(options, lambda chosen, runtime: [bench_optim(chosen, runtime)], json=json)


def data(*, options: Options = None, json: bool = False) -> None:
    """Time the loader on a token store of made-up text: rows/s with packing, and the share of tokens that is lost.

    For example:

        firstlight bench data --max-seq-len 512

    Parameters
    ----------
    json
        Print one JSON object.
    """
    from firstlight.recipes.bench.data import bench_data

    _run(options, lambda chosen, runtime: [bench_data(chosen, runtime)], json=json)


def decode(*, options: Options = None, json: bool = False) -> None:
    """Time generation with the key/value cache, one sample and 32 at once.

    For example:

        firstlight bench decode --depth 4 --max-seq-len 512

    Parameters
    ----------
    json
        Print one JSON object.
    """
    from firstlight.recipes.bench.decode import bench_decode

    _run(options, lambda chosen, runtime: [bench_decode(chosen, runtime)], json=json)


def evaluate(*, options: Options = None, json: bool = False) -> None:
    """Time the bits-per-byte evaluation on made-up documents.

    For example:

        firstlight bench eval --depth 4

    Parameters
    ----------
    json
        Print one JSON object.
    """
    from firstlight.recipes.bench.evaluate import bench_eval

    _run(options, lambda chosen, runtime: [bench_eval(chosen, runtime)], json=json)


def launch(*, options: Options = None, json: bool = False) -> None:
    """Time from the command to the first training step, with a cold and with a warm cache of compiled code.

    For example:

        firstlight bench launch --depth 4
        firstlight bench launch --depth 2 --rounds 1 --json

    Parameters
    ----------
    json
        Print one JSON object.
    """
    from firstlight.recipes.bench.launch import bench_launch

    _run(options, lambda chosen, runtime: [bench_launch(chosen)], json=json)


def all_(*, options: Options = None, steps: int = 20, json: bool = False) -> None:
    """Run all of them one after another: step, loss, optim, data, decode, eval. (launch takes minutes; run it by itself.)

    For example:

        firstlight bench all
        firstlight bench all --depth 6 --json

    Parameters
    ----------
    steps
        Training steps that are timed.
    json
        Print one JSON object.
    """
    from firstlight.recipes.bench.data import bench_data
    from firstlight.recipes.bench.decode import bench_decode
    from firstlight.recipes.bench.evaluate import bench_eval
    from firstlight.recipes.bench.loss import bench_loss
    from firstlight.recipes.bench.optim import bench_optim
    from firstlight.recipes.bench.step import bench_step

    def run(chosen: BenchOptions, runtime: Runtime) -> list[Report]:
        # The step first: its peak memory is that of the whole process.
        reports = [bench_step(chosen, runtime, num_steps=steps)]
        return reports + [
            bench(chosen, runtime) for bench in (bench_loss, bench_optim, bench_data, bench_decode, bench_eval)
        ]

    _run(options, run, json=json)


def _run(options: BenchOptions | None, run: Callable[[BenchOptions, Runtime], list[Report]], *, json: bool) -> None:
    """Open the runtime, run, measure the peaks, and print: a table for each report, or one JSON object."""
    from firstlight.recipes.bench.common import describe_peaks, peaks
    from firstlight.runtime import hardware
    from firstlight.runtime.console import Console
    from firstlight.runtime.context import open_runtime

    chosen = options or BenchOptions()
    console = Console()
    with open_runtime(device=chosen.device, dtype=chosen.dtype, num_threads=chosen.threads) as runtime:
        reports = run(chosen, runtime)
        limits = peaks(runtime)
        machine = hardware.describe(runtime.device, num_threads=runtime.num_threads)
    if json:
        found = [report.to_dict() for report in reports]
        console.json({"machine": machine, "peaks": limits} | (found[0] if len(found) == 1 else {"benchmarks": found}))
        return
    for report in reports:
        console.table(["what", "value", "meaning"], report.lines, title=report.title)
        for note in report.notes:
            console.say(f"  {note}")
        console.say()
    console.say(describe_peaks(limits))
