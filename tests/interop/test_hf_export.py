"""Claims of interop/hf_export.py: transformers loads what is written and computes what our model computes.

1. Log-probabilities within 1e-4 in float32 and the same 64 greedy tokens, for every preset and option.
2. The type follows from the options; what a type cannot hold is refused with every reason.
3. A folder is whole or not there, and nothing of another's is replaced.
"""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interop.exported import OPTIONS, export, model, tokenizer
from safetensors.torch import load_file

from firstlight.errors import CheckpointError, ConfigError
from firstlight.infer.engine import generate
from firstlight.interop import hf_export
from firstlight.interop.hf_export import choose_kind, generation_config
from firstlight.model.config import GPTConfig

transformers = pytest.importorskip("transformers")

KINDS = {
    "classic": "nanochat",
    "modern": "remote-code",
    "portable": "qwen3",
    "classic-otherwise": "nanochat",
    "everything": "remote-code",
}


def loaded(directory: Path) -> Any:
    found, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory, trust_remote_code=True, output_loading_info=True, local_files_only=True
    )
    assert not any(info.values()), info
    return found.eval()


@pytest.mark.parametrize("preset", OPTIONS)
def test_transformers_gives_our_log_probabilities_and_greedy_tokens(preset: str, tmp_path: Path) -> None:
    ours = model(OPTIONS[preset])
    exported = export(ours, tmp_path / "out")
    assert exported.kind == KINDS[preset]
    theirs = loaded(tmp_path / "out")
    inputs_BT = torch.randint(0, tokenizer().vocab_size, (2, 100), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected, found = ours(inputs_BT).log_softmax(-1), theirs(inputs_BT).logits.log_softmax(-1)
    assert expected.std() > 0.5, "the comparison must not be of a flat distribution"
    assert (expected - found).abs().max() < 1e-4
    prompt = [tokenizer().bos_id, *tokenizer().encode("the cat sat on 12:30")]
    ids = [step[0] for step in generate(ours, prompt, max_new_tokens=64, temperature=0)]
    theirs.generation_config.eos_token_id = None
    row = torch.tensor([prompt])
    out = theirs.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=64, do_sample=False)
    assert out[0, len(prompt) :].tolist() == ids


def test_bfloat16_weights_are_ours_rounded(tmp_path: Path) -> None:
    ours = model(OPTIONS["classic"])
    export(ours, tmp_path / "out", dtype="bf16")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found["lm_head.weight"], ours.lm_head.weight.to(torch.bfloat16))
    assert loaded(tmp_path / "out").dtype == torch.bfloat16


def test_any_model_can_be_the_type_with_its_own_code(tmp_path: Path) -> None:
    exported = export(model(OPTIONS["classic"]), tmp_path / "out", kind="remote-code")
    assert exported.model_type == "firstlight"
    assert "modeling_firstlight.py" in exported.files


CONFIG = GPTConfig(vocab_size=300, n_layer=1, n_head=1, n_kv_head=1, n_embd=16, max_seq_len=8)


def test_what_a_type_cannot_hold_is_refused_with_every_reason() -> None:
    with pytest.raises(ConfigError, match="value embeddings") as caught:
        choose_kind(replace(CONFIG, value_embed_every=1, smear=True, qk_gain=1.1), "nanochat")
    assert "smear" in str(caught.value)
    assert "qk_gain is 1.1" in str(caught.value)
    assert "--as remote-code" in str(caught.value)
    with pytest.raises(ConfigError, match=r"capped at 15(.|\n)*--preset portable"):
        choose_kind(CONFIG, "qwen3")
    with pytest.raises(ConfigError, match="--as gpt2 is not known"):
        choose_kind(CONFIG, "gpt2")


def test_the_reason_for_a_type_is_told() -> None:
    kind, reason = choose_kind(replace(CONFIG, value_embed_every=1), "auto")
    assert kind == "remote-code"
    assert "value embeddings" in reason


def test_generation_is_as_firstlight_sample() -> None:
    values = generation_config(tokenizer())
    assert (values["temperature"], values["top_k"], values["max_new_tokens"]) == (0.8, 50, 128)
    assert values["eos_token_id"] == list(range(tokenizer().vocab_size - 9, tokenizer().vocab_size))


def test_only_an_exported_model_is_replaced(tmp_path: Path) -> None:
    ours = model(OPTIONS["classic"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="not empty"):
        export(ours, tmp_path / "mine")
    with pytest.raises(ConfigError, match="not an exported model"):
        export(ours, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    export(ours, tmp_path / "out")
    export(model(OPTIONS["portable"]), tmp_path / "out", overwrite=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "qwen3"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_a_full_disk_leaves_nothing_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = model(OPTIONS["classic"])
    export(ours, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def refuse(path: Path, value: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hf_export, "_write_json", refuse)
    for name in ("out", "new"):
        with pytest.raises(CheckpointError, match="No space left on device"):
            export(ours, tmp_path / name, overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_dtype_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--dtype int8"):
        export(model(OPTIONS["classic"]), tmp_path / "out", dtype="int8")
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_program_is_not_replaced_and_all_files_can_be_read(tmp_path: Path) -> None:
    ours = model(OPTIONS["classic"])
    export(ours, tmp_path / "out")
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1
    (tmp_path / "out" / "firstlight.json").unlink()
    with pytest.raises(ConfigError, match="not an exported model"):
        export(ours, tmp_path / "out", overwrite=True)
