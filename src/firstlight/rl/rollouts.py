"""Answers of the present model to problems, in groups: several to the same prompt, each with its reward.

An answer that did not end by itself was not given: it has reward 0, whatever it says so far. Otherwise a model is paid for
talking on, and a number that the limit cut in two may look right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from firstlight.infer.batch import Completion, Request, ToolFactory, complete
from firstlight.infer.chat import split_parts, stop_ids
from firstlight.model.gpt import GPT
from firstlight.rl.environments.base import Environment, Problem
from firstlight.rl.order import sample_seed
from firstlight.rl.rewards import Reward, safe_format, safe_reward
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import Part, render_prompt

MAX_ROWS = 64
"""Answers that are written at the same time."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    seq_len: T of a training row; a prompt and its answer have at most one id more. top_k: None or 0 is off.
    only_ended: answers that did not end have reward 0 (see above). tool: what may write into an answer, or None.
    Temperature 1 without top_k draws from the model as it is; anything else draws from another model than the one whose
    probabilities are then raised and lowered.
    """

    seed: int
    samples_per_prompt: int
    max_new_tokens: int
    seq_len: int
    temperature: float = 1.0
    top_k: int | None = None
    only_ended: bool = True
    tool: ToolFactory | None = None
    max_rows: int = MAX_ROWS


@dataclass(frozen=True)
class Rollout:
    """One answer. ids: its ids, a stop id at the end included; logprobs, is_forced: of each id, see `Completion`.

    text: its text parts, without calls and what the tool printed. has_ended: with the token that ends an answer.
    """

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    is_forced: tuple[bool, ...]
    text: str
    parts: tuple[Part, ...]
    reward: Reward
    has_ended: bool
    has_format: bool

    @property
    def num_calls(self) -> int:
        """Calls of the tool."""
        return sum(part.kind == "python" for part in self.parts)


@dataclass(frozen=True)
class Group:
    """The answers to one prompt. prompt: its number since the start of training. Without rollouts: it was too long."""

    prompt: int
    problem: Problem
    rollouts: tuple[Rollout, ...]

    @property
    def rewards(self) -> list[float | None]:
        return [rollout.reward.value for rollout in self.rollouts]


def sample_groups(
    model: GPT,
    environment: Environment,
    tokenizer: Tokenizer,
    asked: Sequence[tuple[int, Problem]],
    sampling: Sampling,
    *,
    beat: Callable[[str], None],
) -> list[Group]:
    """``samples_per_prompt`` answers to each of ``asked`` (number, problem), with rewards, in the same order.

    A prompt that leaves no room for an answer gets a group without answers. beat: called now and then with what goes on.
    """
    prompts = [tuple(render_prompt(problem.messages, tokenizer)) for _, problem in asked]
    rooms = [min(sampling.max_new_tokens, sampling.seq_len + 1 - len(prompt)) for prompt in prompts]
    stops = frozenset(stop_ids(tokenizer))
    requests = [
        Request(
            prompt_ids=prompt,
            max_new_tokens=room,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            seed=sample_seed(sampling.seed, number, sample),
            stop_ids=stops,
            tool=sampling.tool,
        )
        for (number, _), prompt, room in zip(asked, prompts, rooms, strict=True)
        for sample in range(sampling.samples_per_prompt)
        if room > 0
    ]
    total = len(requests)
    beat(f"sampling {total} answers")
    answers = iter(
        complete(
            model,
            requests,
            max_rows=sampling.max_rows,
            progress=lambda done: beat(f"sampling: {done} of {total} answers"),
        )
    )
    end_id = tokenizer.special_ids["<|assistant_end|>"]
    groups = []
    for (number, problem), prompt, room in zip(asked, prompts, rooms, strict=True):
        beat(f"rewards of prompt {number}")
        rollouts = [
            _judged(
                environment, problem, prompt, next(answers), tokenizer, end_id=end_id, only_ended=sampling.only_ended
            )
            for _ in range(sampling.samples_per_prompt if room > 0 else 0)
        ]
        groups.append(Group(number, problem, tuple(rollouts)))
    return groups


def _judged(
    environment: Environment,
    problem: Problem,
    prompt_ids: tuple[int, ...],
    answer: Completion,
    tokenizer: Tokenizer,
    *,
    end_id: int,
    only_ended: bool,
) -> Rollout:
    has_ended = answer.finish_reason == "stop_id" and answer.ids[-1] == end_id
    said = answer.ids[:-1] if answer.finish_reason == "stop_id" else answer.ids
    parts = tuple(split_parts(said, tokenizer))
    text = "".join(part.text for part in parts if part.kind == "text")
    counts = has_ended or not only_ended
    return Rollout(
        prompt_ids=prompt_ids,
        ids=tuple(answer.ids),
        logprobs=tuple(answer.logprobs),
        is_forced=tuple(answer.is_forced),
        text=text,
        parts=parts,
        reward=safe_reward(environment, problem, text, parts) if counts else Reward(0.0),
        has_ended=has_ended,
        has_format=counts and safe_format(environment, problem, text),
    )
