"""Text, tokenizer and token store are made once for the whole folder; every test has runs of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from resilience.harness import TINY, Place, run_to_end, write_texts


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Text and a filled cache, and a folder for runs that tests share."""
    folder = tmp_path_factory.mktemp("resilience")
    place = Place(write_texts(folder / "texts"), folder / "cache", folder / "shared")
    run_to_end(place, replace(TINY, run="first", num_iterations=1))
    return place


@pytest.fixture
def place(home: Place, tmp_path: Path) -> Place:
    """The same text and cache, and an empty folder for runs."""
    return replace(home, runs=tmp_path / "runs")


@pytest.fixture(scope="session")
def straight(home: Place) -> Callable[[int], Path]:
    """The folder of a run of TINY that nothing has disturbed, on so many processes; each is made once."""
    made: dict[int, Path] = {}

    def get(world_size: int) -> Path:
        if world_size not in made:
            run_to_end(home, replace(TINY, run=f"straight{world_size}"), world_size)
            made[world_size] = home.runs / f"straight{world_size}"
        return made[world_size]

    return get
