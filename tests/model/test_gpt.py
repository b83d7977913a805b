"""Claims about the model.

1. Its logits are those of the `nanochat` type of transformers, with and without grouped heads, short and long.
2. No position depends on a later one. 3. No row depends on another. 4. Attention depends on distances, not on places.
5. The loss starts at ln(V), and one batch can be learned by heart.
6. Sizes that cannot work are refused with the reason; the dial gives working sizes at every depth.
7. `hidden` never makes logits; the cap is taken in float32; names in the state never depend on compilation.
8. Recomputing activations changes memory only.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from firstlight.errors import ConfigError
from firstlight.model.attention import Kernel
from firstlight.model.config import GPTConfig
from firstlight.model.gpt import GPT, Embedded
from firstlight.model.init import build_gpt

transformers = pytest.importorskip("transformers")

TINY = GPTConfig(vocab_size=97, n_layer=2, n_head=4, n_kv_head=2, n_embd=64, max_seq_len=32)
DEPTH_4 = GPTConfig.from_depth(4, vocab_size=512, max_seq_len=48)
GROUPED = GPTConfig(vocab_size=301, n_layer=3, n_head=6, n_kv_head=2, n_embd=96, max_seq_len=40, rope_base=5000.0)
ODD = GPTConfig(vocab_size=77, n_layer=1, n_head=3, n_kv_head=1, n_embd=30, max_seq_len=17, softcap=7.0)
LONG = GPTConfig(vocab_size=64, n_layer=2, n_head=2, n_kv_head=1, n_embd=32, max_seq_len=2048)


def random_gpt(config: GPTConfig, *, seed: int = 0, compute_dtype: torch.dtype = torch.float32) -> GPT:
    """A model whose every weight matters: at its start the output projections are zero and hide the blocks."""
    model = build_gpt(config, seed=seed, compute_dtype=compute_dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            std = 0.3 if name == "lm_head.weight" else weight.shape[1] ** -0.5
            weight.normal_(0.0, std, generator=generator)
    return model


def detached(embedded: Embedded, *, requires_grad: bool = False) -> Embedded:
    values = tuple(v_BTC.detach() for v_BTC in embedded.values)
    return Embedded(embedded.x_BTD.detach().requires_grad_(requires_grad), values, embedded.before_B1D.detach())


def random_ids(config: GPTConfig, *shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def reference_logits(model: GPT, inputs_BT: torch.Tensor) -> torch.Tensor:
    """Logits of the transformers library's model of the same architecture, holding the same weights."""
    config = model.config
    reference = transformers.NanoChatForCausalLM(
        transformers.NanoChatConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.n_embd,
            intermediate_size=4 * config.n_embd,
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.n_kv_head,
            max_position_embeddings=config.max_seq_len,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
            final_logit_softcapping=config.softcap,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="eager",
        )
    )
    parts = {
        "attn.c_q": "self_attn.q_proj", "attn.c_k": "self_attn.k_proj", "attn.c_v": "self_attn.v_proj",
        "attn.c_proj": "self_attn.o_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    }  # fmt: skip
    weights = {}
    for name, weight in model.state_dict().items():
        if name.startswith("transformer.h."):
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            weights[f"model.layers.{layer}.{parts[part]}.weight"] = weight
        elif name == "transformer.wte.weight":
            weights["model.embed_tokens.weight"] = weight
        else:
            weights[name] = weight
    reference.load_state_dict(weights, strict=True)
    with torch.no_grad():
        return reference.eval()(inputs_BT).logits


@pytest.mark.parametrize("config", [DEPTH_4, GROUPED, ODD, LONG], ids=["depth4", "grouped", "odd", "long"])
@pytest.mark.parametrize("kernel", ["native", "sdpa", "blocked"])
def test_logits_are_those_of_transformers(config: GPTConfig, kernel: Kernel) -> None:
    model = random_gpt(config)
    model.attention_kernel = kernel
    inputs_BT = random_ids(config, 2, config.max_seq_len)
    with torch.no_grad():
        logits_BTV = model(inputs_BT)
    expected_BTV = reference_logits(model, inputs_BT)
    assert logits_BTV.dtype == torch.float32
    assert expected_BTV.abs().max() > 1.0, "the comparison must not be of zeros"
    assert (logits_BTV - expected_BTV).abs().max() < 1e-4


def test_no_position_depends_on_a_later_one() -> None:
    model = random_gpt(TINY)
    embedded = model.embed(random_ids(TINY, 1, 12))
    x_BTD = embedded.x_BTD.detach().requires_grad_()
    for t in (0, 5, 11):
        (grad_BTD,) = torch.autograd.grad(model.trunk(embedded._replace(x_BTD=x_BTD))[0, t].sum(), x_BTD)
        reach = grad_BTD[0].abs().sum(dim=-1)
        assert torch.all(reach[: t + 1] > 0), "every earlier position is seen"
        assert torch.all(reach[t + 1 :] == 0), "no later one is"


def test_target_at_each_position_can_be_predicted_from_the_inputs_before_it_only() -> None:
    model = random_gpt(TINY)
    ids_BT = random_ids(TINY, 1, 16)
    changed_BT = ids_BT.clone()
    changed_BT[0, 9] = (changed_BT[0, 9] + 1) % TINY.vocab_size
    with torch.no_grad():
        before, after = model(ids_BT), model(changed_BT)
    assert torch.equal(before[0, :9], after[0, :9])
    assert not torch.allclose(before[0, 9:], after[0, 9:])


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_no_row_depends_on_another(compute_dtype: torch.dtype) -> None:
    model = random_gpt(TINY, compute_dtype=compute_dtype)
    ids_BT = random_ids(TINY, 5, 16)
    with torch.no_grad():
        together = model(ids_BT)
        alone = torch.cat([model(row[None]) for row in ids_BT])
    # Sums of a matmul may be taken in another order for another number of rows.
    tolerance = 1e-5 if compute_dtype == torch.float32 else 0.25
    assert (together - alone).abs().max() < tolerance
    ids_BT[1:] = 0
    with torch.no_grad():
        assert torch.equal(model(ids_BT)[0], together[0])


def test_attention_depends_on_distances_not_on_places() -> None:
    """The same ids, moved along the rotary tables, give the same hidden states."""
    model = random_gpt(TINY)
    x_BTD = detached(model.embed(random_ids(TINY, 1, 8)))
    cos_TJ, sin_TJ = model.rope_cos, model.rope_sin
    with torch.no_grad():
        here = model.trunk(x_BTD)
        model.rope_cos, model.rope_sin = cos_TJ[11:], sin_TJ[11:]
        moved = model.trunk(x_BTD)
        model.rope_cos, model.rope_sin = cos_TJ[::2], sin_TJ[::2]
        stretched = model.trunk(x_BTD)
    assert (here - moved).abs().max() < 1e-5
    assert (here - stretched).abs().max() > 1e-2, "distances do matter"


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_loss_starts_at_ln_of_the_vocabulary(depth: int, compute_dtype: torch.dtype) -> None:
    config = GPTConfig.from_depth(depth, vocab_size=4096, max_seq_len=64)
    model = build_gpt(config, seed=3, compute_dtype=compute_dtype)
    with torch.no_grad():
        logits_BTV = model(random_ids(config, 4, 64))
    loss = cross_entropy(logits_BTV.flatten(0, 1), random_ids(config, 4, 64, seed=2).flatten())
    assert loss.item() == pytest.approx(math.log(4096), rel=0.01)


def test_one_batch_is_learned_by_heart() -> None:
    model = build_gpt(TINY, seed=0)
    ids_BT = random_ids(TINY, 4, 17)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    loss = torch.tensor(float("nan"))
    for _ in range(150):
        optimizer.zero_grad()
        loss = cross_entropy(model(ids_BT[:, :-1]).flatten(0, 1), ids_BT[:, 1:].flatten())
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01


def test_gradient_reaches_every_parameter_after_the_first_update() -> None:
    model = random_gpt(TINY)
    model(random_ids(TINY, 2, 8)).square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("kernel", ["native", "sdpa", "blocked"])
def test_recomputed_activations_give_the_same_gradients(kernel: Kernel) -> None:
    grads = []
    for recompute in (False, True):
        model = random_gpt(TINY)
        model.attention_kernel = kernel
        model.checkpoint_activations = recompute
        model(random_ids(TINY, 2, 16)).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_recomputed_activations_keep_less() -> None:
    """Also a check on the flag: equal gradients alone would hold if it did nothing."""
    kept = {}
    for recompute in (False, True):
        model = random_gpt(TINY)
        model.checkpoint_activations = recompute
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.nbytes), t)[1], lambda t: t
        ):
            model.trunk(detached(model.embed(random_ids(TINY, 2, 32)), requires_grad=True))
        kept[recompute] = sum(sizes)
    assert kept[True] < kept[False] / 4


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any tensor made under it has."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.num_elements = max(self.num_elements, tensor.numel())
        return out


