"""A run as files of other programs, and a folder of transformers as a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from firstlight.errors import CheckpointError
from firstlight.interop.gguf_export import GgufExport, write_gguf
from firstlight.interop.hf_export import HfExport, write_hf
from firstlight.interop.hf_import import Imported, read_hf
from firstlight.interop.model_card import model_card
from firstlight.model.gpt import GPT
from firstlight.recipes.loading import LoadedRun, load_for_inference
from firstlight.recipes.record import new_record, new_run_dir, write_run
from firstlight.runtime.context import Runtime
from firstlight.train.checkpoint import load_into, save_checkpoint

CPU = Runtime(device=torch.device("cpu"))
"""Files are made of float32 weights, whatever the run was trained on."""


def export_hf(
    run: str,
    directory: Path,
    *,
    kind: str,
    dtype: str,
    checkpoint: str,
    overwrite: bool,
    runs_dir: Path | None = None,
    report: Callable[[str], None] | None = None,
) -> tuple[LoadedRun, HfExport]:
    """Write a run as a folder of transformers. Raises what `load_for_inference` and `write_hf` raise."""
    loaded = load_for_inference(run, CPU, checkpoint=checkpoint, runs_dir=runs_dir, report=report)
    origin = origin_of(loaded)
    exported = write_hf(
        directory,
        config=loaded.model.config,
        weights=loaded.model.state_dict(),
        tokenizer=loaded.tokenizer,
        origin=origin,
        card=lambda done: model_card(done, origin=origin, sizes=asdict(loaded.model.config)),
        kind=kind,
        dtype=dtype,
        overwrite=overwrite,
    )
    return loaded, exported


def export_gguf(
    run: str,
    path: Path,
    *,
    dtype: str,
    checkpoint: str,
    overwrite: bool,
    runs_dir: Path | None = None,
    report: Callable[[str], None] | None = None,
) -> tuple[LoadedRun, GgufExport]:
    """Write a run as a GGUF file. Raises what `load_for_inference` and `write_gguf` raise."""
    loaded = load_for_inference(run, CPU, checkpoint=checkpoint, runs_dir=runs_dir, report=report)
    exported = write_gguf(
        path,
        name=loaded.record.name,
        config=loaded.model.config,
        weights=loaded.model.state_dict(),
        tokenizer=loaded.tokenizer,
        dtype=dtype,
        overwrite=overwrite,
    )
    return loaded, exported


def import_hf(directory: Path, name: str, *, runs_dir: Path) -> tuple[Path, int, Imported]:
    """Make a run of a folder of transformers; the run's folder, the step of its checkpoint, and what was read.

    Nothing is left after an error. Raises what `read_hf` raises; ConfigError for a name that is taken; CheckpointError
    where the weights do not fill the model, are not finite, or the disk refuses.
    """
    imported = read_hf(directory)
    with torch.device("meta"):
        model = GPT(imported.config)
    what = f"the model in {directory}"
    # A look at names and shapes that takes no memory, then the numbers.
    load_into(dict(model.named_parameters()), imported.weights, what=what)
    model = model.to_empty(device="cpu")
    load_into(dict(model.named_parameters()), imported.weights, what=what)
    step = int(imported.origin.get("step") or 0)
    run_dir = new_run_dir(runs_dir, name)
    try:
        imported.tokenizer.save(run_dir / "tokenizer.json")
        save_checkpoint(
            run_dir / "checkpoints",
            step=step,
            model=model,
            optimizer=_NoOptimizer(),
            state={"imported_from": imported.model_type, "step": step},
        )
        write_run(run_dir, _record(name, imported))
    except OSError as error:
        shutil.rmtree(run_dir, ignore_errors=True)
        raise CheckpointError(f"{run_dir} cannot be written: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(run_dir, ignore_errors=True)
        raise
    return run_dir, step, imported


def origin_of(loaded: LoadedRun) -> dict[str, Any]:
    """Where a model is from, for the files of an export. No paths of this machine but the ``--data`` as it was given."""
    record = loaded.record
    settings = record.config.get("settings")
    return {
        "run": record.name,
        "recipe": record.recipe,
        "step": loaded.step,
        "data": settings.get("data") if isinstance(settings, Mapping) else None,
        "val": record.config.get("val"),
        "data_hash": record.data_hash,
        "val_hash": record.val_hash,
        "tokenizer_hash": loaded.tokenizer.content_hash,
        "git_commit": record.git_commit,
        "versions": record.versions,
        "final": record.to_dict()["final"],
    }


class _NoOptimizer:
    def state_tensors(self) -> dict[str, torch.Tensor]:
        return {}


def _record(name: str, imported: Imported) -> Any:
    origin = imported.origin
    final = origin.get("final") or {}
    return new_record(
        name,
        recipe="import",
        status="done",
        config={"model": asdict(imported.config), "origin": origin},
        data_hash=origin.get("data_hash"),
        val_hash=origin.get("val_hash"),
        tokenizer_hash=imported.tokenizer.content_hash,
        parents=(origin["run"],) if origin.get("run") else (),
        notes=imported.notes,
        # The score is of the weights that its run ended with.
        final=final if final.get("steps") == origin.get("step") else {},
    )
