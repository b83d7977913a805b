"""The dial: depth and a horizon become every number of a run, each with its reason. Pure arithmetic, no device, no files.

The rules themselves are in `firstlight.train.dial`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from firstlight.errors import ConfigError, Problems
from firstlight.model import count
from firstlight.model.config import GPTConfig, Preset
from firstlight.train.dial import (
    EMBEDDING_LR,
    MATRIX_LR,
    REFERENCE_BATCH_TOKENS,
    REFERENCE_WIDTH,
    SCALAR_LR,
    TOKENS_PER_PARAM,
    UNEMBEDDING_LR,
    batch_tokens_for,
    depth_for,
)
from firstlight.train.shape import derive_shape

HorizonKind = Literal["steps", "tokens", "flops", "minutes", "tokens_per_param", "epochs"]


@dataclass(frozen=True)
class PlanLine:
    """One derived number: what it is called, its value as text, and why it has that value."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class Horizon:
    """How long to train: exactly one of five units."""

    kind: HorizonKind
    value: float

    def describe(self) -> str:
        unit = {
            "steps": "steps",
            "tokens": "tokens",
            "flops": "FLOPs",
            "minutes": "minutes",
            "epochs": "passes over the data",
        }.get(self.kind, "tokens a parameter")
        return f"{self.value:,.6g} {unit}"


@dataclass(frozen=True)
class Plan:
    """Every number of a run. ``num_steps`` is None where the horizon is a time: the run then ends by the clock."""

    depth: int
    model: GPTConfig
    seq_len: int
    total_batch_size: int
    device_batch_size: int
    num_micro_batches: int
    horizon: Horizon
    num_steps: int | None
    estimated_steps: int
    num_tokens: int
    flops_per_token: float
    embedding_lr: float
    unembedding_lr: float
    matrix_lr: float
    scalar_lr: float
    weight_decay: float
    grad_clip: float
    warmup_frac: float
    warmdown_frac: float
    final_lr_frac: float
    momentum_start: float
    momentum_end: float
    eval_every: int
    sample_every: int
    save_every: int
    train_bytes: int
    checkpoint_bytes: int
    lines: tuple[PlanLine, ...]
    short_rows_frac: float = 0.0


def horizon_tokens(
    horizon: Horizon, *, scaling_params: int, flops_per_token: float, tokens_per_s: float, batch_tokens: int | None
) -> float:
    """Tokens that a horizon stands for. Steps need the batch; minutes need an (estimated) rate."""
    match horizon.kind:
        case "tokens":
            return horizon.value
        case "flops":
            return horizon.value / flops_per_token
        case "minutes":
            return horizon.value * 60 * tokens_per_s
        case "tokens_per_param":
            return horizon.value * scaling_params
        case "steps":
            return horizon.value * (batch_tokens or REFERENCE_BATCH_TOKENS)
        case "epochs":
            raise ConfigError("a text is not counted before it is tokenised", hint="give steps, tokens or minutes")


def nearest_multiples(value: int, unit: int) -> str:
    """The multiples of ``unit`` on both sides of ``value``, for a hint.

    >>> nearest_multiples(1000, 256)
    '768 or 1024'
    """
    below = value // unit * unit
    return f"{below} or {below + unit}" if below > 0 else f"{unit}"


def interval(num_steps: int, times: int) -> int:
    """Steps between things that should happen about ``times`` in a run; at least 20, so that short runs mostly train.

    >>> interval(1000, 10), interval(30, 10)
    (100, 20)
    """
    return max(20, math.ceil(num_steps / times))


def largest_dividing(rows: int, limit: int) -> int:
    """Largest divisor of ``rows`` that is at most ``limit`` (the micro-batch that wastes nothing).

    >>> largest_dividing(64, 24)
    16
    """
    return max(d for d in range(1, min(rows, max(1, limit)) + 1) if rows % d == 0)


