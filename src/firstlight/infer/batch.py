"""Continuous batching: many requests, of different lengths and at different places, share each step.

A step of few rows reads every weight to make few tokens; of many rows it reads them once for all. So requests that wait are
let in as soon as a row is free, prompts are read between steps in pieces of bounded size, and a row that ends makes room at
once. Each row's text depends on its own request alone: its prompt, its rule and its seed.

In float32 greedy ids are those of `firstlight.infer.engine.generate`. The native step gives a row the same logits to the bit in
any company; torch's matrix product may round otherwise for another number of rows, so there, and behind prompts that are too
long for the native step, the company can decide where two tokens are equally likely to the last digits (in bf16 not rare).

Shapes: B rows, P new rows, T tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Protocol

import torch

from firstlight.errors import ConfigError
from firstlight.infer.batch_cache import BatchCache, SlotCache
from firstlight.infer.decoder import step_dtype
from firstlight.infer.engine import FinishReason, check_prompt, decoding_copy
from firstlight.infer.fast import decode_step, prepare
from firstlight.infer.native.step import native_step
from firstlight.infer.row_attention import RowPlaces, attend_to_rows
from firstlight.infer.row_sampling import Choice, check_finite, choose, numbers_of_seed
from firstlight.infer.sampling import check_sampling
from firstlight.model.gpt import GPT
from firstlight.model.sharding import is_sharded

LONGEST_WAIT_S = 0.05
"""Where every row waits for its tool, a step waits with them this long: then whoever cancels is heard."""

PREFILL_CHUNK = 256
"""Prompt tokens read in one step: bounds how long the rows that are under way wait."""


class Tool(Protocol):
    """Looks at what one row's model writes, and may write itself."""

    def after(self, token_id: int) -> list[int] | Future[list[int]]:
        """Called with each id that the model chose; returns the ids that come next in its place, or none.

        A future holds the row, and no other one, until it is done.
        """
        ...


ToolFactory = Callable[[], Tool]
"""Makes the tool of one row: it keeps what it has seen."""


@dataclass(frozen=True)
class Request:
    """What to continue, and how: see `firstlight.infer.engine.generate`.

    num_top: alternatives to report for each token. tool: makes what may force ids in between; they count as new tokens.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    num_top: int = 0
    tool: ToolFactory | None = None


@dataclass(frozen=True)
class Token:
    """One new token of one request.

    logprob: natural logarithm of its probability under the model at temperature 1, before top_k and top_p.
    top: the likeliest (id, logprob), likeliest first. is_forced: a tool wrote it. finish_reason: None while it goes on.
    """

    handle: int
    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    is_forced: bool
    finish_reason: FinishReason | None


@dataclass
class _Row:
    """A request under way. length: tokens whose keys are held; the last id's are not."""

    handle: int
    request: Request
    numbers: list[float]
    tool: Tool | None
    prompt_logits_V: torch.Tensor | None = None
    length: int = 0
    num_new: int = 0
    before_id: int = 0
    last_id: int = 0
    forced: deque[int] = field(default_factory=deque)
    pending: Future[list[int]] | None = None

    def forget(self) -> None:
        """What its tool still does is for nobody."""
        if self.pending is not None:
            self.pending.cancel()


