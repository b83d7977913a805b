"""Which runs are seeds of one setting, and in what the settings differ.

Two runs are of one setting where everything that can change what is learnt is equal: the resolved model and plan, the data,
tokenizer and validation hashes, the dtype, the code's commit and the settings that no plan resolves. What is left out of this
is listed here by name, so a setting that is new to this file counts as a difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from firstlight.config import ABSENT, differences
from firstlight.errors import ConfigError
from firstlight.model.config import GPTConfig
from firstlight.recipes.record import RunRecord, find_run, flatten, read_run
from firstlight.recipes.settings import BaseSettings

NEUTRAL = frozenset({
    "run", "resume", "seed", "device_batch_size", "eval_every", "eval_documents", "final_documents", "eval_budget_s",
    "sample_every", "sample_budget_s", "core_every", "core_max_per_task", "core_bundle", "core_budget_s", "save_every", "keep", "log_every", "tracker", "profile", "device", "compile", "activation_checkpointing", "threads", "workers", "async_save",
    "hang_timeout", "check_replicas_every", "shard_weights",
})  # fmt: skip
"""Settings that leave the mathematics of a run alone: the seed, when and how it reports, and in what order it sums. Not the
whole of `settings.RESUME_MAY_CHANGE`: a horizon, a clip and a guard may change in a resumed run, and change what is learnt."""

RESOLVED = frozenset({
    "data", "val", "tokenizer", "depth", "preset", "vocab_size", "max_seq_len", "head_dim", "n_kv_head", "num_iterations",
    "tokens", "flops", "minutes", "tokens_per_param", "total_batch_size", "embedding_lr", "unembedding_lr", "matrix_lr",
    "weight_decay", "grad_clip", "warmup_frac", "warmdown_frac", "final_lr_frac", "dtype",
})  # fmt: skip
"""Settings whose resolved value is in the record's model, plan or hashes: `--matrix-lr 0.02` said aloud is the default."""

PLAN_NEUTRAL = frozenset({
    "device_batch_size", "num_micro_batches", "estimated_steps", "num_tokens", "eval_every", "sample_every", "save_every",
    "train_bytes", "checkpoint_bytes", "eval_documents", "keep", "log_every",
})  # fmt: skip
"""Entries of the plan that follow from others or change nothing that is learnt."""

# A setting that older records do not have was at its default then.
_DEFAULTS = {one.name: one.default for one in fields(BaseSettings) if one.name not in RESOLVED | {"run", "resume"}}
_MODEL_DEFAULTS = {one.name: one.default for one in fields(GPTConfig) if one.default is not MISSING}


@dataclass(frozen=True)
class Run:
    """A run's name as it is shown, its folder and its record."""

    name: str
    path: Path
    record: RunRecord

    @property
    def seed(self) -> Any:
        return self.record.config.get("settings", {}).get("seed")


@dataclass(frozen=True)
class Group:
    """One setting: its runs (seeds), the first of them standing for all where they agree."""

    name: str
    runs: tuple[Run, ...]

    @property
    def record(self) -> RunRecord:
        return self.runs[0].record


@dataclass(frozen=True)
class ConfigDifference:
    """One thing in which the groups are not all alike: text for each group, in order. matters: it can change what is
    learnt.
    """

    name: str
    values: tuple[str, ...]
    matters: bool


def group_runs(words: Sequence[str], runs_dir: Path, *, group: bool) -> tuple[list[Group], list[str]]:
    """(groups in the order of the command line, what a reader must know about the grouping).

    words: names of runs, or folders; names joined by commas are one group. Where ``group`` is true, runs that are named
    alone and are of one setting with different seeds become a group. Raises ConfigError for names that are unknown or said
    twice, and for a written group that holds a seed twice.
    """
    notes: list[str] = []
    groups: list[Group] = []
    seen: dict[Path, str] = {}
    for word in words:
        names = [name.strip() for name in word.split(",") if name.strip()]
        if not names:
            raise ConfigError(f"{word!r} names no run", hint="write A1,A2,A3 for three seeds of one setting")
        runs = []
        for name in names:
            path = find_run(name, runs_dir)
            if path.resolve() in seen:
                raise ConfigError(f"run {name} is named twice", hint="name each run once")
            seen[path.resolve()] = name
            runs.append(Run(path.name, path, read_run(path)))
        if len(runs) > 1:
            _check_written(runs, notes)
            groups.append(_named(runs))
        elif not (group and _joined(runs[0], groups, notes, words)):
            groups.append(Group(runs[0].name, (runs[0],)))
    groups = [_named(list(one.runs)) for one in groups]
    return groups, notes


