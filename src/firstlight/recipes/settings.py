"""What a user may say about a run: one flat, frozen dataclass for each stage, whose field docs are its command's help.

Empty (None) means "the plan decides". Light to import: the command line reads it before torch is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class NamedSettings:
    """What a run is called."""

    run: str | None = None
    """Name of the run; its folder is runs/NAME. One is made, with a number, where none is given."""
    resume: bool = False
    """Continue the run NAME from its newest good checkpoint (or start it, where it has none yet)."""


@dataclass(frozen=True)
class TextSettings:
    """The text of a base run."""

    data: str = "builtin"
    """Text to learn from: builtin, a directory or file (.parquet, .jsonl[.gz|.zst], .txt), or a hub data set."""
    val: str | None = None
    """Validation documents: last (the last shard), hash:0.01 (by content hash) or a shard's file name. [hash:0.01, or the data set's own]"""
    tokenizer: Path | None = None
    """A tokenizer.json to use. Trained on the data where not given."""
    packing: Literal["bestfit", "stream"] = "bestfit"
    """How documents become rows: bestfit (each row starts a document, nothing is dropped) or stream (cut every T tokens)."""
    short_rows_frac: float = 0.0
    """Part of the run, from its start, that learns from rows in quarters and then in halves: shorter contexts first."""


@dataclass(frozen=True)
class ModelSettings:
    """The shape of a new model."""

    depth: int = 4
    """The dial: layers; width, heads, vocabulary, batch and rates follow from it."""
    preset: Literal["classic", "modern", "portable"] = "modern"
    """Architecture: modern, classic (the plain GPT that the nanochat type of transformers reads) or portable (the qwen3 type, for vLLM, llama.cpp and MLX)."""
    vocab_size: int | None = None
    """Ids of the tokenizer, special tokens included. [from depth]"""
    max_seq_len: int | None = None
    """Tokens in a row, and the longest context. [from depth]"""
    head_dim: int = 128
    """Size of an attention head."""
    n_kv_head: int | None = None
    """Key/value heads (grouped-query attention). [n_head]"""


@dataclass(frozen=True)
class HorizonSettings:
    """How long to train: at most one of these."""

    num_iterations: int | None = None
    """Horizon: optimizer steps."""
    tokens: float | None = None
    """Horizon: training tokens (1e9 may be written)."""
    flops: float | None = None
    """Horizon: training FLOPs."""
    minutes: float | None = None
    """Horizon: wall-clock minutes from launch to the final score, set-up included."""
    tokens_per_param: float | None = None
    """Horizon: tokens for each matmul parameter. The default horizon of a base run is 12 of these."""


@dataclass(frozen=True)
class StepSettings:
    """What one optimizer step is."""

    device_batch_size: int | Literal["auto"] | None = None
    """Rows in one forward pass on one device; auto: the most that fit, found by trial. [as many as should fit]"""
    total_batch_size: int | None = None
    """Tokens in one optimizer step, over all devices and accumulation. [from the horizon]"""
    embedding_lr: float | None = None
    """AdamW rate of the token embedding."""
    unembedding_lr: float | None = None
    """AdamW rate of the head."""
    matrix_lr: float | None = None
    """Muon rate of the blocks' matrices."""
    weight_decay: float | None = None
    """Decoupled weight decay of the blocks' matrices."""
    grad_clip: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    warmup_frac: float | None = None
    """Part of the run in which the rate rises."""
    warmdown_frac: float | None = None
    """Part of the run in which the rate falls."""
    final_lr_frac: float | None = None
    """Rate multiplier at the end of the run."""


@dataclass(frozen=True)
class ProbeSettings:
    """What is measured on the way."""

    eval_every: int | None = None
    """Steps between validation scores (0: only at the end). [ten a run]"""
    eval_documents: int = 100
    """Validation documents scored during the run (the final score takes all; 0: all each time)."""
    final_documents: int = 0
    """Validation documents of the final score (0: all, or those for which --minutes has time)."""
    eval_budget_s: float | None = None
    """Seconds that one score during the run may take; then it ends with a part (0: no limit). [120, or a tenth of the training so far]"""
    sample_every: int | None = None
    """Steps between samples (0: only at the end). [four a run]"""
    sample_budget_s: float | None = None
    """Seconds that the samples of one step may take (0: no limit). [120, or a tenth of the training so far]"""


@dataclass(frozen=True)
class CoreSettings:
    """The score on CORE on the way."""

    core_every: int = 0
    """Steps between scores on the tasks of CORE, and one at the end (0: never)."""
    core_max_per_task: int = 500
    """Examples of each task of CORE that are scored (0: all)."""
    core_bundle: Path | None = None
    """Folder with the tasks of CORE. [the published one, downloaded once]"""
    core_budget_s: float | None = None
    """Seconds that one score on CORE may take (0: no limit). [600, or a tenth of the training so far]"""


