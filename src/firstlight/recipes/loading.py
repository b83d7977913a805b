"""A run on disk as a model that can be used: weights of a checkpoint, tokenizer and record, checked against each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from firstlight.config import did_you_mean, from_dict
from firstlight.errors import CheckpointError, ConfigError
from firstlight.infer.native.step import why_not_native
from firstlight.model.config import GPTConfig
from firstlight.model.gpt import GPT
from firstlight.recipes.record import RunRecord, find_run, read_run
from firstlight.runtime import environment
from firstlight.runtime.context import Runtime, choose_device
from firstlight.runtime.metrics import read_metrics
from firstlight.tokens.bpe import Tokenizer
from firstlight.train.checkpoint import find_latest_good, list_checkpoints, load_checkpoint, load_into


@dataclass(frozen=True)
class LoadedRun:
    """A model ready for use. step: updates behind its weights. path: the run's folder. checkpoint: what was loaded."""

    model: GPT
    tokenizer: Tokenizer
    record: RunRecord
    step: int
    path: Path
    checkpoint: Path


def load_for_inference(
    run: str | Path,
    runtime: Runtime,
    *,
    checkpoint: str = "latest",
    runs_dir: Path | None = None,
    report: Callable[[str], None] | None = None,
) -> LoadedRun:
    """Model, tokenizer and record of a run, by its name or its folder's path.

    checkpoint: ``latest`` (the newest good one), ``best`` (lowest val_bpb of those kept) or a step's number.
    report: told of checkpoints that are damaged and passed over.

    Raises ConfigError for an unknown run or a checkpoint that is none of these, DataError for a damaged record or
    tokenizer, CheckpointError where there is no good checkpoint or it has another architecture than the record.
    """
    path = find_run(str(run), runs_dir if runs_dir is not None else environment.runs_dir())
    record = read_run(path)
    config = model_config(record, path)
    tokenizer = Tokenizer.load(path / "tokenizer.json")
    if record.tokenizer_hash and tokenizer.content_hash != record.tokenizer_hash:
        raise CheckpointError(
            f"{path / 'tokenizer.json'} is not the tokenizer that {record.name} was trained with: "
            f"content hash {tokenizer.content_hash[:16]}, not {record.tokenizer_hash[:16]}",
            hint="put the run's own tokenizer.json back; another one gives every id another meaning",
        )
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"the tokenizer of {path} has {tokenizer.vocab_size} ids and its model {config.vocab_size}",
            hint="put the run's own tokenizer.json back",
        )
    chosen = choose_checkpoint(path, checkpoint, report=report)
    loaded = load_checkpoint(chosen)
    model = _filled_model(config, loaded.model, runtime, source=chosen)
    return LoadedRun(model, tokenizer, record, loaded.step, path, chosen)


def slow_writing(runtime: Runtime) -> list[str]:
    """A sentence for people where models write on this CPU without the native step; none where all is well.

    May compile the step, once on a machine.
    """
    device_type = runtime.device.type
    reason = why_not_native(device_type=device_type, dtype=runtime.compute_dtype) if device_type == "cpu" else None
    return [] if reason is None else [f"text is written by torch's operations, several times slower: {reason}"]


def dtype_for(run: str, asked: str, *, device: str = "auto", runs_dir: Path | None = None) -> str:
    """Name of the dtype to use a run with: what was asked for, or for ``run`` that of its training.

    A run trained in fp16 is used in what is fast here (``auto``) where ``device`` is a CPU, which has no fp16 matmuls.
    Raises ConfigError or DataError where there is no such run.
    """
    if asked != "run":
        return asked
    trained = read_run(find_run(run, runs_dir or environment.runs_dir())).dtype
    is_cpu = device == "cpu" or (device == "auto" and choose_device("auto")[0].type == "cpu")
    return "auto" if trained == "fp16" and is_cpu else trained


def choose_checkpoint(run_dir: Path, which: str, *, report: Callable[[str], None] | None = None) -> Path:
    """Folder of the checkpoint ``latest``, ``best`` or of a step, in a run's folder. See `load_for_inference`."""
    folder = run_dir / "checkpoints"
    if which == "latest":
        latest = find_latest_good(folder, report=report)
        if latest is None:
            steps = list_checkpoints(folder)
            raise CheckpointError(
                f"{run_dir} has no good checkpoint" + (f": all {len(steps)} are damaged" if steps else " yet"),
                hint="start the run again" if steps else "continue the run with --resume, and look at --save-every",
            )
        return latest
    kept = dict(list_checkpoints(folder))
    listed = f"kept are steps {', '.join(map(str, kept))}" if kept else "the run has no checkpoint"
    if which == "best":
        scores = [(row["val_bpb"], row["step"]) for row in _scored_rows(run_dir) if row["step"] in kept]
        if not scores:
            raise CheckpointError(
                f"no kept checkpoint of {run_dir} has a val_bpb in metrics.jsonl, so none is the best",
                hint=f"{listed}: name one, or use latest",
            )
        return kept[min(scores)[1]]
    if not which.isdecimal():
        raise ConfigError(
            f"--checkpoint {which} is not known",
            hint=did_you_mean(which, ["latest", "best"]) or "it is latest, best, or a step's number",
        )
    if int(which) not in kept:
        raise CheckpointError(f"{run_dir} keeps no checkpoint of step {int(which)}", hint=listed)
    return kept[int(which)]


def _scored_rows(run_dir: Path) -> list[dict]:
    rows = read_metrics(run_dir / "metrics.jsonl", damaged=[])
    return [row for row in rows if isinstance(row.get("val_bpb"), float) and isinstance(row.get("step"), int)]


def model_config(record: RunRecord, path: Path) -> GPTConfig:
    """Shape of a run's model. Raises CheckpointError where its record does not say it."""
    values = record.config.get("model")
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{path / 'run.json'} does not say what model it holds: config.model is missing",
            hint="it was not written by `firstlight train`, or before training had started",
        )
    try:
        return from_dict(GPTConfig, values, where=f"{path / 'run.json'} (config.model)")
    except ConfigError as error:
        raise CheckpointError(error.what, hint=error.hint or "the run is of another firstlight") from error


def _filled_model(config: GPTConfig, weights: Mapping[str, torch.Tensor], runtime: Runtime, *, source: Path) -> GPT:
    with torch.device(runtime.device):
        model = GPT(config, compute_dtype=runtime.compute_dtype)
    try:
        load_into(dict(model.named_parameters()), weights, what=f"the checkpoint {source}")
    except CheckpointError as error:
        raise CheckpointError(
            error.what, hint="it does not fit its run.json: one of them is of another run, or of another firstlight"
        ) from error
    model.reset_rope()
    return model.requires_grad_(False).eval()