def make_plan(
    depth: int,
    *,
    model: GPTConfig | None = None,
    horizon: Horizon | None = None,
    preset: Preset = "modern",
    vocab_size: int | None = None,
    seq_len: int | None = None,
    head_dim: int = 128,
    n_kv_head: int | None = None,
    device_batch_size: int | Literal["auto"] | None = None,
    total_batch_size: int | None = None,
    embedding_lr: float | None = None,
    unembedding_lr: float | None = None,
    matrix_lr: float | None = None,
    scalar_lr: float = SCALAR_LR,
    why_rates: str = "given",
    weight_decay: float | None = None,
    grad_clip: float = 1.0,
    warmup_frac: float | None = None,
    warmdown_frac: float | None = None,
    final_lr_frac: float | None = None,
    short_rows_frac: float = 0.0,
    eval_every: int | None = None,
    sample_every: int | None = None,
    save_every: int | None = None,
    world_size: int = 1,
    shard_weights: bool = False,
    device_type: str = "cuda",
    flops_per_s: float = 1e11,
    memory_bytes: int | None = None,
    compute_bytes: int = 2,
    checkpoint_activations: bool = False,
    attention_kernel: str = "sdpa",
) -> Plan:
    """Derive every number of a run from depth and a horizon; each value that is given replaces the rule's.

    model: one that is there already; its shape is then not derived from depth, preset and sizes, and ``seq_len`` may be less
    than its context. why_rates: the reason of rates that are given. scalar_lr: of gates and scalars.
    flops_per_s: what one process is expected to *achieve* in training (not the peak); only estimates rest on it.
    memory_bytes: memory of one device, for the micro-batch and the check; None where it is not known.
    device_batch_size: None and "auto" are estimated here; what is "auto" is found by trial when the run starts.
    compute_bytes: bytes of an activation number (2 for bf16). attention_kernel: decides which activations are kept.

    Raises ConfigError that names every mistake at once: what does not divide (with the nearest values that do), what is
    zero or negative, what does not fit into memory.
    """
    problems = Problems()
    lines: list[PlanLine] = []
    by_trial = device_batch_size == "auto"
    if device_batch_size == "auto":
        device_batch_size = None

    def line(name: str, value: str, reason: str) -> None:
        lines.append(PlanLine(name, value, reason))

    if world_size < 1:
        problems.add(f"--world-size {world_size} is too small", hint="a run has 1 process at least")
    if depth < 1:
        problems.add(f"--depth {depth} is too small", hint="the smallest depth is 1; 4 trains in minutes on a CPU")
    positive = {
        "--vocab-size": vocab_size, "--max-seq-len": seq_len, "--device-batch-size": device_batch_size,
        "--total-batch-size": total_batch_size, "--head-dim": head_dim, "--n-kv-head": n_kv_head,
        "--embedding-lr": embedding_lr, "--unembedding-lr": unembedding_lr, "--matrix-lr": matrix_lr,
    }  # fmt: skip
    for flag, value in positive.items():
        # Written so that NaN, which is in no order with any number, is refused as well.
        if value is not None and not 0 < value < math.inf:
            problems.add(f"{flag} {value} must be above zero")
    if horizon is not None and not horizon.value > 0:
        problems.add(f"a horizon of {horizon.describe()} would train for zero steps", hint="give a number above zero")
    fractions = {"--warmup-frac": warmup_frac, "--warmdown-frac": warmdown_frac, "--final-lr-frac": final_lr_frac}
    fractions["--short-rows-frac"] = short_rows_frac
    for flag, value in fractions.items():
        if value is not None and not 0 <= value <= 1:
            problems.add(f"{flag} {value} is outside 0 to 1")
    if warmup_frac and warmdown_frac and max(warmup_frac, warmdown_frac) <= 1 < warmup_frac + warmdown_frac:
        problems.add(f"--warmup-frac {warmup_frac} and --warmdown-frac {warmdown_frac} add up to more than the run")
    for flag, value in {"--weight-decay": weight_decay, "--grad-clip": grad_clip}.items():
        if value is not None and not 0 <= value < math.inf:
            problems.add(f"{flag} {value} must not be negative")
    problems.raise_if_any()

    if model is None:
        model, rows_len = derive_shape(
            depth,
            vocab_size=vocab_size,
            seq_len=seq_len,
            head_dim=head_dim,
            n_kv_head=n_kv_head,
            preset=preset,
            line=line,
        )
    else:
        rows_len = seq_len or model.max_seq_len
        if rows_len > model.max_seq_len:
            problems.add(
                f"--max-seq-len {rows_len} is more than the model's context of {model.max_seq_len} tokens",
                hint=f"use at most {model.max_seq_len}",
            )
        shape = f"{model.n_layer} layers of width {model.n_embd}, {model.n_head} heads, {model.vocab_size:,} ids"
        line("model", shape, "as it was trained")
        line("max_seq_len", f"{rows_len:,}", "given" if seq_len else "the model's context")

    if short_rows_frac > 0 and rows_len % 4:
        problems.add(f"--short-rows-frac: rows of {rows_len} tokens have no quarters", hint="a multiple of 4")
    params = count.num_params(model)
    scaling_params = count.num_scaling_params(model)
    flops_per_token = float(count.flops_per_token(model, rows_len))
    line("parameters", f"{sum(params.values()):,}", ", ".join(f"{name} {n:,}" for name, n in params.items()))
    line(
        "flops_per_token",
        f"{flops_per_token:,.0f}",
        "6 * matmul parameters + 12 * n_layer * n_embd * T (PaLM, arXiv 2204.02311, appendix B)",
    )

    chosen = horizon or Horizon("tokens_per_param", TOKENS_PER_PARAM)
    rate = flops_per_s * world_size / flops_per_token
    asked_tokens = horizon_tokens(
        chosen,
        scaling_params=scaling_params,
        flops_per_token=flops_per_token,
        tokens_per_s=rate,
        batch_tokens=total_batch_size,
    )
    batch = total_batch_size or batch_tokens_for(asked_tokens)
    unit = rows_len * world_size
    if total_batch_size is None:
        batch = max(unit, batch // unit * unit)
    if batch % unit:
        problems.add(
            f"--total-batch-size {batch} is not a multiple of {unit} (--max-seq-len {rows_len} x {world_size} process{'es' * (world_size > 1)})",
            hint=f"try {nearest_multiples(batch, unit)}",
        )
        # The checks below go on with one that divides, so that all mistakes are told at once.
        batch = max(unit, batch // unit * unit)
    rows_per_rank = batch // unit
    weights_bytes = sum(params.values()) * 4
    optimizer_bytes = count.optimizer_bytes(model)
    # Each process has all weights and gradients, and its share of the optimizer's state.
    fixed_bytes = count.fixed_train_bytes(
        model, world_size=world_size, shard_weights=shard_weights, device_type=device_type
    )
    row_bytes = count.activation_bytes(
        model,
        batch_rows=1,
        seq_len=rows_len,
        compute_bytes=compute_bytes,
        checkpoint_activations=checkpoint_activations,
        attention_kernel=attention_kernel,
    )
    if device_batch_size is None:
        fits = rows_per_rank if memory_bytes is None else int((0.8 * memory_bytes - fixed_bytes) // row_bytes)
        micro_rows = largest_dividing(rows_per_rank, fits)
        why = (
            "an estimate: auto finds the largest that fits by trial when the run starts"
            if by_trial
            else "the whole step's rows fit: accumulation would only cost time"
            if micro_rows == rows_per_rank
            else "the largest that fits into memory"
        )
    else:
        micro_rows = device_batch_size
        why = "given"
        if rows_per_rank % micro_rows:
            pass_tokens = micro_rows * unit
            problems.add(
                f"--total-batch-size {batch} is not a multiple of {pass_tokens} (--device-batch-size {micro_rows} x --max-seq-len {rows_len} x {world_size} process{'es' * (world_size > 1)})",
                hint=f"try --total-batch-size {nearest_multiples(batch, pass_tokens)}, or --device-batch-size {largest_dividing(rows_per_rank, micro_rows)}",
            )
            micro_rows = largest_dividing(rows_per_rank, micro_rows)
    num_micro = rows_per_rank // micro_rows
    train_bytes = fixed_bytes + micro_rows * row_bytes
    if memory_bytes is not None and train_bytes > memory_bytes:
        smaller = largest_dividing(rows_per_rank, max(1, int((0.8 * memory_bytes - fixed_bytes) // row_bytes)))
        problems.add(
            f"about {train_bytes / 2**30:.1f} GiB are needed and the device has {memory_bytes / 2**30:.1f} GiB",
            hint=f"use --device-batch-size {smaller}, --activation-checkpointing, or a smaller --depth",
        )
    line(
        "total_batch_size", f"{batch:,} tokens",
        "given" if total_batch_size else f"power of two near 4,096 * (D / 6.5 M)^0.7 for D = {asked_tokens:,.0f} tokens (lab/LOG.md)",
    )  # fmt: skip
    line("device_batch_size", f"{micro_rows} rows of {rows_len}", why)
    line("grad_accum_steps", f"{num_micro}", f"{batch:,} / ({micro_rows} x {rows_len} x {world_size})")

    if chosen.kind == "minutes":
        num_steps = None
        estimated = max(1, int(asked_tokens / batch))
        line(
            "num_steps",
            f"about {estimated:,}",
            f"{chosen.describe()} at an estimated {rate:,.0f} tokens/s; the clock decides",
        )
    else:
        num_steps = int(chosen.value) if chosen.kind == "steps" else int(asked_tokens / batch)
        if num_steps < 1:
            problems.add(
                f"a horizon of {chosen.describe()} is {asked_tokens:,.0f} tokens: less than one step of {batch:,}",
                hint="give a longer horizon or a smaller --total-batch-size",
            )
        estimated = max(1, num_steps)
        line("num_steps", f"{num_steps:,}", chosen.describe() + ("" if horizon else " (the default)"))
    problems.raise_if_any()
    num_tokens = estimated * batch
    line(
        "num_tokens",
        f"{num_tokens:,}",
        f"{num_tokens / scaling_params:.1f} tokens a parameter (matrices and head: {scaling_params:,})",
    )
    better = depth_for(num_tokens * flops_per_token)
    line(
        "total_flops",
        f"{num_tokens * flops_per_token:.3g}",
        "num_tokens * flops_per_token"
        + (f"; on so few, --depth {better} is expected to end lower (lab/LOG.md)" if better < depth else ""),
    )
    line(
        "time",
        _duration(num_tokens / rate),
        f"at {flops_per_s / 1e9:,.0f} GFLOP/s a process, an estimate until the run has measured it",
    )

    width_scale = (model.n_embd / REFERENCE_WIDTH) ** -0.5
    rates = (
        embedding_lr or EMBEDDING_LR * width_scale,
        unembedding_lr or UNEMBEDDING_LR * width_scale,
        matrix_lr or MATRIX_LR,
    )
    line(
        "embedding_lr",
        f"{rates[0]:.4g}",
        why_rates if embedding_lr else f"{EMBEDDING_LR} * (n_embd / {REFERENCE_WIDTH})^-0.5 (AdamW)",
    )
    line(
        "unembedding_lr",
        f"{rates[1]:.4g}",
        why_rates if unembedding_lr else f"{UNEMBEDDING_LR} * (n_embd / {REFERENCE_WIDTH})^-0.5 (AdamW)",
    )
    line(
        "matrix_lr",
        f"{rates[2]:.4g}",
        why_rates if matrix_lr else "Muon's updates have a fixed size, so the rate does not depend on width",
    )
    if scalar_lr != SCALAR_LR:
        line("scalar_lr", f"{scalar_lr:.4g}", why_rates)
    decay = 0.0 if weight_decay is None else weight_decay
    line(
        "weight_decay",
        f"{decay:g}",
        "given" if weight_decay is not None else "runs of less than an epoch or two do not need it",
    )
    line("grad_clip", f"{grad_clip:g}", "global norm over all parameters and ranks; 0 turns it off")
    warmup = min(0.02, 40 / estimated) if warmup_frac is None else warmup_frac
    warmdown = 0.5 if warmdown_frac is None else warmdown_frac
    final = 0.05 if final_lr_frac is None else final_lr_frac
    line("warmup_frac", f"{warmup:.3g}", "given" if warmup_frac is not None else "2 % of the run, at most 40 steps")
    line(
        "warmdown_frac",
        f"{warmdown:g}",
        "given" if warmdown_frac is not None else "half of the run: long warm-downs win (lab/LOG.md)",
    )
    if short_rows_frac > 0:
        line(
            "short_rows_frac",
            f"{short_rows_frac:g}",
            "given: rows in quarters, then in halves, in that part of the run",
        )
    line("final_lr_frac", f"{final:g}", "given" if final_lr_frac is not None else "5 % of the rate at the end")

    evals = eval_every if eval_every is not None else interval(estimated, 10)
    samples = sample_every if sample_every is not None else interval(estimated, 4)
    saves = save_every if save_every is not None else interval(estimated, 10)
    checkpoint_bytes = weights_bytes + optimizer_bytes
    line(
        "eval_every",
        f"{evals:,} steps" if evals else "off",
        "ten times a run, 20 steps apart at least" if eval_every is None else "given",
    )
    line(
        "sample_every",
        f"{samples:,} steps" if samples else "off",
        "four times a run" if sample_every is None else "given",
    )
    line(
        "save_every",
        f"{saves:,} steps" if saves else "only at the end",
        "ten times a run" if save_every is None else "given",
    )
    line(
        "memory",
        f"{train_bytes / 2**20:,.0f} MiB",
        f"on each process; weights, gradients and the optimizer's part {fixed_bytes / 2**20:,.0f} MiB; activations of {micro_rows} rows the rest (estimate)",
    )
    line("checkpoint", f"{checkpoint_bytes / 2**20:,.0f} MiB", "float32 weights and optimizer state")
    return Plan(
        depth=depth, model=model, seq_len=rows_len, total_batch_size=batch, device_batch_size=micro_rows, num_micro_batches=num_micro,
        horizon=chosen, num_steps=num_steps, estimated_steps=estimated, num_tokens=num_tokens, flops_per_token=flops_per_token,
        embedding_lr=rates[0], unembedding_lr=rates[1], matrix_lr=rates[2], scalar_lr=scalar_lr, weight_decay=decay, grad_clip=grad_clip,
        warmup_frac=warmup, warmdown_frac=warmdown, final_lr_frac=final, momentum_start=0.85, momentum_end=0.95,
        eval_every=evals, sample_every=samples, save_every=saves, train_bytes=train_bytes, checkpoint_bytes=checkpoint_bytes,
        lines=tuple(lines), short_rows_frac=short_rows_frac,
    )  # fmt: skip


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
