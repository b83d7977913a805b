"""Tests that take an attention kernel by name: the native one where this machine can make it."""

from __future__ import annotations

import pytest

from firstlight.model.native.layer import why_not_native_layers


@pytest.fixture
def native() -> None:
    """Skips where there is no native attention."""
    if (reason := why_not_native_layers()) is not None:
        pytest.skip(f"no native attention: {reason}")


@pytest.fixture(autouse=True)
def _native_kernel_where_there_is_one(request: pytest.FixtureRequest) -> None:
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and callspec.params.get("kernel") == "native":
        request.getfixturevalue("native")
