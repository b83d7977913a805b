"""All mistakes that can be known before step 0, told at once, on every rank.

    `train.plan.make_plan`   what does not divide, is out of range, or does not fit into memory: from the settings alone
    `check_machines`         disk, folders that all see, the same program and settings everywhere: before text is prepared
    `check_text`             rows against a step and against ranks, the same data and tokenizer everywhere: after it

Each of the three collects all that it finds and raises once. What is unusual but works is a sentence for the run's notes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from firstlight.data.rows import RowRecipe
from firstlight.data.split import empty_split, split_documents
from firstlight.data.store import StoredShard
from firstlight.errors import ConfigError, DataError, Problems
from firstlight.recipes.prepare import PreparedData
from firstlight.recipes.settings import RunSettings, flag
from firstlight.recipes.sharing import folder_leaders
from firstlight.runtime import environment
from firstlight.runtime.console import format_bytes
from firstlight.runtime.context import Runtime
from firstlight.train.plan import Plan, PlanLine, nearest_multiples

METRICS_ROW_BYTES = 500
METRICS_RANK_BYTES = 40
"""A row of metrics.jsonl for each step (about 350 bytes; samples and scores come to it), and each rank's part of it."""

MAY_DIFFER = frozenset({"data", "tokenizer", "threads", "workers", "log_every", "tracker", "profile"})
"""Settings that may differ between ranks: two are compared by content, and the others change no number."""

COMPARED_VERSIONS = ("firstlight", "torch", "numpy", "tiktoken", "rustbpe")


# Disk.


def disk_bytes(plan: Plan, *, keep: int, world_size: int = 1) -> int:
    """Bytes that a run's folder needs: the kept checkpoints, the best, one being written, and the metrics."""
    metrics_bytes = plan.estimated_steps * (METRICS_ROW_BYTES + METRICS_RANK_BYTES * world_size)
    return plan.checkpoint_bytes * (keep + 2) + metrics_bytes


def disk_room(run_dir: Path) -> int:
    """Bytes that a run in ``run_dir`` may take: what is free on its disk, and what its own checkpoints take already.

    The folder need not exist: then its nearest parent that does tells.
    """
    folder = run_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    own = sum(path.stat().st_size for path in run_dir.glob("checkpoints/*/*") if path.is_file())
    return shutil.disk_usage(folder).free + own


def disk_line(plan: Plan, *, keep: int, world_size: int, room_bytes: int) -> PlanLine:
    """The disk's line of a plan."""
    return PlanLine(
        "disk",
        format_bytes(disk_bytes(plan, keep=keep, world_size=world_size)),
        f"{keep} checkpoints kept, the best, one being written, and metrics; there is room for {format_bytes(room_bytes)}",
    )


def add_disk_problems(
    problems: Problems, plan: Plan, *, keep: int, world_size: int, room_bytes: int, run_dir: Path
) -> None:
    """Note that no checkpoint would be kept, or more than fit, with what would be right."""
    if keep < 1:
        problems.add(
            f"--keep {keep} would keep no checkpoint to go on from", hint="the smallest is 1; 2 is the default"
        )
        return
    needed = disk_bytes(plan, keep=keep, world_size=world_size)
    if needed <= room_bytes:
        return
    fits = (room_bytes - disk_bytes(plan, keep=-2, world_size=world_size)) // max(1, plan.checkpoint_bytes) - 2
    smaller = f"use --keep {fits}" if 1 <= fits < keep else "use a smaller --depth"
    problems.add(
        f"checkpoints need {format_bytes(needed)} ({keep} kept, the best, and one being written, each "
        f"{format_bytes(plan.checkpoint_bytes)}), and there is room for {format_bytes(room_bytes)} in {run_dir}",
        hint=f"free some space, {smaller}, or set FIRSTLIGHT_RUNS to a folder on a larger disk",
    )


def check_disk(plan: Plan, *, keep: int, world_size: int, run_dir: Path) -> PlanLine:
    """The disk's line of a plan. Raises ConfigError where the run does not fit."""
    problems = Problems()
    room = disk_room(run_dir)
    add_disk_problems(problems, plan, keep=keep, world_size=world_size, room_bytes=room, run_dir=run_dir)
    problems.raise_if_any()
    return disk_line(plan, keep=keep, world_size=world_size, room_bytes=room)


# Machines.


def check_machines(plan: Plan, settings: RunSettings, runtime: Runtime, *, run_dir: Path, cache_dir: Path) -> list[str]:
    """Refuse what cannot work on these machines, before any text is prepared; sentences for the run's notes. Collective.

    Raises one ConfigError with all mistakes, the same on every rank.
    """
    control = runtime.control
    problems = Problems()
    notes: list[str] = []
    if runtime.is_main:
        add_disk_problems(
            problems, plan, keep=settings.keep, world_size=runtime.world_size, room_bytes=disk_room(run_dir),
            run_dir=run_dir,
        )  # fmt: skip
    if runtime.world_size > 1:
        for what, hint in differing(control.gather_texts(json.dumps(identity(plan, settings)))):
            problems.add(what, hint=hint)
        try:
            blind = [rank for rank, leader in enumerate(folder_leaders(control, run_dir.parent)) if leader != 0]
            if blind:
                problems.add(
                    f"the runs' folder is not shared by all nodes: {_ranks(blind)} cannot see what rank 0 writes in {run_dir.parent}",
                    hint="set FIRSTLIGHT_RUNS to a folder on a shared disk",
                )
        except ConfigError as error:
            problems.add(f"the runs' folder: {error.what}", hint="set FIRSTLIGHT_RUNS to a folder on a shared disk")
        try:
            num_caches = len(set(folder_leaders(control, cache_dir)))
            if num_caches > 1:
                notes.append(
                    f"the cache folder is not shared: each of {num_caches} is filled by its own machine, with all of the "
                    "text (a shared FIRSTLIGHT_CACHE would share the work)"
                )
        except ConfigError as error:
            problems.add(
                f"the cache folder: {error.what}", hint="set FIRSTLIGHT_CACHE to a folder that all may write to"
            )
    _raise_together(problems, runtime)
    return notes


