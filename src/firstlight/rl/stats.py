"""What one step of reinforcement learning saw, over all processes: from sums that add up, so ranks need only be added.

| number | what it tells |
|---|---|
| reward_mean, reward_std | over samples that have a reward; the mean is what should rise |
| signal_frac | groups whose rewards differ: the others teach nothing |
| pass_at_k | chance that one of k answers is right, see ``pass_at_k.py`` |
| format_frac, ended_frac | answers in the right form; answers that ended by themselves |
| length_mean | ids that the model chose for an answer |
| entropy_nats | mean of -log p over those ids: at temperature 1 an estimate, without bias, of the entropy a choice has; near 0 the model no longer tries anything else |
| exact_entropy_nats | the entropy itself, where a scoring pass is made anyway (clip or KL), else None |
| num_invalid | samples without a reward, by reason in ``invalid`` |
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from firstlight.rl.advantages import has_signal
from firstlight.rl.environments.base import is_solved
from firstlight.rl.pass_at_k import pass_at_k, powers_of_two
from firstlight.rl.rollouts import Group
from firstlight.runtime.channel import Channel

LARGEST = ("length_max", "sampling_s", "scoring_s")
"""Of these the ranks' largest counts; everything else is added up."""


@dataclass(frozen=True)
class SampleText:
    """One answer, for people. prompt: the last user's message. parts: ``(kind, text)``, calls and outputs included."""

    source: str
    prompt: str
    parts: tuple[tuple[str, str], ...]
    answer: str
    reward: float | None
    advantage: float | None
    has_ended: bool


