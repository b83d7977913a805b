"""A lock that says what it waits for."""

from __future__ import annotations

import threading

import pytest

from firstlight.data import lock
from firstlight.data.lock import one_at_a_time


def test_the_second_waits_until_the_first_is_done_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SAY_AFTER_S", 0.05)
    order, said, waiting = [], [], threading.Event()

    def progress(what, done, total):
        said.append(what)
        waiting.set()

    def second():
        with one_at_a_time(tmp_path / "x.lock", progress=progress):
            order.append("second")

    thread = threading.Thread(target=second)
    with one_at_a_time(tmp_path / "x.lock"):
        thread.start()
        assert waiting.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert str(tmp_path / "x.lock") in said[0]


def test_an_error_inside_frees_the_lock(tmp_path):
    with pytest.raises(KeyError), one_at_a_time(tmp_path / "x.lock"):
        raise KeyError
    with one_at_a_time(tmp_path / "x.lock"):
        pass
