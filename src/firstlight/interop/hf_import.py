"""A folder of the transformers library as a model of ours: what `write_hf` wrote, and others of the same types that fit.

Weights come from safetensors files only: a pickle can run code when it is read, and so can a modelling file, which is
therefore never looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from firstlight.errors import CheckpointError, ConfigError, DataError, Problems
from firstlight.interop import hf_tokenizer
from firstlight.interop.hf_export import MODEL_FILE, NOTE_FILE, NOTE_SCHEMA, TYPES
from firstlight.model.config import GPTConfig
from firstlight.tokens.bpe import Tokenizer

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)

_TEXTS = ("run", "recipe", "data", "val", "data_hash", "val_hash", "tokenizer_hash", "git_commit")
_NUMBERS = ("val_bpb", "val_bpb_stderr", "steps", "tokens", "train_loss_nats", "num_documents", "num_documents_total")

LEAST_LIMIT = 2**20
"""Sizes up to this are believed whatever the weights; larger ones only where the weights are as many."""


@dataclass(frozen=True)
class Imported:
    """A model on the CPU. weights: float32 by the names of `GPT`. origin: what ``firstlight.json`` says, {} without one."""

    config: GPTConfig
    weights: dict[str, torch.Tensor]
    tokenizer: Tokenizer
    model_type: str
    origin: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_hf(directory: Path) -> Imported:
    """Read a folder. Raises ConfigError with every reason where its model is none of ours, CheckpointError or DataError
    where a file is missing or damaged.
    """
    values = _read_json(directory / "config.json")
    note = _read_note(directory / NOTE_FILE)
    kind = _kind_of(values, directory)
    problems = Problems()
    config, found = _model(kind, values, directory, problems)
    facts = note.get("tokenizer", {}).get("training")
    with _unexpected(directory / "tokenizer.json"):
        tokenizer, reasons = hf_tokenizer.read_tokenizer(_read_json(directory / "tokenizer.json"), facts=facts)
    for reason in reasons:
        problems.add(reason)
    if config is not None and tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        problems.add(f"the tokenizer has {tokenizer.vocab_size} ids and the model {config.vocab_size}")
    problems.raise_if_any()
    assert config is not None
    assert tokenizer is not None
    wanted = note.get("tokenizer", {}).get("content_hash")
    if wanted is not None and wanted != tokenizer.content_hash:
        raise DataError(
            f"{directory / 'tokenizer.json'} has changed since the export: it hashes to {tokenizer.content_hash[:16]}, "
            f"not {wanted[:16]}",
            hint="put the exported file back: another tokenizer gives every id another meaning",
        )
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in found.values()}
    notes = [f"imported from a folder of the type {kind.MODEL_TYPE}, weights in {' and '.join(sorted(dtypes))}"]
    if not note:
        notes.append(f"no {NOTE_FILE} there: it was not exported by firstlight")
        content = hf_tokenizer.tokenizer_json(tokenizer)
        notes.append(hf_tokenizer.check_same_ids(content, tokenizer))
    # Each bfloat16 and float16 number is a float32 number.
    weights = {name: tensor.to(torch.float32).contiguous() for name, tensor in found.items()}
    return Imported(config, weights, tokenizer, kind.MODEL_TYPE, note.get("origin", {}), tuple(notes))


def _read_note(path: Path) -> dict[str, Any]:
    """What ``firstlight.json`` says, {} where there is none. Whatever its values are for is checked: they come to stand in a
    run's record, which all commands that list runs read.
    """
    if not path.is_file():
        return {}
    note = _read_json(path)
    if note.get("schema") != NOTE_SCHEMA:
        raise DataError(f"{path} has schema {note.get('schema')!r}; this firstlight reads {NOTE_SCHEMA}")
    origin, tokenizer = note.get("origin", {}), note.get("tokenizer", {})
    wanted: list[tuple[str, Any, tuple[type, ...]]] = [("origin", origin, (dict,)), ("tokenizer", tokenizer, (dict,))]
    if isinstance(origin, dict) and isinstance(tokenizer, dict):
        final = origin.get("final")
        wanted += [(name, origin.get(name), (str, type(None))) for name in _TEXTS]
        wanted += [("step", origin.get("step"), (int, type(None))), ("final", final, (dict, type(None)))]
        wanted += [("versions", origin.get("versions"), (dict, type(None)))]
        wanted += [("training", tokenizer.get("training"), (dict, type(None)))]
        wanted += [("content_hash", tokenizer.get("content_hash"), (str, type(None)))]
        if isinstance(final, dict):
            wanted += [(f"final.{name}", final.get(name), (int, float, type(None))) for name in _NUMBERS]
    bad = [f"{name} is {value!r:.40}" for name, value, kinds in wanted if type(value) not in kinds]
    if not bad and not 0 <= (origin.get("step") or 0) < 10**12:
        bad = [f"step is {origin['step']!r:.40}"]
    if bad:
        raise DataError(f"{path} is damaged: {'; '.join(bad)}", hint="without the file the model can be imported, too")
    return note


@contextmanager
def _unexpected(path: Path) -> Iterator[None]:
    """A value of a kind that no such file has, in a file of anybody's, is an error that names the file."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path} holds something unexpected ({type(error).__name__}: {error})") from error