@dataclass(frozen=True)
class RolloutStats:
    """Numbers of one step, see the table above. step: counts from 0. update: of this step's samples, counts from 0.

    num_targets: ids trained on. num_too_long: prompts that left no room for an answer. calls_mean: tool calls per sample.
    ratio_mean, clipped_frac: of the clip, kl_nats: mean of k3 per target; None where they are off.
    sampling_s, scoring_s: of the slowest rank; rewards are in sampling_s. texts: a few samples of this rank.
    """

    step: int
    update: int
    num_prompts: int
    num_samples: int
    num_targets: int
    reward_mean: float
    reward_std: float
    signal_frac: float
    pass_at_k: dict[int, float]
    format_frac: float
    ended_frac: float
    length_mean: float
    length_max: int
    entropy_nats: float
    exact_entropy_nats: float | None
    kl_nats: float | None
    ratio_mean: float | None
    clipped_frac: float | None
    calls_mean: float
    num_invalid: int
    invalid: dict[str, int]
    num_too_long: int
    sampling_s: float
    scoring_s: float
    texts: tuple[SampleText, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the texts; NaN, where nothing was measured, becomes None."""
        values = {k: v for k, v in asdict(self).items() if k != "texts"}
        values["pass_at_k"] = {str(k): v for k, v in self.pass_at_k.items()}
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}

    def describe(self) -> str:
        """One line for the console."""
        shown = [f"reward {self.reward_mean:.3f} (std {self.reward_std:.3f})", f"signal {self.signal_frac:.0%}"]
        if self.pass_at_k:
            k = max(self.pass_at_k)
            shown.append(f"pass@{k} {self.pass_at_k[k]:.0%}")
        shown += [f"format {self.format_frac:.0%}", f"ended {self.ended_frac:.0%}", f"length {self.length_mean:.0f}"]
        shown.append(f"entropy {self.entropy_nats:.2f}")
        if self.kl_nats is not None:
            shown.append(f"kl {self.kl_nats:.4f}")
        if self.clipped_frac is not None:
            shown.append(f"clipped {self.clipped_frac:.1%}")
        if self.num_invalid:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.invalid.items())
            shown.append(f"without reward {self.num_invalid} ({reasons})")
        if self.num_too_long:
            shown.append(f"prompts too long {self.num_too_long}")
        return ", ".join(shown)


def sums_of_groups(groups: Sequence[Group]) -> Counter[str]:
    """What is counted of sampled groups, under names that `make_stats` reads."""
    sums: Counter[str] = Counter()
    for group in groups:
        sums["num_prompts"] += 1
        if not group.rollouts:
            sums["num_too_long"] += 1
            continue
        valid = [reward for reward in group.rewards if reward is not None]
        if valid:
            sums["num_groups"] += 1
            sums["num_signal"] += has_signal(valid)
            num_right = sum(map(is_solved, valid))
            for k in powers_of_two(len(group.rollouts)):
                if k <= len(valid):
                    sums[f"pass@{k}"] += pass_at_k(len(valid), num_right, k)  # pyrefly: ignore
                    sums[f"pass@{k} groups"] += 1
        for rollout in group.rollouts:
            sums["num_samples"] += 1
            if (value := rollout.reward.value) is None:
                sums[f"invalid {rollout.reward.invalid}"] += 1
            else:
                sums["num_valid"] += 1
                sums["reward"] += value  # pyrefly: ignore
                sums["reward_squared"] += value * value  # pyrefly: ignore
            sums["num_format"] += rollout.has_format
            sums["num_ended"] += rollout.has_ended
            sums["num_calls"] += rollout.num_calls
            chosen = [p for p, forced in zip(rollout.logprobs, rollout.is_forced, strict=True) if not forced]
            sums["num_chosen"] += len(chosen)
            sums["length_max"] = max(sums["length_max"], len(chosen))
            sums["minus_logprob"] -= math.fsum(chosen)  # pyrefly: ignore
    return sums


def over_ranks(sums: Mapping[str, float], control: Channel) -> dict[str, float]:
    """The sums of all processes, added up (of `LARGEST` the largest). A collective call."""
    total: dict[str, float] = {}
    for text in control.gather_texts(json.dumps(dict(sums))):
        for name, value in json.loads(text).items():
            before = total.get(name, 0)
            total[name] = max(before, value) if name in LARGEST else before + value
    return total


def make_stats(sums: Mapping[str, float], *, step: int, update: int, texts: Sequence[SampleText]) -> RolloutStats:
    """Means and shares from sums; NaN where a mean is over nothing."""

    def mean(name: str, count: str) -> float:
        return sums.get(name, 0) / sums[count] if sums.get(count) else math.nan

    def optional(name: str) -> float | None:
        return mean(name, "num_targets") if name in sums and sums.get("num_targets") else None

    reward_mean = mean("reward", "num_valid")
    variance = mean("reward_squared", "num_valid") - reward_mean**2
    invalid = {name.partition(" ")[2]: int(n) for name, n in sorted(sums.items()) if name.startswith("invalid ")}
    ks = sorted(int(name[5:]) for name in sums if name.startswith("pass@") and not name.endswith("groups"))
    return RolloutStats(
        step=step,
        update=update,
        num_prompts=int(sums.get("num_prompts", 0)),
        num_samples=int(sums.get("num_samples", 0)),
        num_targets=int(sums.get("num_targets", 0)),
        reward_mean=reward_mean,
        reward_std=math.sqrt(max(0.0, variance)) if math.isfinite(variance) else math.nan,
        signal_frac=mean("num_signal", "num_groups"),
        pass_at_k={k: mean(f"pass@{k}", f"pass@{k} groups") for k in ks},
        format_frac=mean("num_format", "num_samples"),
        ended_frac=mean("num_ended", "num_samples"),
        length_mean=mean("num_chosen", "num_samples"),
        length_max=int(sums.get("length_max", 0)),
        entropy_nats=mean("minus_logprob", "num_chosen"),
        exact_entropy_nats=optional("entropy"),
        kl_nats=optional("kl"),
        ratio_mean=optional("ratio"),
        clipped_frac=optional("num_clipped"),
        calls_mean=mean("num_calls", "num_samples"),
        num_invalid=sum(invalid.values()),
        invalid=invalid,
        num_too_long=int(sums.get("num_too_long", 0)),
        sampling_s=float(sums.get("sampling_s", 0)),
        scoring_s=float(sums.get("scoring_s", 0)),
        texts=tuple(texts),
    )


def sample_texts(
    groups: Sequence[Group], advantages: Sequence[Sequence[float | None]], num_texts: int
) -> list[SampleText]:
    """A few answers for people: of the first groups with a signal, the best and the worst of each; then of others."""
    order = sorted(range(len(groups)), key=lambda i: not has_signal(groups[i].rewards))
    chosen: list[SampleText] = []
    for i in order:
        group = groups[i]
        places = sorted(
            (j for j, reward in enumerate(group.rewards) if reward is not None), key=lambda j: -(group.rewards[j] or 0)
        ) or list(range(len(group.rollouts)))
        for j in dict.fromkeys(places[:1] + places[-1:]):
            if len(chosen) == num_texts:
                return chosen
            rollout = group.rollouts[j]
            parts = tuple((str(part.kind), part.text) for part in rollout.parts)
            problem = group.problem
            chosen.append(
                SampleText(
                    problem.source, problem.messages[-1].text, parts, problem.answer, rollout.reward.value,
                    advantages[i][j], rollout.has_ended,
                )
            )  # fmt: skip
    return chosen
