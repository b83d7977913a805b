"""Writing one checkpoint by one or several processes: each its own files, then one of them the manifest and the name.

After each stage the processes tell each other how it went. So either all of them know that the checkpoint is whole and in
place, or all of them know which one failed and why, the hidden folder is gone, and what was saved before is untouched.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from firstlight.errors import CheckpointError
from firstlight.runtime.channel import Channel
from firstlight.train import retention
from firstlight.train.manifest import (
    MANIFEST_FILE,
    MODEL_FILE,
    RNG_FILE,
    STATE_FILE,
    Report,
    checkpoint_name,
    manifest_bytes,
    reason,
    sha256_of,
    share_name,
    tensor_files,
)
from firstlight.train.reader import TensorReader

# Room beyond the tensors: headers, JSON, the file system's own blocks.
_SPARE_BYTES = 1 << 20
_UNTOUCHED = "what was saved before is untouched"
# Elements copied or looked at in one go: few enough for torch to use one thread. Two that must wait for each other, with
# the cores busy, took seven times as long to copy 138 MB (230 ms against 30 ms), and the saving thread must not take cores.
_CHUNK = 1 << 15


class NotFinite(CheckpointError):
    """A number that nothing can continue from."""


class ProcessesApart(CheckpointError):
    """The processes can no longer tell each other anything: one has ended, or did not answer in time."""


@dataclass(frozen=True)
class Share:
    """What one process brings into a checkpoint, on the CPU: contiguous tensors, each with memory of its own.

    model: empty on all ranks but the first where every rank has the same weights. rng: the first rank's is kept.
    problem: why there is no share, where it could not be made; the other ranks must hear of it.
    """

    model: dict[str, torch.Tensor] = field(default_factory=dict)
    optimizer: dict[str, torch.Tensor] = field(default_factory=dict)
    rng: dict[str, torch.Tensor] = field(default_factory=dict)
    problem: Exception | None = None

    def num_bytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for part in (self.model, self.optimizer, self.rng) for tensor in part.values())


@torch.no_grad()
def copy_to_host(tensors: Mapping[str, torch.Tensor], buffers: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of the tensors, on the CPU and contiguous, in ``buffers`` of an earlier call where they fit.

    ``buffers`` then holds exactly these. Copies from a GPU go into pinned memory, and may still be under way on return:
    `torch.cuda.synchronize` before reading them.
    """
    for name in buffers.keys() - tensors.keys():
        del buffers[name]
    for name, tensor in tensors.items():
        buffer = buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            buffers[name] = buffer
        if tensor.is_cuda or not tensor.is_contiguous():
            buffer.copy_(tensor, non_blocking=tensor.is_cuda)
            continue
        for target, source in zip(_chunks(buffer), _chunks(tensor.detach().cpu()), strict=True):
            target.copy_(source)
    return dict(buffers)


