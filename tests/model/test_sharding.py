"""A model whose weights are cut into rows trains, scores and is saved as one whose weights are whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ranks import joined, run_ranks

from firstlight.data.batch import Batch, Position
from firstlight.errors import CheckpointError
from firstlight.eval.bpb import evaluate_bpb
from firstlight.model import sharding
from firstlight.model.config import GPTConfig
from firstlight.model.init import build_gpt
from firstlight.optim.groups import make_groups
from firstlight.optim.muonadamw import MuonAdamW
from firstlight.optim.schedule import Hyper
from firstlight.runtime.context import Runtime
from firstlight.tokens.document import Document
from firstlight.train.step import train_step

# The vocabulary divides by neither 2 nor 3; two layers on three ranks leave one without a residual scale.
CLASSIC = GPTConfig(vocab_size=101, n_layer=2, n_head=4, n_kv_head=2, n_embd=64, max_seq_len=32)
MODERN = replace(CLASSIC, value_embed_every=2, residual_scales=True, smear=True, backout=True)
PORTABLE = replace(CLASSIC, mlp="swiglu", mlp_width=176, embed_norm=False, softcap=0.0)
SEED = 3
NUM_STEPS = 5
SAVED_STEP = 3
NUM_MICRO_BATCHES = 2
# Divides by the numbers of ranks tried, so that the same global batch can be dealt to all.
NUM_ROWS = 6


def batches(step, *, rank, world_size):
    """This rank's micro-batches: its rows of each global one."""
    for micro in range(NUM_MICRO_BATCHES):
        generator = torch.Generator().manual_seed(1000 * step + micro)
        ids = torch.randint(0, CLASSIC.vocab_size, (NUM_ROWS, 25), generator=generator)
        # Ranks have different numbers of targets.
        ids[0, 5:] = -1
        rows = ids[rank * NUM_ROWS // world_size : (rank + 1) * NUM_ROWS // world_size]
        yield Batch(rows[:, :-1].clamp_min(0), rows[:, 1:].contiguous(), Position())


def documents():
    generator = np.random.default_rng(5)
    return [
        Document(ids=generator.integers(1, CLASSIC.vocab_size, size=n).astype(np.uint16)) for n in (9, 40, 70, 3, 20)
    ]


def score(model, runtime):
    token_bytes = np.full(CLASSIC.vocab_size, 3)
    result = evaluate_bpb(
        model, documents(), token_bytes, bos_id=0, seq_len=16, batch_rows=1, runtime=runtime, forward_is_collective=True
    )
    return result.val_bpb


class Run:
    """Model and optimizer, and what they do in some steps."""

    def __init__(self, model, runtime, *, recompute):
        model.checkpoint_activations = recompute
        self.model, self.runtime, self.losses, self.norms = model, runtime, [], []
        # Rates and eps so that a gradient near zero, of which AdamW sees mostly the sign, is no louder than rounding.
        groups = make_groups(model.named_parameters(), n_embd=64, embedding_lr=0.01, scalar_lr=0.01, eps=1e-4)
        self.optimizer = MuonAdamW(groups, runtime)

    def steps(self, first, stop):
        for step in range(first, stop):
            micro = batches(step, rank=self.runtime.rank, world_size=self.runtime.world_size)
            stats = train_step(self.model, self.optimizer, micro, self.runtime, Hyper(grad_clip=1.0, weight_decay=0.1))
            self.losses.append(stats.loss_nats)
            self.norms.append(stats.grad_norm)

    def saved(self):
        """Weights and state of this rank by the keys of checkpoints, as arrays."""
        weights = {name: tensor.numpy().copy() for name, tensor in sharding.weight_tensors(self.model).items()}
        return weights, {name: tensor.numpy().copy() for name, tensor in self.optimizer.state_tensors().items()}

    def load(self, saved):
        weights, state = ({name: torch.from_numpy(array) for name, array in part.items()} for part in saved)
        sharding.load_pieces(self.model, weights)
        self.optimizer.load_state_tensors(state)
        self.optimizer.num_updates = SAVED_STEP


def on_one(config, runtime=None):
    runtime = runtime or Runtime(device=torch.device("cpu"))
    return Run(build_gpt(config, seed=SEED), runtime, recompute=False)


def in_shards(runtime, config, saved):
    """Five steps from the start with what was held after three; and two steps from what one process saved."""
    run = Run(sharding.build_sharded_gpt(config, runtime, seed=SEED), runtime, recompute=config == MODERN)
    start = {name: piece.tensor.numpy().copy() for name, piece in sharding.local_pieces(run.model).items()}
    storages = {p.to_local().untyped_storage() for p in run.model.parameters()}
    held_bytes = sum(storage.nbytes() for storage in storages)
    run.steps(0, SAVED_STEP)
    after_three = run.saved()
    bpb = score(run.model, runtime)
    run.steps(SAVED_STEP, NUM_STEPS)
    # With the embeddings of the score still gathered: what is loaded must win over them.
    score(run.model, runtime)
    again = Run(sharding.shard_weights(build_gpt(config, seed=99), runtime), runtime, recompute=False)
    score(again.model, runtime)
    again.load(saved)
    again.steps(SAVED_STEP, NUM_STEPS)
    return {
            "start": start, "held_bytes": held_bytes, "after_three": after_three, "end": run.saved(), "bpb": bpb,
        "end_bpb": score(run.model, runtime), "bpb_after_error": score_after_a_pass_cut_short(run.model, runtime),
            "losses": run.losses, "norms": run.norms, "again": again.saved(), "again_losses": again.losses,
            "shapes": (sharding.weight_shapes(run.model), run.optimizer.state_shapes()),
    }  # fmt: skip


def score_after_a_pass_cut_short(model, runtime):
    """The score after an error in the second block, at the same point on all ranks."""

    def fail(*_):
        raise RuntimeError("out of memory")

    hook = model.transformer.h[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        score(model, runtime)
    hook.remove()
    sharding.drop_pass(model)
    return score(model, runtime)


def close(found, expected, atol):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=atol, rtol=1e-4, err_msg=name)


# Three ranks compute the blocks' activations again in the backward pass.
@pytest.mark.parametrize(("world_size", "config"), [(2, CLASSIC), (2, PORTABLE), (3, MODERN)])
def test_training_scoring_and_saving_in_shards_are_those_of_one_process(world_size, config):
    oracle = on_one(config)
    oracle.steps(0, SAVED_STEP)
    saved, bpb = oracle.saved(), score(oracle.model, oracle.runtime)
    oracle.steps(SAVED_STEP, NUM_STEPS)
    weights_end, state_end = oracle.saved()
    found = run_ranks(in_shards, world_size, config, saved, timeout_s=120)

    num_bytes = 4 * sum(array.size for array in weights_end.values())
    for rank, one in enumerate(found):
        assert one["losses"] == pytest.approx(oracle.losses, abs=1e-5)
        assert one["norms"] == pytest.approx(oracle.norms, rel=1e-4)
        assert one["again_losses"] == pytest.approx(oracle.losses[SAVED_STEP:], abs=1e-5)
        assert one["bpb"] == pytest.approx(bpb, abs=1e-5)
        assert one["bpb_after_error"] == one["end_bpb"]
        assert one["held_bytes"] < 1.1 * num_bytes / world_size
        for name, whole in build_gpt(config, seed=SEED).named_parameters():
            rows = whole.detach().chunk(world_size)
            expected = rows[rank].reshape(-1).numpy() if rank < len(rows) else np.zeros(0)
            np.testing.assert_array_equal(one["start"].get(name, np.zeros(0)), expected, err_msg=name)

    weight_shapes, state_shapes = found[0]["shapes"]
    for key in ("end", "again"):
        close(joined([one[key][0] for one in found], weight_shapes), weights_end, 1e-5)
        close(joined([one[key][1] for one in found], state_shapes), state_end, 1e-5)
    # Back again: what the ranks saved after three steps goes on in one process.
    back = on_one(config)
    parts = [joined([one["after_three"][i] for one in found], shapes) for i, shapes in enumerate(found[0]["shapes"])]
    back.load(parts)
    back.steps(SAVED_STEP, NUM_STEPS)
    assert back.losses == pytest.approx(oracle.losses[SAVED_STEP:], abs=1e-5)
    close(back.saved()[0], weights_end, 1e-5)


def test_one_process_keeps_its_weights_whole():
    runtime = Runtime(device=torch.device("cpu"))
    model = build_gpt(CLASSIC, seed=SEED)
    before = dict(model.named_parameters())
    assert sharding.shard_weights(model, runtime) is model
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert not sharding.is_sharded(model)
    built = sharding.build_sharded_gpt(CLASSIC, runtime, seed=SEED)
    for name, tensor in sharding.weight_tensors(built).items():
        assert torch.equal(tensor, before[name]), name


def test_weights_that_do_not_fit_are_refused_by_name_before_anything_changes():
    model = build_gpt(CLASSIC, seed=SEED)
    saved = {name: torch.zeros_like(tensor) for name, tensor in sharding.weight_tensors(model).items()}
    del saved["transformer.h.1.mlp.c_fc.weight"]
    saved["lm_head.weight"] = torch.zeros(102, 64)
    saved["bias"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as error:
        sharding.load_pieces(model, saved)
    assert "transformer.h.1.mlp.c_fc.weight is missing" in str(error.value)
    assert "lm_head.weight is [102, 64] instead of [101, 64]" in str(error.value)
    assert "bias is not part of the model" in str(error.value)
    for name, tensor in build_gpt(CLASSIC, seed=SEED).named_parameters():
        assert torch.equal(sharding.weight_tensors(model)[name], tensor), name


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 101])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranges_are_those_of_torch_chunk(rows, world_size):
    whole = torch.arange(rows * 6).view(rows, 2, 3)
    chunks = [chunk.reshape(-1) for chunk in whole.chunk(world_size)]
    chunks += [torch.zeros(0)] * (world_size - len(chunks))
    for rank, chunk in enumerate(chunks):
        start, stop = sharding.local_range((rows, 2, 3), rank=rank, world_size=world_size)
        assert whole.view(-1)[start:stop].tolist() == chunk.tolist()
