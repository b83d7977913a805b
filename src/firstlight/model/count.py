"""What a model costs: parameters, FLOPs and bytes. Arithmetic on the config alone; nothing is built or run.

Symbols in formulas: L layers, D width, H query heads, G key/value heads, K head size, V vocabulary, T tokens in a row,
F inner width of the MLP.
One multiply-add is two FLOPs.
"""

from __future__ import annotations

from firstlight.model.blocked import blocked_scores
from firstlight.model.config import GATE_CHANNELS, GPTConfig


def num_params(config: GPTConfig) -> dict[str, int]:
    """Parameters by group; they add up to all of them.

    ``embedding``, ``head``, ``attention`` and ``mlp``; and where the config has them ``value_embeds`` and ``scalars``
    (scales and gates).
    """
    D = config.n_embd
    kv_width = config.n_kv_head * config.head_dim
    num_values = len(config.value_embed_layers)
    channels = min(GATE_CHANNELS, D)
    scalars = (
        num_values * channels * config.n_kv_head
        + (2 * config.n_layer if config.residual_scales else 0)
        + (channels + 1 if config.smear else 0)
        + (1 if config.backout else 0)
    )
    groups = {
        "embedding": config.vocab_size * D,
        "head": config.vocab_size * D,
        "attention": config.n_layer * (2 * D * D + 2 * D * kv_width),
        "mlp": config.n_layer * config.num_mlp_matrices * D * config.mlp_inner,
        "value_embeds": num_values * config.vocab_size * kv_width,
        "scalars": scalars,
    }
    return {name: n for name, n in groups.items() if n or name in ("embedding", "head", "attention", "mlp")}


def num_matmul_params(config: GPTConfig) -> int:
    """Parameters that each token is multiplied with: matrices and head. Embeddings are looked up; gates and scales are
    left out (less than 0.1 %)."""
    groups = num_params(config)
    return groups["head"] + groups["attention"] + groups["mlp"]


def num_scaling_params(config: GPTConfig) -> int:
    """Parameters that "tokens per parameter" counts: matrices and head.

    With this count the best ratio was most nearly the same at all sizes (nanochat dev/LOG.md, 2026-01-27).
    """
    return num_matmul_params(config)


def flops_per_token(config: GPTConfig, seq_len: int) -> int:
    """Training FLOPs of one token, forward and backward: ``6 * matmul parameters + 12 * L * D * T``.

    The convention of PaLM (Chowdhery et al. 2022, arXiv 2204.02311, appendix B), which most published MFU figures use:
    it counts the whole T x T square of attention although half of it is masked. Recomputed activations, norms, softmax
    and the optimizer are not counted.
    """
    return 6 * num_matmul_params(config) + 12 * config.n_layer * config.n_embd * seq_len


def flops_per_token_causal(config: GPTConfig, seq_len: int) -> int:
    """As `flops_per_token`, but with the scores that are not masked only: (T + 1) / 2 keys for a token on average."""
    return 6 * num_matmul_params(config) + 6 * config.n_layer * config.n_embd * (seq_len + 1)


def decode_flops_per_token(config: GPTConfig, context_len: int) -> int:
    """FLOPs to decode a token with S = context_len keys, its own included: ``2 * matmul params + 4 * L*D*S``."""
    return 2 * num_matmul_params(config) + 4 * config.n_layer * config.n_embd * context_len


def weights_bytes(config: GPTConfig) -> int:
    """Bytes of the float32 weights. Their gradients take the same again in training."""
    return 4 * sum(num_params(config).values())


