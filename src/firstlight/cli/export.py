"""`firstlight export hf|gguf` and `firstlight import hf`: models to and from other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from firstlight.interop.gguf_export import GgufExport
    from firstlight.interop.hf_export import HfExport
    from firstlight.recipes.loading import LoadedRun
    from firstlight.runtime.console import Console


def hf(
    run: str,
    directory: Path,
    /,
    *,
    kind: Annotated[str, Parameter(name="--as")] = "auto",
    dtype: str = "fp32",
    checkpoint: str = "latest",
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Write a run's model as a folder that the transformers library loads: weights, sizes, tokenizer, model card.

    For example:

        firstlight export hf quickstart my-model
        firstlight export hf mine my-model --dtype bf16 --checkpoint best
        firstlight export hf mine my-model --as remote-code --overwrite

    Parameters
    ----------
    run
        Name of a run, or its folder.
    directory
        Folder to write: one that is not there yet, or is empty.
    kind
        Type of model: auto, nanochat (holds classic), qwen3 (holds portable) or remote-code (holds any model; its code is
        in the folder).
    dtype
        Of the weights in the file: fp32 or bf16.
    checkpoint
        latest, best (lowest bits per byte) or a step's number.
    overwrite
        Replace a model that was exported there before.
    json
        Print one JSON object.
    """
    from firstlight.recipes.exporting import export_hf

    console = _console(json=json)
    loaded, exported = export_hf(
        run, directory, kind=kind, dtype=dtype, checkpoint=checkpoint, overwrite=overwrite, report=console.warn
    )
    _tell(console, loaded, exported, what=f"a folder of the type {exported.model_type}", json=json)


def gguf(
    run: str,
    file: Path,
    /,
    *,
    dtype: str = "bf16",
    checkpoint: str = "latest",
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Write a run's model as a GGUF file for llama.cpp and the programs built on it. For models of --preset portable.

    For example:

        firstlight export gguf mine mine.gguf
        firstlight export gguf mine mine-q8.gguf --dtype q8_0

    Parameters
    ----------
    run
        Name of a run, or its folder.
    file
        File to write.
    dtype
        Of the matrices in the file: fp32, bf16, fp16 or q8_0 (8 bits and a half a number).
    checkpoint
        latest, best (lowest bits per byte) or a step's number.
    overwrite
        Replace the file.
    json
        Print one JSON object.
    """
    from firstlight.recipes.exporting import export_gguf

    console = _console(json=json)
    loaded, exported = export_gguf(
        run, file, dtype=dtype, checkpoint=checkpoint, overwrite=overwrite, report=console.warn
    )
    _tell(console, loaded, exported, what="a GGUF file", json=json)


def import_hf(directory: Path, /, *, run: str, runs_dir: Path | None = None, json: bool = False) -> None:
    """Make a run of a model in the form of transformers, such as `firstlight export hf` writes. Never runs its code.

    For example:

        firstlight import hf my-model --run mine-again

    Parameters
    ----------
    directory
        Folder of the model: config.json, tokenizer.json, and weights as safetensors.
    run
        Name of the new run.
    runs_dir
        Folder of the runs. [FIRSTLIGHT_RUNS, or ./runs]
    json
        Print one JSON object.
    """
    from firstlight.recipes.exporting import import_hf as make_run
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console

    console = _console(json=json)
    path, step, imported = make_run(directory, run, runs_dir=runs_dir or environment.runs_dir())
    if json:
        Console().json(
            {
                "run": run,
                "path": str(path),
                "step": step,
                "model_type": imported.model_type,
                "num_params": sum(tensor.numel() for tensor in imported.weights.values()),
                "tokenizer_hash": imported.tokenizer.content_hash,
                "notes": list(imported.notes),
            }
        )
        return
    console.say(f"run {run}: {path}, one checkpoint of step {step:,}")
    for note in imported.notes:
        console.say(note)
    console.say(f'try it: firstlight sample {run} -p "Once upon a time"')


def _console(*, json: bool) -> Console:
    import sys

    from firstlight.runtime import environment
    from firstlight.runtime.console import Console

    # With --json, words must not come between the reader and the object.
    return Console(is_terminal=environment.is_terminal(), file=sys.stderr if json else None)


def _tell(console: Console, loaded: LoadedRun, exported: HfExport | GgufExport, *, what: str, json: bool) -> None:
    from firstlight.runtime.console import Console, format_bytes

    if json:
        facts: dict[str, Any] = {"run": loaded.record.name, "step": loaded.step, "checkpoint": str(loaded.checkpoint)}
        Console().json(facts | exported.to_dict())
        return
    console.say(
        f"{loaded.record.name}, step {loaded.step:,}: {what} in {exported.path}, {exported.num_params:,} parameters in "
        f"{exported.dtype}, {format_bytes(exported.num_bytes)}"
    )
    for note in exported.notes:
        console.say(note)
