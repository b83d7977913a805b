"""Trackers are extras: missing ones are named, failing ones are dropped, and the run never depends on them."""

from __future__ import annotations

import sys
import types

import pytest

from firstlight.errors import ConfigError
from firstlight.runtime.trackers import open_tracker


def opened(name, tmp_path, told=None):
    warn = told.append if told is not None else pytest.fail
    return open_tracker(name, run_name="d4", config={"depth": 4}, directory=tmp_path, warn=warn)


@pytest.fixture
def fake_wandb(monkeypatch):
    """A stand-in for the package that keeps what it is told."""
    run = types.SimpleNamespace(rows=[], metrics=[], finished=False)
    run.log = run.rows.append
    run.define_metric = lambda *args, **kwargs: run.metrics.append((args, kwargs))
    run.finish = lambda: setattr(run, "finished", True)
    module = types.ModuleType("wandb")

    def init(**kwargs):
        run.init = kwargs
        return run

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return run


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "trackio"])
def test_a_missing_package_is_an_error_with_its_pip_line(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # how Python marks a module that cannot be imported
    with pytest.raises(ConfigError) as caught:
        opened(name, tmp_path)
    assert f"--tracker {name}" in caught.value.what
    assert caught.value.hint == f'pip install "firstlight[{name}]"'


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"wandbb.*\n.*wandb, tensorboard, trackio"):
        opened("wandbb", tmp_path)


def test_without_a_name_nothing_is_imported(tmp_path):
    before = set(sys.modules)
    tracker = opened(None, tmp_path)
    tracker.log("train", 0, {"loss_nats": 1.0})
    tracker.finish()
    assert not {"wandb", "tensorboard", "trackio"} & (set(sys.modules) - before)


def test_wandb_gets_the_finite_numbers_by_kind_and_continues_its_curves(fake_wandb, tmp_path):
    tracker = opened("wandb", tmp_path)
    tracker.log(
        "train", 7, {"loss_nats": 2.5, "grad_norm": float("inf"), "epoch": 0, "what": "text", "ok": True, "x": None}
    )
    tracker.log("sample", 7, {"prompt": "a", "completion": "b"})
    tracker.log("train", 3, {"loss_nats": 2.0})  # after a resume from step 3
    tracker.finish()
    assert fake_wandb.rows == [
        {"step": 7, "train/loss_nats": 2.5, "train/epoch": 0},
        {"step": 3, "train/loss_nats": 2.0},
    ]
    assert fake_wandb.init["id"] == fake_wandb.init["name"] == "d4"
    assert fake_wandb.init["resume"] == "allow"
    assert (("*",), {"step_metric": "step"}) in fake_wandb.metrics
    assert fake_wandb.finished


def test_a_tracker_that_fails_is_reported_once_and_dropped(fake_wandb, tmp_path):
    told, calls = [], []

    def log(row):
        calls.append(row)
        raise ConnectionError("no route")

    fake_wandb.log = log
    fake_wandb.finish = log
    tracker = opened("wandb", tmp_path, told)
    for step in range(5):
        tracker.log("train", step, {"loss_nats": 1.0})
    tracker.finish()
    assert len(calls) == 1
    assert len(told) == 1
    assert "no route" in told[0]
    assert "metrics.jsonl" in told[0]


def test_a_tracker_that_fails_at_the_end_is_reported(fake_wandb, tmp_path):
    told = []
    fake_wandb.finish = lambda: 1 / 0
    opened("wandb", tmp_path, told).finish()
    assert len(told) == 1


def test_a_tracker_that_cannot_start_is_an_error_before_training(monkeypatch, tmp_path):
    module = types.ModuleType("wandb")

    def init(**kwargs):
        raise RuntimeError("api_key not configured")

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.raises(ConfigError, match="api_key not configured") as caught:
        opened("wandb", tmp_path)
    assert "WANDB_MODE=offline" in caught.value.hint


def test_tensorboard_gets_one_scalar_for_each_number(monkeypatch, tmp_path):
    scalars, made = [], []

    class SummaryWriter:
        def __init__(self, log_dir):
            made.append(log_dir)

        def add_text(self, name, text):
            made.append(text)

        def add_scalar(self, name, value, global_step):
            scalars.append((name, value, global_step))

        def close(self):
            made.append("closed")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    tracker = opened("tensorboard", tmp_path)
    tracker.log("eval", 9, {"val_bpb": 1.5, "val_hash": "ab", "num_bytes": 10})
    tracker.finish()
    assert scalars == [("eval/val_bpb", 1.5, 9), ("eval/num_bytes", 10, 9)]
    assert made == [str(tmp_path / "tensorboard"), "    depth = 4", "closed"]


def test_trackio_gets_numbers_with_the_step(monkeypatch, tmp_path):
    calls = []
    module = types.ModuleType("trackio")
    module.init = lambda **kwargs: calls.append(("init", kwargs["name"], kwargs["config"]))
    module.log = lambda numbers, step: calls.append((numbers, step))
    module.finish = lambda: calls.append("finish")
    monkeypatch.setitem(sys.modules, "trackio", module)
    tracker = opened("trackio", tmp_path)
    tracker.log("train", 2, {"loss_nats": 3.0, "note": "text"})
    tracker.finish()
    assert calls == [("init", "d4", {"depth": 4}), ({"train/loss_nats": 3.0}, 2), "finish"]
