"""The loop, with the real model, optimizer, loader and metrics at a tiny size: resume, signals, failures, refusals."""

from __future__ import annotations

import gc
import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from firstlight.data.batch import Position
from firstlight.data.build import build_store
from firstlight.data.loader import Loader
from firstlight.data.sources.directory import open_directory
from firstlight.data.store import TokenStore
from firstlight.errors import CheckpointError, ConfigError, DataError, Interrupted, TrainingStopped
from firstlight.model.gpt import GPT, GPTConfig
from firstlight.model.init import build_gpt
from firstlight.optim.groups import make_groups
from firstlight.optim.muonadamw import MuonAdamW
from firstlight.runtime.channel import Channel
from firstlight.runtime.context import Runtime
from firstlight.runtime.metrics import MetricsLog, read_metrics
from firstlight.tokens.bpe import Tokenizer
from firstlight.train import checkpoint, writing
from firstlight.train import step as step_module
from firstlight.train import trainer as trainer_module
from firstlight.train.checkpoint import find_latest_good, list_steps, load_checkpoint, load_into
from firstlight.train.horizon import Curve, StepHorizon
from firstlight.train.probing import Budget
from firstlight.train.saving import SaveQueue
from firstlight.train.scaler import LossScaler
from firstlight.train.spike import SpikeGuard
from firstlight.train.state import TrainState, set_rng_tensors
from firstlight.train.trainer import Guards, Trainer, mfu, tokens_per_s

CPU = Runtime(device=torch.device("cpu"))
CONFIG = GPTConfig(vocab_size=265, n_layer=1, n_head=2, n_kv_head=1, n_embd=16, max_seq_len=16)
T, ROWS, MICRO = 16, 2, 2
CURVE = Curve(
    warmup_frac=0.2, warmdown_frac=0.4, final_lr_frac=0.1, momentum_start=0.85, momentum_end=0.95, weight_decay=0.1,
    grad_clip=1.0,
)  # fmt: skip
TIMES = {"time_unix_s", "elapsed_s", "step_time_s"}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TokenStore:
    """Three shards of short texts: an epoch is some ten steps, and steps straddle the shards' ends."""
    folder = tmp_path_factory.mktemp("corpus")
    for part in range(3):
        texts = [f"{n} " + "the quick brown fox jumps over"[: n * 7 % 30] for n in range(part * 100, part * 100 + 9)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"part_{part}.jsonl").write_text(lines)
    tokenizer = Tokenizer([bytes([b]) for b in range(256)])
    cache = tmp_path_factory.mktemp("cache")
    return build_store(open_directory(folder), tokenizer, cache_dir=cache, num_workers=0)


class ListSink:
    """The trainer's sink over a real metrics file. ``said`` keeps warnings."""

    def __init__(self, path: Path, *, rewind_to: int) -> None:
        self.metrics = MetricsLog(path)
        self.metrics.rewind(rewind_to)
        self.said: list[str] = []
        self.on_step: Callable[[int], None] = lambda step: None

    def write(self, kind, step, values) -> None:
        self.metrics.write(kind, step, values)

    def show(self, step, stats, hyper, state, *, num_tokens) -> None:
        values = {
            "loss_nats": stats.loss_nats, "grad_norm": stats.grad_norm, "lr_multiplier": hyper.lr_multiplier,
            "step_time_s": stats.elapsed_s, "elapsed_s": state.elapsed_s, "epoch": state.position.epoch,
            "rows_consumed": state.position.rows_consumed, "tokens_seen": state.tokens_seen,
        }  # fmt: skip
        self.metrics.write("train", step, values)
        self.on_step(step)

    def say(self, text) -> None:
        self.said.append(text)

    def rewind(self, step) -> None:
        self.metrics.rewind(step)

    warn = say


class CountingProbe:
    """Looks at every ``every``-th step; draws random numbers, as sampling does; may fail or send a signal."""

    def __init__(self, *, every: int = 1, name: str = "eval", action: Callable[[int], None] | None = None) -> None:
        self.name, self.every, self.action = name, every, action
        self.steps: list[int] = []

    def due(self, step: int, is_last: bool) -> bool:
        return is_last or step % self.every == 0

    budget = Budget(0)

    def measure(self, model: GPT, step: int, *, is_over) -> dict:
        assert not torch.is_grad_enabled()
        assert not model.training
        torch.rand(7)
        logits_BTV = model(torch.zeros((1, 4), dtype=torch.int64))
        if self.action:
            self.action(step)
        self.steps.append(step)
        return {"val_bpb": float(logits_BTV.float().std()) + 1.0}


