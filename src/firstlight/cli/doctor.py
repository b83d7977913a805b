"""`firstlight doctor`: what this machine can do, what will be slow and why, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """Something that will not work or will be slow, why, and what to do about it. level: ``error``, ``slow`` or
    ``note``.
    """

    level: str
    what: str
    do: str


def doctor(*, threads: int | None = None, json: bool = False) -> None:
    """Say what this machine can do, and what will be slow and why.

    Measures for about a second; the first time on a machine it compiles the native code, a few seconds more. Looks for the
    device, the speed of its dtypes, the compiler, threads, memory, disk, versions.

    For example:

        firstlight doctor
        firstlight doctor --json

    Parameters
    ----------
    threads
        CPU threads to measure with. [all that this process may use]
    json
        Print one JSON object.
    """
    from firstlight.runtime.console import Console, format_bytes

    console = Console()
    facts = gather(threads=threads)
    found = findings(facts)
    if json:
        console.json({**facts, "findings": [vars(finding) for finding in found]})
        return
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in facts["matmul_flops_per_s"].items())
    rows = {
        "device": facts["device"] + (f" ({', '.join(facts['gpus'])})" if facts["gpus"] else ""),
        "cpu": f"{facts['cpu']}, {facts['num_usable_cpus']} usable, {facts['num_threads']} threads",
        "matmul": rates,
        "dtype": facts["dtype_note"],
        "memory": _of(facts["memory_free_bytes"], facts["memory_bytes"], format_bytes),
        "compiler": facts["compiler"] or "none",
        "native": _native(facts["native_problems"]),
        "runs": f"{facts['runs_dir']} ({_size(facts['runs_free_bytes'], format_bytes)} free)",
        "cache": f"{facts['cache_dir']} ({_size(facts['cache_free_bytes'], format_bytes)} free)",
        "driver": facts["driver"] or "no NVIDIA driver",
        "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    }
    for name, text in rows.items():
        console.say(f"{name:<9} {text}")
    console.say()
    if not found:
        console.say("Nothing is in the way.")
    for finding in found:
        console.say(f"{finding.level}: {finding.what}\n    {finding.do}")


def _native_problems(device_type: str) -> dict[str, str]:
    """Why there is no native code for decoding, the loss or the layers in float32, for each that has none. May compile, once
    on a machine."""
    import torch

    from firstlight.infer.native.step import why_not_native
    from firstlight.model.native.layer import why_not_native_layers
    from firstlight.train.native.loss import why_not_native_loss

    sizes = {"device_type": device_type, "dtype": torch.float32}
    found = {
        "decoding": why_not_native(**sizes),
        "loss": why_not_native_loss(**sizes),
        "layers": why_not_native_layers() if device_type == "cpu" else None,
    }
    return {part: reason for part, reason in found.items() if reason is not None}


def _native(problems: dict[str, str]) -> str:
    """The row about native code."""
    if not problems:
        return "decoding, loss and float32 layers"
    reasons = dict.fromkeys(problems.values())
    return f"none for {', '.join(problems)}: {'; '.join(reasons)}"


def gather(*, threads: int | None = None) -> dict[str, Any]:
    """Everything that is looked at, as plain values (sizes in bytes, rates in FLOP/s). Takes about a second."""
    import torch

    from firstlight.runtime import environment, hardware, precision
    from firstlight.runtime.context import choose_device

    num_threads = threads or environment.default_num_threads()
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        device, device_note = choose_device("auto")
        _, dtype_note = precision.choose_dtype(device, "auto")
        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
            dtypes = {"fp32": torch.float32, "fp16": torch.float16}
        rates = {name: hardware.measure_peak(device, dtype).flops_per_s for name, dtype in dtypes.items()}
    finally:
        torch.set_num_threads(before)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if device.type == "cuda" else []
    known = hardware.peak_of_gpu(gpus[0]) if gpus else None
    compiler = environment.cxx_compiler()
    runs_dir, cache_dir = environment.runs_dir(), environment.cache_dir()
    return {
        "device": str(device),
        "device_note": device_note,
        "gpus": gpus,
        "gpu_peak_flops_per_s": known.flops_per_s if known else None,
        "gpu_memory_bytes": [torch.cuda.get_device_properties(i).total_memory for i in range(len(gpus))],
        "cpu": environment.cpu_name(),
        "num_usable_cpus": environment.num_usable_cpus(),
        "num_threads": num_threads,
        "matmul_flops_per_s": rates,
        "dtype_note": dtype_note,
        "memory_bytes": environment.total_memory_bytes(),
        "memory_free_bytes": _memory_free_bytes(),
        "compiler": compiler,
        "compiler_problem": _compiler_problem(compiler) if compiler else None,
        "native_problems": _native_problems(device.type),
        "runs_dir": str(runs_dir),
        "runs_free_bytes": _disk_free_bytes(runs_dir),
        "runs_writable": _is_writable(runs_dir),
        "cache_dir": str(cache_dir),
        "cache_free_bytes": _disk_free_bytes(cache_dir),
        "cache_writable": _is_writable(cache_dir),
        **_nvidia_driver(),
        "torch_cuda": torch.version.cuda,
        "torch_hip": getattr(torch.version, "hip", None),
        "versions": environment.versions(),
    }


def findings(facts: Mapping[str, Any]) -> list[Finding]:
    """What stands in the way, the worst first; each with what to do. Pure: ``facts`` as ``gather`` returns them."""
    found = []

    def add(level: str, what: str, do: str) -> None:
        found.append(Finding(level, what, do))

    on_cpu = facts["device"] == "cpu"
    for place in ("runs", "cache"):
        name = f"FIRSTLIGHT_{place.upper()}"
        if not facts[f"{place}_writable"]:
            add(
                "error",
                f"{facts[f'{place}_dir']} cannot be written to",
                f"set {name} to a folder that you may write to",
            )
        elif (facts[f"{place}_free_bytes"] or GIB) < 2 * GIB - GIB * (place == "cache"):
            free = facts[f"{place}_free_bytes"] / GIB
            add(
                "error",
                f"{facts[f'{place}_dir']} has {free:.1f} GiB free",
                f"free some space, or set {name} to a larger disk; `firstlight plan` says what a run needs",
            )
    if facts["driver"] and on_cpu:
        if facts["torch_cuda"] is None:
            add(
                "slow",
                "there is an NVIDIA GPU, but this torch is a build for CPUs only",
                "install the CUDA build: pip install --force-reinstall 'torch>=2.13,<2.14' from https://pytorch.org/get-started",
            )
        elif _major(facts["driver_cuda"]) < _major(facts["torch_cuda"]):
            add(
                "slow",
                f"the NVIDIA driver {facts['driver']} knows CUDA up to {facts['driver_cuda']},"
                f" and this torch needs CUDA {facts['torch_cuda']}",
                "update the driver, or install a torch built for an older CUDA"
                " (pip install 'torch==2.13.*' --index-url https://download.pytorch.org/whl/cu126)",
            )
        else:
            add(
                "slow",
                "there is an NVIDIA GPU and a fitting driver, but torch does not see it",
                "look at CUDA_VISIBLE_DEVICES, and whether this container or job was given the GPU",
            )
    if on_cpu and not facts["driver"]:
        add(
            "note",
            "no GPU: small models train here in minutes, larger ones take days",
            "`firstlight plan --depth N` says how long a depth takes on this machine",
        )
    if facts["compiler"] is None:
        add(
            "slow",
            "no C++ compiler: torch.compile stays off on the CPU, steps are slower, and text is written several times slower",
            "install one: apt install g++, or xcode-select --install on macOS",
        )
    elif facts["compiler_problem"]:
        add(
            "slow",
            f"the compiler {facts['compiler']} does not work: {facts['compiler_problem']}",
            "install its standard library and OpenMP (apt install g++ libgomp1; brew install libomp), or run with --compile off",
        )
    elif on_cpu and facts["native_problems"]:
        add(
            "slow",
            f"native code, which is faster than torch's operations: {_native(facts['native_problems'])}",
            "see docs/decoding.md",
        )
    rates = facts["matmul_flops_per_s"]
    if on_cpu and "bf16" in rates and rates["bf16"] < 1.3 * rates["fp32"]:
        add(
            "note",
            "this CPU multiplies no faster in bf16 than in fp32 (no AVX512-BF16 or AMX), so training uses fp32",
            "nothing to do; --dtype bf16 would only save memory",
        )
    if facts["num_threads"] < facts["num_usable_cpus"]:
        add(
            "slow" if on_cpu else "note",
            f"{facts['num_threads']} of {facts['num_usable_cpus']} CPUs would be used (OMP_NUM_THREADS or --threads)",
            "unset OMP_NUM_THREADS to use all",
        )
    if facts["memory_bytes"] and facts["memory_bytes"] < 4 * GIB:
        add(
            "note",
            f"{facts['memory_bytes'] / GIB:.1f} GiB of memory",
            "stay at --depth 4 or below, with a small --device-batch-size",
        )
    elif facts["memory_free_bytes"] and facts["memory_free_bytes"] < 2 * GIB:
        add(
            "note",
            f"only {facts['memory_free_bytes'] / GIB:.1f} GiB of memory is free",
            "close other programs before training",
        )
    if facts["gpus"] and facts["gpu_peak_flops_per_s"] and max(rates.values()) < 0.4 * facts["gpu_peak_flops_per_s"]:
        add(
            "slow",
            f"{facts['gpus'][0]} was measured at {max(rates.values()) / 1e12:,.0f} TFLOP/s,"
            f" under half of its data sheet's {facts['gpu_peak_flops_per_s'] / 1e12:,.0f}",
            "another program may be using it, or it is hot or power-limited: see nvidia-smi",
        )
    if missing := [name for name, version in facts["versions"].items() if version == "not installed"]:
        add("error", f"not installed: {', '.join(missing)}", "pip install -e . in the project's folder")
    order = {"error": 0, "slow": 1, "note": 2}
    return sorted(found, key=lambda finding: order[finding.level])


def _major(version: str | None) -> int:
    # A driver runs every CUDA of its major version: docs.nvidia.com/deploy/cuda-compatibility, "minor version compatibility".
    head = (version or "0").split(".")[0]
    return int(head) if head.isdigit() else 0


def _nvidia_driver() -> dict[str, str | None]:
    """Version of the NVIDIA driver and the newest CUDA that it knows, asked of nvidia-smi; None where there is none."""
    import re
    import shutil
    import subprocess

    nothing: dict[str, str | None] = {"driver": None, "driver_cuda": None}
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return nothing
    try:
        text = subprocess.run([tool], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return nothing
    driver = re.search(r"Driver Version:\s*([\d.]+)", text)
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", text)
    return {"driver": driver.group(1) if driver else None, "driver_cuda": cuda.group(1) if cuda else None}


def _compiler_problem(compiler: str) -> str | None:
    """What goes wrong with a one-line OpenMP program, or None where it compiles and links."""
    import subprocess
    import tempfile

    program = (
        "#include <vector>\n#include <omp.h>\nint main() { return std::vector<int>(omp_get_max_threads()).empty(); }\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [compiler, "-x", "c++", "-fopenmp", "-", "-o", str(Path(folder) / "program")]
        try:
            run = subprocess.run(command, input=program, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
    if run.returncode == 0:
        return None
    return next((line for line in run.stderr.splitlines() if "error" in line), run.stderr.strip()[:200] or "it failed")


def _memory_free_bytes() -> int | None:
    """Memory that a new program could have, in bytes; None where the system does not say."""
    import re

    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found else None


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _disk_free_bytes(path: Path) -> int | None:
    import shutil

    try:
        return shutil.disk_usage(_existing(path)).free
    except OSError:
        return None


def _is_writable(path: Path) -> bool:
    """True where a file can be made in the folder, or the folder can be made."""
    import tempfile

    place = _existing(path)
    if not place.is_dir():
        return False
    try:
        with tempfile.TemporaryFile(dir=place):
            return True
    except OSError:
        return False


def _size(num_bytes: int | None, format_bytes: Any) -> str:
    return format_bytes(num_bytes) if num_bytes is not None else "unknown space"


def _of(free: int | None, total: int | None, format_bytes: Any) -> str:
    return f"{_size(free, format_bytes)} free of {_size(total, format_bytes)}"
