"""What a resumed run keeps, what it may change, and what it refuses."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from firstlight.config import differences, from_dict
from firstlight.errors import ConfigError, DataError, Problems
from firstlight.recipes import record as records
from firstlight.recipes.settings import HORIZONS, RESUME_MAY_CHANGE, BaseSettings, RunSettings, flag, setting_names
from firstlight.runtime.channel import Channel

S = TypeVar("S", bound=RunSettings)

PLANNED = (
    "total_batch_size", "embedding_lr", "unembedding_lr", "matrix_lr", "weight_decay", "warmup_frac", "warmdown_frac",
    "final_lr_frac",
)  # fmt: skip
"""Numbers of the plan that were chosen when the run began, and stay although the machine is measured anew."""

PLANNED_FOR_MACHINE = ("device_batch_size", "eval_every", "sample_every", "save_every")
"""As `PLANNED`, where the number of processes is the same and the user does not say otherwise."""


def previous_record(settings: RunSettings, runs_dir: Path, *, recipe: str) -> records.RunRecord | None:
    """Record of the run to resume, or None where it has not begun. Raises ConfigError where its name is not given, or is that
    of an imported model or of another stage than ``recipe``.
    """
    if settings.run is None:
        raise ConfigError(
            "--resume needs the name of the run", hint="give --run NAME; `firstlight runs list` shows them"
        )
    run_dir = runs_dir / settings.run
    if not (run_dir / records.RECORD_FILE).exists():
        return None
    record = records.read_run(run_dir)
    if record.recipe == "import":
        raise ConfigError(
            f"--resume: {settings.run} is an imported model, which has no optimizer state and no data to go on with",
            hint="it can be sampled, scored and exported; train a run of another name",
        )
    if record.recipe != recipe:
        raise ConfigError(
            f"--resume: {settings.run} is a run of `firstlight train {record.recipe}`, not of `firstlight train {recipe}`",
            hint=f"use firstlight train {record.recipe} --run {settings.run} --resume, or another --run",
        )
    return record


def check_all_see(previous: records.RunRecord | None, settings: RunSettings, runs_dir: Path, control: Channel) -> None:
    """Refuse to go on where some ranks see the run and others do not. Collective. Raises ConfigError on every rank."""
    seen = [bool(number) for [number] in control.gather_numbers([float(previous is not None)])]
    if len(set(seen)) > 1:
        blind = ", ".join(str(rank) for rank, sees in enumerate(seen) if not sees)
        raise ConfigError(
            f"the run {settings.run} in {runs_dir} is not seen by rank {blind}",
            hint="set FIRSTLIGHT_RUNS to a folder on a shared disk, and start all processes with the same command line",
        )


def check_begins(
    previous: records.RunRecord | None, settings: RunSettings, runs_dir: Path, *, given: frozenset[str]
) -> None:
    """Refuse --resume with nothing but a name that no run has: a slip must not begin a run of default length."""
    if settings.resume and previous is None and given and given <= {"run", "resume"}:
        raise ConfigError(
            f"--resume: there is no run {settings.run}" + records.did_you_mean(settings.run or "", runs_dir),
            hint="to begin a run of that name, give a horizon or --data as well; `firstlight runs list` shows all",
        )


def merge_settings(settings: S, *, given: frozenset[str], previous: records.RunRecord) -> tuple[S, list[str]]:
    """Settings of a resumed run: the saved ones, with the allowed changes that the user wrote; and a sentence for each.

    Raises ConfigError that names every setting that may not change.
    """
    saved = from_dict(
        type(settings), previous.config.get("settings", {}), where=f"{previous.name}/{records.RECORD_FILE}"
    )
    before = saved
    if given & set(HORIZONS):
        # A new horizon replaces the old one, whatever its unit.
        nothing: dict[str, Any] = dict.fromkeys(set(HORIZONS) & setting_names(type(settings)))
        saved = replace(saved, **nothing)
    wanted = replace(saved, **{name: getattr(settings, name) for name in given | {"resume"}})
    problems = Problems()
    changed = [each for each in differences(asdict(before), asdict(wanted)) if each[0] not in ("run", "resume")]
    changes = [
        f"resumed with {flag(name)} {new} (was {old})" for name, old, new in changed if name in RESUME_MAY_CHANGE
    ]
    may_change = sorted((RESUME_MAY_CHANGE & setting_names(type(settings))) - {"run", "resume"})
    refused = [each for each in changed if each[0] not in RESUME_MAY_CHANGE]
    for name, old, new in refused:
        problems.add(
            f"{flag(name)} {new}: the run {previous.name} was started with {old}, and this cannot change",
            # Once, after the last.
            hint=f"leave it away, or start another run; what may change: {', '.join(map(flag, may_change))}"
            if name == refused[-1][0]
            else "",
        )
    problems.raise_if_any()
    return wanted, changes


def keep_planned(settings: S, previous: records.RunRecord, *, world_size: int) -> S:
    """Settings in which the numbers that the first launch's plan chose are given."""
    saved: dict[str, Any] = previous.config.get("plan", {})
    kept = {name: saved[name] for name in PLANNED if name in saved}
    if world_size == previous.world_size:
        for name in PLANNED_FOR_MACHINE:
            if name in saved and name in setting_names(type(settings)) and getattr(settings, name) in (None, "auto"):
                kept[name] = saved[name]
    if isinstance(settings, BaseSettings):
        kept["vocab_size"] = previous.config["model"]["vocab_size"]
    return replace(settings, **kept)


def check_identity(
    previous: records.RunRecord, *, data: str, data_hash: str, tokenizer_hash: str, kept_in: Path
) -> None:
    """Refuse to go on with other data or another tokenizer than the run began with: by content, not by name.

    Raises DataError that says which has changed.
    """
    problems = []
    for what, was, now in (
        ("the tokenizer", previous.tokenizer_hash, tokenizer_hash),
        (f"the data {data}", previous.data_hash, data_hash),
    ):
        if was is not None and was != now:
            problems.append(f"{what} has changed (its content hash was {was[:12]} and is now {now[:12]})")
    if problems:
        raise DataError(
            f"the run {previous.name} cannot be resumed: " + " and ".join(problems),
            hint=f"put the files back as they were when {kept_in} began, or start another run with --run",
        )
