"""Saved tensors, read when they are asked for: whole or in part, from whatever files hold them.

A tensor lies in a file whole, under its name, or in flat pieces ``NAME[start:stop]`` (elements start to stop of the
flattened whole) spread over files. A reader hides which: so what some number of processes saved, any other number loads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from firstlight.errors import CheckpointError

_PIECE = re.compile(r"(.+)\[([0-9]+):([0-9]+)\]", re.DOTALL)


def split_piece(key: str) -> tuple[str, int | None, int | None]:
    """Tensor name, start and stop of a stored key; None and None where it is a whole tensor.

    >>> split_piece("wte.weight/exp_avg[10:20]"), split_piece("wte.weight")
    (('wte.weight/exp_avg', 10, 20), ('wte.weight', None, None))
    """
    match = _PIECE.fullmatch(key)
    return (match[1], int(match[2]), int(match[3])) if match else (key, None, None)


@dataclass(frozen=True)
class _Stored:
    """Elements start to stop of a tensor, under ``key`` in ``file``, in the shape that they have there."""

    file: Path
    key: str
    start: int
    stop: int
    shape: tuple[int, ...]
    dtype: str


class TensorReader(Mapping[str, torch.Tensor]):
    """Tensors by their full names. Only headers are read at first; a tensor is read each time it is asked for."""

    def __init__(self, files: Sequence[Path], shapes: Mapping[str, Sequence[int]] | None = None) -> None:
        """shapes: of the tensors that are stored in pieces.

        Raises CheckpointError that names tensor and file, where a file cannot be read, and where the pieces of a tensor
        are missing, overlap, or do not fit together.
        """
        self._handles: dict[Path, Any] = {}
        self._stored: dict[str, list[_Stored]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.in_pieces: set[str] = set()
        for file in files:
            self._list(file)
        for name, stored in self._stored.items():
            stored.sort(key=lambda part: (part.start, part.stop))
            if name in self.in_pieces:
                self._shapes[name] = _checked_shape(name, stored, (shapes or {}).get(name))
            elif len(stored) > 1:
                raise CheckpointError(f"the tensor {name} is stored twice: in {stored[0].file} and {stored[1].file}")
            else:
                self._shapes[name] = stored[0].shape

    def __len__(self) -> int:
        return len(self._stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __getitem__(self, name: str) -> torch.Tensor:
        """The whole tensor, on the CPU. Raises KeyError for a name that is not saved, CheckpointError as `piece`."""
        stored = self._stored[name]
        if name in self.in_pieces:
            return self.piece(name, 0, math.prod(self._shapes[name])).view(self._shapes[name])
        return self._read(stored[0])

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the whole tensor; nothing of it is read."""
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor."""
        stored = self._stored[name][0]
        return self._read(stored).dtype if stored.shape == () else self._read(stored, 0, 0).dtype

    def piece(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements start to stop of the flattened tensor, (stop - start,), on the CPU.

        Only the pieces that hold them are read, and of a tensor that is stored whole only the rows (along its first
        dimension) that they lie in. Raises CheckpointError for a file that cannot be read.
        """
        num_elements = math.prod(self._shapes[name])
        assert 0 <= start <= stop <= num_elements, f"{name}[{start}:{stop}] of {num_elements} elements"
        parts = [
            self._flat(part, max(start, part.start), min(stop, part.stop))
            for part in self._stored[name]
            if part.start < stop and start < part.stop
        ]
        if not parts:
            return torch.zeros(0, dtype=self.dtype(name))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _flat(self, part: _Stored, start: int, stop: int) -> torch.Tensor:
        start, stop = start - part.start, stop - part.start
        if part.shape == ():
            return self._read(part).view(-1)
        row = max(1, math.prod(part.shape[1:]))
        first = start // row
        rows = self._read(part, first, math.ceil(stop / row)).reshape(-1)
        return rows[start - first * row : stop - first * row]

    def _read(self, part: _Stored, first_row: int = 0, stop_row: int | None = None) -> torch.Tensor:
        try:
            if stop_row is None:
                return self._handle(part.file).get_tensor(part.key)
            return self._handle(part.file).get_slice(part.key)[first_row:stop_row]
        except (OSError, SafetensorError, ValueError) as error:
            raise CheckpointError(f"the tensor {part.key} in {part.file} cannot be read: {error}") from error

    def _handle(self, file: Path) -> Any:
        if file not in self._handles:
            self._handles[file] = safe_open(file, framework="pt", device="cpu")
        return self._handles[file]

    def _list(self, file: Path) -> None:
        try:
            handle = self._handle(file)
            for key in handle.keys():  # noqa: SIM118 (not a mapping)
                found = handle.get_slice(key)
                shape, dtype = tuple(found.get_shape()), found.get_dtype()
                name, start, stop = split_piece(key)
                if start is None or stop is None:
                    start, stop = 0, math.prod(shape)
                else:
                    self.in_pieces.add(name)
                self._stored.setdefault(name, []).append(_Stored(file, key, start, stop, shape, dtype))
        except (OSError, SafetensorError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error


def _checked_shape(name: str, stored: Sequence[_Stored], shape: Sequence[int] | None) -> tuple[int, ...]:
    """Shape of the whole, where sorted pieces make up exactly that. Raises CheckpointError."""
    first = stored[0]
    if shape is None:
        raise CheckpointError(f"the tensor {name} is in pieces (in {first.file}), and its whole shape is not known")
    end, before = 0, first
    for part in stored:
        if part.shape != (part.stop - part.start,):
            raise CheckpointError(f"the tensor {part.key} in {part.file} has shape {list(part.shape)}")
        if part.dtype != first.dtype:
            raise CheckpointError(
                f"the tensor {name} is of two kinds: {first.dtype} in {first.file} and {part.dtype} in {part.file}"
            )
        if part.start > end:
            raise CheckpointError(
                f"the tensor {name} lacks elements {end} to {part.start}, before those in {part.file}"
            )
        if part.start < end:
            raise CheckpointError(
                f"the tensor {name} has elements {part.start} to {min(end, part.stop)} twice: "
                f"in {before.file} and {part.file}"
            )
        end, before = part.stop, part
    if end != math.prod(shape):
        raise CheckpointError(
            f"the tensor {name} of shape {list(shape)} has {math.prod(shape)} elements; "
            f"its pieces end at {end}, in {before.file}"
        )
    return tuple(shape)
