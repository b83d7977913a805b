"""Text generation in ids: read the prompt once with the model, then one token a step for all samples (`decoder`).

Shapes: B samples, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch

from firstlight.errors import ConfigError
from firstlight.infer.cache import KVCache
from firstlight.infer.decoder import Decoder, prefill, read_natively, step_dtype
from firstlight.infer.native.step import native_step
from firstlight.infer.sampling import check_sampling, sample
from firstlight.model.gpt import GPT
from firstlight.model.precision import Linear
from firstlight.model.sharding import is_sharded

FinishReason = Literal["stop_id", "max_new_tokens", "context_full"]

PREFILL_CHUNK = 512
"""Prompt tokens in one forward pass: bounds the memory of a long prompt."""


def decoding_copy(model: GPT) -> GPT:
    """A model for inference: block and head weights already in the compute dtype, so no pass casts them again.

    Logits are the same to the bit, since the same cast happens once instead of on each step. In float32 nothing is
    copied: the weights are shared. The given model is not changed in any way.
    """
    with torch.device("meta"):
        copy = GPT(model.config, compute_dtype=model.compute_dtype)
    matmul_weights = {f"{name}.weight" for name, module in copy.named_modules() if isinstance(module, Linear)}
    weights = {
        name: weight.to(model.compute_dtype) if name in matmul_weights else weight
        for name, weight in model.state_dict().items()
    }
    copy.load_state_dict(weights, assign=True)
    copy.rope_cos = model.rope_cos
    copy.rope_sin = model.rope_sin
    return copy.requires_grad_(False).eval()


def check_prompt(prompt_ids: Sequence[int], *, vocab_size: int, context: int) -> None:
    """Raise ConfigError for an empty prompt, one longer than ``context``, and one with ids outside the vocabulary."""
    if not prompt_ids:
        raise ConfigError("the prompt has no tokens", hint="a text from nothing starts with the <|bos|> id")
    outside = [i for i in prompt_ids if not 0 <= i < vocab_size]
    if outside:
        raise ConfigError(
            f"prompt id {outside[0]} is outside the model's vocabulary of {vocab_size}",
            hint="use the tokenizer that the model was trained with",
        )
    if len(prompt_ids) > context:
        raise ConfigError(
            f"the prompt has {len(prompt_ids)} tokens and the model's context is {context}",
            hint=f"give at most {context} tokens",
        )


class Generation(Iterator[list[int]]):
    """Samples that continue one prompt: each ``next`` gives one id per sample.

    A sample that has met a stop id repeats that id until all samples have finished. The iterator ends when all have met
    a stop id, after max_new_tokens, or when the model's context is full.

    With sharded weights each step is a collective call of all ranks, which give the same arguments. The iterator then goes
    on after stop ids, so that the number of calls does not depend on what was sampled.

    finish_reasons: for each sample ``stop_id``, ``max_new_tokens`` or ``context_full``, and None while it goes on.
    """

    def __init__(
        self,
        model: GPT,
        prompt_ids: list[int],
        *,
        max_new_tokens: int,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        seed: int,
        num_samples: int,
        stop_ids: Iterable[int],
        prefill_chunk: int,
        compiled: bool,
    ) -> None:
        config = model.config
        check_sampling(temperature=temperature, top_k=top_k, top_p=top_p)
        check_prompt(prompt_ids, vocab_size=config.vocab_size, context=config.max_seq_len)
        for name, value in (
            ("max_new_tokens", max_new_tokens),
            ("num_samples", num_samples),
            ("prefill_chunk", prefill_chunk),
        ):
            if value < 1:
                raise ConfigError(f"{name} {value} is too small", hint="the smallest is 1")
        self.finish_reasons: list[FinishReason | None] = [None] * num_samples
        self.num_new_tokens = 0
        self._sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        self._max_new_tokens = max_new_tokens
        self._num_samples = num_samples
        self._stop_ids = frozenset(stop_ids)
        self._prefill_chunk = prefill_chunk
        self._prompt_ids = list(prompt_ids)
        self._device = model.lm_head.weight.device
        self._generator = torch.Generator(device=self._device).manual_seed(seed)
        # A copy would bring all the weights together that were cut because they have no room.
        self._is_sharded = is_sharded(model)
        self._native = None if compiled or self._is_sharded else native_step(model)
        is_read_natively = self._native is not None and self._native.reads([prompt_ids])
        self._model = model if self._is_sharded or is_read_natively else decoding_copy(model)
        self._is_read_natively = is_read_natively
        self._is_over = False
        self._compiled = compiled
        self._cache: KVCache | None = None
        self._decoder: Decoder | None = None
        self._last_ids: list[int] = []

    def __next__(self) -> list[int]:
        if self._is_over or (all(self.finish_reasons) and not self._is_sharded):
            raise StopIteration
        logits_BV = self._first_logits() if self._cache is None else self._next_logits(self._cache)
        ids = sample(logits_BV, generator=self._generator, **self._sampling).tolist()
        self.num_new_tokens += 1
        for i, reason in enumerate(self.finish_reasons):
            if reason is not None:
                ids[i] = self._last_ids[i]
            elif ids[i] in self._stop_ids:
                self.finish_reasons[i] = "stop_id"
        self._last_ids = ids
        # The last id of a full context has no position of its own: it was read off the position before.
        if self.num_new_tokens == self._max_new_tokens:
            self._finish("max_new_tokens")
        elif len(self._prompt_ids) + self.num_new_tokens > self._model.config.max_seq_len:
            self._finish("context_full")
        return ids

    def _finish(self, why: FinishReason) -> None:
        self._is_over = True
        self.finish_reasons = [reason or why for reason in self.finish_reasons]

    def _first_logits(self) -> torch.Tensor:
        config, native = self._model.config, self._native
        cache = KVCache.empty(
            config,
            batch_rows=1,
            max_len=min(config.max_seq_len, len(self._prompt_ids) + self._max_new_tokens - 1),
            dtype=self._model.compute_dtype,
            device=self._device,
        )
        if native is not None and self._is_read_natively:
            logits_1V = read_natively(native, self._prompt_ids, cache)
        else:
            prompt_1T = torch.tensor([self._prompt_ids], dtype=torch.int64, device=self._device)
            logits_1V = prefill(self._model, prompt_1T, cache, chunk=self._prefill_chunk)
        dtype = cache.dtype
        if not self._is_sharded:
            dtype = step_dtype(self._model, native, batch_rows=self._num_samples)
        self._cache = cache.repeat_rows(self._num_samples, dtype=dtype)
        return logits_1V.expand(self._num_samples, -1)

    def _next_logits(self, cache: KVCache) -> torch.Tensor:
        if self._is_sharded:
            last_ids_B1 = torch.tensor(self._last_ids, device=self._device)[:, None]
            return prefill(self._model, last_ids_B1, cache, chunk=self._prefill_chunk)
        # Not made before it is needed: many a caller wants one token only.
        if self._decoder is None:
            self._decoder = Decoder(self._model, cache, native=self._native, compiled=self._compiled)
        return self._decoder.next_logits(torch.tensor(self._last_ids, dtype=torch.int64, device=self._device))


def generate(
    model: GPT,
    prompt_ids: list[int],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    num_samples: int = 1,
    stop_ids: Iterable[int] = (),
    prefill_chunk: int = PREFILL_CHUNK,
    compiled: bool = False,
) -> Generation:
    """Continue a prompt ``num_samples`` times, independently: an iterator that gives one id per sample per step.

    The prompt is read once and shared. The same seed gives the same ids. When the context is full it stops and says so
    (``finish_reasons`` of the `Generation`); it does not slide.

    Training is not touched: the model's weights, its mode and the global random state stay as they are, and gradients
    are not switched off for the caller between two steps.

    compiled: compile the step, which takes many seconds once for each shape; for long texts only.

    Raises ConfigError, before any work, for an empty prompt, one that is longer than the context or has ids outside the
    vocabulary, and for sampling values without meaning.
    """
    return Generation(
        model,
        prompt_ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        num_samples=num_samples,
        stop_ids=stop_ids,
        prefill_chunk=prefill_chunk,
        compiled=compiled,
    )
