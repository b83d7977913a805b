"""Facts about this process and machine. The only file that reads environment variables."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Processes of this training on this machine; without torchrun's word for it, all of them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))


def restart_count() -> int:
    """How often torchrun has started these processes again (``--max-restarts``); 0 the first time and without torchrun."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def max_restarts() -> int:
    """How often torchrun may start these processes again; 0 without torchrun."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


def launch_id() -> str | None:
    """Name of this launch, the same for all its processes and restarts; None where torchrun did not start this one.

    Made of letters, digits, ``.``, ``_`` and ``-``. Without a rendezvous torchrun calls every launch "none": then the
    master's address and port, which such a launch keeps, tell one from another.
    """
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if not run_id:
        return None
    if run_id == "none":
        run_id = f"{os.environ.get('MASTER_ADDR', '')}-{os.environ.get('MASTER_PORT', '')}"
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in run_id)


def num_usable_cpus() -> int:
    """CPUs that this process may run on (its affinity, not the machine's count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def default_num_threads() -> int:
    """Threads for torch: OMP_NUM_THREADS where set, else this process's share of the usable CPUs."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0 and world_size() == 1:
        return int(asked)
    return max(1, num_usable_cpus() // local_world_size())


def cache_dir() -> Path:
    """Folder for what can be made again (token stores, tokenizers, downloads): FIRSTLIGHT_CACHE or ~/.cache/firstlight."""
    asked = os.environ.get("FIRSTLIGHT_CACHE")
    return Path(asked).expanduser() if asked else own_cache_dir()


def own_cache_dir() -> Path:
    """Folder for what is compiled: this user's own, never one that FIRSTLIGHT_CACHE lets several share."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "firstlight"


def runs_dir() -> Path:
    """Folder of the runs: FIRSTLIGHT_RUNS or ./runs."""
    return Path(os.environ.get("FIRSTLIGHT_RUNS", "runs"))


def cxx_compiler() -> str | None:
    """Path of the C++ compiler that torch.compile would use on CPU, or None."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def native_code_wanted() -> bool:
    """Whether training and decoding may use code that is compiled on this machine: FIRSTLIGHT_NATIVE=0 says no."""
    return os.environ.get("FIRSTLIGHT_NATIVE", "1") != "0"


def cpu_features() -> str:
    """What decides whether code compiled for one processor runs on another: its model, and its instructions on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kept = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join([platform.machine(), *sorted(kept)])


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers. Reads package metadata only; imports nothing."""
    found = {"python": platform.python_version()}
    for name in ("firstlight", "torch", "numpy", "tiktoken", "rustbpe", "pyarrow", "safetensors"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def child_environment(changes: dict[str, str]) -> dict[str, str]:
    """This process's environment with some variables changed, for a process that is started from here."""
    return {**os.environ, **changes}


def git_commit() -> str | None:
    """Commit of the source tree that this package runs from, with ``-dirty`` where it has changes; None outside git."""
    here = Path(__file__).resolve().parent
    try:
        run = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() or None


def is_terminal() -> bool:
    """True where a person watches: standard error is a terminal and TERM is not ``dumb``."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") != "dumb"


def cpu_name() -> str:
    """Model name of the CPU, for people."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def total_memory_bytes() -> int | None:
    """Physical memory of the machine in bytes, or None where it cannot be read."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