class BatchEngine:
    """Continues up to ``max_rows`` requests at a time; more of them wait, first come first served.

    max_len: tokens that a row's prompt and answer may have together; None is the model's context. Memory for keys and values
        grows as they are needed, up to max_rows * max_len tokens.
    prefill_chunk: prompt tokens read in one step.

    The weights are laid out once: a model that was trained on needs a new engine. The model, its mode and the global random
    state are not touched. One thread may use it.
    """

    def __init__(
        self, model: GPT, *, max_rows: int, max_len: int | None = None, prefill_chunk: int = PREFILL_CHUNK
    ) -> None:
        config = model.config
        for name, value in (("max_rows", max_rows), ("max_len", max_len), ("prefill_chunk", prefill_chunk)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} {value} is too small", hint="the smallest is 1")
        if is_sharded(model):
            raise ConfigError("a batch of requests needs whole weights", hint="load the checkpoint in one process")
        self.max_rows = max_rows
        self.max_len = min(max_len or config.max_seq_len, config.max_seq_len)
        self._prefill_chunk = prefill_chunk
        self._device = model.lm_head.weight.device
        self._model = decoding_copy(model)
        self._native = native_step(model)
        dtype = step_dtype(model, self._native, batch_rows=max_rows)
        self._weights = prepare(model, dtype=dtype) if self._native is None else None
        with torch.inference_mode():
            self._cache = BatchCache(
                config, max_rows=max_rows, max_len=self.max_len, dtype=dtype, device=self._device
            )  # fmt: skip
        self._waiting: deque[_Row] = deque()
        # Row i is in slot i of the cache, and the one whose prompt is being read in the slot behind them.
        self._rows: list[_Row] = []
        self._partial: _Row | None = None
        self._next_handle = 0

    @property
    def num_active(self) -> int:
        """Requests that have a row."""
        return len(self._rows) + (self._partial is not None)

    @property
    def num_waiting(self) -> int:
        """Requests that have none yet."""
        return len(self._waiting)

    def submit(self, request: Request) -> int:
        """Take a request; its handle is in its tokens. Raises ConfigError for one that cannot be, before any work."""
        config = self._model.config
        check_sampling(temperature=request.temperature, top_k=request.top_k, top_p=request.top_p)
        check_prompt(request.prompt_ids, vocab_size=config.vocab_size, context=self.max_len)
        if request.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens {request.max_new_tokens} is too small", hint="the smallest is 1")
        if not 0 <= request.num_top <= config.vocab_size:
            raise ConfigError(
                f"num_top {request.num_top} is not possible", hint=f"0 to {config.vocab_size}, the vocabulary"
            )
        num_new = min(request.max_new_tokens, self.max_len + 1 - len(request.prompt_ids))
        numbers = numbers_of_seed(request.seed, num_new) if request.temperature else [0.0] * num_new
        tool = request.tool() if request.tool is not None else None
        self._next_handle += 1
        self._waiting.append(_Row(self._next_handle, request, numbers, tool))
        return self._next_handle

    def cancel(self, handle: int) -> None:
        """End a request; its row is free at once. Nothing happens where it has ended already."""
        for row in self._waiting:
            if row.handle == handle:
                self._waiting.remove(row)
                return
        if self._partial is not None and self._partial.handle == handle:
            self._partial = None
            return
        for i, row in enumerate(self._rows):
            if row.handle == handle:
                self._remove([i])
                return

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """Let requests in that wait, then make one token for every row whose prompt is read.

        Raises ConfigError where logits are not finite; the engine is of no use then.
        """
        self._take_outputs()
        parts = [self._decode()] if self._rows else []
        parts += self._admit()
        if not parts:
            return []
        logits_BV = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self._emit(logits_BV)

    def _take_outputs(self) -> None:
        """What tools have found since the last step is forced from here on."""
        pending = [row.pending for row in self._rows if row.pending is not None]
        if pending and len(pending) == len(self._rows):
            wait(pending, timeout=LONGEST_WAIT_S, return_when=FIRST_COMPLETED)
        for row in self._rows:
            if row.pending is not None and row.pending.done():
                row.forced.extend(row.pending.result())
                row.pending = None

    def _decode(self) -> torch.Tensor:
        """Logits behind the last id of every row. A row that waits for its tool is read again at the same place."""
        rows = self._rows
        ids_B, before_B, positions_B = torch.tensor(
            [[row.last_id for row in rows], [row.before_id for row in rows], [row.length for row in rows]],
            device=self._device,
        )
        lengths = [row.length + 1 for row in rows]
        self._cache.reserve(len(rows), max(lengths))
        logits_BV = self._next_logits(ids_B, before_B, positions_B, lengths)
        for row in rows:
            row.length += row.pending is None
        return logits_BV

    def _next_logits(
        self, ids_B: torch.Tensor, before_B: torch.Tensor, positions_B: torch.Tensor, lengths: list[int]
    ) -> torch.Tensor:
        if self._native is not None:
            return self._native.next_logits(ids_B, before_B, positions_B, self._cache.k_LBGMK, self._cache.v_LBGMK)
        weights, places = self._weights, RowPlaces(self._cache, lengths, positions_B)
        assert weights is not None
        cos_B1K, sin_B1K = weights.cos_M1K[positions_B], weights.sin_M1K[positions_B]
        return decode_step(weights, ids_B, before_B, cos_B1K, sin_B1K, attend_to_rows(self._cache, places))

    def _admit(self) -> list[torch.Tensor]:
        """Read prompts of at most ``prefill_chunk`` tokens; logits behind those that are whole now, in order of rows."""
        if self._partial is not None:
            return self._read_piece(self._partial)
        new: list[_Row] = []
        leaders: dict[tuple[int, ...], int] = {}
        longest = 0
        while self._waiting and len(self._rows) + len(new) < self.max_rows:
            prompt = self._waiting[0].request.prompt_ids
            if prompt not in leaders and self._twin(prompt) is None:
                if (len(leaders) + 1) * max(longest, len(prompt)) > self._prefill_chunk:
                    break
                # Who reads a prompt must not depend on the prompts beside it.
                if leaders and self._reads_natively([prompt]) != self._reads_natively(leaders):
                    break
                leaders[prompt] = len(leaders)
                longest = max(longest, len(prompt))
            new.append(self._waiting.popleft())
        if new:
            return [self._read_whole(new, list(leaders))]
        if self._waiting and len(self._rows) < self.max_rows:
            self._partial = self._waiting.popleft()
            return self._read_piece(self._partial)
        return []

    def _reads_natively(self, prompts: Iterable[tuple[int, ...]]) -> bool:
        return self._native is not None and self._native.reads(prompts)

    def _twin(self, prompt: tuple[int, ...]) -> int | None:
        """A row that began with the same prompt."""
        for i, row in enumerate(self._rows):
            if row.prompt_logits_V is not None and row.request.prompt_ids == prompt:
                return i
        return None

    def _read_whole(self, new: list[_Row], prompts: list[tuple[int, ...]]) -> torch.Tensor:
        """Give rows to ``new``; each of ``prompts`` is read once, and the others copy what their twin holds."""
        first = len(self._rows)
        self._cache.reserve(first + len(new), max(len(row.request.prompt_ids) for row in new))
        # Those that are read get the first slots, one behind another.
        leaders: dict[tuple[int, ...], _Row] = {}
        for row in new:
            if row.request.prompt_ids in prompts:
                leaders.setdefault(row.request.prompt_ids, row)
        followers = [row for row in new if leaders.get(row.request.prompt_ids) is not row]
        if prompts:
            logits_PV = self._read_prompts(prompts, first)
            for logits_V, row in zip(logits_PV, leaders.values(), strict=True):
                self._start(row, logits_V)
        for row in followers:
            twin = self._twin(row.request.prompt_ids)
            assert twin is not None
            self._cache.copy_slot(twin, len(self._rows), len(row.request.prompt_ids))
            self._start(row, self._rows[twin].prompt_logits_V)
        return torch.stack([row.prompt_logits_V for row in self._rows[first:]])  # pyrefly: ignore

    def _read_prompts(self, prompts: list[tuple[int, ...]], first: int) -> torch.Tensor:
        """Read whole prompts into the slots from ``first`` on; logits (P,V) behind each."""
        if self._native is not None and self._reads_natively(prompts):
            return self._native.read(prompts, self._cache.k_LBGMK, self._cache.v_LBGMK, first_row=first)
        longest = max(map(len, prompts))
        ids_PT = torch.tensor([[*p, *[0] * (longest - len(p))] for p in prompts], device=self._device)
        # Behind a shorter prompt there are other ids, which it does not see; their keys are overwritten later.
        slots = SlotCache(self._cache, first=first, num=len(prompts), length=0, last_ids_B=None)
        hidden_PTD = self._model.hidden(ids_PT, slots)
        last_P = torch.tensor([len(p) - 1 for p in prompts], device=self._device)
        return self._model.logits(hidden_PTD[torch.arange(len(prompts), device=self._device), last_P])

    def _read_piece(self, row: _Row) -> list[torch.Tensor]:
        """Read the next piece of a long prompt; its logits where that was the last one."""
        prompt = row.request.prompt_ids
        end = min(len(prompt), row.length + self._prefill_chunk)
        slot = len(self._rows)
        self._cache.reserve(slot + 1, end)
        start, row.length = row.length, end
        if self._native is not None and self._reads_natively([prompt]):
            keys, values = self._cache.k_LBGMK, self._cache.v_LBGMK
            logits_1V = self._native.read([prompt], keys, values, first_row=slot, start=start, end=end)
        else:
            before_1 = torch.tensor([prompt[start - 1]], device=self._device) if start else None
            slots = SlotCache(self._cache, first=slot, num=1, length=start, last_ids_B=before_1)
            hidden_1TD = self._model.hidden(torch.tensor([prompt[start:end]], device=self._device), slots)
            logits_1V = self._model.logits(hidden_1TD[:, -1])
        if end < len(prompt):
            return []
        self._partial = None
        self._start(row, logits_1V[0])
        return [logits_1V]

    def _start(self, row: _Row, logits_V: torch.Tensor | None) -> None:
        """The row behind the last one is this request's, and holds its whole prompt."""
        row.prompt_logits_V = logits_V
        row.length = len(row.request.prompt_ids)
        row.last_id = row.request.prompt_ids[-1]
        self._rows.append(row)

    def _emit(self, logits_BV: torch.Tensor) -> list[Token]:
        """Choose every row's next id, and take out the rows that end with it."""
        rows = self._rows
        log_sums_B = logits_BV.logsumexp(dim=-1)
        check_finite(log_sums_B)
        choices = [Choice(r.request.temperature, r.request.top_k, r.request.top_p, r.numbers[r.num_new]) for r in rows]
        ids_B = choose(logits_BV, choices)
        forced = [i for i, row in enumerate(rows) if row.forced]
        if forced:
            ids_B[forced] = torch.tensor([rows[i].forced.popleft() for i in forced], device=self._device)
        logprobs = (logits_BV.gather(-1, ids_B[:, None])[:, 0] - log_sums_B).tolist()
        tops = self._tops(logits_BV, log_sums_B)
        tokens, ended = [], []
        for i, (row, token_id, logprob, top) in enumerate(zip(rows, ids_B.tolist(), logprobs, tops, strict=True)):
            if row.pending is not None:
                continue
            reason = self._advance(row, token_id, is_forced=i in forced)
            if reason is not None:
                ended.append(i)
            tokens.append(Token(row.handle, token_id, logprob, top, i in forced, reason))
        self._remove(ended)
        return tokens

    def _advance(self, row: _Row, token_id: int, *, is_forced: bool) -> FinishReason | None:
        """Add an id to a row; why the row ends with it, or None."""
        request = row.request
        row.before_id, row.last_id = row.last_id, token_id
        row.num_new += 1
        if not is_forced:
            if token_id in request.stop_ids:
                return "stop_id"
            if row.tool is not None:
                found = row.tool.after(token_id)
                if isinstance(found, Future):
                    row.pending = found
                else:
                    row.forced.extend(found)
        if row.num_new == request.max_new_tokens:
            return "max_new_tokens"
        # The last id of a full row has no position of its own: it was read off the position before.
        return "context_full" if len(request.prompt_ids) + row.num_new > self.max_len else None

    def _tops(self, logits_BV: torch.Tensor, log_sums_B: torch.Tensor) -> list[tuple[tuple[int, float], ...]]:
        """For each row as many of its likeliest ids as it asks for."""
        tops: list[tuple[tuple[int, float], ...]] = [()] * len(self._rows)
        asking = [i for i, row in enumerate(self._rows) if row.request.num_top]
        if asking:
            most = max(self._rows[i].request.num_top for i in asking)
            found = (logits_BV[asking] - log_sums_B[asking, None]).topk(most, dim=-1)
            for i, ids, logprobs in zip(asking, found.indices.tolist(), found.values.tolist(), strict=True):
                num = self._rows[i].request.num_top
                tops[i] = tuple(zip(ids[:num], logprobs[:num], strict=True))
        return tops

    def _remove(self, ended: Sequence[int]) -> None:
        """Take rows out; the last ones move into the gaps. ``ended``: ascending."""
        rows, slot = self._rows, len(self._rows)
        with torch.inference_mode():
            for i in reversed(ended):
                rows[i].forget()
                last = rows.pop()
                if i < len(rows):
                    self._cache.copy_slot(len(rows), i, last.length)
                    rows[i] = last
            if self._partial is not None and ended:
                self._cache.copy_slot(slot, len(rows), self._partial.length)


