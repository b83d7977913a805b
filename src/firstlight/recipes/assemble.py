"""Model, optimizer and compiled trunk for a plan; and how fast they are before the first step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from firstlight.errors import ConfigError
from firstlight.model import sharding
from firstlight.model.attention import choose_kernel
from firstlight.model.fp8 import use_fp8
from firstlight.model.gpt import GPT
from firstlight.model.init import build_gpt
from firstlight.model.native.layer import why_not_native_layers
from firstlight.optim.groups import make_groups
from firstlight.optim.muonadamw import MuonAdamW
from firstlight.runtime.console import format_duration
from firstlight.runtime.context import Runtime
from firstlight.train.loss import summed_cross_entropy, token_losses
from firstlight.train.native.loss import why_not_native_loss
from firstlight.train.plan import Plan
from firstlight.train.scaler import LossScaler

# Compiling takes 30 to 60 s on two cores and saves about half of each step (lab/LOG.md), so shorter runs end later with it.
COMPILE_PAYS_FROM_S = 120.0
ASSUMED_FLOPS_PER_S = 1e11
"""Rate by which the length of a run is judged for that. Fixed, not measured: two launches must choose the same kernels."""


@dataclass
class Parts:
    """What is trained. hidden: inputs_BT -> x_BTD, compiled where ``compiled``. notes: choices and their reasons."""

    model: GPT
    optimizer: MuonAdamW
    hidden: Callable[[torch.Tensor], torch.Tensor]
    compiled: bool
    scaler: LossScaler | None
    notes: list[str]


def assemble(
    plan: Plan,
    runtime: Runtime,
    *,
    compiled: bool,
    seed: int,
    checkpoint_activations: bool,
    fp8: bool = False,
    shard_weights: bool = False,
) -> Parts:
    """Build model and optimizer; wrap the trunk in torch.compile (which compiles on first use).

    fp8: the blocks' matrices multiply in 8 bits in training mode. `check_fp8` says whether the device can.
    shard_weights: each process keeps its rows of the weights only; with one process this changes nothing.
    """
    is_sharded = shard_weights and runtime.world_size > 1
    if is_sharded:
        model = sharding.build_sharded_gpt(plan.model, runtime, compute_dtype=runtime.compute_dtype, seed=seed)
    else:
        model = build_gpt(plan.model, device=runtime.device, compute_dtype=runtime.compute_dtype, seed=seed)
    model.checkpoint_activations = checkpoint_activations
    kernel, why = choose_kernel(
        device_type=runtime.device.type, compute_dtype=runtime.compute_dtype, seq_len=plan.seq_len
    )
    if kernel == "native":
        # Code that is compiled cannot look for it.
        model.attention_kernel = kernel
        # Neither fp8's products nor compiled code are among what is written out.
        model.written_out = not compiled and not fp8
    notes = [why]
    without = why_not_native_loss(device_type=runtime.device.type, dtype=runtime.compute_dtype)
    if runtime.device.type == "cpu" and without is not None:
        notes.append(
            f"the loss is computed by torch's operations, slower than native code, which is not to be had: {without}"
        )
    if fp8:
        notes.append(use_fp8(model).note())
    groups = make_groups(
        model.named_parameters(),
        embedding_lr=plan.embedding_lr,
        unembedding_lr=plan.unembedding_lr,
        matrix_lr=plan.matrix_lr,
        scalar_lr=plan.scalar_lr,
    )
    scaler = LossScaler() if runtime.compute_dtype == torch.float16 else None
    hidden = compiled_hidden(model) if compiled and not is_sharded else model.hidden
    if is_sharded:
        notes.append(
            f"weights are cut into rows over {runtime.world_size} processes (FSDP2); no two hold the same, so --check-replicas-every does nothing"
        )
        if compiled:
            sharding.compile_blocks(model)
    return Parts(model, MuonAdamW(groups, runtime), hidden, compiled, scaler, notes)


def compiled_hidden(model: GPT) -> Callable[[torch.Tensor], torch.Tensor]:
    """``model.hidden`` with a compiled trunk. The embedding stays eager: its compiled backward is not deterministic."""
    trunk = torch.compile(model.trunk, dynamic=False)

    def hidden(inputs_BT: torch.Tensor) -> torch.Tensor:
        return trunk(model.embed(inputs_BT))

    return hidden


def choose_compile(
    asked: str,
    *,
    saved: bool | None,
    device_type: str,
    compiler: str | None,
    has_native_layers: bool,
    plan: Plan,
    world_size: int,
) -> tuple[bool, str]:
    """Whether to compile, and the reason in one sentence. saved: what the run did before it was stopped (it stays so:
    other kernels would round differently). Raises ConfigError where it is asked for and cannot be.

    has_native_layers: whether layers and loss are native code where nothing is compiled.
    """
    if device_type == "cpu" and compiler is None:
        if asked == "on":
            raise ConfigError("--compile on: no C++ compiler was found", hint="install g++, or use --compile off")
        return False, "no torch.compile: no C++ compiler was found (install g++: a run is then about twice as fast)"
    if asked != "auto":
        return asked == "on", f"torch.compile {asked}: asked for"
    if saved is not None:
        return saved, f"torch.compile {'on' if saved else 'off'}: as when the run began"
    if has_native_layers:
        return False, "no torch.compile: layers and loss are native code, as fast and at once"
    if device_type == "mps":
        return False, "no torch.compile: on Apple GPUs it is on request (--compile on)"
    expected_s = plan.num_tokens * plan.flops_per_token / (ASSUMED_FLOPS_PER_S * world_size)
    if plan.horizon.kind == "minutes":
        expected_s = plan.horizon.value * 60
    if device_type == "cpu" and expected_s < COMPILE_PAYS_FROM_S:
        return False, f"no torch.compile: a run of about {format_duration(expected_s)} is too short to pay for it"
    return True, "torch.compile on: the run is long enough to pay for it"


def has_native_layers(*, device_type: str, dtype: torch.dtype) -> bool:
    """Whether layers and loss are native code where nothing is compiled. May compile both, once on a machine."""
    is_native = dtype == torch.float32 and why_not_native_loss(device_type=device_type, dtype=dtype) is None
    return is_native and why_not_native_layers() is None


def choose_native(*, saved: bool | None, device_type: str, dtype: torch.dtype) -> tuple[bool, str | None]:
    """Whether the layers (in float32) and the loss are native code here; and a sentence where that has changed.

    saved: what it was when the run began; None for a new run. May compile, once on a machine.
    """
    if dtype == torch.float32:
        is_native = has_native_layers(device_type=device_type, dtype=dtype)
    else:
        is_native = why_not_native_loss(device_type=device_type, dtype=dtype) is None
    if saved is None or saved == is_native:
        return is_native, None
    before, now = ("native code", "torch's operations") if saved else ("torch's operations", "native code")
    return is_native, (
        f"layers and loss were computed by {before} when the run began and are now by {now}: from here on the run "
        "goes on as well, but not to the bit as it would have"
    )


@dataclass(frozen=True)
class Rates:
    """Seconds of one micro-batch on one process, best of three: training (forward and backward), and scoring (forward)."""

    train_s: float
    score_s: float


def measure_rates(parts: Parts, plan: Plan, runtime: Runtime) -> Rates:
    """Compile where that is due, and time a micro-batch of made-up ids. Gradients are dropped: nothing trained changes."""
    shape = (plan.device_batch_size, plan.seq_len)
    ids_BT = torch.arange(shape[0] * shape[1], device=runtime.device).remainder(plan.model.vocab_size).view(shape)
    options = {
        "softcap": plan.model.softcap,
        "compute_dtype": runtime.compute_dtype,
        "compiled": parts.compiled,
    }

    def train() -> None:
        summed_cross_entropy(parts.hidden(ids_BT), parts.model.lm_head.weight, ids_BT, **options).backward()
        parts.optimizer.zero_grad()

    def score() -> None:
        with torch.no_grad():
            token_losses(parts.hidden(ids_BT), parts.model.lm_head.weight, ids_BT, **options)

    def best_of_three(run: Callable[[], None]) -> float:
        run()
        times = []
        for _ in range(3):
            runtime.synchronize()
            begun = time.perf_counter()
            run()
            runtime.synchronize()
            times.append(time.perf_counter() - begun)
        return min(times)

    return Rates(best_of_three(train), best_of_three(score))
