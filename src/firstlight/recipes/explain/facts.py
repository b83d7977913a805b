"""What an explanation knows: plain values, so that the terminal, the page and ``--json`` say the same numbers.

Shapes: B rows, T tokens in a row, D width, H query heads, G key/value heads, K head size, F inner width of the MLP,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from firstlight.model.config import GPTConfig


@dataclass(frozen=True)
class Piece:
    """One id of the text. raw: its bytes. text: the same for people (see `pieces.visible`)."""

    id: int
    raw: bytes
    text: str
    is_special: bool = False


@dataclass(frozen=True)
class PackedBatch:
    """A small batch made by the packing that the training uses. rows: ids, B lists of T + 1 places, -1 where empty.

    documents: the texts that were packed. packing: ``bestfit`` or ``stream``.
    """

    packing: str
    documents: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    words: dict[int, str]
    bos_id: int


@dataclass(frozen=True)
class Weight:
    """One learned tensor. rule: ``Muon`` or ``AdamW``. lr: its rate at a multiplier of 1, Muon's shape factor included.

    start: how it was drawn before the first step, in words.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_params: int
    num_bytes: int
    kind: str
    group: str
    rule: str
    lr: float
    start: str
    state_bytes: int


@dataclass(frozen=True)
class Stats:
    """Moments of a tensor's numbers, summed in float64. zero_frac: share of exact zeros."""

    mean: float
    std: float
    rms: float
    low: float
    high: float
    zero_frac: float


@dataclass(frozen=True)
class Stage:
    """One tensor on the way from ids to loss. flops: of making it, one multiply-add being two; lookups, norms and
    elementwise work count as none, as is usual.

    key: unique, as ``h.0.q``. layer: None outside the blocks. symbols: the shape in letters. num_bytes: of the tensor.
    is_transient: the kernel makes it piece by piece and never holds it whole.
    stats: of this text's numbers; None where no model was run.
    """

    key: str
    layer: int | None
    name: str
    how: str
    symbols: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    flops: int
    is_transient: bool = False
    stats: Stats | None = None


@dataclass(frozen=True)
class Head:
    """One attention head on the walked text. weights: row t has the shares that token t gives to tokens 0 to t.

    entropy_bits: mean over rows of -sum p log2 p. even_bits: the same if every row were spread evenly. on_first, on_self,
    on_previous: mean share given to the first token (BOS), to itself, to the token before (rows from the second on).
    """

    layer: int
    head: int
    weights: tuple[tuple[float, ...], ...]
    entropy_bits: float
    even_bits: float
    on_first: float
    on_self: float
    on_previous: float


@dataclass(frozen=True)
class Gate:
    """Openness of a layer's value embedding for one key/value head, between 0 (shut) and 2, at every token."""

    layer: int
    head: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class Guess:
    """One candidate for the next token."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class Position:
    """What the model said at one position. rank: 1 where the true token was its first choice."""

    index: int
    input: Piece
    target: Piece
    probability: float
    rank: int
    loss_nats: float
    top: tuple[Guess, ...]


@dataclass(frozen=True)
class Score:
    """The text's loss in units. seed_bpb: what the seed's listing gives for it, a mean over ``seed_batches`` batches."""

    nats: float
    num_tokens: int
    num_bytes: int
    nats_per_token: float
    bits_per_token: float
    bits_per_byte: float
    perplexity: float
    seed_bpb: float
    seed_batches: int


@dataclass(frozen=True)
class Walk:
    """What running the model on the text showed. stages: of a batch of one row, with statistics.

    attention_error: largest difference between the maps' own product with the values and the model's attention output.
    """

    stages: tuple[Stage, ...]
    heads: tuple[Head, ...]
    gates: tuple[Gate, ...]
    positions: tuple[Position, ...]
    score: Score
    attention_error: float
    dtype: str
    cap_low: float
    cap_high: float


@dataclass(frozen=True)
class Part:
    """One share of a whole: bytes of memory, or FLOPs."""

    name: str
    amount: int
    how: str


@dataclass(frozen=True)
class SchedulePoint:
    """Multiplier of all rates, and Muon's momentum, when ``done`` of the run (0 to 1) is over."""

    done: float
    lr_multiplier: float
    momentum: float


@dataclass(frozen=True)
class Training:
    """How the weights were, or would be, trained. All numbers of one optimizer step.

    at: where the checkpoint stands on the schedule; None where it is not known. tokens_per_s: measured, or None.
    total: length of the run in words. chunk_tokens: tokens whose logits the loss holds at a time.
    """

    device_batch_size: int
    seq_len: int
    num_micro_batches: int
    world_size: int
    total_batch_size: int
    num_steps: int
    total: str
    schedule: tuple[SchedulePoint, ...]
    at: SchedulePoint | None
    warmup_frac: float
    warmdown_frac: float
    final_lr_frac: float
    weight_decay: float
    grad_clip: float
    memory: tuple[Part, ...]
    chunk_tokens: int
    whole_logits_bytes: int
    flops: tuple[Part, ...]
    flops_per_token: int
    flops_per_token_causal: int
    tokens_per_s: float | None
    compute_dtype: str
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class Facts:
    """All of an explanation. walk: None where the model is too large to be built for a picture. val_bpb: the checkpoint's score,
    where it was measured, on ``val_of``."""

    title: str
    preset: str
    model: GPTConfig
    step: int | None
    is_trained: bool
    val_bpb: float | None
    val_of: str
    text: str
    num_cut: int
    pieces: tuple[Piece, ...]
    bos: Piece
    tokenizer: str
    tokenizer_size: int
    batch: PackedBatch
    weights: tuple[Weight, ...]
    groups: dict[str, int]
    walk: Walk | None
    training: Training
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All values for JSON; bytes as hexadecimal text."""

        def plain(value: Any) -> Any:
            match value:
                case bytes():
                    return value.hex()
                case dict():
                    return {str(k): plain(v) for k, v in value.items()}
                case list() | tuple():
                    return [plain(v) for v in value]
                case _:
                    return value

        return plain(asdict(self))
