"""What makes a folder a checkpoint: its name, its files, and a manifest that knows every byte of them.

    step_00001234/model.safetensors                       the weights, or where each process holds a share of them:
                  model-00001-of-00004.safetensors        those that process 1 of 4 holds
                  optimizer-00001-of-00004.safetensors    the optimizer's state that process 1 of 4 holds
                  rng.safetensors                         states of torch's random generators, where given
                  state.json                              step, data position, counts, scaler; strict JSON
                  manifest.json                           size and sha256 of each file above; written last

A save writes into a hidden sibling folder, forces every file to the disk, and renames the folder into place. So a folder
with a step's name was once whole; whether it still is, its hashes say. No pickle: nothing here can run what it reads.

Other names beside the steps are left alone, but for our own ``.tmp-`` (a save that was cut off), ``.trash-`` (a deletion
that was cut off) and ``.replaced-`` (the old checkpoint while a step is saved again); the next save clears them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch

import firstlight
from firstlight.errors import CheckpointError

SCHEMA = 2
READABLE_SCHEMAS = (1, 2)
"""Schema 1 knew one process only: one file of weights, one of the optimizer, no tensors in pieces."""

MODEL_FILE = "model.safetensors"
RNG_FILE = "rng.safetensors"
STATE_FILE = "state.json"
MANIFEST_FILE = "manifest.json"

_STEP_NAME = re.compile(r"(\.replaced-)?step_([0-9]+)")
_SHARE_NAME = re.compile(r"(model|optimizer)-([0-9]{5})-of-([0-9]{5})\.safetensors")

Report = Callable[[str], None]


def checkpoint_name(step: int) -> str:
    """Name of a step's folder.

    >>> checkpoint_name(1234)
    'step_00001234'
    """
    return f"step_{step:08d}"


def share_name(what: str, rank: int, world_size: int) -> str:
    """Name of the file with one process's share of ``model`` or ``optimizer``.

    >>> share_name("optimizer", 1, 4)
    'optimizer-00001-of-00004.safetensors'
    """
    return f"{what}-{rank:05d}-of-{world_size:05d}.safetensors"


def step_of(path: Path) -> int | None:
    """Step that a folder's name says, or None for a name that is no checkpoint's."""
    match = _STEP_NAME.fullmatch(path.name)
    return int(match[2]) if match else None


def tensor_files(files: Mapping[str, Any], what: str) -> list[str]:
    """Names of the files that together hold ``model`` or ``optimizer``, sorted."""
    return sorted(name for name in files if name == f"{what}.safetensors" or _is_share(name, what))


def num_processes(files: Mapping[str, Any]) -> int:
    """How many processes wrote the files of a checkpoint together."""
    return max((int(match[3]) for name in files if (match := _SHARE_NAME.fullmatch(name))), default=1)


def list_checkpoints(directory: Path) -> list[tuple[int, Path]]:
    """(step, folder) of everything named like a checkpoint, ascending as numbers; other names are passed over.

    Nothing is verified. A ``.replaced-`` folder counts while there is no other of its step.
    """
    found: dict[int, Path] = {}
    # Sorted, ".replaced-" comes before "step_", which then takes its place.
    for name in sorted(os.listdir(directory)) if Path(directory).is_dir() else []:
        path = Path(directory) / name
        step = step_of(path)
        if step is not None and path.is_dir():
            found[step] = path
    return sorted(found.items())


def list_steps(directory: Path) -> list[int]:
    """Steps that have a folder in ``directory``, ascending as numbers; nothing is verified."""
    return [step for step, _ in list_checkpoints(directory)]


def find_latest_good(directory: Path, report: Report | None = None) -> Path | None:
    """Folder of the highest step that passes `verify`, or None. Each bad one on the way is reported with its bad file."""
    for step, path in reversed(list_checkpoints(directory)):
        problems = verify(path)
        if not problems:
            return path
        if report:
            report(f"the checkpoint of step {step} is damaged and passed over: {'; '.join(problems)}")
    return None


def verify(path: Path) -> list[str]:
    """What is wrong with a checkpoint, each entry beginning with the bad file; [] where it is whole. Reads every byte."""
    return _problems(Path(path), _check_contents)


def verify_sizes(path: Path) -> list[str]:
    """As `verify`, but of the files' sizes only: quick, and blind to a changed byte."""
    return _problems(Path(path), lambda file, entry: None)