@dataclass
class Launch:
    """One process's worth of a run, put together anew like a recipe does."""

    model: GPT
    optimizer: MuonAdamW
    trainer: Trainer
    sink: ListSink
    loader: Loader
    start: TrainState

    def fit(self) -> TrainState:
        with self.loader:
            return self.trainer.fit(self.start)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {f"model {k}": v.clone() for k, v in self.model.state_dict().items()} | {
            f"optimizer {k}": v.clone() for k, v in self.optimizer.state_tensors().items()
        }


def launch(
    run_dir: Path, store: TokenStore, *, num_steps: int = 6, every: int = 2, keep: int = 2, max_epochs: int | None = None,
    scaler: LossScaler | None = None, asynchronous: bool = False, **options,
) -> Launch:  # fmt: skip
    """The parts of a run, restored from its newest good checkpoint where there is one."""
    run_dir.mkdir(exist_ok=True)
    model = build_gpt(CONFIG, device=CPU.device, compute_dtype=torch.float32, seed=1)
    # The head starts at zero; give it values, so that the blocks learn from the first step.
    with torch.no_grad():
        model.lm_head.weight.copy_(
            torch.linspace(-0.3, 0.3, model.lm_head.weight.numel()).view_as(model.lm_head.weight)
        )
    optimizer = MuonAdamW(make_groups(model.named_parameters()), CPU)
    start = TrainState()
    found = find_latest_good(run_dir / "checkpoints")
    if found is not None:
        loaded = load_checkpoint(found)
        load_into(model.state_dict(), loaded.model, what=str(found))
        optimizer.load_state_tensors(loaded.optimizer)
        optimizer.num_updates = loaded.state["num_updates"]
        set_rng_tensors(loaded.rng, CPU.device)
        start = TrainState.from_dict(loaded.state["train"])
        if scaler and loaded.state["scaler"]:
            scaler.load_state(loaded.state["scaler"])
    loader = Loader(
        store, tokenizer_bos_id=256, val_spec="hash:0.1", seq_len=T, device_batch_size=ROWS, seed=5, prefetch=0,
        position=start.position, max_epochs=max_epochs,
    )  # fmt: skip
    sink = ListSink(run_dir / "metrics.jsonl", rewind_to=start.step)
    saves = SaveQueue(
        run_dir / "checkpoints", keep=keep, channel=Channel(), asynchronous=asynchronous, report=sink.warn
    )
    if found is not None:
        saves.note_good(found)
    trainer = Trainer(
        model, optimizer, loader, CPU, StepHorizon(num_steps, CURVE), num_micro_batches=MICRO,
        num_step_rows=MICRO * ROWS,
        saves=saves, save_every=every, sink=sink, documents_of=loader.documents_of, scaler=scaler, **options,
    )  # fmt: skip
    return Launch(model, optimizer, trainer, sink, loader, start)


def rows(run_dir: Path, *kinds: str) -> list[dict]:
    """Rows of the metrics without what a clock says."""
    found = [row for row in read_metrics(run_dir / "metrics.jsonl") if not kinds or row["kind"] in kinds]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in found]


def without_times(state: TrainState) -> TrainState:
    return replace(state, elapsed_s=0.0, used_s=0.0)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    differing = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert differing == []


def send(number: int) -> None:
    os.kill(os.getpid(), number)


# Numbering and order


def test_a_run_has_each_step_once_and_ends_with_its_checkpoint(tmp_path, store):
    run = launch(tmp_path / "run", store, num_steps=5, every=2, keep=9)
    before = run.model.transformer.wte.weight.clone()
    end = run.fit()
    train = rows(tmp_path / "run", "train")
    assert [row["step"] for row in train] == [0, 1, 2, 3, 4]
    assert [row["tokens_seen"] for row in train] == [64, 128, 192, 256, 320]
    assert [row["rows_consumed"] for row in train] == [4, 8, 12, 16, 20]
    assert all(math.isfinite(row["loss_nats"]) and row["grad_norm"] > 0 for row in train)
    assert (end.step, end.tokens_seen, end.position.rows_consumed) == (5, 320, 20)
    assert run.optimizer.num_updates == 5
    assert run.trainer.last_loss_nats == train[-1]["loss_nats"]
    assert list_steps(tmp_path / "run" / "checkpoints") == [2, 4, 5]
    assert not torch.equal(run.model.transformer.wte.weight, before)
    assert run.model.training


def test_the_checkpoint_is_on_the_disk_before_a_probe_of_its_step_begins(tmp_path, store):
    seen = {}
    probe = CountingProbe(action=lambda step: seen.update({step: list_steps(tmp_path / "run" / "checkpoints")}))
    launch(tmp_path / "run", store, num_steps=4, every=2, keep=9, probes=[probe]).fit()
    assert seen == {0: [], 1: [], 2: [2], 3: [2], 4: [2, 4]}


