"""The one step: equal weights for all targets, nothing applied when something is wrong, ranks that agree."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import nn

from firstlight.data.batch import IGNORE, Batch, Position
from firstlight.model.gpt import GPTConfig
from firstlight.model.init import build_gpt
from firstlight.optim.groups import AdamWGroup, make_groups
from firstlight.optim.muonadamw import MuonAdamW
from firstlight.optim.schedule import Hyper
from firstlight.runtime.context import Runtime
from firstlight.train.scaler import LossScaler
from firstlight.train.step import train_step

VOCAB, WIDTH, TOKENS = 23, 8, 6
CPU = Runtime(device=torch.device("cpu"))


class TinyModel(nn.Module):
    """The least that has a model's interface: embedding, one block matrix, head."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.config = SimpleNamespace(softcap=15.0)
        self.compute_dtype = torch.float32
        self.transformer = nn.ModuleDict(
            {"wte": nn.Embedding(VOCAB, WIDTH), "h": nn.ModuleList([nn.Linear(WIDTH, WIDTH, bias=False)])}
        )
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)

    def hidden(self, inputs_BT):
        x_BTD = self.transformer["wte"](inputs_BT)
        return x_BTD + torch.tanh(self.transformer["h"][0](x_BTD))


def make_batch(rows=1, *, seed=0, valid=None, position=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(0, VOCAB, (rows, TOKENS), generator=generator)
    targets = torch.randint(0, VOCAB, (rows, TOKENS), generator=generator)
    if valid is not None:
        targets.view(-1)[valid:] = IGNORE
    return Batch(inputs, targets, Position(rows_consumed=position))


def join(batches):
    return Batch(
        torch.cat([b.inputs_BT for b in batches]), torch.cat([b.targets_BT for b in batches]), batches[-1].position
    )


def all_adamw(model, lr=0.01):
    """Every parameter under AdamW with a large epsilon, so that weights show gradients smoothly."""
    return MuonAdamW([AdamWGroup("all", tuple(model.named_parameters()), lr, (0.8, 0.95), 1e-3)], CPU)


def mixed(model, runtime=CPU):
    return MuonAdamW(make_groups(model.named_parameters(), embedding_lr=0.01, n_embd=768), runtime)


def gradients_given_to(optimizer):
    """Record what `step` gets: summed gradients times grad_scale."""
    seen = {}
    inner = optimizer.step

    def step(hyper, *, grad_scale=1.0):
        for group in optimizer.groups:
            for name, parameter in group.parameters:
                seen[name] = parameter.grad.clone() * grad_scale
        return inner(hyper, grad_scale=grad_scale)

    optimizer.step = step
    return seen


def snapshot(model, optimizer):
    tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
    return tensors | {name: t.clone() for name, t in optimizer.state_tensors().items()}


def assert_bit_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_accumulating_8_micro_batches_equals_one_batch_of_8():
    parts = [make_batch(2, seed=i, position=2 * i + 2) for i in range(8)]
    results = []
    for micro_batches in (parts, [join(parts)]):
        model = TinyModel()
        optimizer = mixed(model)
        seen = gradients_given_to(optimizer)
        stats = [train_step(model, optimizer, micro_batches, CPU, Hyper()) for _ in range(3)]
        results.append((seen, snapshot(model, optimizer), stats))
    for name in results[0][0]:
        assert torch.allclose(results[0][0][name], results[1][0][name], atol=1e-6), name
    for name in results[0][1]:
        assert torch.allclose(results[0][1][name], results[1][1][name], atol=1e-6), name
    for a, b in zip(results[0][2], results[1][2], strict=True):
        assert a.loss_nats == pytest.approx(b.loss_nats, abs=1e-6)
        assert a.grad_norm == pytest.approx(b.grad_norm, abs=1e-6)
        assert a.num_targets == b.num_targets == 8 * 2 * TOKENS
        assert a.position == b.position == Position(rows_consumed=16)


def test_micro_batches_with_1_and_7_targets_weigh_every_target_equally():
    one, seven = make_batch(2, seed=1, valid=1), make_batch(2, seed=2, valid=7)
    model = TinyModel()
    optimizer = all_adamw(model)
    seen = gradients_given_to(optimizer)
    stats = train_step(model, optimizer, [one, seven], CPU, Hyper(grad_clip=0))
    assert stats.num_targets == 8

    model = TinyModel()
    both = join([one, seven])
    logits = model.hidden(both.inputs_BT) @ model.lm_head.weight.T
    capped = 15 * torch.tanh(logits / 15)
    mean = nn.functional.cross_entropy(capped.flatten(0, 1), both.targets_BT.flatten(), ignore_index=IGNORE)
    mean.backward()
    assert stats.loss_nats == pytest.approx(mean.item(), abs=1e-6)
    for name, parameter in model.named_parameters():
        assert torch.allclose(seen[name], parameter.grad, atol=1e-6), name


def test_equals_torch_optim_adamw_over_20_steps_of_training():
    model, theirs = TinyModel(), TinyModel()
    optimizer = all_adamw(model)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.0)
    for i in range(20):
        batch = make_batch(4, seed=i)
        stats = train_step(model, optimizer, [batch], CPU, Hyper(grad_clip=1.0))
        reference.zero_grad()
        logits = theirs.hidden(batch.inputs_BT) @ theirs.lm_head.weight.T
        loss = nn.functional.cross_entropy((15 * torch.tanh(logits / 15)).flatten(0, 1), batch.targets_BT.flatten())
        loss.backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        reference.step()
        assert stats.loss_nats == pytest.approx(loss.item(), abs=1e-5)
        assert stats.grad_norm == pytest.approx(norm.item(), abs=1e-5)
    for a, b in zip(model.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-5)


