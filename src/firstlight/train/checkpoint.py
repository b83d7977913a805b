"""Checkpoints on disk: whole and verified, or not there.

    step_00001234/model.safetensors                       float32 weights, by parameter name
                  optimizer-00000-of-00001.safetensors    optimizer state, by parameter name
                  state.json                              step, data position, counts, scaler
                  manifest.json                           size and sha256 of the others; written last

All files are written and synced in a hidden sibling folder, which is then renamed into place, so a kill or a power cut at
any moment leaves the checkpoints as they were. Loading checks every size and hash first. No pickle: safetensors and JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from firstlight.errors import CheckpointError
from firstlight.runtime import environment

SCHEMA = 1
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer-00000-of-00001.safetensors"
STATE_FILE = "state.json"
MANIFEST_FILE = "manifest.json"
HIDDEN = (".saving-", ".trash-")
"""Prefixes of folders that are being written or deleted. They are no checkpoints, and the next save removes them."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint holds, on the CPU. model, optimizer: tensors by name. state: as it was given to the save."""

    path: Path
    step: int
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]


def checkpoint_name(step: int) -> str:
    """Name of a step's folder.

    >>> checkpoint_name(1234)
    'step_00001234'
    """
    return f"step_{step:08d}"


def list_steps(directory: Path) -> list[int]:
    """Steps that have a folder in ``directory``, ascending as numbers; every other name is passed over."""
    if not directory.is_dir():
        return []
    found = (re.fullmatch(r"step_(\d{8,})", path.name) for path in directory.iterdir() if path.is_dir())
    return sorted(int(match.group(1)) for match in found if match)


