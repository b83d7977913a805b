"""A run, or a depth, and a text -> all facts of an explanation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

from firstlight.errors import CheckpointError, Problems
from firstlight.model import count
from firstlight.model.attention import choose_kernel
from firstlight.model.config import Preset, preset_options
from firstlight.model.init import build_gpt
from firstlight.recipes import plans
from firstlight.recipes.explain import costs
from firstlight.recipes.explain.facts import Facts, SchedulePoint, Training
from firstlight.recipes.explain.pieces import cut_ids, pack_small, piece_of
from firstlight.recipes.explain.walk import walk_text
from firstlight.recipes.loading import LoadedRun, load_for_inference
from firstlight.runtime.context import DTYPES, Runtime
from firstlight.runtime.metrics import read_metrics
from firstlight.tokens.bpe import Tokenizer, check_unicode, train_tokenizer
from firstlight.tokens.samples import SAMPLES
from firstlight.train.horizon import Curve
from firstlight.train.loss import default_chunk_rows
from firstlight.train.plan import Plan, make_plan

DEFAULT_TEXT = (
    "The function returns a list of the words in the string. If the string is empty, a new list is returned.\n"
    "An error is raised when the value is not a number."
)
MAX_TOKENS = 48
"""Tokens of the text that are walked where nothing is said."""
MOST_TOKENS = 256
LARGEST_BUILT = 100_000_000
"""Parameters up to which an untrained model is built for its picture: 400 MB, some seconds."""
ASSUMED_GPU_BYTES = 80 * 2**30
SMALL_VOCABULARY = 1024

PLAN_NUMBERS = (
    "device_batch_size", "num_micro_batches", "total_batch_size", "seq_len", "estimated_steps", "embedding_lr",
    "unembedding_lr", "matrix_lr", "weight_decay", "grad_clip", "warmup_frac", "warmdown_frac", "final_lr_frac",
    "momentum_start", "momentum_end", "horizon",
)  # fmt: skip


def explain_run(
    run: str,
    runtime: Runtime,
    *,
    text: str | None = None,
    checkpoint: str = "latest",
    max_tokens: int = MAX_TOKENS,
    report: Callable[[str], None] | None = None,
) -> Facts:
    """Facts of a run's checkpoint on a text (DEFAULT_TEXT where not given).

    Raises what `load_for_inference` raises, CheckpointError where the record has no plan, ConfigError for an empty text.
    """
    loaded = load_for_inference(run, runtime, checkpoint=checkpoint, report=report)
    record, config = loaded.record, loaded.model.config
    plan = record.config.get("plan")
    if record.recipe == "import":
        raise CheckpointError(
            f"{record.name} is an imported model: how it was trained is not known here, and most of an explanation is about that",
            hint="explain the run that it was exported from, or a --depth",
        )
    missing = [name for name in PLAN_NUMBERS if not isinstance(plan, dict) or name not in plan]
    if not isinstance(plan, dict) or missing:
        raise CheckpointError(
            f"{loaded.path / 'run.json'} has no plan to explain: config.plan lacks {', '.join(missing)}",
            hint="it was written by another firstlight; train a new run, or explain a --depth",
        )
    settings = record.config.get("settings") or {}
    training = _training(
        config,
        plan,
        world_size=record.world_size,
        dtype=record.dtype,
        device_type=record.device.split(":")[0],
        checkpoint_activations=bool(settings.get("activation_checkpointing")),
        shard_weights=bool(settings.get("shard_weights")),
        rows=read_metrics(loaded.path / "metrics.jsonl", damaged=[]),
        step=loaded.step,
    )
    preset = settings.get("preset") or _preset_of(config)
    facts = _facts(
        text if text is not None else DEFAULT_TEXT,
        tokenizer=loaded.tokenizer,
        config=config,
        plan=plan,
        training=training,
        packing=settings.get("packing", "bestfit"),
        seed=settings.get("seed", 0),
        max_tokens=max_tokens,
        walk=lambda ids: walk_text(loaded.model, loaded.tokenizer, ids),
    )
    val_bpb, val_of = _scored(loaded)
    return facts(
        title=record.name,
        preset=preset,
        step=loaded.step,
        is_trained=True,
        val_bpb=val_bpb,
        val_of=val_of,
        tokenizer=f"the run's own, trained on {record.config.get('settings', {}).get('data', 'its text')}",
        notes=(),
    )


def explain_depth(
    depth: int,
    runtime: Runtime,
    *,
    preset: Preset = "modern",
    text: str | None = None,
    max_tokens: int = MAX_TOKENS,
    seed: int = 1337,
) -> Facts:
    """Facts of the model that ``--depth`` plans, before any training: random weights, or arithmetic alone where it is large.

    The text is cut by a tokenizer that is trained on the spot on short samples, because the planned one needs the data; the
    model has the planned vocabulary, of which these ids are the first.

    Raises ConfigError for a depth that makes no model and for an empty text.
    """
    probe = make_plan(depth, preset=preset)
    is_built = sum(count.num_params(probe.model).values()) <= LARGEST_BUILT
    dtype = runtime.compute_dtype if is_built else torch.bfloat16
    device_type = runtime.device.type if is_built else "cuda"
    memory_bytes = plans.device_memory_bytes(runtime) if is_built else ASSUMED_GPU_BYTES
    plan = make_plan(
        depth,
        preset=preset,
        memory_bytes=memory_bytes,
        compute_bytes=dtype.itemsize,
        device_type=device_type,
        attention_kernel=_kernel(device_type, dtype, probe.seq_len),
    )
    config = plan.model
    tokenizer = sample_tokenizer(min(config.vocab_size, SMALL_VOCABULARY))
    notes = [
        "Untrained: the weights are at their random start, so statistics and guesses say how a model begins, not what it has learned."
        if is_built
        else f"No model was built: {sum(count.num_params(config).values()):,} parameters are too many for a picture "
        f"(the limit is {LARGEST_BUILT:,}). Shapes, bytes and FLOPs are arithmetic; there are no statistics, maps or guesses.",
        f"The text is cut by a small tokenizer of {tokenizer.vocab_size:,} ids, trained on the spot on short samples; "
        f"the model has the {config.vocab_size:,} ids that training would give it.",
    ]
    if not is_built:
        notes.append(f"A GPU with {ASSUMED_GPU_BYTES // 2**30} GiB and bf16 are assumed.")
    numbers = _plan_numbers(plan)
    training = _training(
        config, numbers, world_size=1, dtype=_name_of(dtype), device_type=device_type, checkpoint_activations=False,
        rows=[], step=0,
    )  # fmt: skip

    def walk(ids: list[int]) -> Any:
        if not is_built:
            return None
        model = build_gpt(config, device=runtime.device, compute_dtype=dtype, seed=seed)
        return walk_text(model, tokenizer, ids)

    facts = _facts(
        text if text is not None else DEFAULT_TEXT, tokenizer=tokenizer, config=config, plan=numbers, training=training,
        packing="bestfit", seed=seed, max_tokens=max_tokens, walk=walk,
    )  # fmt: skip
    return facts(
        title=f"depth {depth}", preset=preset, step=None, is_trained=False, val_bpb=None, val_of="",
        tokenizer="trained on the spot on short samples", notes=tuple(notes),
    )  # fmt: skip


def check_walk(text: str | None, *, max_tokens: int, problems: Problems) -> None:
    """Add to ``problems`` what no walk can be made of. text: None for DEFAULT_TEXT."""
    if text is not None and not text:
        problems.add("--text is empty", hint="give a sentence or two; without --text two short ones are taken")
    if not 2 <= max_tokens <= MOST_TOKENS:
        problems.add(
            f"--max-tokens {max_tokens} is out of range",
            hint=f"2 to {MOST_TOKENS}: maps of more tokens cannot be read, and make the page large",
        )


def sample_tokenizer(vocab_size: int) -> Tokenizer:
    """A tokenizer of the texts that firstlight carries itself: made in a moment, the same everywhere."""
    return train_tokenizer(SAMPLES.values(), vocab_size=vocab_size, max_bytes=None)


def _facts(
    text: str,
    *,
    tokenizer: Tokenizer,
    config: Any,
    plan: Mapping[str, Any],
    training: Training,
    packing: str,
    seed: int,
    max_tokens: int,
    walk: Callable[[list[int]], Any],
) -> Callable[..., Facts]:
    """The facts that a run and a depth share; what it returns wants the others by name."""
    problems = Problems()
    check_walk(text, max_tokens=max_tokens, problems=problems)
    problems.raise_if_any()
    check_unicode(text)
    ids, num_cut = cut_ids(tokenizer.encode(text), min(max_tokens, config.max_seq_len))
    walked = walk(ids)
    weights = costs.describe_weights(
        config,
        embedding_lr=plan["embedding_lr"],
        unembedding_lr=plan["unembedding_lr"],
        matrix_lr=plan["matrix_lr"],
    )
    batch = pack_small(text[:2000], tokenizer, packing=packing, seed=seed)

    def finish(**rest: Any) -> Facts:
        return Facts(
            model=config,
            text=tokenizer.decode(ids) if num_cut else text,
            num_cut=num_cut,
            pieces=tuple(piece_of(tokenizer, id) for id in ids),
            bos=piece_of(tokenizer, tokenizer.bos_id),
            tokenizer_size=tokenizer.vocab_size,
            batch=batch,
            weights=weights,
            groups=count.num_params(config),
            walk=walked,
            training=training,
            **rest,
        )

    return finish


def _training(
    config: Any,
    plan: Mapping[str, Any],
    *,
    world_size: int,
    dtype: str,
    device_type: str,
    checkpoint_activations: bool,
    shard_weights: bool = False,
    rows: list[dict],
    step: int,
) -> Training:
    curve = Curve(
        warmup_frac=plan["warmup_frac"],
        warmdown_frac=plan["warmdown_frac"],
        final_lr_frac=plan["final_lr_frac"],
        momentum_start=plan["momentum_start"],
        momentum_end=plan["momentum_end"],
        weight_decay=plan["weight_decay"],
        grad_clip=plan["grad_clip"],
        # Records of before have none.
        short_rows_frac=plan.get("short_rows_frac", 0.0),
    )
    num_steps = plan.get("num_steps") or 0
    total = float(num_steps) or _total_s(rows) or 60.0 * plan["horizon"]["value"]
    compute_dtype = DTYPES[dtype]
    batch_rows, seq_len = plan["device_batch_size"], plan["seq_len"]
    horizon = plan["horizon"]
    train_rows = [row for row in rows if row.get("kind") == "train"]
    speeds = [row["tokens_per_s"] for row in train_rows if isinstance(row.get("tokens_per_s"), float)]
    return Training(
        device_batch_size=batch_rows,
        seq_len=seq_len,
        num_micro_batches=plan["num_micro_batches"],
        world_size=world_size,
        total_batch_size=plan["total_batch_size"],
        num_steps=num_steps or plan["estimated_steps"],
        total=f"{horizon['value']:g} minutes by the clock" if horizon["kind"] == "minutes" else f"{num_steps:,} steps",
        # In a run of N steps the last update is number N - 1.
        schedule=costs.schedule_points(curve, total=total, last=total - 1 if num_steps else total),
        at=_standing(curve, train_rows, step=step, num_steps=num_steps),
        warmup_frac=curve.warmup_frac,
        warmdown_frac=curve.warmdown_frac,
        final_lr_frac=curve.final_lr_frac,
        weight_decay=curve.weight_decay,
        grad_clip=curve.grad_clip,
        memory=costs.memory_parts(
            config,
            batch_rows=batch_rows,
            seq_len=seq_len,
            compute_dtype=compute_dtype,
            attention_kernel=_kernel(device_type, compute_dtype, seq_len),
            checkpoint_activations=checkpoint_activations,
            world_size=world_size,
            shard_weights=shard_weights,
            device_type=device_type,
        ),
        chunk_tokens=min(default_chunk_rows(config.vocab_size), batch_rows * seq_len),
        whole_logits_bytes=4 * batch_rows * seq_len * config.vocab_size,
        flops=costs.flop_parts(config, seq_len=seq_len),
        flops_per_token=count.flops_per_token(config, seq_len),
        flops_per_token_causal=count.flops_per_token_causal(config, seq_len),
        tokens_per_s=median(speeds) if speeds else None,
        compute_dtype=dtype,
        stages=costs.describe_stages(config, batch_rows=batch_rows, seq_len=seq_len, compute_dtype=compute_dtype),
    )


def _total_s(rows: list[dict]) -> float:
    """Seconds that the clock gave to the updates of a timed run, from its last one; 0 where the metrics do not say."""
    found = [(row["elapsed_s"], row["eta_s"]) for row in rows if row.get("kind") == "train" and "eta_s" in row]
    return float(sum(found[-1])) if found and all(isinstance(value, (int, float)) for value in found[-1]) else 0.0


def _standing(curve: Curve, train_rows: list[dict], *, step: int, num_steps: int) -> SchedulePoint | None:
    """Where the last update behind a checkpoint stands: by its number, or by what the metrics say of the clock."""
    if step < 1:
        return None
    if num_steps:
        return costs.schedule_point(curve, step - 1, num_steps)
    row = next((row for row in reversed(train_rows) if row.get("step") == step - 1), {})
    keys = ("lr_multiplier", "momentum", "elapsed_s", "eta_s")
    multiplier, momentum, elapsed_s, eta_s = values = [float(row.get(key, math.nan) or 0.0) for key in keys]
    if not all(map(math.isfinite, values)):
        return None
    # The update asked for its rate before it ran, so its own step is not in the time that was used.
    used_s = elapsed_s - float(row.get("step_time_s") or 0.0)
    return SchedulePoint(used_s / (elapsed_s + eta_s), multiplier, momentum)


def _kernel(device_type: str, dtype: torch.dtype, seq_len: int) -> str:
    return choose_kernel(device_type=device_type, compute_dtype=dtype, seq_len=seq_len)[0]


def _name_of(dtype: torch.dtype) -> str:
    return next(name for name, each in DTYPES.items() if each == dtype)


def _plan_numbers(plan: Plan) -> dict[str, Any]:
    numbers: dict[str, Any] = {name: getattr(plan, name) for name in (*PLAN_NUMBERS, "num_steps")}
    return numbers | {"horizon": {"kind": plan.horizon.kind, "value": plan.horizon.value}}


def _preset_of(config: Any) -> str:
    for preset in ("modern", "portable"):
        options = preset_options(preset, n_embd=config.n_embd)
        if all(getattr(config, name) == value for name, value in options.items()):
            return preset
    return "classic"


def _scored(loaded: LoadedRun) -> tuple[float | None, str]:
    """Bits per byte at this checkpoint, where it was measured, and of what."""
    rows = read_metrics(loaded.path / "metrics.jsonl", damaged=[])
    found = [row for row in rows if row.get("step") == loaded.step and isinstance(row.get("val_bpb"), float)]
    if not found or not math.isfinite(found[-1]["val_bpb"]):
        return None, ""
    num, total = found[-1].get("num_documents"), found[-1].get("num_documents_total")
    part = "validation text" if num is None or total is None else f"{num:,} of {total:,} validation documents"
    return found[-1]["val_bpb"], "all validation documents" if num is not None and num == total else part
