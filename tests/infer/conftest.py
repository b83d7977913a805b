"""Decoding in both ways that there are on a CPU."""

from __future__ import annotations

import pytest

from firstlight.infer.native import step
from firstlight.runtime.native.library import Unavailable, load_library


@pytest.fixture(params=["native", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The native step, and torch's operations in its place."""
    found = load_library(step.SOURCE)
    if request.param == "torch":
        monkeypatch.setattr(step, "load_library", lambda source: Unavailable("this test wants torch's operations"))
    elif isinstance(found, Unavailable):
        pytest.skip(f"no native step: {found.reason}")
    return request.param