def test_each_step_is_saved_once(tmp_path, store, monkeypatch):
    saved = []
    original = SaveQueue.start

    def counting(self, **parts):
        saved.append(parts["step"])
        return original(self, **parts)

    monkeypatch.setattr(SaveQueue, "start", counting)
    launch(tmp_path / "run", store, num_steps=4, every=2, probes=[CountingProbe()]).fit()
    assert saved == [2, 4]
    # A finished run that is started again trains nothing, saves nothing, and answers the last probes again.
    again = launch(tmp_path / "run", store, num_steps=4, every=2, probes=[CountingProbe()])
    assert again.fit().step == 4
    assert saved == [2, 4]
    assert [row["step"] for row in rows(tmp_path / "run", "eval")] == [0, 1, 2, 3, 4]


def test_a_run_of_zero_steps_is_refused(tmp_path, store):
    with pytest.raises(ConfigError, match="before its first step"):
        launch(tmp_path / "run", store, num_steps=0).fit()
    assert rows(tmp_path / "run") == []


@pytest.mark.parametrize("num_steps", [1, 10])
def test_a_short_run_does_all_its_steps(tmp_path, store, num_steps):
    # nanochat 309: ten iterations ended before the first.
    assert launch(tmp_path / "run", store, num_steps=num_steps, every=0).fit().step == num_steps
    assert list_steps(tmp_path / "run" / "checkpoints") == [num_steps]


# Resume (R2)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, store):
    """Twenty steps in one go (more than two epochs), with a probe each third step."""
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    run = launch(run_dir, store, num_steps=20, every=3, probes=[CountingProbe(every=3)])
    end = run.fit()
    assert end.position.epoch >= 2
    return run.tensors(), end, rows(run_dir, "train", "eval")


@pytest.mark.parametrize("stop_after", range(1, 20))
def test_stopped_after_any_step_and_resumed_is_never_stopped(tmp_path, store, unbroken, stop_after):
    tensors, end, expected_rows = unbroken
    run_dir = tmp_path / "run"
    first = launch(run_dir, store, num_steps=20, every=3, probes=[CountingProbe(every=3)])
    first.sink.on_step = lambda step: send(signal.SIGTERM) if step == stop_after - 1 else None
    with pytest.raises(Interrupted) as raised:
        first.fit()
    assert raised.value.exit_code == 130
    assert f"after {stop_after} steps" in raised.value.what
    assert f"step_{stop_after:08d}" in raised.value.what
    second = launch(run_dir, store, num_steps=20, every=3, probes=[CountingProbe(every=3)])
    assert second.start.step == stop_after
    found = second.fit()
    assert_equal(second.tensors(), tensors)
    assert without_times(found) == without_times(end)
    assert rows(run_dir, "train", "eval") == expected_rows
    assert second.optimizer.num_updates == 20


def test_killed_between_checkpoints_and_resumed_is_never_stopped(tmp_path, store, unbroken):
    tensors, end, expected_rows = unbroken
    run_dir = tmp_path / "run"

    class Killed(BaseException):
        pass

    def die_at(step: int) -> Callable[[int], None]:
        def check(now: int) -> None:
            if now == step:
                raise Killed

        return check

    starts = []
    for kill_at in (1, 4, 10, 11, 19, None):
        run = launch(run_dir, store, num_steps=20, every=3, probes=[CountingProbe(every=3)])
        starts.append(run.start.step)
        if kill_at is None:
            found = run.fit()
        else:
            run.sink.on_step = die_at(kill_at)
            with pytest.raises(Killed):
                run.fit()
    assert starts == [0, 0, 3, 9, 9, 18]
    assert_equal(run.tensors(), tensors)
    assert without_times(found) == without_times(end)
    assert rows(run_dir, "train", "eval") == expected_rows


def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(tmp_path, store, unbroken):
    tensors, _, expected_rows = unbroken
    run_dir = tmp_path / "run"
    launch(run_dir, store, num_steps=20, every=3, probes=[CountingProbe(every=3)]).fit()
    damaged = run_dir / "checkpoints" / "step_00000020" / "model.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    again = launch(run_dir, store, num_steps=20, every=3, probes=[CountingProbe(every=3)])
    assert again.start.step == 18
    again.fit()
    assert_equal(again.tensors(), tensors)
    assert rows(run_dir, "train", "eval") == expected_rows
    assert checkpoint.verify(damaged.parent) == []


