"""Checkpoints on disk: whole and verified, or not there.

    step_00001234/model.safetensors                       the weights, named as in model.state_dict()
                  optimizer-00000-of-00001.safetensors    its state, named as in optimizer.state_tensors()
                  rng.safetensors                         states of torch's random generators, where given
                  state.json                              step, data position, counts, scaler; strict JSON
                  manifest.json                           size and sha256 of each file above; written last

A save writes into a hidden sibling folder, forces every file to the disk, and renames the folder into place. So a folder
with a step's name was once whole; whether it still is, its hashes say. No pickle: nothing here can run what it reads.

Other names beside the steps are left alone, but for our own ``.tmp-`` (a save that was cut off), ``.trash-`` (a deletion
that was cut off) and ``.replaced-`` (the old checkpoint while a step is saved again); the next save clears them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import safetensors
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import firstlight
from firstlight.errors import CheckpointError

SCHEMA = 1
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer-00000-of-00001.safetensors"
RNG_FILE = "rng.safetensors"
STATE_FILE = "state.json"
MANIFEST_FILE = "manifest.json"
NEEDED_FILES = (MODEL_FILE, OPTIMIZER_FILE, STATE_FILE)

_STEP_NAME = re.compile(r"(\.replaced-)?step_([0-9]+)")
# Room beyond the tensors: headers, JSON, the file system's own blocks.
_SPARE_BYTES = 1 << 20

Report = Callable[[str], None]


class HasStateDict(Protocol):
    """A module."""

    def state_dict(self) -> Mapping[str, torch.Tensor]: ...


class HasStateTensors(Protocol):
    """An optimizer with state named per parameter."""

    def state_tensors(self) -> Mapping[str, torch.Tensor]: ...


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint holds, on the CPU: tensors by name, and ``state`` as it was given to the save."""

    path: Path
    step: int
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]
    rng: dict[str, torch.Tensor] = field(default_factory=dict)


def checkpoint_name(step: int) -> str:
    """Name of a step's folder.

    >>> checkpoint_name(1234)
    'step_00001234'
    """
    return f"step_{step:08d}"