@dataclass(frozen=True)
class KeepSettings:
    """What is kept and shown."""

    save_every: int | None = None
    """Steps between checkpoints (0: only at the end). [ten a run]"""
    keep: int = 2
    """Checkpoints kept: the newest this many, and the best."""
    async_save: bool = True
    """Write checkpoints behind the training steps, from a copy."""
    log_every: int | None = None
    """Steps between console lines; metrics.jsonl has each step. [a line every 5 seconds]"""
    tracker: Literal["wandb", "tensorboard", "trackio"] | None = None
    """Also send metrics to this tracker (an extra: pip install "firstlight[wandb]")."""
    profile: bool = False
    """Note where the time of three steps goes: a table, and runs/NAME/profile/ with it and a trace."""


@dataclass(frozen=True)
class MachineSettings:
    """Where and how it runs, and what guards it."""

    seed: int = 1337
    """Seed of initial weights, packing and order of the data."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Dtype of the matmuls; weights and optimizer stay in float32."""
    fp8: bool = False
    """Multiply the blocks' matrices in 8-bit floating point while training (NVIDIA GPUs from compute capability 8.9)."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile: auto is on where a compiler is found and the run is long enough to pay for it; off in float32 on a CPU,
    whose layers are native code."""
    activation_checkpointing: bool = False
    """Keep one activation a block and compute the others again: less memory, about a third more time."""
    threads: int | None = None
    """CPU threads. [all that this process may use]"""
    workers: int | None = None
    """Processes that tokenise. [one a CPU]"""
    nonfinite_limit: int = 5
    """Stop after this many steps in a row whose loss or gradients are not finite (each is skipped)."""
    spike: Literal["off", "skip", "rollback"] = "off"
    """A loss far above the recent ones: train on (off), leave its update out (skip), or go back to the last checkpoint and pass over its rows (rollback)."""
    hang_timeout: float = 600.0
    """Seconds without progress after which a process shows where it stands and ends (0: never)."""
    check_replicas_every: int = 100
    """Steps between comparisons of the processes' weights, which must be equal (0: never)."""
    shard_weights: bool = False
    """Keep only a part of the weights on each process (FSDP2), for models that do not fit on one device."""


@dataclass(frozen=True)
class StartSettings:
    """Where a later stage starts from."""

    init: str | None = None
    """The run whose weights it starts from, by name or folder."""
    checkpoint: str = "latest"
    """Which of that run's checkpoints: latest, best or a step's number."""
    lr_frac: float = 1.0
    """All learning rates, as a part of those of the run that it starts from."""
    max_seq_len: int | None = None
    """Tokens in a row. [the model's context]"""


@dataclass(frozen=True)
class ChatSettings:
    """The conversations, and how a row is made of them."""

    data: str = "builtin-chat"
    """Mixture of conversations, NAME[:WEIGHT],...: builtin-chat, files or folders (.jsonl, .parquet), hub data sets; and text, see --text."""
    text: str | None = None
    """What text stands for: builtin, a directory or file, or a hub data set. [the text of the base run]"""
    val_frac: float = 0.01
    """Part of the conversations that is set aside for validation, by content hash (builtin-chat has its own)."""
    epochs: float | None = None
    """Horizon: passes over the conversations. [1, where no other horizon is given]"""
    too_long: Literal["cut", "skip"] = "cut"
    """Conversations longer than a row: cut at its end, or left out. Both are counted."""


@dataclass(frozen=True)
class ChatProbeSettings:
    """The score on tasks on the way."""

    chat_tasks: str = "builtin-chat"
    """Tasks that are scored at the end, and on the way with --chat-every: NAME,... or none; see `firstlight eval chat`."""
    chat_data: Path | None = None
    """Folder with the files of the tasks. [the published ones, downloaded once; builtin-chat and spelling need none]"""
    chat_every: int = 0
    """Steps between scores on the tasks (0: only at the end)."""
    chat_max_per_task: int = 100
    """Questions of each task that are scored (0: all)."""
    chat_budget_s: float | None = None
    """Seconds that one score on the tasks may take (0: no limit). [600, or a tenth of the training so far]"""