def test_a_checkpoint_of_another_architecture_is_refused_before_a_weight_changes(tmp_path, store):
    launch(tmp_path / "run", store, num_steps=1).fit()
    loaded = load_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000001")
    other = build_gpt(replace(CONFIG, n_embd=32), device=CPU.device, compute_dtype=torch.float32, seed=1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"step_1 is from another architecture.*float32 \[265, 16\] instead of"):
        load_into(other.state_dict(), loaded.model, what="step_1")
    assert_equal(dict(other.state_dict()), before)


def test_the_loss_scale_goes_on_where_it_was(tmp_path, store):
    run_dir = tmp_path / "run"
    scaler = LossScaler(scale=8.0, growth_interval=3)
    launch(run_dir, store, num_steps=4, every=2, scaler=scaler).fit()
    assert scaler.state() == {"scale": 16.0, "num_good": 1}
    fresh = LossScaler(scale=8.0, growth_interval=3)
    launch(run_dir, store, num_steps=6, every=2, scaler=fresh).fit()
    assert fresh.state() == {"scale": 32.0, "num_good": 0}


def test_random_numbers_go_on_where_they_were(tmp_path, store):
    # Training itself draws none; a stage that samples does.
    def drawing(run: Launch, drawn: list[float]) -> Launch:
        run.sink.on_step = lambda step: drawn.append(torch.rand(1).item())
        return run

    torch.manual_seed(9)
    straight: list[float] = []
    drawing(launch(tmp_path / "straight", store, num_steps=6), straight).fit()
    torch.manual_seed(9)
    broken: list[float] = []
    drawing(launch(tmp_path / "run", store, num_steps=3), broken).fit()
    torch.manual_seed(10)
    drawing(launch(tmp_path / "run", store, num_steps=6), broken).fit()
    assert broken == straight


def test_a_run_reads_no_checkpoint_that_it_wrote_itself(tmp_path, store, monkeypatch):
    run = launch(tmp_path / "run", store, num_steps=5, every=1, keep=2)
    monkeypatch.setattr(checkpoint, "verify", lambda path: pytest.fail(f"{path} was read"))
    run.fit()
    assert list_steps(tmp_path / "run" / "checkpoints") == [4, 5]


# Probes change nothing and end nothing (R27, users 55)


def test_probes_leave_training_bit_unchanged(tmp_path, store):
    def draw(step: int) -> None:
        # Training itself draws no number; this stands for a later stage that does.
        drawn.append(torch.rand(1).item())

    results = []
    for name, probes in (("off", []), ("on", [CountingProbe(every=1), CountingProbe(every=2, name="sample")])):
        drawn: list[float] = []
        torch.manual_seed(9)
        run = launch(tmp_path / name, store, num_steps=8, every=3, probes=probes)
        run.sink.on_step = draw
        run.fit()
        results.append((run.tensors(), rows(tmp_path / name, "train"), drawn))
    assert_equal(results[1][0], results[0][0])
    assert results[1][1:] == results[0][1:]


@pytest.mark.parametrize(
    "error", [RuntimeError("out of memory"), MemoryError(), DataError("no document"), ValueError()]
)
def test_a_probe_that_fails_at_the_last_step_does_not_lose_the_run(tmp_path, store, error):
    # nanochat 295: 29 hours lost to an evaluation that ran out of memory before the save.
    def fail(step: int) -> None:
        if step == 4:
            raise error

    others = CountingProbe(every=99, name="sample")
    run = launch(tmp_path / "run", store, num_steps=4, every=0, probes=[CountingProbe(action=fail), others])
    assert run.fit().step == 4
    assert find_latest_good(tmp_path / "run" / "checkpoints") is not None
    assert others.steps == [0, 4]
    (event,) = rows(tmp_path / "run", "event")
    assert event["step"] == 4
    assert event["what"].startswith(f"the probe eval failed at step 4: {type(error).__name__}")
    assert "in measure" in event["traceback"]
    assert "step_00000004" in run.sink.said[0]


def test_a_probe_that_fails_on_the_way_changes_nothing_in_what_follows(tmp_path, store):
    quiet = launch(tmp_path / "quiet", store, num_steps=6)
    quiet.fit()

    def fail(step: int) -> None:
        raise RuntimeError(f"cannot score step {step}")

    run = launch(tmp_path / "run", store, num_steps=6, probes=[CountingProbe(action=fail)])
    run.fit()
    assert_equal(run.tensors(), quiet.tensors())
    assert rows(tmp_path / "run", "train") == rows(tmp_path / "quiet", "train")
    # Three failures in a row, and a word that it is off.
    assert [row["step"] for row in rows(tmp_path / "run", "event")] == [0, 1, 2, 2]


