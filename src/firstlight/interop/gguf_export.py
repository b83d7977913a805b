"""The preset `portable` as one GGUF file, which llama.cpp and the programs built on it run (as the type `qwen3`).

GGUF knows split patterns by name only (``tokenizer.ggml.pre``), and no name means ours: see `PRE_TOKENIZER`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from firstlight.errors import ConfigError, Problems
from firstlight.interop import hf_tokenizer, placing, qwen3_type
from firstlight.model.config import GPTConfig
from firstlight.tokens.bpe import SPLIT_PATTERN, Tokenizer

PRE_TOKENIZER = "llama-bpe"
"""The nearest pattern that llama.cpp has: Llama 3's takes digits in groups of up to 3 where ours takes up to 2, and is the
same in all else. It also takes a piece that is a token as it is, as ours does."""

PRE_TOKENIZER_NOTE = (
    "llama.cpp has no name for our split pattern; its nearest, llama-bpe, cuts numbers of three and more digits otherwise "
    "(up to 3 digits together, not 2), so such numbers may get other ids than in training; all other text should get the same (expected from the patterns, not run)"
)

DTYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""Names of a matrix's numbers in GGUF. Norms are F32 in all of them."""

TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Names of the type `qwen3`'s weights in transformers and in GGUF."""


@dataclass(frozen=True)
class GgufExport:
    """What was written. notes: choices with their reasons."""

    path: Path
    dtype: str
    num_params: int
    num_bytes: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"path": str(self.path), "notes": list(self.notes)}


def tensor_name(name: str) -> str:
    """GGUF's name for a weight of the type `qwen3`.

    >>> tensor_name("model.layers.3.self_attn.q_norm.weight")
    'blk.3.attn_q_norm.weight'
    """
    if name in TENSORS:
        return TENSORS[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{LAYER_TENSORS[part]}.weight"


def write_gguf(
    path: Path,
    *,
    name: str,
    config: GPTConfig,
    weights: Mapping[str, torch.Tensor],
    tokenizer: Tokenizer,
    dtype: str = "bf16",
    overwrite: bool = False,
) -> GgufExport:
    """Write the file, whole or not at all. weights: float32, by the names of `GPT`.

    Raises ConfigError with every reason where the model, the tokenizer, the dtype or the target will not do, or where the
    gguf package is not installed; CheckpointError where the disk refuses.
    """
    gguf = _gguf()
    problems = Problems()
    for reason in qwen3_type.why_not(config):
        problems.add(
            f"GGUF's programs cannot run this model: {reason}",
            hint="train with --preset portable for GGUF; `firstlight export hf` takes any model",
        )
    if dtype not in DTYPES:
        problems.add(f"--dtype {dtype} is not known", hint=f"it is {', '.join(DTYPES)}")
    if tokenizer.pattern != SPLIT_PATTERN:
        problems.add("GGUF knows split patterns by name, and no name is near this tokenizer's own pattern")
    if tokenizer.vocab_size != config.vocab_size:
        problems.add(f"the tokenizer has {tokenizer.vocab_size} ids and the model {config.vocab_size}")
    problems.raise_if_any()
    placing.check_file(path, overwrite=overwrite)
    kind = gguf.GGMLQuantizationType[DTYPES[dtype]]
    block = gguf.GGML_QUANT_SIZES[kind][0]
    notes = [PRE_TOKENIZER_NOTE]
    whole: list[str] = []
    with placing.new_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, qwen3_type.MODEL_TYPE)
        try:
            _add_sizes(
                writer, name, config, gguf.LlamaFileType[f"MOSTLY_{DTYPES[dtype]}" if dtype != "fp32" else "ALL_F32"]
            )
            _add_tokenizer(writer, tokenizer, gguf.TokenType)
            for theirs, tensor in qwen3_type.to_weights(weights, config).items():
                values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
                fits = values.ndim > 1 and values.shape[-1] % block == 0
                if values.ndim > 1 and not fits:
                    whole.append(theirs)
                chosen = kind if fits else gguf.GGMLQuantizationType.F32
                # Rounds to nearest even, as torch does.
                writer.add_tensor(tensor_name(theirs), gguf.quantize(values, chosen), raw_dtype=chosen)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        num_bytes = temporary.stat().st_size
    if whole:
        notes.append(f"{len(whole)} matrices stay float32: their rows are no multiple of {block} numbers")
    num_params = sum(tensor.numel() for tensor in weights.values())
    return GgufExport(path, dtype, num_params, num_bytes, tuple(notes))


def _gguf() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(f"no gguf package ({error})", hint="pip install 'firstlight[export]'") from error
    return gguf


def _add_sizes(writer: Any, name: str, config: GPTConfig, file_type: int) -> None:
    writer.add_name(name)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.mlp_inner)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_kv_head)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(file_type)


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, token_type: Any) -> None:
    model = hf_tokenizer.tokenizer_json(tokenizer)["model"]
    ordinary = sorted(model["vocab"], key=model["vocab"].__getitem__)
    special = sorted(tokenizer.special_ids, key=tokenizer.special_ids.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list([*ordinary, *special])
    writer.add_token_types([token_type.NORMAL] * len(ordinary) + [token_type.CONTROL] * len(special))
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.bos_id)
    writer.add_pad_token_id(tokenizer.bos_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
