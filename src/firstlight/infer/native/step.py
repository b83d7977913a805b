"""The decode step in native code: weights laid out for it, and one call a step. `firstlight.infer.fast` is its oracle.

Shapes: B rows, D width, X, F, V columns of matrices, L layers, G key/value heads, M positions of the cache, K head size,
W panels of 32 columns.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p

import torch
from torch.nn import functional

from firstlight.infer.fast import DecodeWeights, prepare
from firstlight.infer.native.library import Unavailable, load_library
from firstlight.model.gpt import GPT

PANEL = 32
"""Columns of a panel, as in step.cpp."""

WEIGHT_BYTES_PER_THREAD = 1 << 20
"""A thread with less than this to read costs more at the barriers than it brings."""

DTYPES = (torch.float32, torch.bfloat16)


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


class _Rows(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("ids", "before", "positions", "keys", "values")),
        *((name, c_int64) for name in ("layer_stride", "row_stride", "head_stride")),
        *((name, c_void_p) for name in ("scratch", "logits")),
        *((name, c_int32) for name in ("num_rows", "max_position", "num_threads")),
    )


def why_not_native(*, device_type: str, dtype: torch.dtype) -> str | None:
    """Why a model's steps would be torch's operations; None where they are native. May compile, once on a machine."""
    if device_type != "cpu":
        return f"the native step is for CPUs, not {device_type}"
    if dtype not in DTYPES:
        return f"the native step knows float32 and bfloat16, not {dtype}"
    found = load_library()
    return found.reason if isinstance(found, Unavailable) else None


def native_step(model: GPT) -> NativeStep | None:
    """The step for this model's weights as they are now; None where there is none (`why_not_native`)."""
    device = model.lm_head.weight.device
    if why_not_native(device_type=device.type, dtype=model.compute_dtype) is not None:
        return None
    # Packed one by one from where they lie: a second copy of all would be laid out for nothing.
    return NativeStep(prepare(model, dtype=model.compute_dtype, layout=lambda weight_XN: weight_XN))


class NativeStep:
    """One step of some rows, each at a place of its own. Not for several threads at once.

    Weights are stored in the dtype of ``weights``' matrices, float32 or bfloat16, and so is the cache; all arithmetic is float32. A
    row's logits do not depend on the other rows, nor on the number of threads, to the bit.
    """

    def __init__(self, weights: DecodeWeights) -> None:
        library = load_library()
        assert not isinstance(library, Unavailable)
        self.dtype = weights.head_DV.dtype
        assert self.dtype in DTYPES
        self._step = library.step_float32 if self.dtype == torch.float32 else library.step_bfloat16
        self._step.restype = c_int32
        self._scratch_floats = library.scratch_floats
        self._scratch_floats.restype = c_int64
        # What the pointers in the structures point to.
        self._kept: list[object] = []
        self._weight_bytes = 0
        self._num_positions = weights.cos_M1K.shape[0]
        self._vocab_size = weights.head_DV.shape[1]
        self._model = self._describe(weights)
        self._rows = _Rows()
        self._scratch = torch.empty(0)

    def _describe(self, weights: DecodeWeights) -> _Model:
        layers = (_Layer * len(weights.layers))()
        for described, layer in zip(layers, weights.layers, strict=True):
            ups = layer.up_DF.chunk(2, dim=1) if weights.is_gated else (layer.up_DF,)
            setattr(described, "in", self._matrix(packed(layer.in_DX)))
            described.out = self._matrix(packed(layer.out_DD))
            described.up = self._matrix(torch.cat([packed(up_DF) for up_DF in ups]) if len(ups) > 1 else packed(*ups))
            described.down = self._matrix(packed(layer.down_FD))
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
            head=self._matrix(packed(weights.head_DV)),
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

    def _matrix(self, packed_WXN: torch.Tensor) -> int:
        self._kept.append(packed_WXN)
        self._weight_bytes += packed_WXN.nbytes
        return packed_WXN.data_ptr()

    def _table(self, x: torch.Tensor | None) -> int | None:
        """What is float32 in any case."""
        if x is None:
            return None
        x = x.float().contiguous()
        self._kept.append(x)
        return x.data_ptr()

    def __call__(
        self,
        ids_B: torch.Tensor,
        before_B: torch.Tensor,
        positions_B: torch.Tensor,
        k_LBGMK: torch.Tensor,
        v_LBGMK: torch.Tensor,
    ) -> torch.Tensor:
        """Logits (B,V) float32 behind ``ids_B``, whose keys and values are written to the cache at ``positions_B``.

        ids_B, before_B, positions_B: int64; ``before_B`` are the ids before those. The cache may have more rows.
        Raises IndexError for an id or a position that does not exist; the cache is as it was then.
        """
        num_rows, num_positions = ids_B.shape[0], min(k_LBGMK.shape[3], self._num_positions)
        assert k_LBGMK.dtype == v_LBGMK.dtype == self.dtype
        assert k_LBGMK.is_contiguous() and v_LBGMK.is_contiguous() and k_LBGMK.shape == v_LBGMK.shape
        assert num_rows <= k_LBGMK.shape[1]
        ids_B, before_B, positions_B = ids_B.contiguous(), before_B.contiguous(), positions_B.contiguous()
        rows = self._rows
        rows.ids, rows.before, rows.positions = ids_B.data_ptr(), before_B.data_ptr(), positions_B.data_ptr()
        rows.keys, rows.values = k_LBGMK.data_ptr(), v_LBGMK.data_ptr()
        rows.layer_stride, rows.row_stride, rows.head_stride = k_LBGMK.stride()[:3]
        rows.num_rows, rows.max_position = num_rows, num_positions - 1
        rows.num_threads = min(torch.get_num_threads(), max(1, self._weight_bytes // WEIGHT_BYTES_PER_THREAD))
        size = self._scratch_floats(ctypes.byref(self._model), ctypes.byref(rows))
        if self._scratch.shape[0] < size:
            self._scratch = torch.empty(size)
        logits_BV = torch.empty(num_rows, self._vocab_size)
        rows.scratch, rows.logits = self._scratch.data_ptr(), logits_BV.data_ptr()
        wrong = self._step(ctypes.byref(self._model), ctypes.byref(rows))
        if wrong:
            i = wrong - 1
            raise IndexError(f"row {i}: id {ids_B[i]} behind {before_B[i]} at position {positions_B[i]} does not exist")
        return logits_BV


def packed(weight_XN: torch.Tensor) -> torch.Tensor:
    """(X,N) -> (W,X,32): panels of 32 columns, the last one filled up with zeros.

    >>> packed(torch.arange(80.0).view(2, 40))[1, :, 7:9].tolist()
    [[39.0, 0.0], [79.0, 0.0]]
    """
    num_inputs, num_columns = weight_XN.shape
    num_panels = -(-num_columns // PANEL)
    padded_XN = functional.pad(weight_XN, (0, num_panels * PANEL - num_columns))
    return padded_XN.view(num_inputs, num_panels, PANEL).transpose(0, 1).contiguous()
