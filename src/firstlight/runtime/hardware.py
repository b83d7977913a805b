"""What the machine can do at most, so that a run can say how close to it it comes; and what memory is in use.

The peak of a known GPU comes from its maker's data sheet; of everything else (CPUs, Apple GPUs, GPUs not in the table,
shares of a GPU, float32) it is measured here as the best matrix multiplication.
"""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from firstlight.runtime import environment

# Dense half-precision tensor-core rate in FLOP/s (bf16 with float32 accumulation; fp16 for V100 and T4, which lack
# bf16). The first pattern that is found in the device's name counts, so the special ones come first. Data sheets
# often print the rate with 2:4 sparsity, which is twice this one.
GPU_PEAKS: tuple[tuple[str, float, str], ...] = (
    (r"\bGB[23]00\b", 2500e12, "NVIDIA GB200/GB300 NVL72 data sheet (5 PFLOP/s sparse)"),
    (r"\bB[23]00\b", 2250e12, "NVIDIA HGX B200/B300 data sheet (4.5 PFLOP/s sparse)"),
    (r"\bB100\b", 1750e12, "NVIDIA Blackwell architecture brief (3.5 PFLOP/s sparse)"),
    (r"\bH[12]00 NVL\b", 835.5e12, "NVIDIA H100/H200 NVL data sheet (1671 TFLOP/s sparse)"),
    (r"\bH100 PCIe\b", 756e12, "NVIDIA H100 data sheet (1513 TFLOP/s sparse)"),
    (r"\b(H100|H200|H800|GH200)\b", 989.4e12, "NVIDIA H100 SXM data sheet (1979 TFLOP/s sparse)"),
    (r"\bH20\b", 148e12, "NVIDIA H20 data sheet"),
    (r"\bA[18]00\b", 312e12, "NVIDIA A100 data sheet"),
    (r"\bA30\b", 165e12, "NVIDIA A30 data sheet"),
    (r"\bA40\b", 149.7e12, "NVIDIA A40 data sheet"),
    (r"\bA10G\b", 70e12, "NVIDIA A10G (AWS G5) figures"),
    (r"\bA10\b", 125e12, "NVIDIA A10 data sheet"),
    (r"\bL40S\b", 362.05e12, "NVIDIA L40S data sheet"),
    (r"\bL40\b", 181.05e12, "NVIDIA L40 data sheet"),
    (r"\bL4\b", 121e12, "NVIDIA L4 data sheet (242 TFLOP/s sparse)"),
    (r"\bRTX PRO 6000 Blackwell\b", 503.8e12, "NVIDIA RTX Blackwell PRO architecture paper"),
    (r"\bRTX 6000 Ada\b", 364.25e12, "NVIDIA RTX 6000 Ada data sheet (728.5 TFLOP/s sparse)"),
    (r"\bRTX A6000\b", 154.8e12, "NVIDIA GA102 architecture paper"),
    (r"\bRTX 5090\b(?! D)", 209.5e12, "NVIDIA RTX Blackwell architecture paper, float32 accumulation"),
    (r"\bRTX 5080\b", 112.6e12, "NVIDIA RTX Blackwell architecture paper, float32 accumulation"),
    (r"\bRTX 4090\b(?! D)", 165.2e12, "NVIDIA Ada architecture paper, float32 accumulation"),
    (r"\bRTX 4080\b(?! SUPER)", 97.5e12, "NVIDIA Ada architecture paper, float32 accumulation"),
    (r"\bRTX 3090\b(?! Ti)", 71e12, "NVIDIA GA102 architecture paper, float32 accumulation"),
    (r"\bRTX 3080\b(?! Ti)", 59.5e12, "NVIDIA GA102 architecture paper, float32 accumulation"),
    (r"\bV100\b", 125e12, "NVIDIA V100 data sheet, fp16"),
    (r"\bT4\b", 65e12, "NVIDIA T4 data sheet, fp16"),
    (r"\bMI355X\b", 2516.6e12, "AMD Instinct MI355X data sheet"),
    (r"\bMI350X\b", 2306.9e12, "AMD Instinct MI350X data sheet"),
    (r"\bMI3(00|25)X\b", 1307.4e12, "AMD Instinct MI300X/MI325X data sheet"),
    (r"\bMI250X\b", 191.5e12, "AMD Instinct MI250X data sheet (383), half of it: a device is one of its two dies"),
    (r"\bMI210\b", 181e12, "AMD Instinct MI210 data sheet"),
)

MEASURE_S = 0.3


@dataclass(frozen=True)
class Peak:
    """The most that one device does, in FLOP/s, and where the figure comes from."""

    flops_per_s: float
    source: str