def fixed_train_bytes(
    config: GPTConfig, *, world_size: int = 1, shard_weights: bool = False, device_type: str = "cuda"
) -> int:
    """Bytes of training on one process that do not depend on the batch: weights, gradients, optimizer. An estimate.

    With several processes each has its share of the optimizer's state, and room for what it receives of the others'
    gradients: its share, or on a CPU as much as all of them. shard_weights: each has its share of everything, and for a while the whole of what is
    outside the blocks and of one block, with gradients.
    """
    weights = weights_bytes(config)
    if world_size == 1:
        return 2 * weights + optimizer_bytes(config)
    if not shard_weights:
        received = weights if device_type == "cpu" else -(-weights // world_size)
        return 2 * weights + received + -(-optimizer_bytes(config) // world_size)
    params = num_params(config)
    blocks = 4 * (params["attention"] + params["mlp"])
    whole = 2 * (weights - blocks) + 2 * blocks // config.n_layer
    return -(-(2 * weights + optimizer_bytes(config)) // world_size) + whole


def optimizer_bytes(config: GPTConfig) -> int:
    """Bytes of optimizer state: 4 a parameter for the blocks' matrices (Muon: one moment), 8 for the rest (AdamW: two).

    Muon's variance reduction adds one number a row, which is left out (less than 1 %).
    """
    groups = num_params(config)
    matrices = groups["attention"] + groups["mlp"]
    return 8 * (sum(groups.values()) - matrices) + 4 * matrices


def kv_cache_bytes(config: GPTConfig, *, batch_rows: int, seq_len: int, cache_bytes: int = 2) -> int:
    """Bytes of the keys and values of B = batch_rows contexts of T = seq_len tokens: ``2 * L*B*G*T*K`` numbers."""
    return 2 * config.n_layer * batch_rows * config.n_kv_head * seq_len * config.head_dim * cache_bytes


def activation_bytes(
    config: GPTConfig,
    *,
    batch_rows: int,
    seq_len: int,
    compute_bytes: int = 2,
    checkpoint_activations: bool = False,
    attention_kernel: str = "sdpa",
) -> int:
    """Bytes that embedding and trunk keep between the forward and the backward pass of one micro-batch: an estimate.

    Counted for eager execution; compiled code keeps about a tenth less. Left out: the loss (it has its own bound), the
    copies of the weights in the compute dtype, and what the backward pass holds for a moment.

    attention_kernel: ``sdpa``, ``blocked`` or ``native`` (`firstlight.model.attention.choose_kernel`). With ``native`` the
        blocks are those of `firstlight.model.native.layer`, as they are in training.
    compute_bytes: bytes of a number in the compute dtype. What norms and rotation keep is float32 whatever it is.
    checkpoint_activations: each block keeps its input only, and one block at a time is recomputed.
    """
    D, H, T, F = config.n_embd, config.n_head, seq_len, config.mlp_inner
    kv_width = config.n_kv_head * config.head_dim
    if attention_kernel == "native":
        # Two normed inputs, queries, attention's output; keys and values; what the MLP is before its nonlinearity; a number
        # for each query, and one for each norm.
        block = 4 * (4 * D + 2 * kv_width + (2 if config.mlp == "swiglu" else 1) * F + H + 2)
        # The embedding's norm where there is one, and the last.
        ends = 4 * (2 if config.embed_norm else 1) * (D + 1)
        blocks = config.n_layer * 4 * D + block if checkpoint_activations else config.n_layer * block
        return batch_rows * T * (blocks + ends)
    # Inputs of the two norms.
    float32_numbers = 2 * D
    # Two normed inputs, queries and keys, values, attention's output.
    compute_numbers = 2 * D + (D + kv_width) + kv_width + D
    # relu and its square; or the gate before and after silu, what it is multiplied with, and the product.
    compute_numbers += (4 if config.mlp == "swiglu" else 2) * F
    block = 4 * float32_numbers + compute_bytes * compute_numbers
    # Queries and keys after rotation.
    block += compute_bytes * (D + kv_width)
    if attention_kernel == "blocked":
        # Weights of the keys that a block sees; values and outputs are held in the layout of heads as well.
        block += compute_bytes * (H * blocked_scores(T) // T + D + kv_width)
    # Rows of the embedding and the last hidden states before their norms, and what the trunk returns.
    ends = 4 * (2 if config.embed_norm else 1) * D + compute_bytes * D
    if checkpoint_activations:
        blocks = config.n_layer * compute_bytes * D + block
    else:
        blocks = config.n_layer * block
    return batch_rows * T * (blocks + ends)