def test_hidden_never_makes_logits() -> None:
    config = GPTConfig(vocab_size=5000, n_layer=1, n_head=1, n_kv_head=1, n_embd=16, max_seq_len=32)
    model = build_gpt(config, seed=0)
    inputs_BT = random_ids(config, 8, 32)
    with LargestTensor() as largest:
        model.hidden(inputs_BT).sum().backward()
    # Nothing of the vocabulary's size but the table and its gradient.
    assert largest.num_elements == config.vocab_size * config.n_embd < inputs_BT.numel() * config.vocab_size
    assert model.lm_head.weight.grad is None
    with LargestTensor() as largest:
        model(inputs_BT)
    assert largest.num_elements == inputs_BT.numel() * config.vocab_size, "the instrument does see logits"


def test_soft_cap_is_taken_in_float32() -> None:
    """In bf16 all logits beyond about 40 would be the cap itself; in float32 they still differ."""
    model = random_gpt(TINY, compute_dtype=torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, 0] = torch.linspace(-45, 45, TINY.vocab_size)
        x_BTD = torch.zeros(1, 1, TINY.n_embd, dtype=torch.bfloat16)
        x_BTD[..., 0] = 1.0
        logits_V = model.logits(x_BTD)[0, 0]
    z_V = torch.linspace(-45, 45, TINY.vocab_size).bfloat16().double()
    expected_V = 15.0 * torch.tanh(z_V / 15.0)
    assert logits_V.dtype == torch.float32
    assert (logits_V.double() - expected_V).abs().max() < 1e-5
    in_bf16_V = 15.0 * torch.tanh(z_V.bfloat16() / 15.0)
    assert (in_bf16_V.double() - expected_V).abs().max() > 1e-2, "the test would notice bf16"