def _kind_of(values: Mapping[str, Any], directory: Path) -> ModuleType:
    for kind in TYPES.values():
        if values.get("model_type") == kind.MODEL_TYPE:
            return kind
    raise ConfigError(
        f"{directory} holds a model of the type {values.get('model_type')!r}",
        hint=f"these can be imported: {', '.join(kind.MODEL_TYPE for kind in TYPES.values())}",
    )


def _model(
    kind: ModuleType, values: Mapping[str, Any], directory: Path, problems: Problems
) -> tuple[GPTConfig | None, dict[str, torch.Tensor]]:
    weights = _read_weights(directory)
    # Before anything is made by these sizes: one absurd number would take all memory, or hours.
    limit = max(LEAST_LIMIT, sum(tensor.numel() for tensor in weights.values()))
    absurd = [f"{name} {value}" for name, value in values.items() if isinstance(value, int) and abs(value) > limit]
    absurd += [
        f"{name} {value} with {len(weights)} weights"
        for name in ("n_layer", "num_hidden_layers")
        if isinstance(value := values.get(name), int) and value > len(weights)
    ]
    if absurd:
        problems.add(f"config.json says {', '.join(absurd)}, which cannot be")
        return None, {}
    try:
        with _unexpected(directory / "config.json"):
            config = kind.from_config(values)
    except ConfigError as error:
        problems.add(error.what, hint=error.hint)
        return None, {}
    try:
        found = kind.from_weights(weights, config)
    except ConfigError as error:
        problems.add(error.what, hint=error.hint)
        return config, {}
    for name, tensor in found.items():
        if tensor.dtype not in _FLOATS:
            problems.add(f"the weights {name} are {str(tensor.dtype).removeprefix('torch.')}, not floating point")
    return config, found


def _read_weights(directory: Path) -> dict[str, torch.Tensor]:
    """Tensors of all weight files of a folder. Names and shapes are checked where the model is made."""
    index = directory / f"{MODEL_FILE}.index.json"
    names = [MODEL_FILE]
    if index.is_file():
        with _unexpected(index):
            names = sorted({Path(name).name for name in _read_json(index)["weight_map"].values()})
    elif not (directory / MODEL_FILE).is_file():
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
        if pickles:
            raise CheckpointError(
                f"{directory} has its weights in {pickles[0]}, which is a pickle and is refused: reading one can run any code",
                hint="save it as safetensors with transformers first: save_pretrained(DIR) does",
            )
        raise CheckpointError(f"{directory} has no {MODEL_FILE}", hint="name the folder of an exported model")
    weights: dict[str, torch.Tensor] = {}
    for name in names:
        try:
            weights |= load_file(directory / name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{directory / name} cannot be read: {error}") from error
    return weights


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} is missing", hint="name the folder of an exported model") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} is not a JSON object")
    return value
