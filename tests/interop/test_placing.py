"""Claims of interop/placing.py: a folder or file is whole or not there, and nothing stays behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from firstlight.errors import CheckpointError, ConfigError
from firstlight.interop import placing


def test_a_folder_appears_at_the_end_and_replaces_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("1")
    with placing.new_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("2")
        assert (tmp_path / "out" / "old").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("place", [placing.new_folder, placing.new_file])
def test_an_error_leaves_nothing(tmp_path: Path, place) -> None:
    with pytest.raises(CheckpointError, match="cannot be written: gone"), place(tmp_path / "out"):
        raise OSError("gone")
    with pytest.raises(KeyboardInterrupt), place(tmp_path / "out"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_file_appears_at_the_end(tmp_path: Path) -> None:
    with placing.new_file(tmp_path / "a" / "out.gguf") as path:
        path.write_text("2")
        assert not (tmp_path / "a" / "out.gguf").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out.gguf"]


def test_a_target_that_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1")
    with pytest.raises(ConfigError, match="is a file"):
        placing.check_folder(tmp_path / "file", overwrite=True, is_ours=lambda path: True)
    with pytest.raises(ConfigError, match="--overwrite"):
        placing.check_file(tmp_path / "file", overwrite=False)
    placing.check_file(tmp_path / "file", overwrite=True)
    with pytest.raises(ConfigError, match="is a folder"):
        placing.check_file(tmp_path, overwrite=True)
    with pytest.raises(ConfigError, match="not empty"):
        placing.check_folder(tmp_path, overwrite=False, is_ours=lambda path: True)
    (tmp_path / "empty").mkdir()
    placing.check_folder(tmp_path / "empty", overwrite=False, is_ours=lambda path: False)