def test_weights_of_a_batch_reach_the_loss():
    batch = make_batch(2)
    weighted = dataclasses.replace(batch, weights_BT=torch.full(batch.targets_BT.shape, 0.5))
    plain = train_step(TinyModel(), mixed(model := TinyModel()), [batch], CPU, Hyper())
    half = train_step(model, mixed(model), [weighted], CPU, Hyper())
    assert half.loss_nats == pytest.approx(plain.loss_nats / 2, rel=1e-6)
    assert half.num_targets == plain.num_targets


def test_a_nan_loss_is_reported_and_changes_no_bit():
    model = TinyModel()
    optimizer = mixed(model)
    train_step(model, optimizer, [make_batch()], CPU, Hyper())
    before = snapshot(model, optimizer)

    def poisoned(inputs_BT):
        x_BTD = model.hidden(inputs_BT)
        return x_BTD * math.nan

    stats = train_step(model, optimizer, [make_batch(), make_batch(position=9)], CPU, Hyper(), hidden=poisoned)
    assert stats.skipped == "loss is nan"
    assert stats.position.rows_consumed == 9
    assert_bit_equal(before, snapshot(model, optimizer))
    assert optimizer.num_updates == 1
    assert all(p.grad is None for p in model.parameters())

    other = TinyModel()
    other_optimizer = mixed(other)
    for seed in (0, 5):
        train_step(other, other_optimizer, [make_batch(seed=seed)], CPU, Hyper())
    assert train_step(model, optimizer, [make_batch(seed=5)], CPU, Hyper()).skipped is None
    assert_bit_equal(snapshot(model, optimizer), snapshot(other, other_optimizer))


def test_a_nan_gradient_under_a_finite_loss_is_reported_and_changes_no_bit():
    model = TinyModel()
    optimizer = mixed(model)
    before = snapshot(model, optimizer)
    handle = model.transformer["h"][0].weight.register_hook(lambda grad: grad * math.nan)
    stats = train_step(model, optimizer, [make_batch()], CPU, Hyper())
    handle.remove()
    assert stats.skipped == "gradient norm is nan"
    assert math.isfinite(stats.loss_nats)
    assert_bit_equal(before, snapshot(model, optimizer))


def test_a_batch_of_ignored_targets_is_skipped_with_a_reason_and_no_nan():
    model = TinyModel()
    optimizer = mixed(model)
    before = snapshot(model, optimizer)
    stats = train_step(model, optimizer, [make_batch(valid=0), make_batch(2, valid=0)], CPU, Hyper())
    assert stats.num_targets == 0
    assert stats.loss_nats == 0.0
    assert "no targets" in stats.skipped
    assert_bit_equal(before, snapshot(model, optimizer))


