"""What the model said on the way, out of the ``sample`` rows of metrics.jsonl: grouped by step, and as
``samples.md``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from firstlight.runtime.metrics import read_metrics


def samples_by_step(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, list[tuple[str, str]]]]:
    """(step, [(prompt, completion), ...]) with the newest step first. A prompt repeated at a step counts with its
    last row.
    """
    found: dict[int, dict[str, str]] = {}
    for row in rows:
        if row.get("kind") == "sample" and isinstance(row.get("step"), int):
            for sample in row.get("samples") or ():
                found.setdefault(row["step"], {})[str(sample.get("prompt", ""))] = str(sample.get("completion", ""))
    return [(step, list(found[step].items())) for step in sorted(found, reverse=True)]


def write_samples(run_dir: Path) -> Path:
    """Write ``samples.md`` anew from metrics.jsonl, the newest step first; returns its path. Raises OSError."""
    parts = ["# What the model said, by step\n\nThe prompt ends at `│`; the rest is the model's.\n"]
    for step, samples in samples_by_step(read_metrics(run_dir / "metrics.jsonl", damaged=[])):
        parts.append(f"\n## Step {step}\n")
        for prompt, completion in samples:
            text = f"{prompt}│{completion}"
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
            parts.append(f"\n{fence}text\n{text}\n{fence}\n")
    path = run_dir / "samples.md"
    temporary = path.with_name("samples.md.tmp")
    temporary.write_text("".join(parts), encoding="utf-8", errors="replace")
    os.replace(temporary, path)
    return path
