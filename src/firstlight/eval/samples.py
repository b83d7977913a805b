"""What a model says: fixed prompts, the same seed each time, so that texts of two steps or two runs can be compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from firstlight.infer.engine import generate
from firstlight.model.gpt import GPT
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.stream import StreamDecoder

ENGLISH_PROMPTS = (
    "The capital of France is",
    "Water boils when",
    "The opposite of dark is",
    "Once upon a time",
    "The three largest cities of the country are",
    "She opened the door and",
    "Scientists have found that",
)
"""For models trained on general English. The first is the seed's."""

BUILTIN_PROMPTS = (
    "Return the",
    "The function",
    "Raises ValueError if",
    "This class represents",
    "If the argument is None,",
    "A list of",
    "Compute the",
)
"""For models trained on the built-in text, which is the documentation of Python and its libraries."""

STOP_REASONS = {"stop_id": "end", "max_new_tokens": "length", "context_full": "context"}


@dataclass(frozen=True)
class Sample:
    """One continuation. text: what follows the prompt. num_tokens: ids that were generated, a last stop id included.

    stop_reason: ``end`` (the model ended the document), ``length`` (as long as asked) or ``context`` (no place left).
    num_dropped: tokens cut from the front of the prompt because it did not fit the context.
    """

    prompt: str
    text: str
    num_tokens: int
    stop_reason: str
    num_dropped: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def default_prompts(data: str) -> tuple[str, ...]:
    """Prompts that suit a model trained on ``data`` (as after ``--data``)."""
    return BUILTIN_PROMPTS if data == "builtin" else ENGLISH_PROMPTS


def fit_prompt(prompt_ids: Sequence[int], *, bos_id: int, context: int, max_new_tokens: int) -> tuple[list[int], int]:
    """BOS and the prompt's ids, and how many were cut from the prompt's front so that some room for new text is left.

    The room is max_new_tokens, or a quarter of the context where that is less.

    >>> fit_prompt([5, 6], bos_id=9, context=8, max_new_tokens=100)
    ([9, 5, 6], 0)
    >>> fit_prompt(range(10), bos_id=9, context=8, max_new_tokens=2)
    ([9, 4, 5, 6, 7, 8, 9], 4)
    """
    # The last new token needs no place in the context: nothing is predicted from it.
    keep = max(1, context + 1 - min(max_new_tokens, max(1, context // 4))) - 1
    dropped = max(0, len(prompt_ids) - keep)
    return [bos_id, *prompt_ids[dropped:]], dropped


def continue_prompt(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    num_samples: int = 1,
    on_text: Callable[[int, str], None] | None = None,
) -> list[Sample]:
    """Continue one prompt ``num_samples`` times. BOS goes in front; a special token, BOS included, ends a text.

    on_text: called with (sample, text) as text comes; never with half a character.
    Weights, mode and the global random state stay as they are. Raises ConfigError for values without meaning.
    """
    prompt_ids, num_dropped = fit_prompt(
        tokenizer.encode(prompt),
        bos_id=tokenizer.bos_id,
        context=model.config.max_seq_len,
        max_new_tokens=max_new_tokens,
    )
    generation = generate(
        model,
        prompt_ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
        num_samples=num_samples,
        stop_ids=tokenizer.special_ids.values(),
    )
    decoders = [StreamDecoder(tokenizer) for _ in range(num_samples)]
    texts = [""] * num_samples
    lengths = [0] * num_samples
    is_open = [True] * num_samples

    def add(i: int, text: str) -> None:
        texts[i] += text
        if text and on_text is not None:
            on_text(i, text)

    for ids in generation:
        for i, token_id in enumerate(ids):
            if not is_open[i]:
                continue
            lengths[i] += 1
            reason = generation.finish_reasons[i]
            if reason != "stop_id":
                add(i, decoders[i].push(token_id))
            if reason is not None:
                add(i, decoders[i].flush())
                is_open[i] = False
    reasons = [STOP_REASONS[reason or "max_new_tokens"] for reason in generation.finish_reasons]
    rows = zip(texts, lengths, reasons, strict=True)
    return [Sample(prompt, text, length, reason, num_dropped) for text, length, reason in rows]


def sample_prompts(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.8,
    top_k: int | None = 50,
    seed: int = 0,
) -> list[Sample]:
    """One continuation of each prompt, reproducible from ``seed``. See `continue_prompt`."""
    return [
        continue_prompt(
            model,
            tokenizer,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed + index,
        )[0]
        for index, prompt in enumerate(prompts)
    ]


def samples_markdown(step: int, samples: Sequence[Sample]) -> str:
    """The samples of one step as a Markdown section. The prompt ends at ``│``; no text can leave its fence."""
    parts = [f"## Step {step:,}\n"]
    for sample in samples:
        text = f"{sample.prompt}│{sample.text}".replace("\r", "\n").replace("\0", "\ufffd")
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
        parts.append(f"\n{fence}text\n{text}\n{fence}\n")
    return "".join(parts) + "\n"