@dataclass(frozen=True)
class Completion:
    """A whole answer: its ids, a last stop id included; their logprobs at temperature 1; and which of them a tool wrote."""

    ids: list[int]
    logprobs: list[float]
    is_forced: list[bool]
    finish_reason: FinishReason


def complete(
    model: GPT, requests: Sequence[Request], *, max_rows: int = 32, progress: Callable[[int], None] | None = None
) -> list[Completion]:
    """Answers of all requests, in their order. Those with the same prompt read it once where they follow each other.

    progress: called with the number of requests that are done, when there are more of them.
    Raises ConfigError before any work where a request cannot be.
    """
    if not requests:
        return []
    longest = max(len(r.prompt_ids) + r.max_new_tokens - 1 for r in requests)
    engine = BatchEngine(model, max_rows=min(max_rows, len(requests)), max_len=max(1, longest))
    answers = [Completion([], [], [], "max_new_tokens") for _ in requests]
    place_of = {engine.submit(request): i for i, request in enumerate(requests)}
    num_done = 0
    while place_of:
        num_before = num_done
        for token in engine.step():
            answer = answers[place_of[token.handle]]
            answer.ids.append(token.id)
            answer.logprobs.append(token.logprob)
            answer.is_forced.append(token.is_forced)
            if token.finish_reason is not None:
                answers[place_of.pop(token.handle)] = Completion(
                    answer.ids, answer.logprobs, answer.is_forced, token.finish_reason
                )
                num_done += 1
        if progress is not None and num_done > num_before:
            progress(num_done)
    return answers
