"""What a chat model answers to fixed questions while it is trained."""

from __future__ import annotations

from firstlight.infer.batch import Request, complete
from firstlight.infer.calculator import Calculator
from firstlight.infer.chat import stop_ids
from firstlight.infer.tools import PythonTool
from firstlight.model.gpt import GPT
from firstlight.recipes.probes import Say
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import Message, render_prompt

CHAT_PROMPTS = (
    "Who are you?",
    "What is 12 + 34?",
    'How do you spell "list"?',
    'How many "e" are in "tree"?',
    "What does `dot` in numpy do?",
    "Hello!",
)
"""In the words of `builtin-chat`, and nothing that other conversations would not have."""

MAX_NEW_TOKENS = 96


def answering(tokenizer: Tokenizer, calculator: Calculator) -> Say:
    """How a chat model speaks: it answers a user's message, with the tool, by its likeliest tokens."""

    def say(model: GPT, prompt: str, seed: int) -> str:
        prompt_ids = render_prompt([Message.of("user", prompt)], tokenizer)[-model.config.max_seq_len :]
        request = Request(
            tuple(prompt_ids),
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=0.0,
            seed=seed,
            stop_ids=stop_ids(tokenizer),
            tool=lambda: PythonTool(tokenizer, calculator.run),
        )
        [answer] = complete(model, [request], max_rows=1)
        # With its special tokens: the end, or its absence, is what one wants to see.
        return " " + "".join(_shown(tokenizer, i) for i in _runs(answer.ids, tokenizer))

    return say


def _runs(ids: list[int], tokenizer: Tokenizer) -> list[list[int]]:
    """Ids in stretches: special ones alone, ordinary ones together (a character may be several ids)."""
    special = frozenset(tokenizer.special_ids.values())
    runs: list[list[int]] = []
    for token_id in ids:
        if runs and token_id not in special and runs[-1][0] not in special:
            runs[-1].append(token_id)
        else:
            runs.append([token_id])
    return runs


def _shown(tokenizer: Tokenizer, ids: list[int]) -> str:
    names = {i: name for name, i in tokenizer.special_ids.items()}
    return names[ids[0]] if ids[0] in names else tokenizer.decode(ids)
