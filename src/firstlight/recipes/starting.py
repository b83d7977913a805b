"""What a later stage starts from: another run's weights, tokenizer, shape and learning rates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
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
from firstlight.train.checkpoint import load_checkpoint, load_into
from firstlight.train.dial import EMBEDDING_LR, MATRIX_LR, REFERENCE_WIDTH, SCALAR_LR, UNEMBEDDING_LR

RATES = ("embedding_lr", "unembedding_lr", "matrix_lr", "scalar_lr")


@dataclass(frozen=True)
class Start:
    """The run that a stage starts from. path: its folder. checkpoint: the one whose weights are taken."""

    record: RunRecord
    path: Path
    checkpoint: Path
    model: GPTConfig
    tokenizer: Tokenizer

    @property
    def facts(self) -> dict[str, Any]:
        """For the new run's record."""
        return {"run": self.record.name, "recipe": self.record.recipe, "checkpoint": self.checkpoint.name}

    def rates(self, lr_frac: float) -> dict[str, float]:
        """Learning rates: those of the run's plan, or of the dial where it has none (an imported model), times ``lr_frac``."""
        width_scale = (self.model.n_embd / REFERENCE_WIDTH) ** -0.5
        rates = (EMBEDDING_LR * width_scale, UNEMBEDDING_LR * width_scale, MATRIX_LR, SCALAR_LR)
        dial = dict(zip(RATES, rates, strict=True))
        planned: Mapping[str, Any] = self.record.config.get("plan", {})
        return {name: lr_frac * float(planned.get(name, dial[name])) for name in RATES}

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

    previous: the record of a run that is resumed: it started from the checkpoint noted there, which need not exist any more
    once it has one of its own.
    Raises ConfigError where no run is named or it is not there, CheckpointError where it has no good checkpoint.
    """
    if settings.init is None:
        raise ConfigError(
            f"--init is missing: `firstlight train {_stage(settings)}` starts from the weights of a run",
            hint="give --init RUN; `firstlight runs list` shows them",
        )
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
    return Start(record, path, checkpoint, model, tokenizer)


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