def test_one_empty_micro_batch_among_good_ones_does_no_harm():
    results = []
    for micro_batches in ([make_batch(valid=0), make_batch(seed=3)], [make_batch(seed=3)]):
        model = TinyModel()
        optimizer = mixed(model)
        stats = train_step(model, optimizer, micro_batches, CPU, Hyper())
        assert stats.skipped is None
        results.append(snapshot(model, optimizer))
    for name in results[0]:
        assert torch.allclose(results[0][name], results[1][name], atol=1e-6), name


def test_rows_in_parts_are_the_same_tokens_as_shorter_rows():
    config = GPTConfig(vocab_size=64, n_layer=2, n_head=1, n_kv_head=1, n_embd=16, max_seq_len=24)
    ids = torch.randint(0, 64, (2, 25), generator=torch.Generator().manual_seed(0))
    inputs, targets = ids[:, :-1], ids[:, 1:]
    updated = []
    for batch, parts in (
        (Batch(inputs, targets, Position()), 4),
        (Batch(inputs.reshape(8, 6), targets.reshape(8, 6), Position()), 1),
        (Batch(inputs, targets, Position()), 1),
    ):
        model = build_gpt(config, seed=0)
        with torch.no_grad():
            model.lm_head.weight.normal_(generator=torch.Generator().manual_seed(1))
            model.transformer.h[0].attn.c_proj.weight.normal_(generator=torch.Generator().manual_seed(2))
        stats = train_step(model, mixed(model), [batch], CPU, Hyper(row_parts=parts))
        assert stats.num_targets == stats.num_tokens == 48
        updated.append((stats.loss_nats, model.lm_head.weight.detach()))
    assert updated[0][0] == pytest.approx(updated[1][0], rel=1e-6)
    torch.testing.assert_close(updated[0][1], updated[1][1], rtol=1e-5, atol=1e-6)
    assert abs(updated[0][0] - updated[2][0]) > 1e-3, "context must matter for this test to mean something"


def test_rows_that_have_no_such_parts_are_refused():
    model = TinyModel()
    with pytest.raises(RuntimeError, match="invalid for input of size 6"):
        train_step(model, all_adamw(model), [make_batch()], CPU, Hyper(row_parts=4))


def test_no_micro_batch_is_refused():
    with pytest.raises(ValueError, match="no micro-batch"):
        train_step(model := TinyModel(), mixed(model), iter(()), CPU, Hyper())


def test_micro_batches_are_pulled_one_at_a_time():
    model = TinyModel()
    asked, served = [], []

    def stream():
        for i in range(3):
            asked.append(i)
            yield make_batch(seed=i)

    def hidden(inputs_BT):
        served.append(len(asked))
        return model.hidden(inputs_BT)

    stats = train_step(model, mixed(model), stream(), CPU, Hyper(), hidden=hidden)
    assert served == [1, 2, 3]
    assert stats.num_targets == 3 * TOKENS


def test_statistics_count_all_micro_batches_and_measure_time():
    model = TinyModel()
    stats = train_step(model, mixed(model), [make_batch(2) for _ in range(4)], CPU, Hyper())
    assert stats.num_targets == 4 * 2 * TOKENS
    assert stats.elapsed_s > 0


def test_loss_scale_leaves_the_update_as_it_is():
    results = []
    for scaler in (None, LossScaler(scale=2.0**10)):
        model = TinyModel()
        optimizer = mixed(model)
        stats = train_step(model, optimizer, [make_batch(3)], CPU, Hyper(), scaler=scaler)
        results.append((snapshot(model, optimizer), stats))
    assert results[0][1].grad_norm == pytest.approx(results[1][1].grad_norm, rel=1e-6)
    for name in results[0][0]:
        assert torch.allclose(results[0][0][name], results[1][0][name], atol=1e-7), name


def test_an_overflow_lowers_the_loss_scale_and_skips_the_update():
    model = TinyModel()
    optimizer = mixed(model)
    before = snapshot(model, optimizer)
    scaler = LossScaler(scale=4.0)
    handle = model.lm_head.weight.register_hook(lambda grad: grad * math.inf)
    stats = train_step(model, optimizer, [make_batch()], CPU, Hyper(), scaler=scaler)
    handle.remove()
    assert scaler.scale == 2.0
    assert "loss scale lowered from 4 to 2" in stats.skipped
    assert_bit_equal(before, snapshot(model, optimizer))
    assert train_step(model, optimizer, [make_batch()], CPU, Hyper(), scaler=scaler).skipped is None


