"""The decode step in native code: weights laid out for it, and one call a step. `firstlight.infer.fast` is its oracle.

Shapes: B rows, D width, X, F, V columns of matrices, L layers, G key/value heads, M positions of the cache, K head size,
W panels of 32 columns.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p
from pathlib import Path

import torch

from firstlight.infer.fast import DecodeWeights, LayerWeights, prepare
from firstlight.model.gpt import GPT
from firstlight.runtime.native.library import library_of, why_not

SOURCE = Path(__file__).with_name("step.cpp")

PANEL = 32
"""Columns of a panel, as in step.cpp."""

WEIGHT_BYTES_PER_THREAD = 1 << 20
"""A thread with less than this to read costs more at the barriers than it brings."""

DTYPES = (torch.float32, torch.bfloat16)

LONGEST_PROMPT = {torch.float32: 256, torch.bfloat16: 64}
"""Tokens of a prompt up to which the step reads it sooner than the model does: beyond, the model's products are better, in
bf16 sooner (measured on 2 cores with AVX-512; a guess for other processors)."""


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("in", "out", "up", "down", "value_table")),
        *((name, c_float) for name in ("keep", "again")),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("table", "slope", "floor", "cosine", "sine", "smear", "head")),
        ("layers", POINTER(_Layer)),
        *(
            (name, c_int32)
            for name in ("num_layers", "D", "H", "G", "K", "F", "V", "has_scales", "is_gated", "embed_norm")
        ),
        *((name, c_float) for name in ("eps", "softcap", "backout", "smear_scale")),
    )


class _Tokens(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("ids", "before", "positions", "slots", "wanted", "keys", "values")),
        *((name, c_int64) for name in ("layer_stride", "slot_stride", "head_stride")),
        *((name, c_void_p) for name in ("scratch", "logits")),
        *((name, c_int32) for name in ("num_tokens", "num_wanted", "num_slots", "max_position", "num_threads")),
    )


def why_not_native(*, device_type: str, dtype: torch.dtype) -> str | None:
    """Why a model's steps would be torch's operations; None where they are native. May compile, once on a machine."""
    if device_type != "cpu":
        return f"the native step is for CPUs, not {device_type}"
    if dtype not in DTYPES:
        return f"the native step knows float32 and bfloat16, not {dtype}"
    return why_not(SOURCE)


def native_step(model: GPT) -> NativeStep | None:
    """The step for this model's weights as they are now; None where there is none (`why_not_native`)."""
    device = model.lm_head.weight.device
    if why_not_native(device_type=device.type, dtype=model.compute_dtype) is not None:
        return None
    # Packed one by one from where they lie: a second copy of all would be laid out for nothing.
    return NativeStep(prepare(model, dtype=model.compute_dtype, layout=lambda weight_XN: weight_XN))


