"""A tiny random model behind a real server: one for all tests of the folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.helpers import Running, load, running, write_run_folder


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that was taught to chat, as far as its record says."""
    return load(write_run_folder(tmp_path_factory.mktemp("runs"), "tiny", recipe="sft"))


@pytest.fixture(scope="session")
def client(server: Running) -> Iterator[Any]:
    """The official client. It does not try again: a failure is to be seen."""
    import openai

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as found:
        yield found


@pytest.fixture(scope="session")
def server(loaded: Any) -> Iterator[Running]:
    with running(loaded) as found:
        yield found
