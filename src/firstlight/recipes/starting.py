"""What a later stage starts from: another run's weights, tokenizer, shape and learning rates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from firstlight.errors import CheckpointError, ConfigError
from firstlight.model import sharding
from firstlight.model.config import GPTConfig
from firstlight.recipes.assemble import Parts
from firstlight.recipes.loading import choose_checkpoint, model_config
from firstlight.recipes.record import RunRecord, find_run, read_run
from firstlight.recipes.settings import MidSettings, RlSettings, SftSettings
from firstlight.runtime.console import Console
from firstlight.runtime.context import Runtime
from firstlight.tokens.bpe import Tokenizer
from firstlight.train.checkpoint import list_checkpoints, load_checkpoint, load_into
from firstlight.train.dial import EMBEDDING_LR, MATRIX_LR, REFERENCE_WIDTH, SCALAR_LR, UNEMBEDDING_LR

RATES = ("embedding_lr", "unembedding_lr", "matrix_lr", "scalar_lr")


@dataclass(frozen=True)
class Start:
    """The run that a stage starts from. path: its folder. checkpoint: the one whose weights are taken.

    planned: the plan of the run that is resumed, whose rates stay whatever has become of the start since; else empty.
    """

    record: RunRecord
    path: Path
    checkpoint: Path
    model: GPTConfig
    tokenizer: Tokenizer
    planned: Mapping[str, Any] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """For the new run's record."""
        return {"run": self.record.name, "recipe": self.record.recipe, "checkpoint": self.checkpoint.name}

    def rates(self, lr_frac: float) -> dict[str, float]:
        """Learning rates: those of the run's plan, or of the dial where it has none (an imported model), times ``lr_frac``."""
        if all(name in self.planned for name in RATES):
            return {name: float(self.planned[name]) for name in RATES}
        width_scale = (self.model.n_embd / REFERENCE_WIDTH) ** -0.5
        rates = (EMBEDDING_LR * width_scale, UNEMBEDDING_LR * width_scale, MATRIX_LR, SCALAR_LR)
        dial = dict(zip(RATES, rates, strict=True))
        planned: Mapping[str, Any] = self.record.config.get("plan", {})
        return {name: lr_frac * float(planned.get(name, dial[name])) for name in RATES}

    def row_len(self, asked: int | None, *, smallest: int = 1) -> int:
        """Tokens in a row, T: as asked, or the model's context. Raises ConfigError for what no row of it can have."""
        context = self.model.max_seq_len
        if asked is not None and not smallest <= asked <= context:
            raise ConfigError(
                f"--max-seq-len {asked} is not possible with the model's context of {context} tokens",
                hint=f"use {smallest} to {context}",
            )
        return context if asked is None else asked

    def load_into(self, parts: Parts) -> None:
        """Fill a model with the weights. Raises CheckpointError where they are damaged or do not fit."""
        loaded = load_checkpoint(self.checkpoint)
        if sharding.is_sharded(parts.model):
            sharding.load_pieces(parts.model, loaded.model)
        else:
            load_into(parts.model.state_dict(), loaded.model, what=str(self.checkpoint))


def open_start(
    settings: MidSettings | SftSettings | RlSettings,
    runs_dir: Path,
    *,
    previous: RunRecord | None,
    runtime: Runtime,
    console: Console,
) -> Start:
    """The run and checkpoint that a stage starts from, the same on all ranks. A collective call.

    previous: the record of a run that is resumed: it started from the checkpoint noted there. Once the run has a checkpoint
    of its own, neither that one nor the run that it started from need exist any more: the shape, tokenizer and rates are in
    its own folder. (Not where answers are held near the start's, --kl: its weights are needed then.)
    Raises ConfigError where no run is named or it is not there, CheckpointError where it has no good checkpoint.
    """
    if settings.init is None:
        raise ConfigError(
            f"--init is missing: `firstlight train {_stage(settings)}` starts from the weights of a run",
            hint="give --init RUN; `firstlight runs list` shows them",
        )
    if previous is not None and (alone := _without_its_start(settings, runs_dir, previous)) is not None:
        return alone
    path = find_run(settings.init, runs_dir)
    record = read_run(path)
    model = model_config(record, path)
    tokenizer = Tokenizer.load(path / "tokenizer.json")
    if previous is not None and "start" in previous.config:
        checkpoint = path / "checkpoints" / previous.config["start"]["checkpoint"]
    else:
        said = ""
        if runtime.is_main:
            try:
                said = json.dumps([choose_checkpoint(path, settings.checkpoint, report=console.warn).name, "", ""])
            except (ConfigError, CheckpointError) as error:
                said = json.dumps(["", error.what, error.hint])
        name, what, hint = json.loads(runtime.broadcast_text(said))
        if what:
            raise CheckpointError(what, hint=hint)
        checkpoint = path / "checkpoints" / name
    planned = previous.config.get("plan", {}) if previous is not None else {}
    return Start(record, path, checkpoint, model, tokenizer, planned)


def _without_its_start(
    settings: MidSettings | SftSettings | RlSettings, runs_dir: Path, previous: RunRecord
) -> Start | None:
    """The start of a resumed run as its own folder knows it; None where the run that it started from is still there."""
    try:
        find_run(settings.init or "", runs_dir)
        return None
    except ConfigError:
        path = runs_dir / (settings.run or previous.name)
        needs_weights = not list_checkpoints(path / "checkpoints") or getattr(settings, "kl", 0)
        if needs_weights or "start" not in previous.config:
            raise
    facts = previous.config["start"]
    record = replace(previous, name=facts["run"], recipe=facts["recipe"], parents=())
    checkpoint = path / "checkpoints" / facts["checkpoint"]
    tokenizer = Tokenizer.load(path / "tokenizer.json")
    return Start(record, path, checkpoint, model_config(previous, path), tokenizer, previous.config.get("plan", {}))


def ancestors(record: RunRecord, runs_dir: Path) -> list[RunRecord]:
    """The run, the one that it started from, and so on, as far as they are still there."""
    found = [record]
    while found[-1].parents:
        try:
            found.append(read_run(find_run(found[-1].parents[0], runs_dir)))
        except ConfigError:
            break
    return found


def _stage(settings: MidSettings | SftSettings | RlSettings) -> str:
    return {MidSettings: "mid", SftSettings: "sft", RlSettings: "rl"}[type(settings)]
