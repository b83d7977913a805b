"""Claims of interop/gguf_export.py: what the gguf package reads back is the model, tensor by tensor, and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interop.exported import OPTIONS, model, tokenizer

from firstlight.errors import ConfigError
from firstlight.interop import qwen3_type
from firstlight.interop.gguf_export import tensor_name, write_gguf
from firstlight.model.gpt import GPT

gguf = pytest.importorskip("gguf")

OURS = model(OPTIONS["portable"])


def write(path: Path, made: GPT = OURS, **options: Any):
    return write_gguf(
        path, name="mine", config=made.config, weights=made.state_dict(), tokenizer=tokenizer(), **options
    )


def value(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()


def test_the_file_is_read_back_tensor_by_tensor(tmp_path: Path) -> None:
    exported = write(tmp_path / "a.gguf", dtype="fp32")
    assert exported.num_bytes == (tmp_path / "a.gguf").stat().st_size
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    expected = {
        tensor_name(name): weight for name, weight in qwen3_type.to_weights(OURS.state_dict(), OURS.config).items()
    }
    assert {tensor.name for tensor in reader.tensors} == set(expected)
    for tensor in reader.tensors:
        # GGUF lists dimensions from the innermost.
        assert list(tensor.shape) == list(reversed(expected[tensor.name].shape))
        assert np.array_equal(tensor.data, expected[tensor.name].numpy()), tensor.name
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, OURS.config.n_layer)
    for theirs in qwen3_type.to_weights(OURS.state_dict(), OURS.config):
        assert tensor_name(theirs) == names.get_name(theirs, try_suffixes=(".weight",)), "as llama.cpp's own converter"


def test_sizes_and_tokenizer_are_ours(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    config = OURS.config
    for key, expected in {
        "general.architecture": "qwen3",
        "qwen3.block_count": config.n_layer,
        "qwen3.embedding_length": config.n_embd,
        "qwen3.feed_forward_length": config.mlp_inner,
        "qwen3.attention.head_count": config.n_head,
        "qwen3.attention.head_count_kv": config.n_kv_head,
        "qwen3.attention.key_length": config.head_dim,
        "qwen3.context_length": config.max_seq_len,
        "qwen3.rope.freq_base": config.rope_base,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.bos_token_id": tokenizer().bos_id,
        "tokenizer.ggml.add_bos_token": True,
    }.items():
        assert value(reader, key) == expected, key
    tokens = value(reader, "tokenizer.ggml.tokens")
    assert len(tokens) == config.vocab_size
    assert tokens[tokenizer().bos_id] == "<|bos|>"
    assert value(reader, "tokenizer.ggml.token_type")[tokenizer().bos_id] == gguf.TokenType.CONTROL
    assert "tokenizer.chat_template" not in reader.fields
    # Each merge gives a token, in the order of the ids.
    made = [tokens.index(merge.replace(" ", "")) for merge in value(reader, "tokenizer.ggml.merges")]
    assert made == sorted(made)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 2**-8), ("fp16", 2**-11), ("q8_0", 0.01)])
def test_shorter_numbers_are_near(tmp_path: Path, dtype: str, tolerance: float) -> None:
    write(tmp_path / "a.gguf", dtype=dtype)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    found = tensors["output.weight"]
    values = gguf.dequantize(found.data, found.tensor_type)
    expected = OURS.lm_head.weight.numpy()
    assert np.abs(values - expected).max() <= tolerance * np.abs(expected).max()
    assert not np.array_equal(values, expected)
    assert tensors["blk.0.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32


def test_other_models_are_refused_with_the_reasons_and_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"value embeddings(.|\n)*--preset portable"):
        write(tmp_path / "a.gguf", model(OPTIONS["modern"]))
    with pytest.raises(ConfigError, match="relu2"):
        write(tmp_path / "a.gguf", model(OPTIONS["classic"]))
    with pytest.raises(ConfigError, match="--dtype q4"):
        write(tmp_path / "a.gguf", dtype="q4")
    (tmp_path / "a.gguf").write_text("mine")
    with pytest.raises(ConfigError, match="--overwrite"):
        write(tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_where_llama_cpp_cuts_otherwise_is_said(tmp_path: Path) -> None:
    assert "numbers of three and more digits" in write(tmp_path / "a.gguf").notes[0]
