"""The Runtime: one process needs no process group, several agree, and impossible devices are refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from firstlight.errors import ConfigError
from firstlight.runtime.context import Runtime, choose_device, open_runtime


@pytest.fixture
def alone(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    yield monkeypatch
    torch.set_num_threads(threads)


def test_one_process_opens_no_process_group_and_its_collectives_are_the_identity(alone):
    with open_runtime(device="cpu", dtype="fp32", num_threads=1) as runtime:
        assert not dist.is_initialized()
        assert runtime.is_main
        assert (runtime.world_size, runtime.num_threads, runtime.dtype_name) == (1, 1, "fp32")
        x = torch.tensor([1.0, -2.0])
        assert runtime.sum(x).tolist() == runtime.max(x).tolist() == runtime.sum_(x).tolist() == [1.0, -2.0]
        runtime.barrier()
        runtime.synchronize()
    assert torch.get_num_threads() == 1


def test_each_choice_is_noted_with_its_reason(alone):
    with open_runtime(device="cpu", dtype="fp32", num_threads=1) as runtime:
        assert runtime.notes == ("device cpu: asked for", "dtype fp32: asked for")


def test_auto_prefers_cuda_then_an_apple_gpu_then_the_cpu(alone):
    alone.setattr(torch.cuda, "is_available", lambda: True)
    alone.setattr(torch.backends.mps, "is_available", lambda: True)
    alone.setenv("LOCAL_RANK", "3")
    assert choose_device("auto")[0] == torch.device("cuda", 3)
    alone.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto")[0] == torch.device("mps")
    alone.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto")[0] == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(alone, name):
    alone.setattr(torch.cuda, "is_available", lambda: False)
    alone.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=rf"--device {name}(.|\n)*doctor"):
        choose_device(name)


def test_an_unknown_device_is_refused_with_the_known_ones(alone):
    with pytest.raises(ConfigError, match=r"tpu(.|\n)*auto, cpu, cuda, mps"):
        choose_device("tpu")


def test_runtime_is_frozen():
    with pytest.raises(AttributeError):
        Runtime(device=torch.device("cpu")).rank = 1  # pyrefly: ignore


TWO_RANKS = """
import json, sys
import torch
from firstlight.runtime import precision
from firstlight.runtime.context import open_runtime
from firstlight.runtime import environment

rank = environment.rank()
# The two probes disagree, as noise on a shared machine can make them.
precision.choose_dtype = lambda device, dtype: ([torch.bfloat16, torch.float32][rank], f"probe of rank {rank}")
with open_runtime(device="cpu") as runtime:
    x = torch.tensor([1.0 + rank, 10.0])
    total, largest = runtime.sum(x).tolist(), runtime.max(x).tolist()
    untouched = x.tolist()
    runtime.sum_(x)
    runtime.barrier()
    print(json.dumps([runtime.rank, runtime.is_main, runtime.world_size, runtime.dtype_name, total, largest,
    untouched, x.tolist()]))
print(torch.distributed.is_initialized(), file=sys.stderr)
"""


def test_two_processes_agree_on_the_dtype_and_sum_over_both(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(TWO_RANKS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": os.pathsep.join(sys.path),
                **env,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    for process, (_, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, err
        assert err.strip().endswith("False")  # the group is closed
    found = [json.loads(out) for out, _ in outputs]
    for rank, (number, is_main, world_size, dtype, total, largest, untouched, in_place) in enumerate(found):
        assert (number, is_main, world_size) == (rank, rank == 0, 2)
        assert dtype == "bf16"
        assert total == in_place == [3.0, 20.0]
        assert largest == [2.0, 10.0]
        assert untouched == [1.0 + rank, 10.0]


def leave_and_hear(runtime):
    before = runtime.left_word()
    runtime.control.barrier()
    if runtime.rank == 1:
        runtime.leave_word("stopped by SIGTERM")
    runtime.control.barrier()
    return before, runtime.left_word()


def test_a_word_that_one_process_leaves_is_there_for_the_others():
    assert run_ranks(leave_and_hear, 2) == [("", "stopped by SIGTERM")] * 2


def test_one_process_has_nobody_to_leave_a_word_for():
    alone = Runtime(device=torch.device("cpu"))
    alone.leave_word("x")
    assert alone.left_word() == ""