def test_the_best_is_chosen_among_the_steps_that_have_a_checkpoint_and_is_kept(tmp_path, store):
    class Scores(CountingProbe):
        def measure(self, model, step, *, is_over):
            return {"val_bpb": {0: 0.1, 2: 1.5, 3: 0.5}.get(step, 2.0 + step)}

    run = launch(tmp_path / "run", store, num_steps=9, every=2, keep=2, probes=[Scores()])
    end = run.fit()
    assert (end.best_bpb, end.best_step) == (1.5, 2)
    assert list_steps(tmp_path / "run" / "checkpoints") == [2, 8, 9]


# Signals (R15)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_step_saves_at_its_end_and_stops(tmp_path, store, number):
    run = launch(tmp_path / "run", store, num_steps=9, every=0)
    run.sink.on_step = lambda step: send(number) if step == 3 else None
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"stopped by {number.name} after 4 steps.*step_00000004") as raised:
        run.fit()
    assert raised.value.exit_code == 130
    assert "--resume" in raised.value.hint
    assert signal.getsignal(number) is before
    assert list_steps(tmp_path / "run" / "checkpoints") == [4]
    assert rows(tmp_path / "run", "event")[-1]["what"] == f"stopped by {number.name}"


def test_a_signal_in_a_probe_drops_it_and_saves_the_step(tmp_path, store):
    after = []

    def interrupt(step: int) -> None:
        if step == 3:
            send(signal.SIGTERM)
            after.append("went on")

    run = launch(tmp_path / "run", store, num_steps=9, every=0, probes=[CountingProbe(action=interrupt)])
    with pytest.raises(Interrupted, match="after 3 steps"):
        run.fit()
    assert after == []
    assert run.model.training
    assert list_steps(tmp_path / "run" / "checkpoints") == [3]
    # The probe is not a failure, and the resumed run asks it again.
    assert [row["what"] for row in rows(tmp_path / "run", "event")] == ["stopped by SIGTERM"]
    resumed = launch(tmp_path / "run", store, num_steps=4, every=0, probes=[CountingProbe()])
    resumed.fit()
    assert [row["step"] for row in rows(tmp_path / "run", "eval")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("signals", "left"), [([signal.SIGTERM], [2, 4]), ([signal.SIGINT, signal.SIGINT], [2])])
def test_a_signal_in_a_save_never_leaves_half_of_it(tmp_path, store, monkeypatch, signals, left):
    original = writing.save_file

    def interrupted(tensors, path):
        original(tensors, path)
        if "step_00000004" in str(path) and path.name == "model.safetensors":
            for number in signals:
                send(number)

    monkeypatch.setattr(writing, "save_file", interrupted)
    with pytest.raises(Interrupted, match=f"step_0000000{left[-1]}"):
        launch(tmp_path / "run", store, num_steps=9, every=2).fit()
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        f"step_0000000{step}" for step in left
    ]
    assert find_latest_good(tmp_path / "run" / "checkpoints") is not None


def test_a_second_ctrl_c_stops_at_once_and_says_what_is_left(tmp_path, store):
    def twice(step: int) -> None:
        if step == 4:
            send(signal.SIGINT)
            send(signal.SIGINT)
            pytest.fail("it went on")

    run = launch(tmp_path / "run", store, num_steps=9, every=2)
    run.sink.on_step = twice
    with pytest.raises(Interrupted, match=r"stopped at once; the last good checkpoint is .*step_00000004"):
        run.fit()
    assert list_steps(tmp_path / "run" / "checkpoints") == [2, 4]


def test_a_signal_before_the_first_step_leaves_nothing_to_save(tmp_path, store):
    run = launch(
        tmp_path / "run", store, num_steps=3, probes=[CountingProbe(action=lambda step: send(signal.SIGTERM))]
    )  # fmt: skip
    with pytest.raises(Interrupted, match="after 0 steps, no checkpoint was saved yet"):
        run.fit()
    assert list_steps(tmp_path / "run" / "checkpoints") == []


# Refused updates (R16)


