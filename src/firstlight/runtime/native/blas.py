"""The BLAS that torch brings, for native code: one address that it calls."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch


@functools.cache
def find_sgemm() -> int | None:
    """Address of torch's own ``sgemm_`` (Fortran's interface, 32-bit sizes); None where torch's library shows none.

    Called by one of several OpenMP threads it works with that thread alone: so does MKL, and no other was looked at.
    """
    if not torch.backends.mkl.is_available():
        return None
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        return ctypes.cast(ctypes.CDLL(str(path)).sgemm_, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None