class NativeStep:
    """One step of some tokens, each at a place of its own. Not for several threads at once.

    Weights are stored in the dtype of ``weights``' matrices, float32 or bfloat16, and so is the cache; all arithmetic is
    float32. A token's logits do not depend on the other ones, nor on the number of threads, to the bit.
    """

    def __init__(self, weights: DecodeWeights) -> None:
        library = library_of(SOURCE)
        self.dtype = weights.head_DV.dtype
        assert self.dtype in DTYPES
        self._library = library
        self._step = library.step_float32 if self.dtype == torch.float32 else library.step_bfloat16
        self._step.restype = c_int32
        self._scratch_floats = library.scratch_floats
        self._scratch_floats.restype = c_int64
        # What the pointers in the structures point to: all matrices one behind another, and tables.
        self._arena = self._room_for(weights)
        self._arena_used = 0
        self._kept: list[object] = []
        self._num_positions = weights.cos_M1K.shape[0]
        self._vocab_size = weights.head_DV.shape[1]
        self._model = self._describe(weights)
        self._tokens = _Tokens()
        self._scratch = torch.empty(0, dtype=torch.float32, device="cpu")

    def _room_for(self, weights: DecodeWeights) -> torch.Tensor:
        sizes = [packed_size(weights.head_DV)]
        for layer in weights.layers:
            sizes += map(packed_size, (layer.in_DX, layer.out_DD, *_ups(layer, weights), layer.down_FD))
        room = torch.empty(sum(sizes), dtype=self.dtype, device="cpu")
        self._library.prefer_large_pages(c_void_p(room.data_ptr()), c_int64(room.nbytes))
        return room

    def _describe(self, weights: DecodeWeights) -> _Model:
        layers = (_Layer * len(weights.layers))()
        for described, layer in zip(layers, weights.layers, strict=True):
            ups = _ups(layer, weights)
            setattr(described, "in", self._matrix(layer.in_DX))
            described.out = self._matrix(layer.out_DD)
            described.up = self._matrix(*ups)
            described.down = self._matrix(layer.down_FD)
            described.value_table = self._table(layer.value_table_VC)
            described.keep = 1.0 if layer.keep is None else layer.keep
            described.again = 0.0 if layer.again is None else layer.again
        self._kept.append(layers)
        return _Model(
            table=self._table(weights.table_VD),
            slope=self._table(weights.slope_A1),
            floor=self._table(weights.floor_A1),
            cosine=self._table(weights.cos_M1K),
            sine=self._table(weights.sin_M1K),
            smear=self._table(weights.smear_D1),
            head=self._matrix(weights.head_DV),
            layers=layers,
            num_layers=len(weights.layers),
            D=weights.table_VD.shape[1],
            H=weights.num_heads,
            G=weights.num_kv_heads,
            K=weights.head_dim,
            F=weights.layers[0].down_FD.shape[0],
            V=self._vocab_size,
            has_scales=any(layer.keep is not None for layer in weights.layers),
            is_gated=weights.is_gated,
            embed_norm=weights.embed_norm,
            eps=weights.norm_floor.item(),
            softcap=weights.softcap,
            backout=weights.backout or 0.0,
            smear_scale=weights.smear_scale,
        )

    def _matrix(self, *weights_XN: torch.Tensor) -> int:
        """The next place of the arena, filled with matrices of one shape, (X,N) each."""
        place = self._arena[self._arena_used :]
        address = place.data_ptr()
        for weight_XN in weights_XN:
            num_inputs, num_columns = weight_XN.shape
            # As a module keeps it, (outputs, inputs): then nothing is copied here.
            turned_NX = weight_XN.t().contiguous()
            self._library.pack(
                c_void_p(place.data_ptr()), c_void_p(turned_NX.data_ptr()), c_int64(num_inputs), c_int64(num_columns),
                turned_NX.element_size(), torch.get_num_threads(),
            )  # fmt: skip
            place = place[packed_size(weight_XN) :]
        self._arena_used = self._arena.shape[0] - place.shape[0]
        return address

    def _table(self, x: torch.Tensor | None) -> int | None:
        """A copy of what is float32 in any case: training on changes no step that was made before."""
        if x is None:
            return None
        x = x.detach().to(torch.float32, copy=True).contiguous()
        self._kept.append(x)
        return x.data_ptr()

    def reads(self, prompts: Iterable[Sequence[int]]) -> bool:
        """Whether it is the faster one to read all of these prompts."""
        return max(map(len, prompts), default=0) <= LONGEST_PROMPT[self.dtype]

    def next_logits(
        self,
        ids_B: torch.Tensor,
        before_B: torch.Tensor,
        positions_B: torch.Tensor,
        k_LBGMK: torch.Tensor,
        v_LBGMK: torch.Tensor,
    ) -> torch.Tensor:
        """Logits (B,V) float32 behind the next token of each of the cache's first B rows.

        ids_B, before_B, positions_B: int64; ``before_B`` are the ids before those.
        Raises IndexError for an id or a position that does not exist; the cache is as it was then.
        """
        rows_B = torch.arange(ids_B.shape[0], device="cpu")
        return self._run(ids_B, before_B, positions_B, rows_B, rows_B, k_LBGMK, v_LBGMK)

    def read(
        self,
        prompts: Sequence[Sequence[int]],
        k_LBGMK: torch.Tensor,
        v_LBGMK: torch.Tensor,
        *,
        first_row: int = 0,
        start: int = 0,
        end: int | None = None,
    ) -> torch.Tensor:
        """Put tokens ``start`` to ``end`` of each prompt into the cache, whose rows from ``first_row`` on hold those before.

        Returns logits (B,V) float32 behind the last one of each.
        Raises IndexError for an id or a position that does not exist; the cache is as it was then.
        """
        ids, before, positions, rows, wanted = [], [], [], [], []
        for row, prompt in enumerate(prompts, first_row):
            piece = prompt[start:end]
            assert piece, "every prompt has a token to read"
            ids += piece
            before += [prompt[max(start - 1, 0)], *piece[:-1]]
            positions += range(start, start + len(piece))
            rows += [row] * len(piece)
            wanted.append(len(ids) - 1)
        columns = [
            torch.tensor(column, dtype=torch.int64, device="cpu") for column in (ids, before, positions, rows, wanted)
        ]
        return self._run(*columns, k_LBGMK, v_LBGMK)  # pyrefly: ignore

    def _run(
        self,
        ids_T: torch.Tensor,
        before_T: torch.Tensor,
        positions_T: torch.Tensor,
        slots_T: torch.Tensor,
        wanted_B: torch.Tensor,
        k_LBGMK: torch.Tensor,
        v_LBGMK: torch.Tensor,
    ) -> torch.Tensor:
        assert k_LBGMK.dtype == v_LBGMK.dtype == self.dtype
        assert k_LBGMK.is_contiguous()
        assert v_LBGMK.is_contiguous()
        assert k_LBGMK.shape == v_LBGMK.shape
        L, _, G, _, K = k_LBGMK.shape
        assert (self._model.num_layers, self._model.G, self._model.K) == (L, G, K), "the cache is another model's"
        columns = [x.contiguous() for x in (ids_T, before_T, positions_T, slots_T, wanted_B)]
        assert all(x.dtype == torch.int64 and x.device.type == "cpu" for x in columns)
        assert all(len(x) == len(ids_T) for x in columns[:4])
        tokens = self._tokens
        tokens.ids, tokens.before, tokens.positions, tokens.slots, tokens.wanted = [x.data_ptr() for x in columns]
        tokens.keys, tokens.values = k_LBGMK.data_ptr(), v_LBGMK.data_ptr()
        tokens.layer_stride, tokens.slot_stride, tokens.head_stride = k_LBGMK.stride()[:3]
        tokens.num_tokens, tokens.num_wanted, tokens.num_slots = len(ids_T), len(wanted_B), k_LBGMK.shape[1]
        tokens.max_position = min(k_LBGMK.shape[3], self._num_positions) - 1
        tokens.num_threads = min(torch.get_num_threads(), max(1, self._arena.nbytes // WEIGHT_BYTES_PER_THREAD))
        size = self._scratch_floats(ctypes.byref(self._model), ctypes.byref(tokens))
        if self._scratch.shape[0] < size:
            self._scratch = torch.empty(size, dtype=torch.float32, device="cpu")
        logits_BV = torch.empty(len(wanted_B), self._vocab_size, dtype=torch.float32, device="cpu")
        tokens.scratch, tokens.logits = self._scratch.data_ptr(), logits_BV.data_ptr()
        wrong = self._step(ctypes.byref(self._model), ctypes.byref(tokens))
        if wrong:
            token_id, before, position, slot = (int(column[wrong - 1]) for column in columns[:4])
            raise IndexError(f"id {token_id} behind {before} at position {position} of row {slot} does not exist")
        return logits_BV


def _ups(layer: LayerWeights, weights: DecodeWeights) -> tuple[torch.Tensor, ...]:
    """The MLP's first matrix, or both of a gated one's."""
    return layer.up_DF.chunk(2, dim=1) if weights.is_gated else (layer.up_DF,)


def packed_size(weight_XN: torch.Tensor) -> int:
    """Numbers in a matrix's panels, the last of which is filled up with zeros.

    >>> packed_size(torch.zeros(5, 33))
    320
    """
    num_inputs, num_columns = weight_XN.shape
    return -(-num_columns // PANEL) * PANEL * num_inputs