def poison(run: Launch, steps: set[int], *, value: float = math.nan, rank_share: str = "loss") -> None:
    """Make the loss, or one gradient, of some steps non-finite."""
    hidden = run.model.hidden
    calls = iter(range(10**6))

    def poisoned(inputs_BT):
        step = run.start.step + next(calls) // MICRO
        x_BTD = hidden(inputs_BT)
        if step not in steps:
            return x_BTD
        if rank_share == "loss":
            return x_BTD * value
        x_BTD.register_hook(lambda grad: grad * value)
        return x_BTD

    run.trainer.hidden = poisoned


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_step_changes_no_bit_and_names_its_documents(tmp_path, store, where, value):
    run = launch(tmp_path / "run", store, num_steps=5, every=1, keep=9)
    poison(run, {2}, value=value, rank_share=where)
    states = {}
    run.sink.on_step = lambda step: states.update({step: run.tensors()})
    end = run.fit()
    assert_equal(states[2], states[1])
    assert not torch.equal(states[3]["model lm_head.weight"], states[2]["model lm_head.weight"])
    assert (end.step, end.num_skipped, end.num_skipped_in_a_row, run.optimizer.num_updates) == (5, 1, 0, 4)
    (event,) = rows(tmp_path / "run", "event")
    assert (event["step"], event["what"].split(":")[0]) == (2, "update refused")
    # Rows 8 to 11 of the order are the third step's.
    with launch(tmp_path / "other", store).loader as loader:
        for _ in range(2 * MICRO):
            position = next(loader).position
        assert position.rows_consumed == 8
        assert event["documents"] == loader.documents_of(position, 4)
        assert len(event["documents"]) > 1
    assert event["documents"][0] in run.sink.said[0]
    # The step that saves right after it holds only finite numbers.
    for step in range(1, 6):
        loaded = load_checkpoint(tmp_path / "run" / "checkpoints" / f"step_{step:08d}")
        assert all(tensor.isfinite().all() for tensor in [*loaded.model.values(), *loaded.optimizer.values()])


def test_many_bad_steps_in_a_row_end_the_run_and_name_the_last_good_checkpoint(tmp_path, store):
    run = launch(tmp_path / "run", store, num_steps=20, every=2, guards=Guards(nonfinite_limit=3))
    poison(run, {1, 5, 6, 7, 8})
    with pytest.raises(TrainingStopped) as raised:
        run.fit()
    assert raised.value.exit_code == 5
    assert "3 updates in a row were refused, the last at step 7" in raised.value.what
    assert "step_00000006" in raised.value.hint
    assert [row["step"] for row in rows(tmp_path / "run", "event")] == [1, 5, 6, 7]


def test_refusals_in_a_row_are_counted_across_a_resume(tmp_path, store):
    first = launch(tmp_path / "run", store, num_steps=20, every=0, guards=Guards(nonfinite_limit=3))
    poison(first, {2, 3})
    first.sink.on_step = lambda step: send(signal.SIGTERM) if step == 3 else None
    with pytest.raises(Interrupted):
        first.fit()
    second = launch(tmp_path / "run", store, num_steps=20, every=0, guards=Guards(nonfinite_limit=3))
    poison(second, {4})
    with pytest.raises(TrainingStopped, match="3 updates in a row"):
        second.fit()


def test_a_float16_overflow_that_lowers_the_scale_does_not_end_the_run(tmp_path, store):
    scaler = LossScaler(scale=2.0**12)
    run = launch(tmp_path / "run", store, num_steps=6, every=0, guards=Guards(nonfinite_limit=2), scaler=scaler)
    poison(run, {0, 1, 2, 3}, value=math.inf, rank_share="gradient")
    end = run.fit()
    assert (end.num_skipped, end.num_skipped_in_a_row, run.optimizer.num_updates) == (4, 0, 2)
    assert scaler.scale == 2.0**8


def test_weights_that_became_non_finite_are_never_saved_and_the_good_checkpoint_stays(tmp_path, store):
    def ruin(step: int) -> None:
        if step == 3:
            with torch.no_grad():
                run.model.lm_head.weight[5, 5] = math.nan

    run = launch(tmp_path / "run", store, num_steps=20, every=2, guards=Guards(nonfinite_limit=3))
    run.sink.on_step = ruin
    with pytest.raises(TrainingStopped, match="in a row"):
        run.fit()
    assert list_steps(tmp_path / "run" / "checkpoints") == [2]
    assert any("NaN or Inf in model.safetensors: lm_head.weight" in text for text in run.sink.said)


# Saves that fail (R13)


def test_a_full_disk_leaves_the_run_alive_and_the_last_good_checkpoint_intact(tmp_path, store, monkeypatch):
    quiet = launch(tmp_path / "quiet", store, num_steps=8, every=2)
    quiet.fit()
    original = writing.save_file

    def full(tensors, path):
        if "step_00000004" in str(path) or "step_00000006" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        original(tensors, path)

    monkeypatch.setattr(writing, "save_file", full)
    at_seven = []
    run = launch(tmp_path / "run", store, num_steps=8, every=2)
    run.sink.on_step = lambda step: at_seven.append(find_latest_good(tmp_path / "run" / "checkpoints"))
    run.fit()
    assert_equal(run.tensors(), quiet.tensors())
    assert rows(tmp_path / "run", "train") == rows(tmp_path / "quiet", "train")
    assert at_seven[7] == tmp_path / "run" / "checkpoints" / "step_00000002"
    assert list_steps(tmp_path / "run" / "checkpoints") == [2, 8]
    events = rows(tmp_path / "run", "event")
    assert [row["step"] for row in events] == [4, 6]
    assert "No space left on device" in events[0]["what"]
    assert "bytes are needed" in events[0]["what"]
    assert "step_00000002" in run.sink.said[0]