def write_checkpoint(
    directory: Path,
    share: Share,
    *,
    step: int,
    state: bytes,
    shapes: Mapping[str, tuple[int, ...]],
    channel: Channel,
    report: Report | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> tuple[Path, int]:
    """Write this rank's share of the checkpoint of ``step``; its folder, and the bytes of all its files. A collective call.

    state: contents of state.json (the first rank's is kept). shapes: whole shapes of tensors by name; all that is stored in
    pieces must be among them. report: told of leftovers that could not be cleared. given_up: asked before each file; once it
    is true the save ends as one that failed.

    Raises CheckpointError on every rank, with what was saved before untouched, where on any rank the disk refuses (the
    message says how many bytes are needed and free), a number is not finite, or the pieces are not whole tensors;
    ProcessesApart where the ranks cannot reach each other.
    """
    save = _Save(Path(directory), share, step, state, shapes, channel, report, given_up)
    try:
        return save.run()
    except BaseException:
        if channel.rank == 0:
            retention.delete(save.temporary, report)
        raise


@dataclass
class _Save:
    directory: Path
    share: Share
    step: int
    state: bytes
    shapes: Mapping[str, tuple[int, ...]]
    channel: Channel
    report: Report | None
    given_up: Callable[[], bool]
    needed_bytes: int = 0

    @property
    def temporary(self) -> Path:
        return self.directory / f".tmp-{checkpoint_name(self.step)}"

    def run(self) -> tuple[Path, int]:
        sizes = self.agree(self.sizes)
        self.needed_bytes = _SPARE_BYTES + sum(num_bytes for num_bytes, _ in sizes)
        files = self.files(whole_weights=not any(num_weights for _, num_weights in sizes[1:]))
        self.agree(lambda: self.prepare(files))
        entries = self.agree(lambda: self.write(files))
        merged = {name: entry for part in entries for name, entry in part.items()}
        self.agree(lambda: self.finish(merged))
        return self.directory / checkpoint_name(self.step), sum(entry["bytes"] for entry in merged.values())

    def sizes(self) -> tuple[int, int]:
        if self.share.problem is not None:
            raise self.share.problem
        return self.share.num_bytes(), len(self.share.model)

    def files(self, *, whole_weights: bool) -> dict[str, dict[str, torch.Tensor]]:
        """Tensors of this rank by the name of the file that they go into."""
        rank, world_size = self.channel.rank, self.channel.world_size
        files = {}
        if rank == 0 or self.share.model:
            files[MODEL_FILE if whole_weights else share_name("model", rank, world_size)] = self.share.model
        files[share_name("optimizer", rank, world_size)] = self.share.optimizer
        if rank == 0 and self.share.rng:
            files[RNG_FILE] = self.share.rng
        return files

    def prepare(self, files: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        refuse_nonfinite(self.step, files)
        if self.channel.rank > 0:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        retention.clear_leftovers(self.directory, self.report)
        if shutil.disk_usage(self.directory).free < self.needed_bytes:
            # Before the first byte: filling the disk to the brim would also stop the metrics and other programs.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.temporary.mkdir()

    def write(self, files: Mapping[str, dict[str, torch.Tensor]]) -> dict[str, Any]:
        if not self.temporary.is_dir():
            raise OSError(errno.ENOENT, "the first process's folder is not seen here: all need the same disk")
        entries = {}
        for name, tensors in files.items():
            self.refuse_if_given_up()
            entries[name] = _write_tensors(self.temporary / name, tensors)
        if self.channel.rank == 0:
            entries[STATE_FILE] = _write_bytes(self.temporary / STATE_FILE, self.state)
        return entries

    def finish(self, entries: Mapping[str, Any]) -> None:
        if self.channel.rank > 0:
            return
        for name, entry in entries.items():
            num_bytes = (self.temporary / name).stat().st_size
            if num_bytes != entry["bytes"]:
                raise OSError(errno.EIO, f"{name} has {num_bytes:,} bytes instead of {entry['bytes']:,}")
        shapes = self.check_tensors(entries)
        _write_bytes(self.temporary / MANIFEST_FILE, manifest_bytes(self.step, entries, shapes))
        _fsync_folder(self.temporary)
        _put_in_place(self.temporary, self.directory / checkpoint_name(self.step))

    def check_tensors(self, entries: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors in pieces. Raises CheckpointError unless the files hold every tensor once and whole."""
        in_pieces = {}
        found: dict[str, tuple[int, ...]] = {}
        for what in ("model", "optimizer"):
            reader = TensorReader([self.temporary / name for name in tensor_files(entries, what)], self.shapes)
            in_pieces |= {name: reader.shape(name) for name in reader.in_pieces}
            found |= {name: reader.shape(name) for name in reader}
        wrong = [name for name, shape in self.shapes.items() if found.get(name) != tuple(shape)]
        if wrong:
            raise CheckpointError(
                f"no process brought the whole of {', '.join(wrong[:3])}"
                + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
            )
        return in_pieces

    def agree(self, work: Callable[[], Any]) -> list[Any]:
        """Do this rank's work and learn the others' results (JSON values). Raises CheckpointError where any failed."""
        value, cause, problem = None, None, None
        try:
            self.refuse_if_given_up()
            value = work()
        except Exception as error:
            cause, problem = error, self.told(error)
        said = json.dumps({"step": self.step, "value": value, "problem": problem})
        try:
            heard = [json.loads(text) for text in self.channel.gather_texts(said)]
        except Exception as error:
            # Another may have ended between the rename and its answer.
            is_there = not self.temporary.exists() and (self.directory / checkpoint_name(self.step)).is_dir()
            became = "may be whole" if is_there else "is not saved"
            raise ProcessesApart(
                f"the checkpoint of step {self.step} {became}, the processes cannot reach each other: {error}",
                hint="one of them has ended or hangs; end the others, and go on with --resume",
            ) from error
        if any(other["step"] != self.step for other in heard):
            raise ProcessesApart(
                f"the checkpoint of step {self.step} is not saved, the processes are at different ones: "
                f"{', '.join(str(other['step']) for other in heard)}"
            )
        failed = {rank: other["problem"] for rank, other in enumerate(heard) if other["problem"]}
        if failed:
            named = [f"rank {rank}: {what}" if len(heard) > 1 else what for rank, (what, _) in failed.items()]
            more = f"; and {len(named) - 3} more ranks" if len(named) > 3 else ""
            _, hint = next(iter(failed.values()))
            raise CheckpointError("; ".join(named[:3]) + more, hint=hint) from cause
        return [other["value"] for other in heard]

    def refuse_if_given_up(self) -> None:
        if self.given_up():
            raise CheckpointError("the run was ended meanwhile")

    def told(self, error: Exception) -> tuple[str, str]:
        """What went wrong, in a sentence that stands by itself, and a hint."""
        start, hint = f"the checkpoint of step {self.step} could not be saved in {self.directory}", _UNTOUCHED
        match error:
            case OSError() | SafetensorError():
                needed, free = f"{self.needed_bytes:,} bytes are needed", f"{_free(self.directory)} are free"
                return f"{start}: {reason(error)} ({needed}, {free})", f"make room or lower --keep; {hint}"
            case NotFinite():
                return error.what, error.hint
            case CheckpointError():
                return f"{start}: {error.what}", error.hint or hint
            case _:
                return f"{start}: {type(error).__name__}: {error}", hint


def refuse_nonfinite(step: int, files: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Raise NotFinite that names file and tensor of numbers that are not finite. Tensors: on the CPU, contiguous."""
    bad = [
        f"{file}: {name}"
        for file, tensors in files.items()
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not _is_finite(tensor)
    ]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise NotFinite(
            f"the checkpoint of step {step} is not saved, it would hold NaN or Inf in {', '.join(bad[:3])}{more}",
            hint="nothing can continue from such numbers: go back to the last good checkpoint with lower rates",
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    return all(bool(chunk.isfinite().all()) for chunk in _chunks(tensor))


def _chunks(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tensor.view(-1).split(_CHUNK)


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    save_file(tensors, path)
    # safetensors makes it readable by its owner only; whoever may read the run may read its weights.
    os.chmod(path, path.parent.stat().st_mode & 0o666)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _write_bytes(path: Path, content: bytes) -> dict[str, Any]:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


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
    retention.delete(replaced, None)


def _free(directory: Path) -> str:
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    try:
        return f"{shutil.disk_usage(directory).free:,}"
    except OSError:
        return "an unknown number"
