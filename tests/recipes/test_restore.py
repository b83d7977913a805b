"""Going on from the newest good checkpoint: weights, state and counts, and the choice of rank 0."""

from __future__ import annotations

import pytest
import torch

from firstlight.model.config import GPTConfig
from firstlight.model.init import build_gpt
from firstlight.optim.groups import make_groups
from firstlight.optim.muonadamw import MuonAdamW
from firstlight.recipes.assemble import Parts
from firstlight.recipes.restore import restore_newest
from firstlight.runtime.channel import Channel
from firstlight.runtime.console import Console
from firstlight.runtime.context import Runtime
from firstlight.train.saving import SaveQueue
from firstlight.train.spike import SpikeGuard
from firstlight.train.state import TrainState, rng_tensors

CPU = Runtime(device=torch.device("cpu"))
CONFIG = GPTConfig(vocab_size=265, n_layer=1, n_head=1, n_kv_head=1, n_embd=16, max_seq_len=16)


def parts(seed):
    model = build_gpt(CONFIG, device="cpu", compute_dtype=torch.float32, seed=seed)
    return Parts(model, MuonAdamW(make_groups(model.named_parameters()), CPU), model.hidden, False, None, [])


def save(directory, made, step):
    with SaveQueue(directory, keep=5, channel=Channel(), asynchronous=False) as saves:
        values = {
            "step": step, "train": TrainState(step=step).to_dict(), "num_updates": step, "scaler": None,
            "spike": {"accepted": [2.0, 3.0], "refused": []},
        }  # fmt: skip
        saves.start(
            step=step, model=made.model.state_dict(), optimizer=made.optimizer.state_tensors(),
            shapes=made.optimizer.state_shapes(), state=values, rng=rng_tensors(CPU.device),
        )  # fmt: skip
        assert saves.wait()[0].error is None


@pytest.fixture
def saved(tmp_path):
    """Two checkpoints of one model whose optimizer state is 0.5 everywhere."""
    made = parts(seed=1)
    for tensor in made.optimizer.state_tensors().values():
        tensor.fill_(0.5)
    for step in (3, 4):
        save(tmp_path, made, step)
    return made, tmp_path


def test_everything_of_the_newest_checkpoint_arrives(saved, capsys):
    made, directory = saved
    other, spike = parts(seed=2), SpikeGuard()
    restored = restore_newest(directory, other, runtime=CPU, console=Console(is_main=True), spike=spike)
    assert restored is not None
    assert restored.path == directory / "step_00000004"
    assert restored.state.step == 4
    assert other.optimizer.num_updates == 4
    assert spike.state() == {"accepted": [2.0, 3.0], "refused": []}
    assert torch.equal(restored.rng["cpu"], torch.get_rng_state())
    for name, tensor in made.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], tensor), name
    assert all((tensor == 0.5).all() for tensor in other.optimizer.state_tensors().values())


def test_a_damaged_one_is_named_and_the_one_before_is_taken(saved, capsys):
    _, directory = saved
    file = directory / "step_00000004" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    restored = restore_newest(directory, parts(seed=2), runtime=CPU, console=Console(is_main=True), spike=None)
    assert restored is not None
    assert restored.state.step == 3
    assert str(file) in capsys.readouterr().err


def test_nothing_to_go_on_from_is_none(tmp_path):
    made = parts(seed=2)
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    assert restore_newest(tmp_path, made, runtime=CPU, console=Console(is_main=True), spike=None) is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.model.state_dict().items())