def test_where_the_last_save_fails_the_probes_still_run_and_the_end_is_an_error(tmp_path, store, monkeypatch):
    def full(tensors, path):
        raise OSError(28, "No space left on device")

    probe = CountingProbe(every=99)
    run = launch(tmp_path / "run", store, num_steps=4, every=2, probes=[probe])
    run.sink.on_step = lambda step: monkeypatch.setattr(writing, "save_file", full) if step == 2 else None
    with pytest.raises(CheckpointError) as raised:
        run.fit()
    assert raised.value.exit_code == 4
    assert "training is done" in raised.value.what
    assert "No space left" in raised.value.what
    assert "step_00000002" in raised.value.what
    assert probe.steps == [0, 4]


def test_data_that_ends_saves_before_it_stops(tmp_path, store):
    with pytest.raises(DataError, match=r"the data ended after \d+ steps"):
        launch(tmp_path / "run", store, num_steps=500, every=0, max_epochs=1).fit()
    (step,) = list_steps(tmp_path / "run" / "checkpoints")
    assert step == rows(tmp_path / "run", "train")[-1]["step"] + 1
    loaded = load_checkpoint(tmp_path / "run" / "checkpoints" / f"step_{step:08d}")
    assert loaded.state["train"]["position"]["rows_consumed"] == step * MICRO * ROWS


# The rest


def test_garbage_is_collected_at_probes_only_and_the_collector_is_put_back(tmp_path, store):
    during = []
    run = launch(tmp_path / "run", store, num_steps=3, every=0)
    run.sink.on_step = lambda step: during.append((gc.isenabled(), gc.get_freeze_count() > 0))
    assert gc.isenabled()
    run.fit()
    assert during == [(False, True)] * 3
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_the_collector_is_put_back_after_an_error_too(tmp_path, store):
    run = launch(tmp_path / "run", store, num_steps=3, every=0)
    run.sink.on_step = lambda step: pytest.fail("stop here")
    with pytest.raises(pytest.fail.Exception):
        run.fit()
    assert gc.isenabled()


def test_time_in_probes_and_saves_is_not_training_time(tmp_path, store, monkeypatch):
    run = launch(tmp_path / "run", store, num_steps=3, every=1, probes=[CountingProbe()])
    original = trainer_module.train_step

    def timed(*args, **kwargs):
        return replace(original(*args, **kwargs), elapsed_s=0.25)

    monkeypatch.setattr(trainer_module, "train_step", timed)
    assert run.fit().elapsed_s == 0.75


def test_rates_by_hand():
    # Accumulation counts: a step of 4 micro-batches of 2 x 16 tokens in half a second.
    assert tokens_per_s(4 * 2 * 16, 0.5) == 256
    assert tokens_per_s(128, 0.0) == 0
    assert mfu(3e12, 0.5, 12e12) == 0.5
    assert mfu(3e12, 0.5, math.nan) is None
    assert mfu(3e12, 0.0, 12e12) is None


def test_a_state_beyond_step_0_is_taken_as_saved(tmp_path, store):
    run = launch(tmp_path / "run", store, num_steps=2, every=1)
    run.start = TrainState(step=1, position=Position(0, 0, 4, 4))
    run.fit()
    assert list_steps(tmp_path / "run" / "checkpoints") == [2]


# Behind the steps (R20)


def test_saving_behind_the_steps_leaves_the_same_files_as_waiting_for_each(tmp_path, store):
    for name, asynchronous in (("waits", False), ("behind", True)):
        run = launch(tmp_path / name, store, num_steps=6, every=1, keep=9, asynchronous=asynchronous)
        run.fit()
        run.trainer.saves.close()
    for step in range(1, 7):
        first, second = (tmp_path / name / "checkpoints" / f"step_{step:08d}" for name in ("waits", "behind"))
        for file in ("model.safetensors", "optimizer-00000-of-00001.safetensors", "rng.safetensors"):
            assert (first / file).read_bytes() == (second / file).read_bytes(), f"{step} {file}"
    saves = [row for row in read_metrics(tmp_path / "behind" / "metrics.jsonl") if row["kind"] == "save"]
    assert sorted(row["step"] for row in saves) == [1, 2, 3, 4, 5, 6]
    assert all(row["bytes"] > 0 and row["write_s"] > 0 for row in saves)


