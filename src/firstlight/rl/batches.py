"""Endless micro-batches of a policy gradient, for the same training step that every other stage uses.

    step s, at its first micro-batch:  sample groups with the weights as they are -> rewards -> advantages -> weights
    then:                              give out the micro-batches; the trainer adds up their gradients and updates

**What does not count.** A group whose rewards are all equal has advantages of 0, hence no gradient. Were its ids targets
all the same, they would be in the count that the sum of gradients is divided by, and a step would be the smaller the more
of its prompts are too easy or too hard. So they are no targets (as DAPO leaves such groups out, arXiv 2503.14476; it
samples others in their place, which costs time that a small machine does not have). Their rows are emptied: nothing is
computed for them. With KL on, such a group still has that gradient, and its ids stay.

**Ranks** sample whole groups: of prompts that count from the start of training, p with p % world_size == rank. Prompts and
seeds are pure functions of the run's seed and these numbers, so any number of ranks, and a resumed run, ask the same.

Shapes: B rows, T tokens in a row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from firstlight.data.batch import Batch, Position
from firstlight.errors import DataError, Problems
from firstlight.model.gpt import GPT
from firstlight.rl.advantages import SCALES, Scale, group_advantages, has_signal
from firstlight.rl.environments.base import Environment, Problem
from firstlight.rl.order import problem_index, prompts_of_rank
from firstlight.rl.rollouts import MAX_ROWS, Group, Sampling, sample_groups
from firstlight.rl.rows import PaddedRows, Row, empty_row, pad_rows, row_of
from firstlight.rl.scoring import score_targets
from firstlight.rl.stats import RolloutStats, make_stats, over_ranks, sample_texts, sums_of_groups
from firstlight.rl.tool import open_tool
from firstlight.rl.weights import Clip, weigh
from firstlight.runtime.context import Runtime
from firstlight.tokens.bpe import Tokenizer

MOST_STEPS_WITHOUT_REWARD = 3
"""After so many steps in a row without any valid reward the environment is taken to be broken."""


@dataclass(frozen=True)
class _Sampled:
    """One step's samples, ready to be weighed. rows: of this rank, longest first. sums: of this rank."""

    step: int
    rows: Sequence[Row]
    sums: dict[str, float]
    groups: Sequence[Group]
    advantages: Sequence[Sequence[float | None]]


