"""Our runs as a model of lm-evaluation-harness (lm_eval 0.4.13; https://github.com/EleutherAI/lm-evaluation-harness).

`Harness` answers what its tasks ask; `model_class` wraps it in the harness's own base class, from which the rule of where
a context ends and its continuation begins is inherited (both are encoded as one text, which is then cut; blanks at the end
of the context belong to the continuation); `register` makes it known under the name ``firstlight``. lm_eval is imported
in these two functions only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from firstlight.errors import ConfigError, DataError
from firstlight.eval.core.scorer import Request, Scored, Scorer
from firstlight.eval.samples import fit_prompt
from firstlight.infer.engine import generate
from firstlight.model.gpt import GPT
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.stream import StreamDecoder

NAME = "firstlight"

DEFAULT_DEVICE = "cuda:0"
"""Of the harness's ``--device``, also on machines without a GPU: taken as ``auto``."""

MAX_NEW_TOKENS = 256
"""Where a task does not say how long an answer may be; the harness's own default."""

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names for the length of an answer, the first one given counts (`lm_eval.models.utils.normalize_gen_kwargs`)."""

CHUNK = 512
"""Requests between two steps of the progress bar, longest first."""


def windows(num_ids: int, start: int, longest: int) -> Iterator[tuple[int, int, int]]:
    """Cut a text that may be too long into (first, start, stop): score ids start to stop of those from first to stop.

    Each id from ``start`` on is scored once, with as much before it as fits; at most ``longest`` ids together. Where the
    scored end fits, that is one window without the text's front; else several, the last one full (the rule of
    `lm_eval.utils.get_rolling_token_windows`).

    >>> list(windows(6, 4, 10)), list(windows(6, 4, 4)), list(windows(10, 1, 5))
    ([(0, 4, 6)], [(2, 4, 6)], [(0, 1, 5), (4, 5, 9), (5, 9, 10)])
    """
    while start < num_ids:
        stop = min(start + longest - 1, num_ids)
        yield max(0, stop - longest), start, stop
        start = stop


@dataclass(frozen=True)
class Sampling:
    """How an answer is generated. temperature: 0 takes the likeliest id each time. stops: texts that end it."""

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    stops: tuple[str, ...]

    @classmethod
    def of(cls, given: dict[str, Any]) -> tuple[Sampling, list[str]]:
        """From a task's ``generation_kwargs``, and the names of those without meaning here.

        Greedy unless ``do_sample`` is true or a temperature is given without it.
        Raises DataError for stop texts that are none.
        """
        rest = dict(given)
        lengths = [int(value) for name in LENGTHS if (value := rest.pop(name, None)) is not None]
        do_sample, asked = rest.pop("do_sample", None), rest.pop("temperature", None)
        if do_sample is False:
            temperature = 0.0
        else:
            temperature = float(asked) if asked is not None else 1.0 if do_sample else 0.0
        stops = rest.pop("until", None) or []
        stops = [stops] if isinstance(stops, str) else list(stops)
        if not all(isinstance(stop, str) for stop in stops):
            raise DataError(f"a task's stop texts are {stops!r}", hint="generation_kwargs.until is a list of texts")
        sampling = cls(
            max_new_tokens=lengths[0] if lengths else MAX_NEW_TOKENS,
            temperature=temperature,
            top_k=rest.pop("top_k", None) or None,
            top_p=rest.pop("top_p", None),
            stops=tuple(stop for stop in stops if stop),
        )
        return sampling, sorted(rest)


def first_stop(text: str, stops: Sequence[str]) -> int:
    """Where the first of the stop texts begins, or -1.

    >>> first_stop("a. b\\nc", ["\\n", ". "]), first_stop("a", ["b"])
    (1, -1)
    """
    return min((at for stop in stops if (at := text.find(stop)) >= 0), default=-1)


@dataclass
class Harness:
    """A run's model, as the harness's tasks ask it.

    add_bos: BOS in front of each text, as in training. facts: for the harness's record of the results.
    report: told of texts that were cut, answers that ended early, and options that were not understood.
    """

    model: GPT
    tokenizer: Tokenizer
    scorer: Scorer
    report: Callable[[str], None]
    add_bos: bool = True
    seed: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def max_seq_len(self) -> int:
        return self.model.config.max_seq_len

    def encode(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        """Ids of a text, after BOS where ``add_bos`` (None: as for the whole model) says so."""
        ids = self.tokenizer.encode(text)
        return [self.tokenizer.bos_id, *ids] if (self.add_bos if add_bos is None else add_bos) else ids

    def continuations(
        self, pairs: Sequence[tuple[list[int], list[int]]], *, progress: Callable[[int], object] | None = None
    ) -> list[tuple[float, bool]]:
        """Log-probability in nats of each (context, continuation), and whether it is what greedy decoding would say.

        Texts that do not fit lose their front. Neighbours with the same context are scored together.
        Raises DataError for a continuation without an id.
        """
        empty = next((context for context, continuation in pairs if not continuation), None)
        if empty is not None:
            raise DataError(
                f"nothing is left of a continuation behind {self.tokenizer.decode(empty)[-60:]!r}: "
                "its characters and the last ones of the context are one token, or it is empty",
                hint="begin the continuation with a blank, and end the context without one",
            )
        texts = [
            ((*(context or [self.tokenizer.bos_id]), *continuation), len(context) or 1)
            for context, continuation in pairs
        ]
        return self._scores(texts, what="contexts", progress=progress)

    def whole_texts(self, texts: Sequence[str], *, progress: Callable[[int], object] | None = None) -> list[float]:
        """Log-probability in nats of each whole text behind BOS. What does not fit is scored in windows, each id once."""
        return [
            logprob
            for logprob, _ in self._scores(
                [((self.tokenizer.bos_id, *self.tokenizer.encode(text)), 1) for text in texts],
                what="texts",
                progress=progress,
            )
        ]

    def _scores(
        self, texts: Sequence[tuple[tuple[int, ...], int]], *, what: str, progress: Callable[[int], object] | None
    ) -> list[tuple[float, bool]]:
        # The last id is no input, so a text may be one longer than the context.
        longest = self.max_seq_len + 1
        groups: list[list[tuple[int, Request]]] = []
        before: tuple[int, ...] | None = None
        num_cut = 0
        for number, (ids, start) in enumerate(texts):
            if ids[:start] != before:
                groups.append([])
                before = ids[:start]
            num_cut += len(ids) > longest
            for first, begin, stop in windows(len(ids), start, longest):
                groups[-1].append((number, Request(ids[first:stop], begin - first)))
        nats = [0.0] * len(texts)
        is_greedy = [True] * len(texts)
        groups = sorted(filter(None, groups), key=lambda group: -max(len(request.ids) for _, request in group))
        for chunk in chunks(groups, CHUNK):
            answers: list[list[Scored]] = self.scorer.score([[request for _, request in group] for group in chunk])
            for group, scored_group in zip(chunk, answers, strict=True):
                for (number, _), scored in zip(group, scored_group, strict=True):
                    nats[number] += scored.nats
                    is_greedy[number] = is_greedy[number] and scored.is_greedy
            if progress is not None:
                progress(len({number for group in chunk for number, _ in group}))
        if num_cut:
            done = "lost their front" if what == "contexts" else "were scored in windows"
            self.report(
                f"{num_cut:,} of {len(texts):,} {what} are longer than the context of {self.max_seq_len:,} tokens and {done}"
            )
        return [(-loss, greedy) for loss, greedy in zip(nats, is_greedy, strict=True)]

    def answers(
        self, asked: Sequence[tuple[str, dict[str, Any]]], *, progress: Callable[[int], object] | None = None
    ) -> list[str]:
        """What the model says behind each context, up to a stop text (left out), the end of the document, or the length.

        asked: (context, generation_kwargs). A context that leaves no room for the answer loses its front (`fit_prompt`).
        """
        found = []
        num_cut = num_full = 0
        unknown: set[str] = set()
        for number, (context, given) in enumerate(asked):
            sampling, names = Sampling.of(given)
            unknown.update(names)
            text, was_cut, is_full = self._answer(context, sampling, seed=self.seed + number)
            found.append(text)
            num_cut += was_cut
            num_full += is_full
            if progress is not None:
                progress(1)
        if unknown:
            self.report(f"generation options without a meaning here were left out: {', '.join(sorted(unknown))}")
        if num_cut:
            self.report(f"{num_cut:,} of {len(asked):,} contexts lost their front to leave room for the answer")
        if num_full:
            self.report(
                f"{num_full:,} of {len(asked):,} answers ended because the context of {self.max_seq_len:,} tokens was full"
            )
        return found

    def _answer(self, context: str, sampling: Sampling, *, seed: int) -> tuple[str, bool, bool]:
        """(text, whether the context was cut, whether the answer was ended by a full context)."""
        prompt_ids, num_dropped = fit_prompt(
            self.tokenizer.encode(context),
            bos_id=self.tokenizer.bos_id,
            context=self.max_seq_len,
            max_new_tokens=sampling.max_new_tokens,
        )
        if not self.add_bos and len(prompt_ids) > 1:
            prompt_ids = prompt_ids[1:]
        generation = generate(
            self.model,
            prompt_ids,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=seed,
            stop_ids=self.tokenizer.special_ids.values(),
        )
        decoder = StreamDecoder(self.tokenizer)
        text = ""
        for (token_id,) in generation:
            if generation.finish_reasons[0] == "stop_id":
                break
            text += decoder.push(token_id)
            if (at := first_stop(text, sampling.stops)) >= 0:
                return text[:at], num_dropped > 0, False
        text += decoder.flush()
        return text, num_dropped > 0, generation.finish_reasons[0] == "context_full"


def chunks(groups: Sequence[list[Any]], size: int) -> Iterator[list[list[Any]]]:
    """Neighbouring groups together, as few as have ``size`` members.

    >>> list(chunks([[1, 2], [3], [4]], 3))
    [[[1, 2], [3]], [[4]]]
    """
    chunk: list[list[Any]] = []
    for group in groups:
        chunk.append(group)
        if sum(map(len, chunk)) >= size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def harness_module() -> Any:
    """The package lm_eval. Raises ConfigError where it is not installed."""
    try:
        import lm_eval  # pyrefly: ignore
    except ImportError as error:
        raise ConfigError(
            f"the tasks of lm-evaluation-harness need the package lm_eval: {error}",
            hint='pip install "firstlight[eval]"',
        ) from error
    return lm_eval


def model_class(open_model: Callable[..., Harness]) -> type:
    """A subclass of the harness's `TemplateLM`. open_model: called with ``--model_args`` (and device, where given)."""
    harness_module()
    from lm_eval.api.model import TemplateLM  # pyrefly: ignore
    from lm_eval.utils import simple_parse_args_string  # pyrefly: ignore
    from tqdm import tqdm

    class FirstlightLM(TemplateLM):
        """A run of firstlight in the harness; each method hands on to `Harness`."""

        max_gen_toks = MAX_NEW_TOKENS

        def __init__(self, batch_size: Any = None, max_batch_size: Any = None, **arguments: Any) -> None:
            super().__init__()
            self.harness = open_model(**arguments)
            self._device = self.harness.model.lm_head.weight.device
            if str(batch_size) not in ("None", "1", "auto") or max_batch_size is not None:
                self.harness.report(
                    f"batch size {batch_size} is not used: batches are as many texts as fit into batch_tokens"
                )

        # The harness adds the batch size and the device of its own flags, whose defaults are 1 and cuda:0.

        @classmethod
        def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: Any = None) -> FirstlightLM:
            given = {name: value for name, value in (additional_config or {}).items() if value is not None}
            if given.get("device") == DEFAULT_DEVICE:
                del given["device"]
            return cls(**(given | arg_dict))

        @classmethod
        def create_from_arg_string(cls, arg_string: str, additional_config: Any = None) -> FirstlightLM:
            return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

        @property
        def eot_token_id(self) -> int:
            return self.harness.tokenizer.bos_id

        @property
        def max_length(self) -> int:
            return self.harness.max_seq_len

        @property
        def tokenizer_name(self) -> str:
            return f"{NAME}-{self.harness.tokenizer.content_hash[:16]}"

        def get_model_info(self) -> dict[str, Any]:
            return self.harness.facts

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return self.harness.encode(string, add_bos=add_special_tokens)

        def tok_decode(self, tokens: Sequence[int], **_: Any) -> str:
            return self.harness.tokenizer.decode(tokens)

        def _loglikelihood_tokens(
            self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_: Any
        ) -> list[tuple[float, bool]]:
            with tqdm(total=len(requests), desc="Scoring continuations", disable=disable_tqdm) as bar:
                found = self.harness.continuations([each[1:] for each in requests], progress=bar.update)
            for (texts, _context, _continuation), answer in zip(requests, found, strict=True):
                self.cache_hook.add_partial("loglikelihood", texts, answer)
            return found

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            texts = [request.args[0] for request in requests]
            with tqdm(total=len(texts), desc="Scoring texts", disable=disable_tqdm) as bar:
                found = self.harness.whole_texts(texts, progress=bar.update)
            for text, answer in zip(texts, found, strict=True):
                self.cache_hook.add_partial("loglikelihood_rolling", (text,), answer)
            return found

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            asked = [request.args for request in requests]
            with tqdm(total=len(asked), desc="Generating", disable=disable_tqdm) as bar:
                found = self.harness.answers(asked, progress=bar.update)
            for each, answer in zip(asked, found, strict=True):
                self.cache_hook.add_partial("generate_until", each, answer)
            return found

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            raise _no_chat_template()

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            if chat_template:
                raise _no_chat_template()
            return ""

    return FirstlightLM


def _no_chat_template() -> ConfigError:
    return ConfigError(
        "the model was trained on plain text and has no chat template",
        hint="leave --apply_chat_template and --fewshot_as_multiturn out",
    )


def register(open_model: Callable[..., Harness]) -> type:
    """Make ``--model firstlight`` known to the harness in this process, and return its class.

    lm_eval 0.4.13 finds models in its own list only: it has no entry points that another package could fill.
    """
    found = model_class(open_model)
    from lm_eval.api.registry import model_registry  # pyrefly: ignore

    if NAME not in model_registry:
        # Its own list is filled when this is imported, unless the registry holds something by then.
        import lm_eval.models  # noqa: F401  # pyrefly: ignore

        model_registry.register(NAME)(found)
    return found
