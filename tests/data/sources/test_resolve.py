"""What --data may say, and what happens when it says something else."""

from __future__ import annotations

import pytest

from firstlight.data.sources.resolve import open_source
from firstlight.errors import ConfigError


def test_a_directory_and_a_file_are_sources_named_as_they_were_written(tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert open_source("texts", cache_dir=tmp_path / "cache").name == "texts"
    assert open_source("texts/a.txt", cache_dir=tmp_path / "cache").name == "texts/a.txt"


def test_a_misspelt_name_gets_the_near_one_and_the_list(tmp_path):
    with pytest.raises(ConfigError, match="--data tinystorys: no data set of that name") as caught:
        open_source("tinystorys", cache_dir=tmp_path)
    assert caught.value.hint.startswith("did you mean tinystories? ")
    for name in ("builtin", "fineweb-edu", "climbmix", "hf:owner/name"):
        assert name in caught.value.hint
    assert caught.value.exit_code == 2


def test_a_misspelt_directory_gets_the_near_one_beside_it(tmp_path):
    (tmp_path / "wikipedia_en").mkdir()
    with pytest.raises(ConfigError) as caught:
        open_source(str(tmp_path / "wikipedia-en"), cache_dir=tmp_path)
    assert f"did you mean {tmp_path / 'wikipedia_en'}?" in caught.value.hint


@pytest.mark.parametrize("data", ["", "zzzzzz", "/no/such/place/at/all"])
def test_a_name_like_nothing_known_gets_the_list(tmp_path, data):
    with pytest.raises(ConfigError) as caught:
        open_source(data, cache_dir=tmp_path)
    assert caught.value.hint.startswith("It is one of builtin, ")