def test_a_best_score_whose_checkpoint_was_lost_is_best_no_longer(tmp_path, store, monkeypatch):
    original = writing.save_file

    def full(tensors, path):
        if "step_00000002" in str(path):
            raise OSError(28, "No space left on device")
        original(tensors, path)

    monkeypatch.setattr(writing, "save_file", full)
    run = launch(tmp_path / "run", store, num_steps=5, every=2, keep=9, probes=[FallingProbe()])
    end = run.fit()
    # Scores rise, so step 2 would have stayed the best.
    assert list_steps(tmp_path / "run" / "checkpoints") == [4, 5]
    assert end.best_step == 4


class FallingProbe(CountingProbe):
    """Each score is worse than the one before."""

    def measure(self, model: GPT, step: int, *, is_over) -> dict:
        return {"val_bpb": 1.0 + step}


# Spikes (R17)


def outlier(monkeypatch, *, at_calls: set[int]):
    """Makes the loss of some calls of the loss layer 50 nats a token higher, whatever the step's number is by then."""
    original = step_module.summed_cross_entropy
    calls = []

    def with_outliers(x_BTD, head_VD, targets_BT, weights_BT=None, **options):
        calls.append(1)
        loss = original(x_BTD, head_VD, targets_BT, weights_BT, **options)
        return loss + 50.0 * (targets_BT != -1).sum() if (len(calls) - 1) // MICRO in at_calls else loss

    monkeypatch.setattr(step_module, "summed_cross_entropy", with_outliers)


def test_a_spike_is_left_out_and_training_goes_on(tmp_path, store, monkeypatch):
    outlier(monkeypatch, at_calls={5})
    guards = Guards(spike=SpikeGuard(min_history=4), on_spike="skip", nonfinite_limit=1)
    run = launch(tmp_path / "run", store, num_steps=8, every=0, guards=guards)
    end = run.fit()
    assert (end.step, end.num_skipped, end.num_skipped_in_a_row, run.optimizer.num_updates) == (8, 1, 0, 7)
    event = rows(tmp_path / "run", "event")[0]
    assert event["step"] == 5
    assert "loss spike" in event["what"]
    assert event["documents"], "the documents of the batch are named"


def test_a_rollback_goes_back_to_the_checkpoint_and_passes_over_the_rows_since(tmp_path, store, monkeypatch):
    outlier(monkeypatch, at_calls={5})
    restored = []

    def restore():
        loaded = load_checkpoint(find_latest_good(tmp_path / "run" / "checkpoints"))
        load_into(run.model.state_dict(), loaded.model, what="")
        run.optimizer.load_state_tensors(loaded.optimizer)
        run.optimizer.num_updates = loaded.state["num_updates"]
        restored.append({name: tensor.clone() for name, tensor in run.model.state_dict().items()})
        return TrainState.from_dict(loaded.state["train"])

    guards = Guards(spike=SpikeGuard(min_history=4), on_spike="rollback")
    run = launch(tmp_path / "run", store, num_steps=8, every=4, keep=9, guards=guards, restore=restore)
    end = run.fit()
    assert len(restored) == 1
    assert (end.step, end.num_rollbacks, run.optimizer.num_updates) == (8, 1, 8)
    train = rows(tmp_path / "run", "train")
    assert [row["step"] for row in train] == list(range(8)), "each step is once in the metrics"
    # Six steps' rows went by when the spike came, of which four are in the checkpoint; four more steps of 4 rows follow.
    assert [row["rows_consumed"] for row in train] == [4, 8, 12, 16, 28, 32, 36, 40]
    assert end.position.rows_consumed == 40
    event = next(row for row in rows(tmp_path / "run", "run") if "rolled back" in row["what"])
    assert event["num_rows_passed_over"] == 8


def test_a_run_that_spikes_after_each_rollback_is_stopped(tmp_path, store, monkeypatch):
    outlier(monkeypatch, at_calls={5, 6, 7, 8, 9, 10})
    guards = Guards(spike=SpikeGuard(min_history=4), on_spike="rollback")
    run = launch(
        tmp_path / "run", store, num_steps=20, every=4, guards=guards,
        restore=lambda: TrainState(step=4, position=Position(0, 1, 0, 16)),
    )  # fmt: skip
    with pytest.raises(TrainingStopped, match="after 3 rollbacks"):
        run.fit()


def test_without_a_checkpoint_a_rollback_leaves_the_update_out(tmp_path, store, monkeypatch):
    outlier(monkeypatch, at_calls={5})
    guards = Guards(spike=SpikeGuard(min_history=4), on_spike="rollback")
    run = launch(tmp_path / "run", store, num_steps=8, every=0, guards=guards, restore=lambda: None)
    assert run.fit().num_skipped == 1
    assert any("no checkpoint to go back to" in text for text in run.sink.said)
