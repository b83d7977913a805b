"""`firstlight plan`: every number that follows from --depth, with its reason, before anything is trained."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from firstlight.recipes.settings import BaseSettings


def plan(
    *, settings: Annotated[BaseSettings | None, Parameter(name="*")] = None, world_size: int = 1, json: bool = False
) -> None:
    """Print every number that follows from --depth and a horizon, memory and disk included; refuse what cannot work.

    Takes the flags of `firstlight train base`. Nothing is downloaded, written or trained.

    For example:

        firstlight plan --depth 12
        firstlight plan --depth 4 --minutes 10
        firstlight plan --depth 20 --total-batch-size 524288 --num-iterations 50000 --world-size 8 --json

    Parameters
    ----------
    world_size
        Processes (GPUs) that would share the work.
    json
        Print one JSON object.
    """
    import dataclasses

    from firstlight.recipes import plans, preflight
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console
    from firstlight.runtime.context import open_runtime

    chosen = settings or BaseSettings()
    with open_runtime(device=chosen.device, dtype=chosen.dtype, num_threads=chosen.threads) as runtime:
        made = plans.plan_from_settings(chosen, runtime=runtime, world_size=world_size)
    run_dir = environment.runs_dir() / (chosen.run or "")
    disk = preflight.check_disk(made, keep=chosen.keep, world_size=world_size, run_dir=run_dir)
    made = dataclasses.replace(made, lines=(*made.lines, disk))
    console = Console()
    if json:
        console.json(dataclasses.asdict(made))
        return
    console.table(["what", "value", "why"], [[line.name, line.value, line.reason] for line in made.lines])