def identity(plan: Plan, settings: RunSettings) -> dict[str, str]:
    """What must be equal on all ranks, by the name that a person knows it by."""
    versions = environment.versions()
    found = {name: versions[name] for name in COMPARED_VERSIONS}
    found["the commit of firstlight"] = environment.git_commit() or "unknown"
    for name, value in asdict(settings).items():
        if name not in MAY_DIFFER:
            found[flag(name)] = str(value)
    for name, value in asdict(plan).items():
        if name != "lines":
            found[f"the plan's {name}"] = str(value)
    return found


def differing(identities: Sequence[str]) -> list[tuple[str, str]]:
    """(what is wrong, hint) for each thing of `identity`, as JSON by rank, that is not what rank 0 has."""
    by_rank: list[Mapping[str, str]] = [json.loads(text) for text in identities]
    problems = []
    for name, first in by_rank[0].items():
        others = {rank: found.get(name) for rank, found in enumerate(by_rank) if found.get(name) != first}
        if others:
            value = next(iter(others.values()))
            hint = "start all processes with the same command line"
            if not name.startswith("--"):
                hint = "install the same versions on all nodes, and start all processes with the same command line"
            problems.append((f"{name} is {value} on {_ranks(list(others))} and {first} on rank 0", hint))
    return problems


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(str(rank) for rank in ranks[:6]) + (f" and {len(ranks) - 6} more" if len(ranks) > 6 else "")
    return f"rank{'s' * (len(ranks) > 1)} {shown}"


def _raise_together(problems: Problems, runtime: Runtime) -> None:
    """Raise rank 0's mistakes on every rank. Those that all know of are in its list as well."""
    said = ""
    try:
        problems.raise_if_any()
    except ConfigError as error:
        said = json.dumps([error.what, error.hint])
    first = runtime.broadcast_text(said)
    if first:
        what, hint = json.loads(first)
        raise ConfigError(what, hint=hint)


# Text.


def training_rows(data: PreparedData, *, seq_len: int, packing: str, seed: int, enough: int) -> int:
    """Rows of an epoch of training text, counted exactly where they are fewer than ``enough``; else at least ``enough``.

    Waits for as many shards as it takes to know.
    """
    recipe = RowRecipe(
        val=data.val, split="train", packing=packing, row_len=seq_len + 1, seed=seed, bos_id=data.tokenizer.bos_id
    )
    shards: list[StoredShard] = []
    at_least = 0
    for index in recipe.shard_order(data.store.shard_names, 0):
        shards.append(data.store.shard(index))
        docs = split_documents(shards[-1], data.val, "train")
        # Every id is in a row, and only the last row of a shard has empty places.
        at_least += int(shards[-1].lengths[docs].sum()) // recipe.row_len
        if at_least >= enough:
            return at_least
    return sum(recipe.rows_of(shard, 0).num_rows for shard in shards)


def check_text(plan: Plan, data: PreparedData, runtime: Runtime, *, packing: str, seed: int) -> list[str]:
    """Refuse text that cannot be trained on, or is not the same everywhere; sentences for the run's notes. Collective.

    Raises DataError, the same on every rank: no row to train on; another tokenizer, text or split on some rank.
    """
    step_rows = plan.total_batch_size // plan.seq_len
    if runtime.world_size > 1:
        found = {
            "the tokenizer (by content)": data.tokenizer.content_hash[:12],
            "the text (by content)": data.store.data_hash[:12],
            "the validation split": str(data.val),
        }
        wrong = differing(runtime.control.gather_texts(json.dumps(found)))
        if wrong:
            raise DataError(
                "; ".join(what for what, _ in wrong), hint="give all nodes the same files, or a folder on a shared disk"
            )
    rows = training_rows(data, seq_len=plan.seq_len, packing=packing, seed=seed, enough=step_rows)
    if rows == 0:
        raise empty_split(data.val, "train")
    notes = []
    if data.store.num_shards == 1 and runtime.world_size > 1:
        notes.append(
            f"the text is one shard: one worker tokenises it, and all {runtime.world_size} processes read from it"
        )
    if rows < step_rows:
        below = f"--total-batch-size {nearest_multiples(rows * plan.seq_len, plan.seq_len * runtime.world_size)}"
        few = f", fewer than the {runtime.world_size} processes" if rows < runtime.world_size else ""
        notes.append(
            f"a step takes {step_rows:,} rows and the training text has {rows:,}{few}: each step goes through all of it "
            f"{step_rows / rows:.1f} times; more text or a smaller batch ({below}) would be better"
        )
    return notes
