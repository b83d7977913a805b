"""A tiny model, a tokenizer of bytes and environments that need nothing: what the tests of reinforcement learning share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from firstlight.model.gpt import GPT, GPTConfig
from firstlight.model.init import build_gpt
from firstlight.rl.environments.base import Problem
from firstlight.rl.rewards import Reward
from firstlight.rl.rollouts import Group, Rollout
from firstlight.runtime.context import Runtime
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import Message, Part

CPU = Runtime(device=torch.device("cpu"))
CONFIG = GPTConfig(vocab_size=265, n_layer=1, n_head=2, n_kv_head=1, n_embd=16, max_seq_len=64)


def byte_tokenizer() -> Tokenizer:
    """Each byte is an id; BOS is 256, <|assistant_start|> 259, <|assistant_end|> 260, <|python_start|> 261."""
    return Tokenizer([bytes([b]) for b in range(256)])


def tiny_gpt(seed: int = 1, **changes: object) -> GPT:
    config = GPTConfig(**{**vars(CONFIG), **changes})  # pyrefly: ignore
    model = build_gpt(config, device=torch.device("cpu"), compute_dtype=torch.float32, seed=seed)
    # A fresh head is all zeros: every id as likely as any other, and no two models differ.
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        model.lm_head.weight.copy_(torch.randn(model.lm_head.weight.shape, generator=generator) * 0.3)
    return model


def byte_sum(problem: Problem, text: str) -> float:
    """A reward that differs between almost any two answers: 0 to 1, from the text's bytes."""
    return sum(text.encode()) % 97 / 97


@dataclass(frozen=True)
class ToyEnvironment:
    """``num`` problems "p0", "p1", ... with a reward that a test gives."""

    reward_of: Callable[[Problem, str], float | None] = byte_sum
    num: int = 6
    name: str = "toy"
    uses_python: bool = False

    def num_problems(self, split: str) -> int:
        return self.num

    def problem(self, split: str, index: int) -> Problem:
        assert 0 <= index < self.num
        return Problem((Message.of("user", f"p{index}"),), str(index), f"{split}:{index}")

    def reward(self, problem: Problem, text: str, parts: tuple[Part, ...]) -> float | None:
        return self.reward_of(problem, text)

    def has_format(self, problem: Problem, text: str) -> bool:
        return text.isascii()


def rollout(
    reward: float | None,
    *,
    prompt_ids: tuple[int, ...] = (256, 7, 259),
    ids: tuple[int, ...] = (65, 66, 260),
    logprobs: tuple[float, ...] | None = None,
    is_forced: tuple[bool, ...] | None = None,
    parts: tuple[Part, ...] = (Part("text", "AB"),),
    has_ended: bool = True,
    has_format: bool = True,
    invalid: str = "NaN",
) -> Rollout:
    """An answer as if it had been sampled."""
    return Rollout(
        prompt_ids,
        ids,
        logprobs or tuple(math.log(0.5) for _ in ids),
        is_forced or tuple(False for _ in ids),
        "".join(part.text for part in parts if part.kind == "text"),
        parts,
        Reward(reward, "" if reward is not None else invalid),
        has_ended,
        has_format,
    )


def group(*rewards: float | None, prompt: int = 0) -> Group:
    problem = Problem((Message.of("user", "how many?"),), "4", f"toy:{prompt}")
    return Group(prompt, problem, tuple(rollout(reward) for reward in rewards))