class RolloutBatches(Iterator[Batch]):
    """Micro-batches of this rank: ``num_micro_batches`` a step, each (device_batch_size, <= seq_len) with weights.

    model: sampled from and scored as it is at the time. seq_len: T that a row may have at most. position: where to go on;
    ``rows_consumed`` counts samples trained on, over all ranks.
    clip: PPO's range, 1 - clip to 1 + clip_high (clip where None). kl: weight of the KL to ``reference``. Both off: the
    plain policy gradient, on policy. scale: ``std`` divides advantages by their group's standard deviation.
    updates_per_rollout: updates from the same samples, after which clip is of use. A run that is resumed between them
    samples again, with the weights it has by then.
    fixed_len: rows are seq_len long, for a compiled model. only_ended: see ``rollouts.py``.
    beat: told now and then what goes on. on_step: given the numbers of each step, on every rank.

    Raises ConfigError for values without meaning, all at once, and DataError where nothing at all gets a reward.
    """

    def __init__(
        self,
        model: GPT,
        environment: Environment,
        tokenizer: Tokenizer,
        *,
        runtime: Runtime,
        seed: int,
        prompts_per_step: int,
        samples_per_prompt: int,
        device_batch_size: int,
        seq_len: int,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        position: Position | None = None,
        clip: float | None = None,
        clip_high: float | None = None,
        kl: float = 0.0,
        reference: GPT | None = None,
        scale: Scale = "none",
        updates_per_rollout: int = 1,
        fixed_len: bool = False,
        only_ended: bool = True,
        max_rows: int = MAX_ROWS,
        num_texts: int = 4,
        beat: Callable[[str], None] = lambda what: None,
        on_step: Callable[[RolloutStats], None] = lambda stats: None,
    ) -> None:
        self._model, self._environment, self._tokenizer = model, environment, tokenizer
        self._runtime, self._seed = runtime, seed
        self._prompts, self._samples, self._batch_rows = prompts_per_step, samples_per_prompt, device_batch_size
        self._seq_len, self._fixed_len = seq_len, fixed_len
        self._kl, self._reference, self._scale = kl, reference, scale
        self._clip = None if clip is None else Clip(clip, clip if clip_high is None else clip_high)
        self._updates, self._num_texts = updates_per_rollout, num_texts
        self._beat, self._on_step = beat, on_step
        position = position or Position()
        check_sampling(
            prompts_per_step=prompts_per_step, samples_per_prompt=samples_per_prompt,
            device_batch_size=device_batch_size, seq_len=seq_len, max_new_tokens=max_new_tokens,
            temperature=temperature, top_k=top_k, clip=clip, clip_high=clip_high, kl=kl, has_reference=reference is not None,
            scale=scale, updates_per_rollout=updates_per_rollout, context=model.config.max_seq_len,
            world_size=runtime.world_size, rows_consumed=position.rows_consumed,
        )  # fmt: skip
        self._num_problems = environment.num_problems("train")
        if self._num_problems < 1:
            raise DataError(f"the environment {environment.name} has no problem to train on")
        self.num_step_rows = prompts_per_step * samples_per_prompt
        self.num_micro_batches = self.num_step_rows // runtime.world_size // device_batch_size
        self._next_step = position.rows_consumed // self.num_step_rows
        self._opened = ExitStack()
        self._sampling = Sampling(
            seed=seed, samples_per_prompt=samples_per_prompt, max_new_tokens=max_new_tokens, seq_len=seq_len,
            temperature=temperature, top_k=top_k, only_ended=only_ended, max_rows=max_rows,
            tool=self._opened.enter_context(open_tool(environment, tokenizer)),
        )  # fmt: skip
        self._sampled: _Sampled | None = None
        self._queue: list[Batch] = []
        self._steps_without_reward = 0

    def __iter__(self) -> RolloutBatches:
        return self

    def __next__(self) -> Batch:
        if not self._queue:
            self._queue = self._make_step(self._next_step)
            self._next_step += 1
        return self._queue.pop(0)

    def __enter__(self) -> RolloutBatches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the tool's process. Safe to call twice."""
        self._opened.close()

    def documents_of(self, position_before: Position, num_rows: int) -> list[str]:
        """Names of the problems behind the ``num_rows`` samples (all ranks) after a position at a step's start."""
        step, _ = divmod(position_before.rows_consumed, self.num_step_rows)
        count = -(-num_rows // self._samples)
        names = [self._problem(prompt).source for prompt in self._prompts_of(step)[:count]]
        return list(dict.fromkeys(names))

    def _prompts_of(self, step: int) -> range:
        """Numbers of the prompts of a step, over all ranks."""
        first = step // self._updates * self._prompts
        return range(first, first + self._prompts)

    def _problem(self, prompt: int) -> Problem:
        return self._environment.problem("train", problem_index(prompt, self._num_problems, self._seed))

    def _make_step(self, step: int) -> list[Batch]:
        """The micro-batches of a step, from new samples or, between two samplings, from those there are."""
        update = step % self._updates
        if self._sampled is None or update == 0 or self._sampled.step != step - update:
            self._sampled = self._sample(step)
        sampled = self._sampled
        start_s = time.perf_counter()
        batches, sums = self._weighed(sampled.rows, step)
        sums["scoring_s"] = time.perf_counter() - start_s
        total = over_ranks({**sampled.sums, **sums}, self._runtime.control)
        texts = sample_texts(sampled.groups, sampled.advantages, self._num_texts)
        stats = make_stats(total, step=step, update=update, texts=texts)
        self._on_step(stats)
        if update == 0:
            # Later updates are of the same samples: they say nothing new about the environment.
            self._check_rewards(stats)
        return batches

    def _sample(self, step: int) -> _Sampled:
        """Groups of this rank with the weights as they are, and their rows, those without a target last."""
        start_s = time.perf_counter()
        first = self._prompts_of(step).start
        mine = prompts_of_rank(first, self._prompts, rank=self._runtime.rank, world_size=self._runtime.world_size)
        asked = [(prompt, self._problem(prompt)) for prompt in mine]
        groups = sample_groups(
            self._model, self._environment, self._tokenizer, asked, self._sampling, beat=self._beat
        )  # fmt: skip
        advantages = [group_advantages(group.rewards, scale=self._scale) for group in groups]
        rows = [row for pair in zip(groups, advantages, strict=True) for row in self._rows_of(*pair)]
        # Rows of one length side by side need the least padding.
        rows.sort(key=lambda row: -len(row.inputs))
        sums = dict(sums_of_groups(groups), sampling_s=time.perf_counter() - start_s)
        return _Sampled(step - step % self._updates, rows, sums, groups, advantages)

    def _rows_of(self, group: Group, advantages: Sequence[float | None]) -> list[Row]:
        """As many rows as a group has samples: those without a reward, and all where nothing is to be learnt, are empty."""
        empty = empty_row(self._tokenizer.bos_id)
        if not group.rollouts or not (has_signal(group.rewards) or self._kl):
            return [empty] * self._samples
        return [
            empty if advantage is None else row_of(rollout, advantage)
            for rollout, advantage in zip(group.rollouts, advantages, strict=True)
        ]

    def _weighed(self, rows: Sequence[Row], step: int) -> tuple[list[Batch], dict[str, float]]:
        """The micro-batches of these rows with their weights, and sums for the log."""
        batches: list[Batch] = []
        sums: dict[str, float] = {"num_targets": 0}
        for start in range(0, len(rows), self._batch_rows):
            padded = pad_rows(
                rows[start : start + self._batch_rows], bos_id=self._tokenizer.bos_id, seq_len=self._seq_len,
                fixed=self._fixed_len, device=self._runtime.device,
            )  # fmt: skip
            weights_BT = self._weights(padded, sums)
            done = step * self.num_step_rows + (len(batches) + 1) * self._batch_rows * self._runtime.world_size
            batch = Batch(padded.inputs_BT, padded.targets_BT, self._position(done), weights_BT)
            sums["num_targets"] += int(batch.num_targets())
            batches.append(batch)
        return batches, sums

    def _weights(self, padded: PaddedRows, sums: dict[str, float]) -> torch.Tensor:
        """Weights of a micro-batch's targets; scores it where clip or KL need that, and adds to ``sums``."""
        inputs_BT, targets_BT, advantages_BT = padded.inputs_BT, padded.targets_BT, padded.advantages_BT
        if self._clip is None and not self._kl:
            return weigh(targets_BT, advantages_BT).weights_BT
        self._beat("scoring the samples")
        scores = score_targets(self._model, inputs_BT, targets_BT)
        reference = score_targets(self._reference, inputs_BT, targets_BT) if self._kl and self._reference else None
        weighed = weigh(
            targets_BT, advantages_BT, sampling_logprobs_BT=padded.logprobs_BT, logprobs_BT=scores.logprobs_BT,
            reference_logprobs_BT=reference.logprobs_BT if reference else None, clip=self._clip, kl=self._kl,
        )  # fmt: skip
        found = {"entropy": float(scores.entropies_BT.sum())}
        if self._clip is not None:
            found |= {"ratio": weighed.ratio_sum, "num_clipped": float(weighed.num_clipped)}
        if self._kl:
            found["kl"] = weighed.kl_sum
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value
        return weighed.weights_BT

    def _position(self, rows_consumed: int) -> Position:
        step, rest = divmod(rows_consumed, self.num_step_rows)
        prompt = self._prompts_of(step).start + (rest // self._samples if self._updates == 1 else 0)
        epoch, place = divmod(prompt, self._num_problems)
        return Position(epoch=epoch, row=place, rows_consumed=rows_consumed)

    def _check_rewards(self, stats: RolloutStats) -> None:
        """Stop where no sample of several steps had a reward, for such a run would go on for ever and learn nothing."""
        has_any = stats.num_samples > stats.num_invalid
        self._steps_without_reward = 0 if has_any else self._steps_without_reward + 1
        if self._steps_without_reward < MOST_STEPS_WITHOUT_REWARD:
            return
        reasons = [f"{count} {reason}" for reason, count in stats.invalid.items()]
        if stats.num_too_long:
            reasons.append(f"{stats.num_too_long} prompts too long for rows of {self._seq_len} tokens")
        error = DataError(
            f"no sample of {self._environment.name} had a reward in {self._steps_without_reward} steps of sampling, in the last one:"
            f" {', '.join(reasons) or 'no samples'}",
            hint="a reward is a finite number; see docs/rl.md, or give longer rows with --max-seq-len",
        )
        error.is_same_on_all_ranks = True
        raise error


def check_sampling(
    *,
    prompts_per_step: int,
    samples_per_prompt: int,
    device_batch_size: int,
    seq_len: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    clip: float | None,
    clip_high: float | None,
    kl: float,
    has_reference: bool,
    scale: str,
    updates_per_rollout: int,
    context: int,
    world_size: int,
    rows_consumed: int = 0,
) -> None:
    """Raise one ConfigError that names every value that cannot be. A recipe asks before it makes a run's folder."""
    problems = Problems()
    for flag, value, smallest in (
        ("--prompts-per-step", prompts_per_step, 1), ("--samples-per-prompt", samples_per_prompt, 2),
        ("--device-batch-size", device_batch_size, 1), ("--max-seq-len", seq_len, 2),
        ("--max-new-tokens", max_new_tokens, 1), ("--updates-per-rollout", updates_per_rollout, 1),
    ):  # fmt: skip
        if value < smallest:
            why = "; a sample is compared with the others of its group" if flag == "--samples-per-prompt" else ""
            problems.add(f"{flag} {value} is too small", hint=f"the smallest is {smallest}{why}")
    if not 0 < temperature < math.inf:
        why = ": all samples of a group would be the same" if temperature == 0 else " is not possible"
        problems.add(f"--temperature {temperature:g}{why}", hint="1 is usual")
    if top_k is not None and top_k < 0:
        problems.add(f"--top-k {top_k} is negative", hint="0 turns it off, 50 is usual")
    if seq_len > context:
        problems.add(
            f"--max-seq-len {seq_len} is more than the model's context of {context}", hint=f"at most {context}"
        )
    for flag, value in (("--clip", clip), ("--clip-high", clip_high)):
        if value is not None and not 0 < value < math.inf:
            problems.add(f"{flag} {value:g} leaves no range", hint="0.2 is usual; leave it out for no clip")
    if clip_high is not None and clip is None:
        problems.add("--clip-high without --clip", hint="give both, for example 0.2 and 0.28")
    if updates_per_rollout > 1 and clip is None:
        problems.add(
            f"--updates-per-rollout {updates_per_rollout} without --clip: nothing would keep the weights near those that"
            " sampled",
            hint="--clip 0.2 is usual",
        )
    if not 0 <= kl < float("inf"):
        problems.add(f"--kl {kl:g} is not possible", hint="0 is off, 0.01 to 0.1 is usual")
    if kl and not has_reference:
        problems.add(f"--kl {kl:g} needs a reference model", hint="the one that training starts from")
    if scale not in SCALES:
        problems.add(f"the advantages' scale {scale!r} is not known", hint=f"one of {', '.join(SCALES)}")
    problems.raise_if_any()
    num_rows = prompts_per_step * samples_per_prompt
    if prompts_per_step % world_size:
        problems.add(
            f"--prompts-per-step {prompts_per_step} cannot be divided among {world_size} processes",
            hint="a multiple of it",
        )
    elif num_rows // world_size % device_batch_size:
        problems.add(
            f"{num_rows // world_size} samples of a process and step are no multiple of --device-batch-size"
            f" {device_batch_size}",
            hint="prompts a step x samples a prompt / processes must be one",
        )
    if rows_consumed % num_rows:
        problems.add(
            f"the position of {rows_consumed:,} samples is not at the start of a step of {num_rows}",
            hint="go on with the --prompts-per-step and --samples-per-prompt that the run was started with",
        )
    problems.raise_if_any()
