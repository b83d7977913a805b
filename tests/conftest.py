"""Fixtures shared by the suite."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# One thread for each process of the suite, this one and those that tests start: models here are so small that threads only
# wait for each other, and beside other workers that waiting costs several times the work itself. Before torch is loaded,
# which reads it once. test_tiny.py and test_precision.py run with more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# For the same reason no pool of compiling processes: each loads torch, and a test has a kernel or two.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


@pytest.fixture(autouse=True)
def same_number_of_threads() -> Iterator[None]:
    """A test that gives torch another number of threads gives it to itself only."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else int(os.environ["OMP_NUM_THREADS"])
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real corpora and hard text that may lie beside the checkout; skips with a reason where it does not."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data beside the checkout ({folder})")
    return folder
