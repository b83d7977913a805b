"""Settings and a machine -> a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from firstlight.errors import ConfigError, Problems
from firstlight.model.attention import choose_kernel
from firstlight.model.config import GPTConfig
from firstlight.model.fp8 import check_fp8
from firstlight.recipes.settings import HORIZONS, BaseSettings, MidSettings, RlSettings, RunSettings, SftSettings, flag
from firstlight.runtime import environment, precision
from firstlight.runtime.context import Runtime, choose_device
from firstlight.tokens.bpe import Tokenizer
from firstlight.train.dial import depth_for, seq_len_for
from firstlight.train.plan import Horizon, Plan, make_plan

# Share of the measured matmul rate that a whole training step reaches; only estimates printed before the run rest on it.
EXPECTED_MFU = 0.5

NEVER_NEGATIVE = (
    "hang_timeout", "nonfinite_limit", "check_replicas_every", "save_every", "eval_every", "sample_every", "eval_documents",
    "final_documents", "eval_budget_s", "sample_budget_s", "core_every", "core_max_per_task", "core_budget_s",
    "chat_every", "chat_max_per_task", "chat_budget_s",
)  # fmt: skip


def horizon_of(settings: RunSettings) -> Horizon | None:
    """The one horizon that is set, or None. Raises ConfigError for two or more, naming them."""
    chosen = {name: getattr(settings, name) for name in HORIZONS if getattr(settings, name, None) is not None}
    problems = Problems()
    if len(chosen) > 1:
        problems.add(
            f"{len(chosen)} horizons are given: " + ", ".join(f"{flag(n)} {v:g}" for n, v in chosen.items()),
            hint="a run has exactly one: leave the others away",
        )
    for name, value in chosen.items():
        if not math.isfinite(value):
            problems.add(f"{flag(name)} {value:g} is no length of a run", hint="give a number above zero")
    problems.raise_if_any()
    for name, value in chosen.items():
        return Horizon(HORIZONS[name], value)  # pyrefly: ignore[bad-argument-type]
    return None


def device_memory_bytes(runtime: Runtime) -> int | None:
    """Memory of one device, or this process's share of the machine's memory on a CPU; None where it is not known."""
    if runtime.device.type == "cuda":
        import torch

        return torch.cuda.get_device_properties(runtime.device).total_memory
    total = environment.total_memory_bytes()
    on_this_machine = max(1, runtime.world_size * environment.local_world_size() // environment.world_size())
    return total // on_this_machine if total else None


def depth_for_minutes(minutes: float) -> int:
    """Depth that is expected to end with the lowest score after so many minutes on one device of this machine.

    Measures the matmul rate for some 50 ms. Two thirds of the time are taken to be training.
    """
    device, _ = choose_device("auto")
    dtype, _ = precision.choose_dtype(device, "auto")
    rate = EXPECTED_MFU * precision.expected_flops_per_s(device, dtype)
    return depth_for(minutes * 60 * 2 / 3 * rate)


def plan_from_settings(settings: BaseSettings, *, runtime: Runtime, world_size: int | None = None) -> Plan:
    """Plan of a base run on this machine. Measures the matmul rate for some 50 ms, for the estimates.

    Raises ConfigError that names every mistake.
    """
    return make_plan(
        settings.depth,
        horizon=horizon_of(settings),
        preset=settings.preset,
        vocab_size=settings.vocab_size,
        seq_len=settings.max_seq_len,
        head_dim=settings.head_dim,
        n_kv_head=settings.n_kv_head,
        embedding_lr=settings.embedding_lr,
        unembedding_lr=settings.unembedding_lr,
        matrix_lr=settings.matrix_lr,
        short_rows_frac=settings.short_rows_frac,
        **_common(
            settings, runtime, seq_len=settings.max_seq_len or seq_len_for(settings.depth), world_size=world_size
        ),
    )


def plan_for_model(
    settings: MidSettings | SftSettings | RlSettings,
    model: GPTConfig,
    *,
    horizon: Horizon,
    rates: Mapping[str, float],
    why_rates: str,
    runtime: Runtime,
) -> Plan:
    """Plan of a later stage, whose model is there already.

    rates: ``embedding_lr``, ``unembedding_lr``, ``matrix_lr`` and ``scalar_lr``, for those that the settings do not give; why_rates: their
    reason. Raises ConfigError that names every mistake.
    """
    is_given = any(getattr(settings, name, None) is not None for name in rates)
    if not 0 < settings.lr_frac < math.inf:
        raise ConfigError(
            f"--lr-frac {settings.lr_frac:g} must be above zero",
            hint="1 keeps the rates of the run that it starts from",
        )
    return make_plan(
        model.n_layer,
        model=model,
        horizon=horizon,
        seq_len=settings.max_seq_len,
        # Not `or`: a rate of 0 is a mistake, and make_plan says so.
        embedding_lr=rates["embedding_lr"] if settings.embedding_lr is None else settings.embedding_lr,
        unembedding_lr=rates["unembedding_lr"] if settings.unembedding_lr is None else settings.unembedding_lr,
        matrix_lr=rates["matrix_lr"] if settings.matrix_lr is None else settings.matrix_lr,
        scalar_lr=rates["scalar_lr"],
        why_rates=f"given, or {why_rates}" if is_given else why_rates,
        **_common(settings, runtime, seq_len=settings.max_seq_len or model.max_seq_len),
    )


def _common(settings: RunSettings, runtime: Runtime, *, seq_len: int, world_size: int | None = None) -> dict[str, Any]:
    """What a plan of any stage is told of the settings and the machine."""
    refuse_negative(settings)
    if settings.fp8:
        check_fp8(runtime.device, runtime.compute_dtype)
        if settings.shard_weights:
            raise ConfigError("--fp8 and --shard-weights do not go together yet", hint="leave one of them away")
    # All ranks must make the same plan; the slowest and the smallest of them decides.
    rate = -runtime.control.largest(
        -EXPECTED_MFU * precision.expected_flops_per_s(runtime.device, runtime.compute_dtype)
    )
    memory_bytes = device_memory_bytes(runtime)
    if memory_bytes is not None:
        memory_bytes = int(-runtime.control.largest(-float(memory_bytes)))
    names = (
        "device_batch_size", "total_batch_size", "weight_decay", "grad_clip", "warmup_frac", "warmdown_frac",
        "final_lr_frac", "eval_every", "save_every", "shard_weights",
    )  # fmt: skip
    return {name: getattr(settings, name) for name in names} | {
        # RL keeps some of each step's answers instead.
        "sample_every": 0 if isinstance(settings, RlSettings) else settings.sample_every,
        "world_size": runtime.world_size if world_size is None else world_size,
        "flops_per_s": rate,
        "memory_bytes": memory_bytes,
        "compute_bytes": runtime.compute_dtype.itemsize,
        "checkpoint_activations": settings.activation_checkpointing,
        "device_type": runtime.device.type,
        "attention_kernel": choose_kernel(
            device_type=runtime.device.type, compute_dtype=runtime.compute_dtype, seq_len=seq_len
        )[0],
    }


def refuse_negative(settings: RunSettings) -> None:
    """Raise ConfigError that names each setting that is below 0 and must not be."""
    problems = Problems()
    for name in NEVER_NEGATIVE:
        value = getattr(settings, name, None)
        if value is not None and not value >= 0:
            problems.add(f"{flag(name)} {value} is below 0", hint="0 turns it off")
    problems.raise_if_any()


def with_vocabulary_of_tokenizer(settings: BaseSettings) -> BaseSettings:
    """Settings with the vocabulary of the tokenizer that was given, if any. Raises ConfigError where both are given and differ."""
    if settings.tokenizer is None:
        return settings
    found = Tokenizer.load(settings.tokenizer).vocab_size
    if settings.vocab_size not in (None, found):
        raise ConfigError(
            f"--vocab-size {settings.vocab_size}: {settings.tokenizer} has {found} ids",
            hint="leave --vocab-size away, or give another --tokenizer",
        )
    return replace(settings, vocab_size=found)
