"""The numbers of a run on disk: ``metrics.jsonl``, one JSON object per line, only ever appended to.

Every line is one row::

    {"kind": "train", "step": 250, "time_unix_s": 1735689600.0, "loss_nats": 3.1, ...}

``step`` is the number of updates done before the row was made (null where a row belongs to no step). So train row 0
is the first update, an evaluation of the untrained model is also at step 0, and the last train row of a 100-step run
is 99 while its last evaluation is at 100.

==========  ==========================================================================================================
kind        keys (units in the names; a key that is not known is left out or null)
==========  ==========================================================================================================
``train``   loss_nats (mean over the step's targets), grad_norm (before clipping), lr_multiplier (0 to 1), step_time_s,
            tokens_per_s, mfu (0 to 1), elapsed_s (training time so far), eta_s, epoch, tokens_seen; with several
            processes rank_compute_s (each one's own time, waiting left out), slowest_rank, rank_memory_bytes
``eval``    val_bpb (bits per byte of text), val_bpb_stderr, val_hash, tokenizer_hash, num_documents, num_bytes; where it
            was over its budget partial_val_bpb and partial_val_bpb_stderr instead, and cut: of how much they are
``sample``  samples: a list of {prompt, completion}
``core``    core and core_stderr (all 22 tasks) or mean_centered and its stderr, tasks: accuracy by label, bundle_hash
``chat``    chat_core and its stderr, tasks: what each chat task gave
``rl``      of a step's answers: reward_mean, reward_std, signal_frac, entropy_nats, length_mean, ... (rl/stats.py), and some
            of the answers in texts
``reward``  reward_mean, reward_stderr, pass_at_k, format_frac, ... on problems that are never trained on (rl/scores.py)
``save``    copy_s, waited_s (training waited for: copying, the save before), write_s (behind the steps), bytes
``event``   what (one sentence: a refused update, a failed save, a lost tracker), and whatever explains it
``run``     what ("started", "resumed", "stopped", "done"), and the facts that a continuation may change
==========  ==========================================================================================================

The lines are strict JSON: a NaN or infinity is written as null and its key is listed in ``"nonfinite"``.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from firstlight.errors import DataError

KINDS = ("train", "eval", "sample", "core", "chat", "rl", "reward", "save", "event", "run")
_OWN_KEYS = ("kind", "step", "time_unix_s", "nonfinite")


def strict_json(value: Any, name: str = "") -> tuple[Any, list[str]]:
    """A value that every JSON reader takes, and the names of the numbers that had to become null.

    NaN and infinities become None. Numpy and torch scalars become Python numbers, tuples lists, paths text; keys
    become text. ``name`` is the key under which the value stands; members are named ``outer.inner`` and ``outer[0]``.

    >>> strict_json({"loss_nats": float("nan"), "step": 3})
    ({'loss_nats': None, 'step': 3}, ['loss_nats'])
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value, []
    if isinstance(value, float):
        return (value, []) if math.isfinite(value) else (None, [name])
    if isinstance(value, Mapping):
        pairs = {str(k): strict_json(v, f"{name}.{k}" if name else str(k)) for k, v in value.items()}
        return {k: v for k, (v, _) in pairs.items()}, [n for _, lost in pairs.values() for n in lost]
    if isinstance(value, (list, tuple)):
        items = [strict_json(v, f"{name}[{i}]") for i, v in enumerate(value)]
        return [v for v, _ in items], [n for _, lost in items for n in lost]
    if isinstance(value, os.PathLike):
        return os.fspath(value), []
    if hasattr(value, "item"):
        return strict_json(value.item(), name)
    raise TypeError(f"{name or 'value'}: {type(value).__name__} cannot be written as JSON")


class MetricsLog:
    """Append rows to one file. Each row is handed to the operating system before ``write`` returns.

    A line that a crash cut short is cut off on opening (``cut_bytes`` says how much). ``warn`` is told once when the
    disk refuses a row (it is then dropped, and counted in ``lost_rows``, and the run lives); without ``warn`` the
    OSError is raised.
    """

    def __init__(self, path: Path, *, warn: Callable[[str], None] | None = None) -> None:
        self.path = Path(path)
        self.lost_rows = 0
        self._warn = warn
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.cut_bytes = _cut_torn_end(self.path)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  lives as long as the run; see close()

    def write(self, kind: str, step: int | None, values: Mapping[str, Any]) -> None:
        """Append one row of ``kind`` (one of KINDS) at ``step`` updates done; see the module's table for the keys."""
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
        if taken := [key for key in values if key in _OWN_KEYS]:
            raise ValueError(f"{', '.join(taken)}: set by the log itself")
        row, nonfinite = strict_json({"kind": kind, "step": step, "time_unix_s": round(time.time(), 3), **values})
        if nonfinite:
            row["nonfinite"] = nonfinite
        self._append((json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "replace"))

    def _append(self, line: bytes) -> None:
        start = os.fstat(self._file.fileno()).st_size
        try:
            rest = memoryview(line)
            while rest:
                # A raw write may take part of the line when the disk is nearly full.
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(start)
            if self._warn is None:
                raise
            self.lost_rows += 1
            if self.lost_rows == 1:
                self._warn(
                    f"{self.path} could not be written ({error.strerror or error}); this row is lost, training goes on"
                )

    def rewind(self, step: int) -> int:
        """Forget what lies at or after ``step`` updates done, before a run continues from its checkpoint there.

        Removes every row whose step is ``step`` or more; rows without a step and rows of kind ``run`` (the history of
        starts and stops) stay. The file is replaced in one move. Returns the number of steps (rows of kind ``train``) removed.
        """
        kept: list[bytes] = []
        removed = steps = 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            row = _parse(line)
            at = row.get("step") if row else None
            if row and row.get("kind") != "run" and isinstance(at, int) and at >= step:
                removed += 1
                steps += row.get("kind") == "train"
            else:
                kept.append(line)
        if removed:
            temporary = self.path.with_name(self.path.name + ".tmp")
            with open(temporary, "wb") as out:
                out.writelines(kept)
                out.flush()
                os.fsync(out.fileno())
            self._file.close()
            os.replace(temporary, self.path)
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        return steps

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path, *, damaged: list[str] | None = None) -> list[dict[str, Any]]:
    """All rows of a file, in order of writing; [] where there is no file. A cut-off last line is left out (a run may
    be writing it).

    Any other line that is not a row is an error that names the line; with a list in ``damaged`` it is skipped and
    named there.
    Raises DataError.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        row = _parse(line)
        if row is not None:
            rows.append(row)
        elif damaged is not None:
            damaged.append(f"{path}:{number} is not a JSON object")
        else:
            raise DataError(
                f"{path}:{number} is not a JSON object", hint="delete that line; the other rows are independent"
            )
    return rows


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _cut_torn_end(path: Path) -> int:
    """Cut lines off the end until the last one is whole; returns the number of bytes cut."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    # After a power cut a file may also end in whole lines of zeros.
    while end:
        start = content.rfind(b"\n", 0, end - 1) + 1
        if _parse(content[start:end]) is not None:
            break
        end = start
    if end < len(content):
        os.truncate(path, end)
    return len(content) - end