def peak_of_gpu(name: str) -> Peak | None:
    """Half-precision peak of a GPU by the name that its driver reports, or None where the table does not have it."""
    # A laptop chip shares only the name, and a MIG slice only a part, of the card in the table.
    if re.search(r"\b(Laptop|Mobile|Max-Q|MIG)\b", name):
        return None
    for pattern, flops_per_s, source in GPU_PEAKS:
        if re.search(pattern, name):
            return Peak(flops_per_s, source)
    return None


def device_peak(device: torch.device, dtype: torch.dtype, *, seconds: float = MEASURE_S) -> Peak:
    """Peak of one device for matmuls in ``dtype``: the data sheet's for known GPUs in bf16 or fp16, else measured now.

    A measurement holds for this process's number of threads, and takes about ``seconds``.
    """
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        known = peak_of_gpu(torch.cuda.get_device_name(device))
        if known is not None:
            return known
    return measure_peak(device, dtype, seconds=seconds)


def measure_peak(device: torch.device, dtype: torch.dtype, *, seconds: float = MEASURE_S) -> Peak:
    """Best rate of several large matmuls (M, K, N), in FLOP/s; each gets a share of ``seconds`` and at least one
    timed run.

    A shape that would take longer than its share (judged by the one before) is left out, so slow machines stay quick.
    Leaves torch's random state as it was.
    """
    if device.type == "cpu":
        shapes = [(512, 512, 512), (1024, 1024, 1024), (2048, 1024, 2048), (2048, 2048, 2048)]
    else:
        shapes = [(1024, 1024, 1024), (4096, 4096, 4096), (8192, 8192, 8192)]
    share_s = seconds / len(shapes)
    best_rate, best_shape = 0.0, shapes[0]
    for m, k, n in shapes:
        flops = 2 * m * k * n
        if best_rate and flops / best_rate > share_s:
            continue
        generator = torch.Generator().manual_seed(0)
        a = torch.randn(m, k, generator=generator).to(device, dtype)
        # Stored as a linear layer's weight is, (N, K), and used transposed.
        b = torch.randn(n, k, generator=generator).to(device, dtype).t()
        out = torch.mm(a, b)
        _wait(device)
        end = time.perf_counter() + share_s
        while True:
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            _wait(device)
            now = time.perf_counter()
            if flops / (now - start) > best_rate:
                best_rate, best_shape = flops / (now - start), (m, k, n)
            if now >= end:
                break
    shape = "x".join(str(size) for size in best_shape)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    name = str(dtype).removeprefix("torch.")
    return Peak(best_rate, f"measured: best of {len(shapes)} matmul shapes ({shape}, {name}{threads})")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def rss_bytes() -> int | None:
    """Memory of this process that is in RAM now, in bytes; None where the system does not say (macOS, Windows)."""
    return _proc_status("VmRSS")


def peak_rss_bytes() -> int | None:
    """The most RAM that this process has used, in bytes; None where the system does not say (Windows)."""
    from_proc = _proc_status("VmHWM")
    if from_proc is not None:
        return from_proc
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _proc_status(key: str) -> int | None:
    # Not ru_maxrss on Linux: a child process inherits its parent's maximum there.
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of an accelerator in bytes: in use by tensors, the most so far, and the whole."""

    used_bytes: int
    peak_bytes: int
    total_bytes: int


def device_memory(device: torch.device) -> DeviceMemory | None:
    """Memory figures of a GPU, or None for a CPU (see ``rss_bytes``). On an Apple GPU the peak is the present use."""
    if device.type == "cuda":
        return DeviceMemory(
            torch.cuda.memory_allocated(device),
            torch.cuda.max_memory_allocated(device),
            torch.cuda.get_device_properties(device).total_memory,
        )
    if device.type == "mps":
        used = torch.mps.current_allocated_memory()
        return DeviceMemory(used, used, torch.mps.recommended_max_memory())
    return None


def memory_in_use_bytes(device: torch.device) -> int:
    """What this process uses of the memory that it may run out of: a GPU's, or RAM; 0 where the system does not say."""
    memory = device_memory(device)
    return memory.used_bytes if memory is not None else rss_bytes() or 0


def describe(device: torch.device, *, num_threads: int) -> dict[str, Any]:
    """The machine in a few facts, for the run record: CPU, usable CPUs, threads, memory, and the GPU where one is
    used.
    """
    facts: dict[str, Any] = {
        "cpu": environment.cpu_name(),
        "num_usable_cpus": environment.num_usable_cpus(),
        "num_threads": num_threads,
        "memory_bytes": environment.total_memory_bytes(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["gpu_memory_bytes"] = properties.total_memory
        facts["num_visible_gpus"] = torch.cuda.device_count()
    elif device.type == "mps":
        facts["gpu"] = "Apple GPU"
    return facts
