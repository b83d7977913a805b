"""A model as a folder that the transformers library loads: weights, sizes, tokenizer, and a card that says what it is.

Which type of model it becomes follows from its options: `nanochat` (what `classic` is) and `qwen3` (what `portable` is)
are types of the library itself, which other programs know too; any other model is of the type `firstlight`, whose
code lies in the folder and runs with ``trust_remote_code=True``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file

from firstlight.errors import ConfigError
from firstlight.interop import hf_tokenizer, nanochat_type, placing, qwen3_type, remote_type
from firstlight.model.config import GPTConfig
from firstlight.tokens.bpe import Tokenizer

Kind = Literal["auto", "nanochat", "qwen3", "remote-code"]
Dtype = Literal["fp32", "bf16"]

TYPES: dict[str, ModuleType] = {"nanochat": nanochat_type, "qwen3": qwen3_type, "remote-code": remote_type}
"""Modules that hold a type's names: MODEL_TYPE, why_not, to_config, to_weights, from_config, from_weights."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16"}

MODEL_FILE = "model.safetensors"
NOTE_FILE = "firstlight.json"
"""What the library's files have no place for; `firstlight import hf` reads it."""
NOTE_SCHEMA = 1


@dataclass(frozen=True)
class HfExport:
    """What was written. kind: one of `TYPES`. notes: choices with their reasons, and checks with their outcome."""

    path: Path
    kind: str
    model_type: str
    dtype: str
    num_params: int
    num_bytes: int
    files: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"path": str(self.path), "files": list(self.files), "notes": list(self.notes)}


def choose_kind(config: GPTConfig, asked: str) -> tuple[str, str]:
    """The kind of `TYPES` for a model, and why in a sentence.

    Raises ConfigError for a kind that is none, and with every reason where the asked one cannot hold the model.
    """
    if asked not in get_args(Kind):
        raise ConfigError(f"--as {asked} is not known", hint=f"it is {', '.join(get_args(Kind))}")
    if asked != "auto":
        TYPES[asked].to_config(config)
        return asked, f"type {TYPES[asked].MODEL_TYPE}: asked for"
    reasons = []
    for kind in ("nanochat", "qwen3"):
        problems = TYPES[kind].why_not(config)
        if not problems:
            return kind, f"type {kind}: transformers has it, and it holds all of this model"
        reasons.append(f"{kind}: {'; '.join(problems)}")
    return (
        "remote-code",
        f"type {remote_type.MODEL_TYPE}, with its own code: no native type holds it ({'. '.join(reasons)})",
    )


def is_export(directory: Path) -> bool:
    """Whether a folder looks like one that `write_hf` wrote."""
    return all((directory / name).is_file() for name in ("config.json", MODEL_FILE, NOTE_FILE))


def write_hf(
    directory: Path,
    *,
    config: GPTConfig,
    weights: Mapping[str, torch.Tensor],
    tokenizer: Tokenizer,
    origin: Mapping[str, Any],
    card: Callable[[HfExport], str],
    kind: str = "auto",
    dtype: str = "fp32",
    overwrite: bool = False,
) -> HfExport:
    """Write the folder, whole or not at all.

    weights: float32, by the names of `GPT`. origin: where the model is from, JSON values for ``firstlight.json``.
    card: makes the text of README.md.

    Raises ConfigError where the target, the kind, the dtype or the tokenizer will not do, before anything is written;
    CheckpointError where the disk refuses.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype} is not known", hint=f"it is {' or '.join(DTYPES)}")
    placing.check_folder(directory, overwrite=overwrite, is_ours=is_export)
    kind, reason = choose_kind(config, kind)
    content = hf_tokenizer.tokenizer_json(tokenizer)
    notes = (reason, hf_tokenizer.check_same_ids(content, tokenizer))
    exported = {
        name: tensor.detach().to("cpu", DTYPES[dtype]).contiguous()
        for name, tensor in TYPES[kind].to_weights(weights, config).items()
    }
    values = TYPES[kind].to_config(config) | {
        "dtype": DTYPE_NAMES[dtype],
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.bos_id,
        # With an id here the library would never train that row of the embedding.
        "pad_token_id": None,
        "use_cache": True,
    }
    with placing.new_folder(directory) as folder:
        save_file(exported, folder / MODEL_FILE, metadata={"format": "pt"})
        _write_json(folder / "config.json", values)
        _write_json(folder / "generation_config.json", generation_config(tokenizer))
        _write_json(folder / "tokenizer.json", content)
        _write_json(
            folder / "tokenizer_config.json",
            hf_tokenizer.tokenizer_config(tokenizer, max_seq_len=config.max_seq_len),
        )
        _write_json(folder / "special_tokens_map.json", hf_tokenizer.special_tokens_map(tokenizer))
        _write_json(
            folder / NOTE_FILE,
            {
                "schema": NOTE_SCHEMA,
                "kind": kind,
                "dtype": dtype,
                "model": asdict(config),
                "tokenizer": {"content_hash": tokenizer.content_hash, "training": tokenizer.facts},
                "origin": dict(origin),
            },
        )
        if kind == "remote-code":
            shutil.copyfile(remote_type.CODE_FILE, folder / remote_type.CODE_FILE.name)
        done = HfExport(
            path=directory,
            kind=kind,
            model_type=TYPES[kind].MODEL_TYPE,
            dtype=dtype,
            num_params=sum(tensor.numel() for tensor in weights.values()),
            num_bytes=sum(path.stat().st_size for path in folder.iterdir()),
            files=tuple(sorted(["README.md", *(path.name for path in folder.iterdir())])),
            notes=notes,
        )
        (folder / "README.md").write_text(card(done), encoding="utf-8")
        # safetensors makes a file that its owner alone can read.
        (folder / MODEL_FILE).chmod((folder / "README.md").stat().st_mode)
    return done


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Contents of ``generation_config.json``: what `firstlight sample` does where nothing else is asked for."""
    return {
        "bos_token_id": tokenizer.bos_id,
        # Any special token ends a text, BOS (of the next document) first of all.
        "eos_token_id": sorted(tokenizer.special_ids.values()),
        "pad_token_id": tokenizer.bos_id,
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 50,
        "max_new_tokens": 128,
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
