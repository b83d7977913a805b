"""Decoding in both ways that there are on a CPU."""

from __future__ import annotations

import pytest

from firstlight.infer.native import step
from firstlight.runtime.native import library
from firstlight.runtime.native.library import Unavailable


@pytest.fixture(params=["native", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The native step, and torch's operations in its place."""
    reason = library.why_not(step.SOURCE)
    if request.param == "torch":
        monkeypatch.setattr(library, "load_library", lambda source: Unavailable("this test wants torch's operations"))
    elif reason is not None:
        pytest.skip(f"no native step: {reason}")
    return request.param