@dataclass(frozen=True)
class RewardSettings:
    """What reinforcement learning samples and rewards."""

    environment: str = "spelling"
    """What asks and rewards: spelling, arithmetic, counting, choice, gsm8k:FOLDER, code:FILE; see docs/rl.md."""
    prompts_per_step: int = 16
    """Prompts of one step, over all processes."""
    samples_per_prompt: int = 8
    """Answers to each prompt: a group, whose mean reward is the baseline."""
    max_new_tokens: int = 96
    """Longest answer."""
    temperature: float = 1.0
    """Of the sampling while training; 1 is the model itself, which the gradient is right for."""
    top_k: int | None = None
    """Sample from the k likeliest tokens only. [all]"""
    format_reward: float = 0.0
    """What a wrong answer of the right form is worth, 0 to less than 1."""
    updates_per_rollout: int = 1
    """Updates from the same answers; more than one needs --clip."""
    clip: float | None = None
    """PPO's clip of the ratio of probabilities. [none: one update from the same answers needs none]"""
    clip_high: float | None = None
    """The upper side of the clip. [as --clip]"""
    advantage_scale: Literal["none", "std"] = "none"
    """Divide advantages by the standard deviation of their group (std, as GRPO does), or not."""
    kl: float = 0.0
    """Weight of the divergence from the model that it started from."""
    eval_every: int | None = None
    """Steps between scores of the reward on held-out problems (0: only before and after). [ten a run]"""
    reward_problems: int = 200
    """Held-out problems of the score before and after training."""
    reward_samples: int = 4
    """Answers to each of these."""


# A dataclass has the fields of its last base first, so the help of each begins with names and ends with the machine.


@dataclass(frozen=True)
class BaseSettings(
    MachineSettings, KeepSettings, CoreSettings, ProbeSettings, StepSettings, HorizonSettings, ModelSettings, TextSettings,
    NamedSettings,
):  # fmt: skip
    """Settings of `firstlight train base`."""


@dataclass(frozen=True)
class MidSettings(
    MachineSettings, KeepSettings, ChatProbeSettings, ProbeSettings, StepSettings, HorizonSettings, ChatSettings,
    StartSettings, NamedSettings,
):  # fmt: skip
    """Settings of `firstlight train mid`."""

    data: str = "builtin-chat:0.6,text:0.4"
    """Mixture, NAME[:WEIGHT],...: conversations (builtin-chat, files, hub data sets), and text, see --text."""
    chat_tasks: str = "none"
    """Tasks that are scored at the end, and on the way with --chat-every: NAME,... or none; see `firstlight eval chat`."""


@dataclass(frozen=True)
class SftSettings(
    MachineSettings, KeepSettings, ChatProbeSettings, ProbeSettings, StepSettings, HorizonSettings, ChatSettings,
    StartSettings, NamedSettings,
):  # fmt: skip
    """Settings of `firstlight train sft`."""

    lr_frac: float = 0.5
    """All learning rates, as a part of those of the run that it starts from."""


@dataclass(frozen=True)
class RlSettings(
    MachineSettings,
    KeepSettings,
    StepSettings,
    HorizonSettings,
    RewardSettings,
    StartSettings,
    NamedSettings,
):
    """Settings of `firstlight train rl`."""

    lr_frac: float = 0.1
    """All learning rates, as a part of those of the run that it starts from."""


RunSettings = BaseSettings | MidSettings | SftSettings | RlSettings
"""Settings of a stage, whichever."""


RESUME_MAY_CHANGE = frozenset({
    "run", "resume", "num_iterations", "tokens", "flops", "minutes", "tokens_per_param", "device_batch_size", "eval_every",
    "eval_documents", "final_documents", "eval_budget_s", "sample_every", "sample_budget_s",
    "core_every", "core_max_per_task", "core_bundle", "core_budget_s", "chat_every", "chat_max_per_task", "chat_tasks",
    "chat_budget_s", "chat_data", "epochs", "reward_problems", "reward_samples", "save_every", "keep", "log_every", "tracker", "profile", "device", "compile",
    "activation_checkpointing", "threads", "workers", "nonfinite_limit", "async_save", "hang_timeout",
    "check_replicas_every", "shard_weights", "spike", "grad_clip",
})  # fmt: skip
"""Settings that a resumed run may change (each change is logged). The others would make it another run and are refused."""

HORIZONS = {
    "num_iterations": "steps",
    "tokens": "tokens",
    "flops": "flops",
    "minutes": "minutes",
    "tokens_per_param": "tokens_per_param",
    "epochs": "epochs",
}
"""Horizon settings and the plan's name for each."""


def setting_names(settings: type[RunSettings]) -> frozenset[str]:
    """Names of the settings of a stage."""
    return frozenset(field.name for field in fields(settings))


def flag(name: str) -> str:
    """The flag of a setting.

    >>> flag("num_iterations")
    '--num-iterations'
    """
    return "--" + name.replace("_", "-")
