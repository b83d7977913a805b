"""Any causal language model of the transformers library as a `Scorer`: what `--hf` loads.

Only safetensors weights are read (other weight files can run code), no code that comes with a model is run unless asked
for, and a weight that the file lacks is an error: transformers would fill it with random numbers and go on.

Shapes: B rows, T positions, N scored positions of a batch, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from firstlight.errors import ConfigError, Problems
from firstlight.eval.core.scorer import Request, Scored

WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja")
UNWANTED = ("*/*", "consolidated*")
"""Files taken from the hub: none of a folder in it, and not Mistral's second copy of the weights."""

TOKENIZER_FILES = (
    "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip

VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")

CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length")

BATCH_TOKENS = {"cpu": 4096}
BATCH_TOKENS_ELSEWHERE = 32768

MAX_LOGITS = 2**27
"""Logits of one forward pass, in numbers: 256 MiB in bf16. A single row with more scored positions goes alone."""

CHUNK_LOGITS = 2**24
"""Logits taken to float32 at a time: 64 MiB, and as much again for their exponentials."""


class HFScorer:
    """Scores with a transformers model: rows padded on the right, sorted by length, logits at the scored positions only.

    Requests with the same ids but for the last one (choices that are one token) are one row.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        max_seq_len: int | None,
        vocab_size: int,
        batch_tokens: int,
        max_logits: int = MAX_LOGITS,
    ) -> None:
        """model: called with input_ids (B,T) and attention_mask (B,T); its answer has logits. batch_tokens: B * T at most."""
        self._model = model
        self._max_seq_len = max_seq_len
        self._vocab_size = vocab_size
        self._batch_tokens = batch_tokens
        self._max_positions = max(1, max_logits // vocab_size)
        head: Any = getattr(model, "get_output_embeddings", lambda: None)()
        self._head: nn.Module | None = head if isinstance(head, nn.Module) else None
        self._device = next(model.parameters()).device

    @property
    def max_seq_len(self) -> int | None:
        """Most ids of a request; None where the model's config names no limit."""
        return self._max_seq_len

    @torch.inference_mode()
    def score(self, groups: Sequence[Sequence[Request]]) -> list[list[Scored]]:
        """See `Scorer.score`. Raises ConfigError for a request that is too long or has an id outside the vocabulary."""
        requests = [request for group in groups for request in group]
        self._check(requests)
        rows: dict[tuple[int, ...], list[int]] = {}
        for i, request in enumerate(requests):
            rows.setdefault(request.ids[:-1], []).append(i)
        found: list[Scored | None] = [None] * len(requests)
        for batch in self._batches(rows, requests):
            for i, scored in zip([i for _, each in batch for i in each], self._score(batch, requests), strict=True):
                found[i] = scored
        answers = iter(found)
        return [[_present(next(answers)) for _ in group] for group in groups]

    def _check(self, requests: Sequence[Request]) -> None:
        for request in requests:
            # The last id is no input, so a text may be one longer than the table of positions.
            if self._max_seq_len is not None and len(request.ids) > self._max_seq_len + 1:
                raise ConfigError(
                    f"a text of {len(request.ids)} tokens is longer than the model's context of {self._max_seq_len}",
                    hint="cut its front before it is scored",
                )
            if max(request.ids) >= self._vocab_size or min(request.ids) < 0:
                bad = next(i for i in request.ids if not 0 <= i < self._vocab_size)
                raise ConfigError(
                    f"id {bad} is outside the model's vocabulary of {self._vocab_size}",
                    hint="the tokenizer is of another model",
                )

    def _batches(
        self, rows: dict[tuple[int, ...], list[int]], requests: Sequence[Request]
    ) -> Iterator[list[tuple[tuple[int, ...], list[int]]]]:
        """Rows with the requests that share them, longest first, within the budgets of tokens and of logits."""
        batch: list[tuple[tuple[int, ...], list[int]]] = []
        width = num_positions = 0
        for ids, members in sorted(rows.items(), key=lambda item: -len(item[0])):
            own = len(ids) + 1 - min(requests[i].start for i in members)
            is_full = (len(batch) + 1) * width > self._batch_tokens or num_positions + own > self._max_positions
            if batch and is_full:
                yield batch
                batch, num_positions = [], 0
            if not batch:
                width = len(ids)
            batch.append((ids, members))
            num_positions += own
        if batch:
            yield batch

    def _score(self, batch: list[tuple[tuple[int, ...], list[int]]], requests: Sequence[Request]) -> list[Scored]:
        width = len(batch[0][0])
        inputs_BT = torch.zeros((len(batch), width), dtype=torch.int64)
        mask_BT = torch.zeros((len(batch), width), dtype=torch.int64)
        positions: list[int] = []  # in the flat (B*T), of every logit that is needed
        rows_of: list[int] = []  # for every scored id: which of those logits predicts it
        targets: list[int] = []
        lengths: list[int] = []
        for b, (ids, members) in enumerate(batch):
            inputs_BT[b, : len(ids)] = torch.tensor(ids)
            mask_BT[b, : len(ids)] = 1
            first = min(requests[i].start for i in members)
            offset = len(positions) - first
            # The logits at position t - 1 predict the id at position t.
            positions += range(b * width + first - 1, b * width + len(ids))
            for i in members:
                request = requests[i]
                rows_of += range(offset + request.start, offset + len(request.ids))
                targets += request.ids[request.start :]
                lengths.append(len(request.ids) - request.start)
        positions_N = torch.tensor(positions, device=self._device)
        logits_NV = self._logits(inputs_BT.to(self._device), mask_BT.to(self._device), positions_N)
        rows = torch.tensor(rows_of, device=self._device)
        wanted = torch.tensor(targets, device=self._device)
        logsumexp, argmax = [], []
        for chunk_NV in logits_NV.split(max(1, CHUNK_LOGITS // self._vocab_size)):
            logsumexp.append(chunk_NV.float().logsumexp(dim=-1))
            argmax.append(chunk_NV.argmax(dim=-1))
        losses = (torch.cat(logsumexp)[rows] - logits_NV[rows, wanted].float()).cpu().double()
        is_likeliest = (torch.cat(argmax)[rows] == wanted).cpu()
        pairs = zip(losses.split(lengths), is_likeliest.split(lengths), strict=True)
        return [Scored(float(nats.sum()), len(nats), bool(greedy.all())) for nats, greedy in pairs]

    def _logits(self, inputs_BT: torch.Tensor, mask_BT: torch.Tensor, positions_N: torch.Tensor) -> torch.Tensor:
        """Logits (N,V) at the flat positions.

        A hook hands the head the scored positions alone, so that the others' logits, gigabytes with a large vocabulary,
        are never made; what a model does after its head (a scale, a softcap) is done to each logit by itself. Models whose
        head is no module, or is not given (B,T,D), make all logits, and the same ones are chosen from them.
        """
        chosen: list[bool] = []

        def choose(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if chosen or len(arguments) != 1 or arguments[0].shape[:-1] != inputs_BT.shape:
                return None
            chosen.append(True)
            return (arguments[0].flatten(0, 1)[positions_N][None],)

        hook = self._head.register_forward_pre_hook(choose) if self._head is not None else None
        try:
            logits = self._model(input_ids=inputs_BT, attention_mask=mask_BT, use_cache=False).logits
        finally:
            if hook is not None:
                hook.remove()
        return logits[0] if chosen else logits.flatten(0, 1)[positions_N]


def _present(scored: Scored | None) -> Scored:
    assert scored is not None
    return scored


@dataclass(frozen=True)
class HFModel:
    """A model of transformers, ready to score.

    bos_id: what goes in front of a text: the tokenizer's BOS; else its end-of-text id, which models without a BOS saw
    between documents (GPT-2's one special token is both); None where it has neither. max_seq_len: None where the config
    names no limit. content_hash: SHA-256 (hex) of the bytes of config.json, of the safetensors files in the order of their
    names, and of the model's Python files where they are run.
    tokenizer_hash: likewise of the tokenizer's files. num_params: numbers in the weights, tied ones once.
    """

    name: str
    scorer: HFScorer
    tokenizer: Any
    bos_id: int | None
    max_seq_len: int | None
    content_hash: str
    tokenizer_hash: str
    num_params: int

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without BOS or other special tokens added by the tokenizer."""
        if not texts:
            return []
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def load_hf_model(
    name_or_dir: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    report: Callable[[str], None] | None = None,
    trust_remote_code: bool = False,
    batch_tokens: int | None = None,
) -> HFModel:
    """A causal language model and its tokenizer, from a folder or the Hugging Face hub.

    dtype: of the weights and of the computation; losses are taken in float32. report: told of what a user should know.
    batch_tokens: in one forward pass. [4,096 on a CPU, 32,768 elsewhere] trust_remote_code: run Python files of the model.

    Raises ConfigError where transformers is not installed, there is no such model, it is not a causal language model, has
    no safetensors weights, lacks some of them, or its tokenizer does not fit.
    """
    transformers = _transformers()
    folder = _folder(name_or_dir, trust_remote_code=trust_remote_code)
    config = _load(
        transformers.AutoConfig, folder, name_or_dir, what="configuration", trust_remote_code=trust_remote_code
    )
    problems = Problems()
    if (found := _not_causal(transformers, config, trust_remote_code=trust_remote_code)) is not None:
        problems.add(f"{name_or_dir} is not a causal language model: {found}", hint="use a model that continues texts")
    files = _weight_files(folder)
    if not files:
        others = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".h5", ".msgpack"))
        problems.add(
            f"{name_or_dir} has no safetensors weights" + (f", only {', '.join(others)}" if others else ""),
            hint="weights in other formats can run code when they are read and are refused: convert them to safetensors",
        )
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        problems.add(f"{name_or_dir} lacks {', '.join(missing)}, which its index names", hint="fetch the model again")
    # transformers would make an empty one.
    if not trust_remote_code and not any((folder / name).is_file() for name in VOCABULARY_FILES):
        problems.add(
            f"{name_or_dir} has no tokenizer (none of {', '.join(VOCABULARY_FILES)})",
            hint="put the tokenizer that the model was trained with beside its weights",
        )
    problems.raise_if_any()
    tokenizer = _load(
        transformers.AutoTokenizer, folder, name_or_dir, what="tokenizer", trust_remote_code=trust_remote_code
    )
    model, info = _load(
        transformers.AutoModelForCausalLM,
        folder,
        name_or_dir,
        what="model",
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        use_safetensors=True,
        # Named below, instead of in transformers' report.
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    lacking = sorted(info["missing_keys"] | {each[0] for each in info["mismatched_keys"]})
    if lacking:
        raise ConfigError(
            f"the weights of {name_or_dir} lack {len(lacking)} of the model's tensors, or have them in another shape: "
            f"{', '.join(lacking[:3])}",
            hint="they would be random numbers: the weights are of another model, or without its head",
        )
    model = model.to(device).requires_grad_(False).eval()
    text_config = config.get_text_config()
    head = model.get_output_embeddings()
    vocab_size = (head if head is not None else model.get_input_embeddings()).weight.shape[0]
    if len(tokenizer) > vocab_size:
        raise ConfigError(
            f"the tokenizer of {name_or_dir} has {len(tokenizer)} ids and its model {vocab_size}",
            hint="put the model's own tokenizer files back",
        )
    bos_id = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    max_seq_len = next(
        (value for name in CONTEXT_FIELDS if isinstance(value := getattr(text_config, name, None), int)), None
    )
    if report is not None:
        if bos_id is None:
            report(f"{name_or_dir} has neither a BOS nor an end-of-text token: texts begin with nothing before them")
        if max_seq_len is None:
            report(f"the config of {name_or_dir} names no context length: texts are scored whole, however long")
    return HFModel(
        name=name_or_dir,
        scorer=HFScorer(
            model,
            max_seq_len=max_seq_len,
            vocab_size=vocab_size,
            batch_tokens=batch_tokens or BATCH_TOKENS.get(device.type, BATCH_TOKENS_ELSEWHERE),
        ),
        tokenizer=tokenizer,
        bos_id=bos_id,
        max_seq_len=max_seq_len,
        content_hash=_hash_files(
            [folder / "config.json", *files, *(sorted(folder.glob("*.py")) if trust_remote_code else [])]
        ),
        tokenizer_hash=_hash_files([path for name in TOKENIZER_FILES if (path := folder / name).is_file()]),
        num_params=sum(weight.numel() for weight in model.parameters()),
    )


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"models of Hugging Face need the package transformers: {error}", hint='pip install "firstlight[hf]"'
        ) from error
    return transformers


def _folder(name_or_dir: str, *, trust_remote_code: bool) -> Path:
    """The model's folder: as given, or fetched from the hub (without weights in formats that are refused anyway)."""
    path = Path(name_or_dir).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(
                f"{path} is not a model of transformers: it has no config.json",
                hint="give a folder that `save_pretrained` or `firstlight export hf` wrote",
            )
        return path
    if path.is_absolute() or name_or_dir.startswith((".", "~")) or name_or_dir.count("/") > 1:
        raise ConfigError(f"there is no folder {path}", hint="give a folder, or a name on the hub such as owner/model")
    import httpx2
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                name_or_dir,
                allow_patterns=[*WANTED, *(["*.py"] if trust_remote_code else [])],
                ignore_patterns=list(UNWANTED),
            )
        )
    except HFValidationError as error:
        raise ConfigError(
            f"{name_or_dir!r} is neither a folder nor a name on the hub: {error}", hint="a name is owner/model"
        ) from error
    except (LocalEntryNotFoundError, httpx2.HTTPError) as error:
        raise ConfigError(
            f"{name_or_dir} is no folder, and the Hugging Face hub cannot be reached: {_first_line(error)}",
            hint="check the name and the connection, or give the folder of a model",
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ConfigError(
            f"{name_or_dir} cannot be fetched from the Hugging Face hub: {_first_line(error)}",
            hint="check the name; for a private or gated model log in with `hf auth login` or set HF_TOKEN",
        ) from error


def _load(auto: Any, folder: Path, name: str, *, what: str, trust_remote_code: bool, **arguments: Any) -> Any:
    # transformers raises nearly every kind of error for a folder that it cannot load.
    try:
        return auto.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True, **arguments)
    except Exception as error:
        needs_code = not trust_remote_code and "trust_remote_code" in str(error)
        raise ConfigError(
            f"the {what} of {name} cannot be loaded: {type(error).__name__}: {_first_line(error)}",
            hint="it comes with code of its own, which is not run unless asked for: --trust-remote-code"
            if needs_code
            else "it is damaged, or of a type that the installed transformers does not know",
        ) from error


def _not_causal(transformers: Any, config: Any, *, trust_remote_code: bool) -> str | None:
    """Why a configuration is not that of a causal language model, or None."""
    if getattr(config, "is_encoder_decoder", False):
        return f"type {config.model_type} reads with an encoder and writes with a decoder"
    own_code = getattr(config, "auto_map", None) or {}
    if trust_remote_code and "AutoModelForCausalLM" in own_code:
        return None
    mapping = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in mapping:
        return f"transformers has none of type {config.model_type}"
    # Encoders such as BERT can be loaded as one all the same, and would score nonsense.
    saved = config.architectures or []
    fitting = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", mapping[type(config)].__name__)
    if saved and not any(name.endswith(fitting) for name in saved):
        return f"its weights are those of {', '.join(saved)}"
    return None


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers reads, in the order of their names."""
    index = folder / "model.safetensors.index.json"
    whole = folder / "model.safetensors"
    if whole.is_file() or not index.is_file():
        return [whole] if whole.is_file() else []
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / Path(name).name for name in sorted(names)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{index} is damaged: {error}", hint="fetch the model again") from error


def _hash_files(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
