"""Which dtype the matmuls use: decided by what the hardware really does fast, measured where that is not known."""

from __future__ import annotations

import time

import torch

from firstlight.errors import ConfigError

PROBE_SIZE = 512
PROBE_S = 0.05


def matmul_flops_per_s(
    device: torch.device, dtype: torch.dtype, *, size: int = PROBE_SIZE, seconds: float = PROBE_S
) -> float:
    """Rate of a square ``size`` x ``size`` matmul in FLOP/s: best of the repetitions that fit in ``seconds``."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(size, size, generator=generator).to(device, dtype)
    b = torch.randn(size, size, generator=generator).to(device, dtype)
    out = a @ b
    best_s = float("inf")
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        now = time.perf_counter()
        best_s = min(best_s, now - start)
        if now > end:
            return 2 * size**3 / best_s


def core_rates(dtypes: tuple[torch.dtype, ...], *, rounds: int = 4) -> dict[torch.dtype, float]:
    """Matmul rate of one CPU core in each dtype, in FLOP/s: best of ``rounds`` turns, taken in alternation.

    One core, because threads that wait for each other show another program's load as a slow dtype (a busy machine once
    measured bf16 at a sixth of fp32 that way), and the ratio of the dtypes is the same on one core.
    """
    device = torch.device("cpu")
    num_threads = torch.get_num_threads()
    best = dict.fromkeys(dtypes, 0.0)
    try:
        torch.set_num_threads(1)
        for _ in range(rounds):
            for dtype in dtypes:
                best[dtype] = max(best[dtype], matmul_flops_per_s(device, dtype, seconds=PROBE_S / rounds))
    finally:
        torch.set_num_threads(num_threads)
    return best


def expected_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Matmul rate to expect of a device, in FLOP/s, from a short measurement; on a CPU that of a core times the threads."""
    if device.type == "cpu":
        return core_rates((dtype,))[dtype] * torch.get_num_threads()
    return matmul_flops_per_s(device, dtype)


def choose_dtype(device: torch.device, requested: str) -> tuple[torch.dtype, str]:
    """Matmul dtype for ``auto``, ``fp32``, ``bf16`` or ``fp16`` on a device, and the reason in one sentence.

    Raises ConfigError for an unknown name, or for a dtype that the device does not have.
    """
    if requested == "fp32":
        return torch.float32, "dtype fp32: asked for"
    if requested == "bf16":
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
            raise ConfigError(
                f"--dtype bf16: {torch.cuda.get_device_name(device)} has no bf16 matmul (compute capability below 8.0)",
                hint="use --dtype fp16 or --dtype fp32, or leave --dtype auto",
            )
        return torch.bfloat16, "dtype bf16: asked for"
    if requested == "fp16":
        if device.type == "cpu":
            raise ConfigError("--dtype fp16 is for GPUs", hint="on a CPU use --dtype bf16 or --dtype fp32")
        return torch.float16, "dtype fp16: asked for (with a loss scaler)"
    if requested != "auto":
        raise ConfigError(f"--dtype {requested} is not known", hint="one of auto, fp32, bf16, fp16")
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return torch.bfloat16, "dtype bf16: the GPU has bf16 tensor cores (compute capability 8.0 or above)"
        return torch.float16, "dtype fp16 with a loss scaler: the GPU has no bf16 tensor cores"
    if device.type == "mps":
        return torch.float32, "dtype fp32: bf16 on Apple GPUs is on request (--dtype bf16)"
    rates_by_dtype = core_rates((torch.float32, torch.bfloat16))
    rate_fp32, rate_bf16 = rates_by_dtype[torch.float32], rates_by_dtype[torch.bfloat16]
    rates = f"one core was measured at {rate_bf16 / 1e9:.0f} GFLOP/s in bf16 and {rate_fp32 / 1e9:.0f} in fp32"
    # 1.3: below it the casts of weights and activations eat the gain.
    if rate_bf16 > 1.3 * rate_fp32:
        return torch.bfloat16, f"dtype bf16: {rates}"
    return torch.float32, f"dtype fp32: {rates}, so bf16 would not pay"
