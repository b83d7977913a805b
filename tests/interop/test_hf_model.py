"""Claims of interop/hf_model.py. The oracle of scores is the plain model: one row at a time, in float64, all logits."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_hf import END, plain_scores, save_tiny, tiny_gpt2, tiny_tokenizer

from firstlight.errors import ConfigError
from firstlight.eval.core.scorer import Request
from firstlight.interop import hf_model
from firstlight.interop.hf_model import HFScorer, load_hf_model

pytest.importorskip("transformers", reason="models of Hugging Face need transformers")

CPU = torch.device("cpu")
VOCAB = 64


def load(folder: Path | str, **arguments):
    return load_hf_model(str(folder), device=CPU, dtype=torch.float32, **arguments)


def tiny_models():
    """One of each way to know positions (learned, from the mask, rotary, ALiBi) and of each thing done after the head."""
    import transformers as t

    common = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    inner = {"intermediate_size": 32, "max_position_embeddings": 64, "initializer_range": 0.3}
    grouped = common | inner | {"num_key_value_heads": 1, "head_dim": 8}
    return {
        "gpt2": lambda: tiny_gpt2(VOCAB, context=64),
        "opt": lambda: t.OPTForCausalLM(
            t.OPTConfig(**common, ffn_dim=32, max_position_embeddings=64, word_embed_proj_dim=16, init_std=0.3)
        ),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**grouped)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**grouped)),
        "nanochat": lambda: t.NanoChatForCausalLM(t.NanoChatConfig(**common, **inner, num_key_value_heads=2)),
        "gemma2": lambda: t.Gemma2ForCausalLM(
            t.Gemma2Config(**grouped, final_logit_softcapping=2.0, attn_logit_softcapping=5.0, sliding_window=8)
        ),
        "bloom": lambda: t.BloomForCausalLM(
            t.BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.3)
        ),
        "cohere": lambda: t.CohereForCausalLM(t.CohereConfig(**grouped, logit_scale=0.25, pad_token_id=0)),
    }


def requests_for(model, *, seed: int) -> list[list[Request]]:
    """Groups of several lengths: choices that share a front, single ids after one front, and likeliest continuations."""
    draw = random.Random(seed)

    def ids(n: int) -> list[int]:
        return [draw.randrange(VOCAB) for _ in range(n)]

    groups = []
    for _ in range(8):
        front = ids(draw.randint(1, 20))
        groups.append([Request((*front, *ids(draw.randint(1, 9))), len(front)) for _ in range(3)])
    front = ids(12)
    groups.append([Request((*front, last), start) for last, start in ((1, 12), (2, 12), (3, 5), (4, 12))])
    groups.append([])
    with torch.no_grad():
        text = ids(4)
        for _ in range(4):
            text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    groups.append([Request(tuple(text), 4), Request((*text[:-1], (text[-1] + 1) % VOCAB), 4)])
    groups.append([Request(tuple(ids(65)), 1)])
    return groups


@pytest.mark.parametrize("kind", list(tiny_models()))
def test_scores_are_those_of_the_plain_model_in_float64(kind: str) -> None:
    torch.manual_seed(1)
    model = tiny_models()[kind]().eval()
    oracle = copy.deepcopy(model).double()
    groups = requests_for(oracle, seed=2)
    expected = [plain_scores(oracle, request.ids, request.start) for group in groups for request in group]
    assert {is_greedy for _, is_greedy in expected} == {True, False}
    for batch_tokens in (1, 100, 4096):
        scorer = HFScorer(model, max_seq_len=64, vocab_size=VOCAB, batch_tokens=batch_tokens, max_logits=40 * VOCAB)
        found = scorer.score(groups)
        assert [len(group) for group in found] == [len(group) for group in groups]
        scored = [answer for group in found for answer in group]
        requests = [request for group in groups for request in group]
        assert [answer.num_tokens for answer in scored] == [len(each.ids) - each.start for each in requests]
        assert [answer.is_greedy for answer in scored] == [is_greedy for _, is_greedy in expected]
        assert [answer.nats for answer in scored] == pytest.approx([nats for nats, _ in expected], abs=2e-4, rel=1e-5)


def test_the_head_sees_the_scored_positions_only() -> None:
    model = tiny_gpt2(VOCAB, context=64)
    seen: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    scorer = HFScorer(model, max_seq_len=64, vocab_size=VOCAB, batch_tokens=4096)
    scorer.score([[Request(tuple(range(40)), 38), Request((*range(39), 50), 39), Request(tuple(range(20)), 18)]])
    # Two of 40 ids whose last two and last one are scored are one row; the other has two: 2 + 2 of 39 + 39 positions.
    assert seen == [(1, 4, VOCAB)]
    assert not model.lm_head._forward_pre_hooks


def test_passes_keep_within_the_budgets_of_tokens_and_logits() -> None:
    model = tiny_gpt2(VOCAB, context=64)
    shapes, heads = [], []
    model.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append((args or (kwargs["input_ids"],))[0].shape), with_kwargs=True
    )
    model.lm_head.register_forward_hook(lambda module, inputs, output: heads.append(output.shape[1]))
    scorer = HFScorer(model, max_seq_len=64, vocab_size=VOCAB, batch_tokens=90, max_logits=25 * VOCAB)
    draw = random.Random(0)
    texts = [tuple(draw.randrange(VOCAB) for _ in range(draw.randint(2, 40))) for _ in range(40)]
    scorer.score([[Request(text, max(1, len(text) - 12)) for text in texts]])
    assert all(rows * width <= 90 for rows, width in shapes)
    assert all(n <= 25 for n in heads)
    assert len(shapes) < len(texts)
    assert [width for _, width in shapes] == sorted((width for _, width in shapes), reverse=True)


def test_a_text_that_is_too_long_or_has_a_foreign_id_is_refused() -> None:
    scorer = HFScorer(tiny_gpt2(VOCAB, context=64), max_seq_len=64, vocab_size=VOCAB, batch_tokens=90)
    with pytest.raises(ConfigError, match="66 tokens is longer than the model's context of 64"):
        scorer.score([[Request((1,) * 66, 3)]])
    with pytest.raises(ConfigError, match="id 64 is outside the model's vocabulary of 64"):
        scorer.score([[Request((1, 64), 1)]])
    assert scorer.score([]) == []


def test_a_folder_is_loaded_with_its_hashes(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    told: list[str] = []
    model = load(folder, report=told.append)
    tokenizer = tiny_tokenizer()
    assert model.encode(["the people", ""]) == [tokenizer.encode("the people"), []]
    assert model.encode([]) == []
    assert (model.bos_id, model.max_seq_len, model.scorer.max_seq_len) == (
        tokenizer.convert_tokens_to_ids(END),
        256,
        256,
    )
    decisive = (folder / "config.json").read_bytes() + (folder / "model.safetensors").read_bytes()
    assert model.content_hash == hashlib.sha256(decisive).hexdigest()
    names = ["tokenizer.json", "tokenizer_config.json"]
    assert model.tokenizer_hash == hashlib.sha256(b"".join((folder / n).read_bytes() for n in names)).hexdigest()
    # Embeddings (tied to the head), positions, two norms of each block and the last, and the matrices with their biases.
    block = 32 * 96 + 96 + 32 * 32 + 32 + 32 * 128 + 128 + 128 * 32 + 32 + 4 * 32
    assert model.num_params == len(tokenizer) * 32 + 256 * 32 + 2 * block + 64
    assert told == []
    ids = (model.bos_id, *model.encode(["the people of the world"])[0])
    nats, _ = plain_scores(tiny_gpt2(len(tokenizer)), ids, 1)
    assert model.scorer.score([[Request(ids, 1)]])[0][0].nats == pytest.approx(nats, abs=1e-4)


def test_weights_in_several_files_hash_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    tiny_gpt2(len(tiny_tokenizer())).save_pretrained(folder, max_shard_size="60KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert (
        load(folder).content_hash
        == hashlib.sha256(b"".join(path.read_bytes() for path in (folder / "config.json", *shards))).hexdigest()
    )
    shards[1].unlink()
    with pytest.raises(ConfigError, match=rf"lacks {shards[1].name}"):
        load(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')
    with pytest.raises(ConfigError, match="is damaged"):
        load(folder)


@pytest.mark.parametrize(("bos", "eos", "expected"), [(None, END, 0), (END, None, 0), (None, None, None)])
def test_bos_is_the_tokenizers_or_else_its_end_of_text(tmp_path: Path, bos, eos, expected) -> None:
    folder = save_tiny(tmp_path / "m")
    tiny_tokenizer(bos_token=bos, eos_token=eos).save_pretrained(folder)
    told: list[str] = []
    model = load(folder, report=told.append)
    assert model.bos_id == expected
    assert len(told) == (expected is None)


def test_ids_come_without_the_bos_that_a_tokenizer_adds(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    adding = tiny_tokenizer(adds_bos=True)
    adding.save_pretrained(folder)
    assert adding.encode("the")[0] == 0
    assert load(folder).encode(["the"]) == [adding.encode("the")[1:]]


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def only_bin(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def one_tensor_less(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def other_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.1.mlp.c_fc.weight"] = torch.zeros(32, 64)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def bigger_tokenizer(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(40)])
    tokenizer.save_pretrained(folder)


def remote_code(folder: Path) -> None:
    edit_config(folder, model_type="theirs", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})
    (folder / "code.py").write_text("raise SystemExit('this must not run')\n")


WRONG = {
    "no safetensors weights, only pytorch_model.bin": only_bin,
    "the model of .* cannot be loaded": truncated,
    "lack 1 of the model's tensors, or have them in another shape: transformer.h.1.mlp.c_fc.weight": one_tensor_less,
    "lack 1 .*: transformer.h.1.mlp.c_fc.weight": other_shape,
    r"has no tokenizer \(none of tokenizer.json": no_tokenizer,
    "ids and its model": bigger_tokenizer,
    "not run unless asked for: --trust-remote-code": remote_code,
    "not a causal language model: its weights are those of BertForMaskedLM": lambda folder: edit_config(
        folder, model_type="bert", architectures=["BertForMaskedLM"]
    ),
    "not a causal language model: type t5 reads with an encoder": lambda folder: edit_config(folder, model_type="t5"),
    "not a causal language model: transformers has none of type vit": lambda folder: edit_config(
        folder, model_type="vit", architectures=None
    ),
    "the configuration of .* cannot be loaded": lambda folder: edit_config(folder, model_type="unheard-of"),
    "it has no config.json": lambda folder: (folder / "config.json").unlink(),
}


@pytest.mark.parametrize("message", list(WRONG))
def test_what_cannot_be_scored_is_refused_with_its_reason(tmp_path: Path, message: str) -> None:
    folder = save_tiny(tmp_path / "m")
    WRONG[message](folder)
    with pytest.raises(ConfigError) as error:
        load(folder)
    assert re.search(message, str(error.value))
    assert error.value.hint


def test_several_mistakes_are_told_at_once(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    only_bin(folder)
    edit_config(folder, model_type="bert", architectures=["BertForMaskedLM"])
    with pytest.raises(ConfigError, match="2 things are wrong"):
        load(folder)


def test_a_missing_folder_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    for name in (tmp_path / "none", "./none", "~/none", "a/b/c"):
        with pytest.raises(ConfigError, match="there is no folder"):
            load(str(name))


def test_a_name_is_fetched_from_the_hub_without_code_or_other_weights(tmp_path: Path, monkeypatch) -> None:
    from fnmatch import fnmatch

    import huggingface_hub

    folder = save_tiny(tmp_path / "m")
    asked = {}
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **arguments: asked.update(name=name, **arguments) or str(folder),
    )
    assert load("owner/model").name == "owner/model"
    assert asked["name"] == "owner/model"

    def is_fetched(name: str) -> bool:
        allowed = any(fnmatch(name, pattern) for pattern in asked["allow_patterns"])
        return allowed and not any(fnmatch(name, pattern) for pattern in asked["ignore_patterns"])

    for name in (
        "config.json",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "merges.txt",
        "tokenizer.model",
    ):
        assert is_fetched(name), name
    for name in (
        "pytorch_model.bin",
        "modeling_x.py",
        "onnx/model.safetensors",
        "tf_model.h5",
        "consolidated.safetensors",
    ):
        assert not is_fetched(name), name
    load("owner/model", trust_remote_code=True)
    assert is_fetched("modeling_x.py")


def test_what_the_hub_answers_is_told_without_a_traceback(monkeypatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    with pytest.raises(ConfigError, match="neither a folder nor a name on the hub"):
        load("a name with spaces")

    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("no connection\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ConfigError, match="the Hugging Face hub cannot be reached: no connection"):
        load("owner/model")


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError) as error:
        load(tmp_path)
    assert error.value.hint == 'pip install "firstlight[hf]"'


def test_code_that_comes_with_a_model_runs_when_asked_for(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    edit_config(
        folder, model_type="theirs", auto_map={"AutoConfig": "code.Theirs", "AutoModelForCausalLM": "code.TheirModel"}
    )
    (folder / "code.py").write_text(
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "class Theirs(GPT2Config):\n    model_type = 'theirs'\n"
        "class TheirModel(GPT2LMHeadModel):\n    config_class = Theirs\n"
    )
    assert load(folder, trust_remote_code=True).max_seq_len == 256


def test_bf16_weights_give_losses_in_float32(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    model = load_hf_model(str(folder), device=CPU, dtype=torch.bfloat16)
    ids = (0, *model.encode(["the people of the world and the water"])[0])
    logits = model.scorer._model(torch.tensor([ids])).logits[0]
    assert logits.dtype == torch.bfloat16
    wanted = -sum(float(logits.double().log_softmax(-1)[t - 1, ids[t]]) for t in range(1, len(ids)))
    assert model.scorer.score([[Request(ids, 1)]])[0][0].nats == pytest.approx(wanted, rel=1e-4)
    assert hf_model.CHUNK_LOGITS > 0