def test_bf16_logits_are_near_the_float32_ones() -> None:
    exact, rounded = random_gpt(DEPTH_4), random_gpt(DEPTH_4, compute_dtype=torch.bfloat16)
    ids_BT = random_ids(DEPTH_4, 2, 48)
    with torch.no_grad():
        difference = (exact(ids_BT) - rounded(ids_BT)).abs()
    assert rounded.hidden(ids_BT).dtype == torch.bfloat16
    assert difference.mean() < 0.05
    assert difference.max() < 0.5


def test_rows_longer_than_the_context_are_refused_by_name() -> None:
    model = build_gpt(TINY, seed=0)
    with pytest.raises(ConfigError, match="33 tokens is longer than the model's max_seq_len 32"):
        model(random_ids(TINY, 1, 33))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_head": 3}, "n_embd 64 does not divide into n_head 3 heads"),
        ({"n_embd": 60, "n_head": 4, "n_kv_head": 4}, r"head size 15 \(n_embd 60 / n_head 4\) is odd"),
        ({"n_kv_head": 3}, "n_head 4 is not a multiple of n_kv_head 3"),
        ({"n_kv_head": 8}, "n_head 4 is not a multiple of n_kv_head 8"),
        ({"n_layer": 0}, "n_layer 0 must be a whole number above zero"),
        ({"max_seq_len": -1}, "max_seq_len -1 must be a whole number above zero"),
        ({"softcap": -1.0}, "softcap -1.0 must be zero"),
    ],
)
def test_sizes_that_cannot_work_are_refused_with_the_reason(sizes: dict, message: str) -> None:
    working = {"vocab_size": 97, "n_layer": 2, "n_head": 4, "n_kv_head": 4, "n_embd": 64, "max_seq_len": 32}
    with pytest.raises(ConfigError, match=message):
        GPTConfig(**(working | sizes))


