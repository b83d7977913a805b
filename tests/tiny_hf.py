"""Tiny models and tokenizers of the transformers library, random and seeded, for tests that need one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from words import WORDS

END = "<|endoftext|>"


def tiny_tokenizer(*, bos_token: str | None = END, eos_token: str | None = END, adds_bos: bool = False) -> Any:
    """A byte-level BPE with some merges and one special token, trained on common words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS[i::7]) for i in range(7)] * 3, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{END} $A", special_tokens=[(END, tokenizer.token_to_id(END))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos_token, eos_token=eos_token)


def tiny_gpt2(vocab_size: int, *, context: int = 256, seed: int = 0) -> Any:
    """A random GPT-2 with weights large enough that its answers differ."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab_size, n_positions=context, n_embd=32, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def save_tiny(folder: Path, *, context: int = 256) -> Path:
    """A folder with a tiny GPT-2 and its tokenizer, as `save_pretrained` writes them."""
    tokenizer = tiny_tokenizer()
    tiny_gpt2(len(tokenizer), context=context).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def plain_scores(model: Any, ids: Sequence[int], start: int) -> tuple[float, bool]:
    """Loss in nats of ``ids[start:]`` and whether each is the likeliest: one row, float64, all logits. Makes the model float64."""
    logits_TV = model.double()(torch.tensor([list(ids[:-1])])).logits[0].double()
    logprobs_TV = logits_TV.log_softmax(-1)
    nats = -sum(float(logprobs_TV[t - 1, ids[t]]) for t in range(start, len(ids)))
    return nats, all(int(logits_TV[t - 1].argmax()) == ids[t] for t in range(start, len(ids)))
