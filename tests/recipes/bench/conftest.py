"""A model that a benchmark is done with in a moment. No test says how fast anything is."""

from __future__ import annotations

import pytest
import torch

from firstlight.recipes.bench.options import BenchOptions
from firstlight.runtime.context import Runtime


@pytest.fixture
def tiny_options() -> BenchOptions:
    return BenchOptions(
        depth=1, vocab_size=96, max_seq_len=33, device_batch_size=2, compile="off", rounds=2, device="cpu", dtype="fp32"
    )


@pytest.fixture
def cpu() -> Runtime:
    return Runtime(torch.device("cpu"), torch.float32, num_threads=torch.get_num_threads())