def test_all_wrong_sizes_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"(?s)2 things are wrong.*n_head 3.*n_kv_head 2"):
        GPTConfig(vocab_size=97, n_layer=2, n_head=3, n_kv_head=2, n_embd=64, max_seq_len=32)


@pytest.mark.parametrize(("depth", "n_embd", "n_head", "size"), [(1, 64, 1, 64), (3, 192, 2, 96), (4, 256, 2, 128),
                                                              (12, 768, 6, 128), (20, 1280, 10, 128), (32, 2048, 16, 128)])  # fmt: skip
def test_dial_is_the_seed_documents(depth: int, n_embd: int, n_head: int, size: int) -> None:
    config = GPTConfig.from_depth(depth, vocab_size=32000, max_seq_len=2048)
    assert (config.n_layer, config.n_embd, config.n_head, config.head_dim) == (depth, n_embd, n_head, size)
    assert config.n_kv_head == n_head


@pytest.mark.parametrize("head_dim", [64, 128])
def test_dial_works_at_every_depth(head_dim: int) -> None:
    for depth in range(1, 65):
        config = GPTConfig.from_depth(depth, vocab_size=100, max_seq_len=8, head_dim=head_dim)
        assert config.head_dim % 2 == 0
        assert config.head_dim <= head_dim
        assert config.n_head * config.head_dim == config.n_embd == 64 * depth


@pytest.mark.parametrize(("depth", "n_head", "size"), [(5, 4, 80), (9, 6, 96), (11, 8, 88), (13, 8, 104)])
def test_dial_takes_the_next_head_count_that_divides(depth: int, n_head: int, size: int) -> None:
    config = GPTConfig.from_depth(depth, vocab_size=100, max_seq_len=8)
    assert (config.n_head, config.head_dim) == (n_head, size)


@pytest.mark.parametrize(("depth", "head_dim"), [(0, 128), (-3, 128), (4, 1)])
def test_dial_refuses_what_is_no_model(depth: int, head_dim: int) -> None:
    with pytest.raises(ConfigError):
        GPTConfig.from_depth(depth, vocab_size=100, max_seq_len=8, head_dim=head_dim)


def test_a_model_that_nobody_filled_gives_nan() -> None:
    assert GPT(TINY)(random_ids(TINY, 1, 4)).isnan().all()


def test_names_in_the_state_do_not_depend_on_compilation() -> None:
    model = build_gpt(TINY, seed=0)
    before = list(model.state_dict())
    torch.compile(model.trunk, dynamic=False)
    assert list(model.state_dict()) == before
    assert before[0] == "transformer.wte.weight"
    assert before[-1] == "lm_head.weight"
    assert "transformer.h.1.attn.c_q.weight" in before
    assert not any("rope" in name or "_orig_mod" in name for name in before)


def test_trunk_is_one_graph() -> None:
    model = random_gpt(TINY)
    for recompute in (False, True):
        model.checkpoint_activations = recompute
        torch._dynamo.reset()
        explained = torch._dynamo.explain(model.trunk)(detached(model.embed(random_ids(TINY, 2, 16))))
        assert explained.graph_break_count == 0, explained.break_reasons
        assert explained.graph_count == 1


@pytest.mark.slow
def test_compiled_trunk_gives_the_eager_one() -> None:
    compute_dtype = torch.bfloat16
    config = GPTConfig(vocab_size=97, n_layer=1, n_head=4, n_kv_head=2, n_embd=64, max_seq_len=160)
    embedded = detached(random_gpt(config, compute_dtype=compute_dtype).embed(random_ids(config, 2, 160)))
    outputs, grads = [], []
    for compiled in (False, True):
        model = random_gpt(config, compute_dtype=compute_dtype)
        trunk = torch.compile(model.trunk, dynamic=False, fullgraph=True) if compiled else model.trunk
        y_BTD = trunk(embedded)
        y_BTD.float().square().mul(torch.linspace(0, 1, 64)).sum().backward()
        outputs.append(y_BTD.detach().float())
        grads.append(torch.cat([p.grad.flatten() for n, p in model.named_parameters() if "transformer.h" in n]))
    # Compiled code rounds to bf16 in fewer places.
    tolerance = 0.02
    assert (outputs[0] - outputs[1]).norm() < tolerance * outputs[0].norm()
    assert (grads[0] - grads[1]).norm() < 2 * tolerance * grads[0].norm()
