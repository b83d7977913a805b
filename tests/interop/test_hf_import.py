"""Claims of interop/hf_import.py: what was exported comes back bit for bit, and what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from interop.exported import OPTIONS, ORIGIN, export, model, tokenizer
from safetensors.torch import load_file, save_file

from firstlight.errors import CheckpointError, ConfigError, DataError
from firstlight.interop.hf_import import read_hf


@pytest.mark.parametrize("preset", OPTIONS)
def test_a_model_comes_back_bit_for_bit(preset: str, tmp_path: Path) -> None:
    ours = model(OPTIONS[preset])
    export(ours, tmp_path / "out")
    back = read_hf(tmp_path / "out")
    assert back.config == ours.config
    assert set(back.weights) == set(ours.state_dict())
    assert all(torch.equal(back.weights[name], weight) for name, weight in ours.state_dict().items())
    back.tokenizer.save(tmp_path / "back.json")
    tokenizer().save(tmp_path / "ours.json")
    assert (tmp_path / "back.json").read_bytes() == (tmp_path / "ours.json").read_bytes()
    assert back.origin == ORIGIN


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    export(model(OPTIONS["classic"]), tmp_path / "out")
    return tmp_path / "out"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_folder_without_our_note_is_taken_with_a_note(folder: Path) -> None:
    (folder / "firstlight.json").unlink()
    back = read_hf(folder)
    assert back.origin == {}
    assert any("not exported by firstlight" in note for note in back.notes)


def test_bfloat16_weights_become_float32(folder: Path) -> None:
    weights = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    back = read_hf(folder)
    assert torch.equal(back.weights["lm_head.weight"], weights["lm_head.weight"].float())


def test_weights_in_several_files_are_read(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    for number, part in enumerate((names[:5], names[5:])):
        save_file({name: weights[name] for name in part}, folder / f"m-{number}.safetensors")
    index = {"weight_map": {name: f"m-{int(name in names[5:])}.safetensors" for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(read_hf(folder).weights) == set(model(OPTIONS["classic"]).state_dict())


def test_a_pickle_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        read_hf(folder)


def test_what_does_not_fit_is_refused_with_all_reasons(folder: Path) -> None:
    change(folder / "config.json", attention_bias=True, hidden_act="gelu")
    change(folder / "tokenizer.json", normalizer={"type": "NFC"})
    with pytest.raises(ConfigError) as caught:
        read_hf(folder)
    for part in ("attention_bias", "gelu", "NFC"):
        assert part in str(caught.value)
    change(folder / "config.json", model_type="llama")
    with pytest.raises(ConfigError, match=r"'llama'(.|\n)*nanochat, qwen3, firstlight"):
        read_hf(folder)


def test_a_changed_tokenizer_is_noticed(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|[\s\S]"
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="changed since the export"):
        read_hf(folder)


def test_missing_and_damaged_files_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x08")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        read_hf(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        read_hf(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json cannot be read"):
        read_hf(folder)
    (folder / "config.json").unlink()
    with pytest.raises(DataError, match=r"config\.json is missing"):
        read_hf(folder)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"rope_parameters": "x"}), ("config.json", {"final_logit_softcapping": [1]}),
        ("config.json", {"num_key_value_heads": "2"}), ("config.json", {"num_hidden_layers": 10**9}),
        ("config.json", {"vocab_size": 10**30}), ("config.json", {"num_hidden_layers": True}),
        ("tokenizer.json", {"added_tokens": [{"special": True}]}), ("tokenizer.json", {"pre_tokenizer": {"type": "Sequence", "pretokenizers": 3}}),
        ("firstlight.json", {"tokenizer": [1]}), ("firstlight.json", {"origin": "x"}),
        ("firstlight.json", {"origin": {"step": "7"}}), ("firstlight.json", {"origin": {"step": -7}}),
        ("firstlight.json", {"origin": {"run": ["x"]}}), ("firstlight.json", {"origin": {"final": {"val_bpb": "low"}}}),
        ("firstlight.json", {"tokenizer": {"training": "x"}}), ("firstlight.json", {"schema": 99}),
    ],
)  # fmt: skip
def test_anybodys_files_are_read_with_care(folder: Path, file: str, values: dict[str, Any]) -> None:
    change(folder / file, **values)
    with pytest.raises((ConfigError, DataError)) as caught:
        read_hf(folder)
    assert file in str(caught.value) or "whole number" in str(caught.value)


def test_an_index_of_files_stays_in_its_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "secret.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"out/secret\.safetensors cannot be read"):
        read_hf(folder)
    index.write_text(json.dumps({"weight_map": ["x"]}))
    with pytest.raises(DataError, match="something unexpected"):
        read_hf(folder)