def two_ranks(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    runtime = Runtime(device=torch.device("cpu"), rank=rank, local_rank=rank, world_size=2)
    model = TinyModel()
    optimizer = mixed(model, runtime)
    scaler = LossScaler(scale=8.0)
    rows = []
    for step in range(4):
        mine = [b for i, b in enumerate(batches_of_step(step)) if i % 2 == rank]
        handle = None
        if step == 1 and rank == 1:
            handle = model.lm_head.weight.register_hook(lambda grad: grad * math.inf)
        stats = train_step(model, optimizer, mine, runtime, Hyper(grad_clip=0.5), scaler=scaler)
        if handle:
            handle.remove()
        rows.append([stats.loss_nats, stats.grad_norm, stats.num_targets, stats.skipped is not None, scaler.scale])
    save_file(snapshot(model, optimizer) | {"stats": torch.tensor(rows)}, f"{folder}/rank{rank}.safetensors")
    dist.destroy_process_group()


def batches_of_step(step):
    """Four micro-batches with different numbers of targets; the ranks take every second one."""
    return [make_batch(2, seed=10 * step + i, valid=(12, 1, 7, 3)[i]) for i in range(4)]


def test_two_processes_equal_one_with_clipping_accumulation_and_an_overflow_on_one_rank(tmp_path):
    mp.spawn(two_ranks, args=(str(tmp_path),), nprocs=2)
    rank0, rank1 = (load_file(tmp_path / f"rank{r}.safetensors") for r in (0, 1))
    stats0, stats1 = rank0.pop("stats"), rank1.pop("stats")
    # The state is divided among them, the weights are the same.
    weights = set(rank0) & set(rank1)
    assert weights == set(TinyModel().state_dict())
    assert_bit_equal({name: rank0[name] for name in weights}, {name: rank1[name] for name in weights})
    assert torch.equal(stats0.nan_to_num(), stats1.nan_to_num())
    assert stats0[:, 2].tolist() == [23] * 4
    assert stats0[:, 3].tolist() == [0, 1, 0, 0]
    assert stats0[:, 4].tolist() == [8, 4, 4, 4]

    model = TinyModel()
    optimizer = mixed(model)
    for step in (0, 2, 3):
        stats = train_step(model, optimizer, batches_of_step(step), CPU, Hyper(grad_clip=0.5))
        assert stats.grad_norm > 0.5
        assert stats0[step, 0].item() == pytest.approx(stats.loss_nats, abs=1e-6)
        assert stats0[step, 1].item() == pytest.approx(stats.grad_norm, abs=1e-6)
    for name, tensor in snapshot(model, optimizer).items():
        assert torch.allclose((rank0 | rank1)[name], tensor, atol=1e-6), name


def test_a_loss_that_is_refused_leaves_every_bit_unchanged_and_is_told_apart():
    model = TinyModel()
    optimizer = mixed(model)
    before = snapshot(model, optimizer)
    heard = []

    def refuse(loss_nats):
        heard.append(loss_nats)
        return "too high"

    stats = train_step(model, optimizer, [make_batch(3)], CPU, Hyper(), refuse=refuse)
    assert heard == [stats.loss_nats]
    assert (stats.skipped, stats.is_spike) == ("too high", True)
    assert_bit_equal(before, snapshot(model, optimizer))
    assert not train_step(model, optimizer, [make_batch(3)], CPU, Hyper(), refuse=lambda loss_nats: None).is_spike


def test_a_real_gpt_overfits_one_batch():
    config = GPTConfig(vocab_size=64, n_layer=2, n_head=2, n_kv_head=1, n_embd=32, max_seq_len=16)
    model = build_gpt(config, device=torch.device("cpu"), compute_dtype=torch.float32, seed=1)
    optimizer = MuonAdamW(make_groups(model.named_parameters(), n_embd=32), CPU)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 64, (4, 17), generator=generator)
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), Position())
    first = train_step(model, optimizer, [batch], CPU, Hyper())
    assert first.loss_nats == pytest.approx(math.log(64), rel=0.01)
    for _ in range(100):
        last = train_step(model, optimizer, [batch], CPU, Hyper())
    assert last.loss_nats < 0.01
