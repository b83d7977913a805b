"""Gradients through the shared loss against autograd of the objectives themselves, in float64 and without any weights."""

from __future__ import annotations

import math

import pytest
import torch
from rl.toy import rollout
from torch import nn

from firstlight.data.batch import IGNORE
from firstlight.rl.advantages import group_advantages
from firstlight.rl.rows import pad_rows, row_of
from firstlight.rl.weights import Clip, weigh
from firstlight.train.loss import summed_cross_entropy

VOCAB, WIDTH, CAP = 23, 8, 15.0
PROMPT = (20, 3, 21)
ANSWERS = ((1, 2, 22), (4, 4, 5, 6, 22), (22,), (9, 7, 8, 22))
FORCED = ((False,) * 3, (False, True, True, False, False), (False,), (False,) * 4)
REWARDS = (1.0, 0.0, 0.25, 0.5)


class TinyModel(nn.Module):
    """Each place sees its own id and the one before."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.mix = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.to(dtype)

    def hidden(self, inputs_BT: torch.Tensor) -> torch.Tensor:
        x_BTD = self.embed(inputs_BT)
        before_BTD = torch.cat((torch.zeros_like(x_BTD[:, :1]), x_BTD[:, :-1]), dim=1)
        return torch.tanh(self.mix(torch.cat((x_BTD, before_BTD), dim=-1)))

    def logprobs(self, ids: tuple[int, ...]) -> torch.Tensor:
        """log p of each id but the first, given those before."""
        logits_TV = CAP * torch.tanh(self.head(self.hidden(torch.tensor([ids[:-1]])))[0] / CAP)
        return logits_TV.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]


def chosen_logprobs(model: TinyModel, answer: int) -> torch.Tensor:
    """log p of the ids of an answer that the model chose itself."""
    of_answer = model.logprobs((*PROMPT, *ANSWERS[answer]))[len(PROMPT) - 1 :]
    return of_answer[[not forced for forced in FORCED[answer]]]


def padded_answers(logprobs: list[torch.Tensor] | None = None):
    """The four answers as a batch; ``logprobs`` are those of their chosen ids when they were sampled."""
    rows = []
    for i, advantage in enumerate(group_advantages(REWARDS)):
        kept = iter(logprobs[i].tolist() if logprobs else [0.0] * len(ANSWERS[i]))
        sampled = tuple(-9.0 if forced else next(kept) for forced in FORCED[i])
        assert advantage is not None
        answer = rollout(0.0, prompt_ids=PROMPT, ids=ANSWERS[i], is_forced=FORCED[i], logprobs=sampled)
        rows.append(row_of(answer, advantage))
    return pad_rows(rows, bos_id=20, seq_len=64)


def gradients(model: TinyModel, inputs_BT, targets_BT, weights_BT, *, divide: bool = True) -> dict[str, torch.Tensor]:
    """What the shared step gives to the optimizer."""
    loss = summed_cross_entropy(
        model.hidden(inputs_BT), model.head.weight, targets_BT, weights_BT, softcap=CAP, compute_dtype=torch.float32
    )
    loss.backward()
    count = int((targets_BT != IGNORE).sum()) if divide else 1
    return {name: p.grad / count for name, p in model.named_parameters()}


def assert_gradients_equal(found: dict[str, torch.Tensor], exact: TinyModel) -> None:
    for name, parameter in exact.named_parameters():
        assert torch.allclose(found[name].double(), parameter.grad, atol=1e-6), name
        assert parameter.grad.abs().max() > 1e-4


def score(model: TinyModel, inputs_BT, targets_BT) -> torch.Tensor:
    """log p of every target in a batch, without gradient."""
    with torch.no_grad():
        logits_BTV = CAP * torch.tanh(model.head(model.hidden(inputs_BT)) / CAP)
        return logits_BTV.log_softmax(-1).gather(-1, targets_BT.clamp_min(0)[..., None])[..., 0]


def test_weights_of_advantages_give_the_gradient_of_reinforce() -> None:
    padded = padded_answers()
    weights_BT = weigh(padded.targets_BT, padded.advantages_BT).weights_BT
    found = gradients(TinyModel(), padded.inputs_BT, padded.targets_BT, weights_BT)

    exact = TinyModel(dtype=torch.float64)
    mean = sum(REWARDS) / len(REWARDS)
    objective = sum((REWARDS[i] - mean) * chosen_logprobs(exact, i).sum() for i in range(4))
    num_chosen = 3 + 3 + 1 + 4
    (-objective / num_chosen).backward()
    assert_gradients_equal(found, exact)


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.05, 0.6)])
def test_the_clip_gives_the_gradient_of_ppos_objective(low: float, high: float) -> None:
    exact = TinyModel(dtype=torch.float64)
    moved = TinyModel(seed=3, dtype=torch.float64)
    with torch.no_grad():
        for parameter, other in zip(moved.parameters(), exact.parameters(), strict=True):
            parameter.lerp_(other, 0.6)
        old = [chosen_logprobs(moved, i) for i in range(4)]
    padded = padded_answers(old)
    weighed = weigh(
        padded.targets_BT, padded.advantages_BT, sampling_logprobs_BT=padded.logprobs_BT,
        logprobs_BT=score(TinyModel(), padded.inputs_BT, padded.targets_BT), clip=Clip(low, high),
    )  # fmt: skip
    found = gradients(TinyModel(), padded.inputs_BT, padded.targets_BT, weighed.weights_BT)

    mean = sum(REWARDS) / len(REWARDS)
    total, num_clipped, ratio_sum = torch.zeros((), dtype=torch.float64), 0, 0.0
    for i in range(4):
        advantage = REWARDS[i] - mean
        ratio = (chosen_logprobs(exact, i) - old[i]).exp()
        clipped = ratio.clamp(1 - low, 1 + high)
        total = total + torch.minimum(ratio * advantage, clipped * advantage).sum()
        num_clipped += int((clipped * advantage < ratio * advantage).sum())
        ratio_sum += float(ratio.detach().sum())
    (-total / 11).backward()
    assert_gradients_equal(found, exact)
    assert 0 < weighed.num_clipped == num_clipped < 11
    assert weighed.ratio_sum == pytest.approx(ratio_sum, rel=1e-5)


def test_kl_weights_give_the_gradient_of_the_exact_kl_in_expectation() -> None:
    """Every id of the vocabulary after one prefix, each as often as the model would draw it."""
    model, reference = TinyModel(), TinyModel(seed=5)
    inputs_BT = torch.tensor([[20, 3]]).repeat(VOCAB, 1)
    targets_BT = torch.stack((torch.full((VOCAB,), IGNORE), torch.arange(VOCAB)), dim=1)
    weighed = weigh(
        targets_BT, torch.zeros(VOCAB, 2), logprobs_BT=score(model, inputs_BT, targets_BT),
        reference_logprobs_BT=score(reference, inputs_BT, targets_BT), kl=0.3,
    )  # fmt: skip
    probs_V1 = score(model, inputs_BT, targets_BT)[:, 1:].exp()
    found = gradients(model, inputs_BT, targets_BT, weighed.weights_BT * probs_V1, divide=False)

    exact, fixed = TinyModel(dtype=torch.float64), TinyModel(seed=5, dtype=torch.float64)
    logs = [
        (CAP * torch.tanh(m.head(m.hidden(torch.tensor([[20, 3]])))[0, 1] / CAP)).log_softmax(-1)
        for m in (exact, fixed)
    ]
    kl = (logs[0].exp() * (logs[0] - logs[1].detach())).sum()
    (0.3 * kl).backward()
    assert_gradients_equal(found, exact)
    # The logged estimate, weighed by how often each id is drawn, is the KL itself.
    ratios = (logs[1] - logs[0]).detach()
    k3 = ratios.exp() - 1 - ratios
    assert float((logs[0].detach().exp() * k3).sum()) == pytest.approx(kl.item(), rel=1e-9)
    assert weighed.kl_sum == pytest.approx(float(k3.sum()), rel=1e-4)


def test_advantages_give_the_gradient_of_the_expected_reward() -> None:
    """The policy gradient theorem itself: every answer of one id, each as often as the model would give it."""
    model = TinyModel()
    rewards_V = torch.linspace(0, 1, VOCAB) ** 2
    inputs_BT = torch.tensor([[20, 3]]).repeat(VOCAB, 1)
    targets_BT = torch.stack((torch.full((VOCAB,), IGNORE), torch.arange(VOCAB)), dim=1)
    # Any baseline that is the same for all leaves the expectation as it is.
    advantages_BT = (rewards_V - 0.37)[:, None].expand(VOCAB, 2)
    weights_BT = weigh(targets_BT, advantages_BT).weights_BT
    probs_V1 = score(model, inputs_BT, targets_BT)[:, 1:].exp()
    found = gradients(model, inputs_BT, targets_BT, weights_BT * probs_V1, divide=False)

    exact = TinyModel(dtype=torch.float64)
    probs_V = (CAP * torch.tanh(exact.head(exact.hidden(torch.tensor([[20, 3]])))[0, 1] / CAP)).softmax(-1)
    (-(probs_V * rewards_V.double()).sum()).backward()
    assert_gradients_equal(found, exact)


def test_kl_and_clip_by_hand() -> None:
    targets_BT = torch.tensor([[5, 6, 7, IGNORE]])
    now, old, ref = [-1.0, -1.0, -2.0, -50.0], [-1.5, -1.0, -1.0, -1.0], [-1.2, -1.0, -2.5, -1.0]
    weighed = weigh(
        targets_BT, torch.tensor([[1.0, 1.0, -1.0, 1.0]]), sampling_logprobs_BT=torch.tensor([old]),
        logprobs_BT=torch.tensor([now]), reference_logprobs_BT=torch.tensor([ref]), clip=Clip(0.2, 0.2), kl=0.5,
    )  # fmt: skip
    # First: 1 - 0.5 * 0.2 = 0.9 with ratio e^0.5 = 1.65 > 1.2: no gradient. Second: 1 with ratio 1.
    # Third: -1 - 0.5 * 0.5 = -1.25 with ratio e^-1 = 0.37 < 0.8: no gradient. Fourth is no target.
    assert weighed.weights_BT.tolist() == [[0.0, 1.0, 0.0, 0.0]]
    assert weighed.num_clipped == 2
    assert weighed.ratio_sum == pytest.approx(math.exp(0.5) + 1 + math.exp(-1), rel=1e-6)
    assert weighed.kl_sum == pytest.approx(math.exp(-0.2) - 1 + 0.2 + math.exp(-0.5) - 1 + 0.5, rel=1e-5)


def test_a_ratio_beyond_all_bounds_is_finite() -> None:
    weighed = weigh(
        torch.tensor([[5, 6]]), torch.tensor([[-1.0, -1.0]]), sampling_logprobs_BT=torch.tensor([[-500.0, -1.0]]),
        logprobs_BT=torch.tensor([[0.0, -500.0]]), reference_logprobs_BT=torch.tensor([[-900.0, -1.0]]),
        clip=Clip(0.2, 0.2), kl=0.1,
    )  # fmt: skip
    assert torch.isfinite(weighed.weights_BT).all()
    assert math.isfinite(weighed.kl_sum + weighed.ratio_sum)


def test_the_worked_example_of_the_documentation() -> None:
    """docs/rl.md: four answers to 2 + 3; ids 0 `5`, 1 `6`, 2 all others, and one place each but for the third."""
    answers = {"A": ((0.8, 0.9, 0.5, 0.9), 1.0), "B": ((0.8, 0.9, 0.2, 0.9), 0.0), "C": ((0.2, 0.5), 0.0)}
    answers["D"] = answers["A"]
    advantages = group_advantages([reward for _, reward in answers.values()])
    assert advantages == [0.5, -0.5, -0.5, 0.5]
    sums = [-sum(map(math.log, probs)) for probs, _ in answers.values()]
    assert sums == pytest.approx([1.127, 2.043, 2.303, 1.127], abs=1e-3)
    assert sum(a * s for a, s in zip(advantages, sums, strict=True)) / 14 == pytest.approx(-0.0747, abs=1e-4)

    # The place after `####` and a blank, from which A, B and D draw: logits are log p, and the head leaves them so.
    logits_113 = torch.tensor([[[0.5, 0.2, 0.3]]]).log().requires_grad_()
    targets_BT = torch.tensor([[0], [1], [0]])
    weights_BT = weigh(targets_BT, torch.tensor([[0.5], [-0.5], [0.5]])).weights_BT
    loss = summed_cross_entropy(
        logits_113.expand(3, 1, 3), torch.eye(3), targets_BT, weights_BT, softcap=0.0, compute_dtype=torch.float32
    )
    (loss / 14).backward()
    assert logits_113.grad.flatten().tolist() == pytest.approx([-0.0536, 0.0429, 0.0107], abs=1e-4)