def save_checkpoint(
    directory: Path,
    *,
    step: int,
    model: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of ``step`` and return its folder. One of the same step is replaced, never mixed with.

    state: strict JSON values (no NaN or infinity).
    Raises CheckpointError where the disk is full or refuses, or where a number is not finite; what was there stays there.
    """
    final = directory / checkpoint_name(step)
    temporary = directory / f"{HIDDEN[0]}{checkpoint_name(step)}-{os.getpid()}"
    for kind, tensors in (("weight", model), ("optimizer state", optimizer)):
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"{kind} {name} holds a NaN or infinity at step {step}: nothing was saved")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(directory)
        temporary.mkdir()
        save_file(_plain(model), temporary / MODEL_FILE)
        save_file(_plain(optimizer), temporary / OPTIMIZER_FILE)
        _write_json(temporary / STATE_FILE, state)
        names = (MODEL_FILE, OPTIMIZER_FILE, STATE_FILE)
        files = {}
        for name in names:
            _sync(temporary / name)
            files[name] = {"bytes": (temporary / name).stat().st_size, "sha256": _sha256(temporary / name)}
        manifest = {"schema": SCHEMA, "step": step, "versions": environment.versions(), "files": files}
        _write_json(temporary / MANIFEST_FILE, manifest)
        _sync(temporary / MANIFEST_FILE)
        _sync_directory(temporary)
        if final.exists():
            os.replace(final, directory / f"{HIDDEN[1]}{final.name}-{os.getpid()}")
        os.replace(temporary, final)
        _sync_directory(directory)
        _remove_leftovers(directory)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _save_error(error, final, [*model.values(), *optimizer.values()]) from error
    return final


def verify(path: Path) -> list[str]:
    """What is wrong with a checkpoint's files, each named; empty where all is well. Reads every byte."""
    try:
        manifest = json.loads((path / MANIFEST_FILE).read_bytes())
        files = manifest["files"]
        if manifest["schema"] != SCHEMA:
            return [f"{path / MANIFEST_FILE} has schema {manifest['schema']}; this firstlight reads {SCHEMA}"]
        expected = {name: (facts["bytes"], facts["sha256"]) for name, facts in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{path / MANIFEST_FILE} is missing or damaged ({type(error).__name__})"]
    problems = [f"{path / MANIFEST_FILE} does not list {name}" for name in _FILES if name not in expected]
    for name, (num_bytes, sha256) in expected.items():
        file = path / name
        try:
            found = file.stat().st_size
            if found != num_bytes:
                problems.append(f"{file} has {found} bytes instead of {num_bytes}")
            elif _sha256(file) != sha256:
                problems.append(f"{file} has changed: its sha256 is not the one in the manifest")
        except OSError as error:
            problems.append(f"{file} cannot be read: {error.strerror or error}")
    return problems


_FILES = (MODEL_FILE, OPTIMIZER_FILE, STATE_FILE)


def find_latest_good(directory: Path, report: Report | None = None) -> Path | None:
    """The newest checkpoint that passes `verify`, or None. Bad ones on the way are reported by the name of the bad file."""
    for step in reversed(list_steps(directory)):
        path = directory / checkpoint_name(step)
        problems = verify(path)
        if not problems:
            return path
        if report is not None:
            report(f"checkpoint {path.name} is damaged and passed over: {'; '.join(problems)}")
    return None


def load_checkpoint(path: Path) -> Loaded:
    """Read a checkpoint after checking it whole. Raises CheckpointError naming the bad file."""
    problems = verify(path)
    if problems:
        raise CheckpointError(
            f"the checkpoint {path} is damaged: {'; '.join(problems)}",
            hint="use another step; `--resume` takes the newest good one by itself",
        )
    try:
        return Loaded(
            path=path,
            step=int(json.loads((path / MANIFEST_FILE).read_bytes())["step"]),
            model=load_file(path / MODEL_FILE),
            optimizer=load_file(path / OPTIMIZER_FILE),
            state=json.loads((path / STATE_FILE).read_bytes()),
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error}") from error


def load_into(target: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor], *, what: str) -> None:
    """Copy saved tensors into a model's own, in place. Raises CheckpointError naming what is missing, extra or misshapen."""
    problems = [f"{name} is missing" for name in target if name not in source]
    problems += [f"{name} is not part of the model" for name in source if name not in target]
    problems += [
        f"{name} has shape {tuple(source[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in target.items()
        if name in source and source[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{what} is from another architecture: {'; '.join(problems[:3])}{more}",
            hint="resume with the settings that the run was started with",
        )
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


def retain(directory: Path, *, keep: int, best_step: int | None = None, report: Report | None = None) -> list[int]:
    """Delete all but the newest ``keep`` checkpoints and the best; returns the steps deleted.

    The newest one is never deleted, and none at all while it is not good. A folder that cannot be deleted is reported and
    left.
    """
    steps = list_steps(directory)
    kept = set(steps[-max(1, keep) :]) | {best_step}
    doomed = [step for step in steps if step not in kept]
    if not doomed or verify(directory / checkpoint_name(steps[-1])):
        return []
    deleted = []
    for step in doomed:
        path = directory / checkpoint_name(step)
        trash = directory / f"{HIDDEN[1]}{path.name}-{os.getpid()}"
        try:
            os.replace(path, trash)
            shutil.rmtree(trash)
            deleted.append(step)
        except OSError as error:
            if report is not None:
                report(f"the old checkpoint {path} could not be deleted: {error.strerror or error}")
    return deleted


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # safetensors takes neither views that share memory nor gaps; a copy of each on the CPU is both.
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove_leftovers(directory: Path) -> None:
    for path in directory.iterdir():
        if path.name.startswith(HIDDEN) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _save_error(error: Exception, final: Path, tensors: list[torch.Tensor]) -> CheckpointError:
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    folder = next((path for path in (final.parent, *final.parents) if path.exists()), Path())
    try:
        free = f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB are free there"
    except OSError:
        free = "how much is free cannot be read"
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return CheckpointError(
        f"the checkpoint {final} could not be saved: {why}; it needs {needed / 2**20:,.0f} MiB, {free}",
        hint="free some space or use a smaller --keep; the checkpoints before it are untouched",
    )