def tensor_name(name: str) -> str:
    """A parameter's own name, without the levels that torch.compile's wrapper puts into it.

    >>> tensor_name("_orig_mod.model.h.0._orig_mod.weight")
    'model.h.0.weight'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def save_checkpoint(
    directory: Path,
    *,
    step: int,
    model: HasStateDict,
    optimizer: HasStateTensors,
    state: Mapping[str, Any],
    rng: Mapping[str, torch.Tensor] | None = None,
    report: Report | None = None,
) -> Path:
    """Write the checkpoint of ``step`` into ``directory`` and return its folder. One of the same step is replaced whole.

    state: JSON values. report: told of leftovers that could not be cleared.
    Raises CheckpointError, with what was saved before untouched, where the disk refuses (the message says how many bytes
    are needed and free) or a number is not finite; ValueError for a state that strict JSON cannot hold.
    """
    directory = Path(directory)
    name = checkpoint_name(step)
    state_bytes = _json_bytes(state)
    weights = {tensor_name(key): tensor for key, tensor in model.state_dict().items()}
    files = {MODEL_FILE: _on_cpu(weights), OPTIMIZER_FILE: _on_cpu(optimizer.state_tensors())}
    if rng is not None:
        files[RNG_FILE] = _on_cpu(rng)
    _refuse_nonfinite(step, files)
    needed_bytes = _SPARE_BYTES + sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())

    temporary = directory / f".tmp-{name}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(directory, report)
        if shutil.disk_usage(directory).free < needed_bytes:
            # Before the first byte: filling the disk to the brim would also stop the metrics and other programs.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        temporary.mkdir()
        entries = {file: _write_tensors(temporary / file, tensors) for file, tensors in files.items()}
        entries[STATE_FILE] = _write_bytes(temporary / STATE_FILE, state_bytes)
        for file in files:
            # safetensors makes them readable by their owner only; whoever may read the run may read its weights.
            shutil.copymode(temporary / STATE_FILE, temporary / file)
        _write_bytes(temporary / MANIFEST_FILE, _manifest_bytes(step, entries))
        _fsync_folder(temporary)
        _put_in_place(temporary, directory / name)
    except (OSError, SafetensorError) as error:
        _delete(temporary, report)
        raise CheckpointError(
            f"the checkpoint of step {step} could not be saved in {directory}: {_reason(error)} "
            f"({needed_bytes:,} bytes are needed, {_free(directory)} are free)",
            hint="make room or lower --keep; what was saved before is untouched",
        ) from error
    except BaseException:
        _delete(temporary, report)
        raise
    return directory / name


def list_checkpoints(directory: Path) -> list[tuple[int, Path]]:
    """(step, folder) of everything named like a checkpoint, ascending as numbers; other names are passed over.

    Nothing is verified. A ``.replaced-`` folder counts while there is no other of its step.
    """
    found: dict[int, Path] = {}
    # Sorted, ".replaced-" comes before "step_", which then takes its place.
    for name in sorted(os.listdir(directory)) if Path(directory).is_dir() else []:
        match = _STEP_NAME.fullmatch(name)
        if match and (Path(directory) / name).is_dir():
            found[int(match[2])] = Path(directory) / name
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
    path = Path(path)
    try:
        manifest = _read_manifest(path)
    except CheckpointError as error:
        return [error.what]
    problems = []
    for name, entry in manifest["files"].items():
        file = path / name
        try:
            num_bytes = file.stat().st_size
            if num_bytes != entry["bytes"]:
                problems.append(f"{file} has {num_bytes:,} bytes instead of {entry['bytes']:,}")
            elif _sha256(file) != entry["sha256"]:
                problems.append(f"{file} has changed since it was saved (its sha256 differs)")
        except FileNotFoundError:
            problems.append(f"{file} is missing")
        except OSError as error:
            problems.append(f"{file} cannot be read: {_reason(error)}")
    return problems


def load_checkpoint(path: Path) -> Loaded:
    """Verify a checkpoint and read it into CPU memory. Raises CheckpointError that names each bad file."""
    path = Path(path)
    problems = verify(path)
    if problems:
        raise CheckpointError(
            f"the checkpoint {path} is damaged: {'; '.join(problems)}",
            hint="use another step; --resume takes the newest good one by itself",
        )
    try:
        manifest = _read_manifest(path)
        return Loaded(
            path=path,
            step=manifest["step"],
            model=load_file(path / MODEL_FILE),
            optimizer=load_file(path / OPTIMIZER_FILE),
            state=json.loads((path / STATE_FILE).read_bytes()),
            rng=load_file(path / RNG_FILE) if RNG_FILE in manifest["files"] else {},
        )
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error}") from error


def load_into(target: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor], *, what: str) -> None:
    """Copy saved tensors into a model's own, in place, unless any of them is missing, extra, or of another shape or dtype.

    Raises CheckpointError, before anything is copied, that names them.
    """
    own = {tensor_name(name): tensor for name, tensor in target.items()}
    problems = [f"{name} is missing" for name in own if name not in source]
    problems += [f"{name} is not part of the model" for name in source if name not in own]
    problems += [
        f"{name} is {_kind(source[name])} instead of {_kind(tensor)}"
        for name, tensor in own.items()
        if name in source and _kind(source[name]) != _kind(tensor)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{what} is from another architecture: {'; '.join(problems[:3])}{more}",
            hint="resume with the settings that the run was started with",
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(source[name])


def retain(
    directory: Path,
    *,
    keep: int,
    best_step: int | None = None,
    known_good: Collection[Path] = (),
    report: Report | None = None,
) -> list[int]:
    """Delete old checkpoints; returns the steps that are gone. Kept are the newest ``keep`` good ones (at least one) and
    ``best_step``.

    A checkpoint is good if it is in ``known_good`` (written or verified by this process) or passes `verify` now. A damaged
    one among the newest does not count and stays, for a person to look at. A deletion that fails is reported; the others
    go on.
    """
    num_good = 0
    deleted = []
    for step, path in reversed(list_checkpoints(directory)):
        if num_good < max(1, keep):
            num_good += path in known_good or not verify(path)
        elif step != best_step and _delete(path, report):
            deleted.append(step)
    return deleted


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _manifest_bytes(step: int, entries: Mapping[str, Any]) -> bytes:
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "step": step,
        "files": dict(entries),
        "versions": {
            "firstlight": firstlight.__version__,
            "torch": str(torch.__version__),
            "safetensors": safetensors.__version__,
        },
    }
    # The hash of everything else, so that the manifest answers for itself too.
    content["sha256"] = hashlib.sha256(_json_bytes(content)).hexdigest()
    return _json_bytes(content)


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, checked against its own hash. Raises CheckpointError."""
    file = path / MANIFEST_FILE
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {_reason(error)}") from error
    manifest: dict[str, Any] = {}
    try:
        manifest = json.loads(raw)
        rest = {key: value for key, value in manifest.items() if key != "sha256"}
        # Compared as bytes: a flipped bit can leave JSON that reads the same.
        is_whole = raw == _json_bytes(manifest) and manifest["sha256"] == hashlib.sha256(_json_bytes(rest)).hexdigest()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise CheckpointError(f"{file} has changed since it was saved, or was not written by a save")
    if manifest["schema"] != SCHEMA:
        raise CheckpointError(f"{file} has schema {manifest['schema']}; this firstlight reads {SCHEMA}")
    missing = [name for name in NEEDED_FILES if name not in manifest["files"]]
    if missing:
        raise CheckpointError(f"{file} does not list {', '.join(missing)}")
    match = _STEP_NAME.fullmatch(path.name)
    if match and int(match[2]) != manifest["step"]:
        raise CheckpointError(f"{file} is of step {manifest['step']}: the folder was renamed")
    return manifest


