"""Claims about torch's own BLAS: where it is found, it multiplies as Fortran's sgemm does."""

from __future__ import annotations

import ctypes

import pytest
import torch

from firstlight.runtime.native import blas


def test_it_multiplies() -> None:
    address = blas.find_sgemm()
    if address is None:
        pytest.skip("torch's library shows no sgemm_")
    sgemm = ctypes.CFUNCTYPE(None, *(ctypes.c_void_p,) * 13)(address)
    a, b, c = torch.randn(3, 4), torch.randn(4, 5), torch.ones(3, 5)
    # In columns, as Fortran has them, a is (4,3), b is (5,4) and c^T = b^T a^T.
    numbers = {name: ctypes.c_int32(n) for name, n in {"M": 5, "N": 3, "K": 4}.items()}
    alpha, beta = ctypes.c_float(2.0), ctypes.c_float(-1.0)
    at = {name: ctypes.addressof(x) for name, x in {**numbers, "alpha": alpha, "beta": beta}.items()}
    plain = ctypes.create_string_buffer(b"N")
    order = ctypes.addressof(plain)
    sgemm(
        order, order, at["M"], at["N"], at["K"], at["alpha"], b.data_ptr(), at["M"], a.data_ptr(), at["K"], at["beta"],
        c.data_ptr(), at["M"],
    )  # fmt: skip
    expected = 2 * (a.double() @ b.double()) - 1
    assert (c - expected).abs().max() < 1e-5


def test_a_library_without_it_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> ctypes.CDLL:
        raise OSError(f"{path}: cannot open shared object file")

    monkeypatch.setattr(blas.ctypes, "CDLL", refuse)
    assert blas.find_sgemm.__wrapped__() is None
    monkeypatch.setattr(blas.ctypes, "CDLL", lambda path: object())
    assert blas.find_sgemm.__wrapped__() is None