def manifest_bytes(step: int, entries: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """Contents of a manifest. entries: ``{"bytes": ..., "sha256": ...}`` by file. shapes: of tensors stored in pieces."""
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "step": step,
        "files": dict(entries),
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "versions": {
            "firstlight": firstlight.__version__,
            "torch": str(torch.__version__),
            "safetensors": safetensors.__version__,
        },
    }
    # The hash of everything else, so that the manifest answers for itself too.
    content["sha256"] = hashlib.sha256(json_bytes(content)).hexdigest()
    return json_bytes(content)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, checked against its own hash. Raises CheckpointError."""
    file = path / MANIFEST_FILE
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {reason(error)}") from error
    manifest: dict[str, Any] = {}
    try:
        manifest = json.loads(raw)
        rest = {key: value for key, value in manifest.items() if key != "sha256"}
        # Compared as bytes: a flipped bit can leave JSON that reads the same.
        is_whole = raw == json_bytes(manifest) and manifest["sha256"] == hashlib.sha256(json_bytes(rest)).hexdigest()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise CheckpointError(f"{file} has changed since it was saved, or was not written by a save")
    if manifest["schema"] not in READABLE_SCHEMAS:
        readable = " and ".join(map(str, READABLE_SCHEMAS))
        raise CheckpointError(f"{file} has schema {manifest['schema']}; this firstlight reads {readable}")
    missing = _missing_files(manifest["files"])
    if missing:
        raise CheckpointError(f"{file} does not list {', '.join(missing)}")
    step = step_of(path)
    if step is not None and step != manifest["step"]:
        raise CheckpointError(f"{file} is of step {manifest['step']}: the folder was renamed")
    return manifest


def json_bytes(value: Any) -> bytes:
    """Strict JSON, the same bytes for equal values. Raises ValueError for a NaN or infinity."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def sha256_of(path: Path) -> str:
    """Hash of a file's contents, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason(error: BaseException) -> str:
    """Why an operation on a file failed, in the system's words."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _is_share(name: str, what: str) -> bool:
    match = _SHARE_NAME.fullmatch(name)
    return match is not None and match[1] == what


def _missing_files(files: Mapping[str, Any]) -> list[str]:
    world_size = num_processes(files)
    missing = [name for name in [STATE_FILE] if name not in files]
    if not tensor_files(files, "model"):
        missing.append(MODEL_FILE)
    shares = [share_name("optimizer", rank, world_size) for rank in range(world_size)]
    return missing + [name for name in shares if name not in files]


def _problems(path: Path, check: Callable[[Path, Mapping[str, Any]], str | None]) -> list[str]:
    try:
        manifest = read_manifest(path)
    except CheckpointError as error:
        return [error.what]
    problems = []
    for name, entry in manifest["files"].items():
        file = path / name
        try:
            num_bytes = file.stat().st_size
            if num_bytes != entry["bytes"]:
                problems.append(f"{file} has {num_bytes:,} bytes instead of {entry['bytes']:,}")
            elif problem := check(file, entry):
                problems.append(problem)
        except FileNotFoundError:
            problems.append(f"{file} is missing")
        except OSError as error:
            problems.append(f"{file} cannot be read: {reason(error)}")
    return problems


def _check_contents(file: Path, entry: Mapping[str, Any]) -> str | None:
    same = sha256_of(file) == entry["sha256"]
    return None if same else f"{file} has changed since it was saved (its sha256 differs)"