def _on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors as safetensors takes them: on the CPU, contiguous, no two over the same memory. Copied only where needed."""
    ready: dict[str, torch.Tensor] = {}
    taken: dict[int, list[tuple[int, int]]] = {}
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        start, stop = own.data_ptr(), own.data_ptr() + own.nbytes
        areas = taken.setdefault(own.untyped_storage().data_ptr(), [])
        if any(start < other_stop and other_start < stop for other_start, other_stop in areas):
            own = own.clone()
        else:
            areas.append((start, stop))
        ready[name] = own
    return ready


def _refuse_nonfinite(step: int, files: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    bad = [
        f"{file}: {name}"
        for file, tensors in files.items()
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise CheckpointError(
            f"the checkpoint of step {step} is not saved, it would hold NaN or Inf in {', '.join(bad[:3])}{more}",
            hint="nothing can continue from such numbers: go back to the last good checkpoint with lower rates",
        )


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    save_file(tensors, path)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _write_bytes(path: Path, content: bytes) -> dict[str, Any]:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync_folder(path: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder.
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename ``temporary`` to ``final``. At every moment the old or the new one has a name that is searched."""
    replaced = final.with_name(f".replaced-{final.name}")
    if final.exists():
        os.rename(final, replaced)
    try:
        os.rename(temporary, final)
    except OSError:
        if replaced.exists():
            os.rename(replaced, final)
        raise
    _fsync_folder(final.parent)
    _delete(replaced, None)


def _clear_leftovers(directory: Path, report: Report | None) -> None:
    for path in sorted(directory.iterdir()):
        if path.name.startswith((".tmp-step_", ".trash-")):
            _delete(path, report)
        elif path.name.startswith(".replaced-step_"):
            original = path.with_name(path.name.removeprefix(".replaced-"))
            if original.exists():
                _delete(path, report)
            else:
                os.rename(path, original)


def _delete(path: Path, report: Report | None) -> bool:
    """Delete a folder so that a kill on the way leaves no half of it under its name. A failure is reported."""
    trash = path
    try:
        if not path.exists():
            return True
        if not path.name.startswith(".trash-"):
            trash = path.with_name(f".trash-{path.name}-{time.time_ns()}")
            os.rename(path, trash)
        shutil.rmtree(trash)
    except OSError as error:
        if report:
            report(f"{path} could not be deleted ({_reason(error)})")
        return False
    return True


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _free(directory: Path) -> str:
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    try:
        return f"{shutil.disk_usage(directory).free:,}"
    except OSError:
        return "an unknown number"