def what_differs(groups: Sequence[Group]) -> list[ConfigDifference]:
    """What is not the same in all groups, and within them: what matters first, then by name."""
    facts = [[_facts(run.record) for run in group.runs] for group in groups]
    base = facts[0][0]
    names = {name for group in facts for other in group for name, _, _ in differences(base, other)}
    found = []
    for name in names:
        values = tuple(", ".join(dict.fromkeys(_shown(other.get(name, ABSENT)) for other in group)) for group in facts)
        found.append(ConfigDifference(name, values, name.split(" ")[0] not in _NEUTRAL_FACTS))
    return sorted(found, key=lambda one: (not one.matters, one.name))


_NEUTRAL_FACTS = (
    NEUTRAL | PLAN_NEUTRAL | {"versions", "hardware", "device", "processes", "compiled", "native", "steps", "tokens"}
)


def identity(record: RunRecord) -> dict[str, Any]:
    """All that makes a run's setting, the seed aside: equal for two seeds of one setting."""
    return {name: value for name, value in _facts(record).items() if name.split(" ")[0] not in _NEUTRAL_FACTS}


def _facts(record: RunRecord) -> dict[str, Any]:
    config = record.config
    settings = {
        name: value
        for name, value in {**_DEFAULTS, **config.get("settings", {})}.items()
        if name not in RESOLVED and name not in ("run", "resume")
    }
    plan = flatten(config.get("plan", {}))
    others = {k: v for k, v in config.items() if k not in ("settings", "model", "plan", "val", "origin")}
    facts = {
        **others,
        **settings,
        **{f"model.{name}": value for name, value in flatten({**_MODEL_DEFAULTS, **config.get("model", {})}).items()},
        **plan,
        "recipe": record.recipe,
        "data hash": record.data_hash,
        "tokenizer hash": record.tokenizer_hash,
        "validation hash": record.val_hash,
        "dtype": record.dtype,
        "device": record.device,
        "processes": record.world_size,
        "code": record.git_commit,
        "started from": ", ".join(record.parents) or None,
        "steps": record.final.get("steps"),
        "tokens": record.final.get("tokens"),
        "hardware cpu": record.hardware.get("cpu"),
        "hardware gpu": record.hardware.get("gpu"),
        **{f"versions {name}": value for name, value in record.versions.items()},
    }
    return flatten(facts)


def _joined(run: Run, groups: list[Group], notes: list[str], words: Sequence[str]) -> bool:
    """Whether the run was added to an earlier group of its setting."""
    written = {name.strip() for word in words if "," in word for name in word.split(",")}
    for i, group in enumerate(groups):
        if any(one.name in written for one in group.runs) or identity(group.record) != identity(run.record):
            continue
        same = [one.name for one in group.runs if one.seed == run.seed]
        if same:
            notes.append(f"{run.name} and {same[0]} have the same settings and seed {run.seed}; they are kept apart")
            return False
        groups[i] = Group(group.name, (*group.runs, run))
        return True
    return False


def _check_written(runs: Sequence[Run], notes: list[str]) -> None:
    seeds: dict[Any, str] = {}
    for run in runs:
        if run.seed is not None and run.seed in seeds:
            raise ConfigError(
                f"{seeds[run.seed]} and {run.name} are written as one group and both have seed {run.seed}",
                hint="two runs of one seed do not show how far seeds lie apart: leave one out",
            )
        seeds[run.seed] = run.name
    for run in runs[1:]:
        apart = differences(identity(runs[0].record), identity(run.record))
        if apart:
            names = ", ".join(name for name, _, _ in apart[:6]) + (" and more" if len(apart) > 6 else "")
            notes.append(f"{runs[0].name} and {run.name} are in one group as you wrote, and differ in {names}")


def _named(runs: Sequence[Run]) -> Group:
    if len(runs) == 1:
        return Group(runs[0].name, tuple(runs))
    names = [run.name for run in runs]
    common = names[0]
    while common and not all(name.startswith(common) for name in names):
        common = common[:-1]
    rests = [name[len(common) :] for name in names]
    stem = common.rstrip("-_.")
    # base-s1, base-s2, base-s3: base-s1..s3 would be a guess, so the ends are listed while they are few.
    if len(stem) >= 2 and all(0 < len(rest) <= 4 for rest in rests):
        return Group(f"{common}{{{','.join(rests)}}}", tuple(runs))
    return Group(f"{names[0]} and {len(names) - 1} more", tuple(runs))


def _shown(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case str() if len(value) == 64 or len(value) == 40:
            return value[:12]
        case Mapping():
            return str(dict(value))
        case _:
            return str(value)
