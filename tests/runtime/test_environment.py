"""Facts about process and machine: what the environment variables mean, and what is said where they are absent."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from firstlight.runtime import environment

VARIABLES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "MASTER_ADDR", "MASTER_PORT",
    "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT",
)  # fmt: skip


@pytest.fixture
def env(monkeypatch):
    for name in (*VARIABLES, "FIRSTLIGHT_CACHE", "FIRSTLIGHT_NATIVE", "XDG_CACHE_HOME", "FIRSTLIGHT_RUNS", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_lone_process_is_rank_0_of_1(env):
    assert (environment.rank(), environment.local_rank(), environment.world_size()) == (0, 0, 1)


def test_ranks_are_those_that_torchrun_sets(env):
    for name, value in {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}.items():
        env.setenv(name, value)
    assert (environment.rank(), environment.local_rank(), environment.world_size()) == (5, 1, 8)


def test_processes_of_this_machine_are_those_that_torchrun_says_or_all(env):
    assert environment.local_world_size() == 1
    env.setenv("WORLD_SIZE", "8")
    assert environment.local_world_size() == 8
    env.setenv("LOCAL_WORLD_SIZE", "4")
    assert environment.local_world_size() == 4


def test_a_launch_has_a_name_and_counts_its_restarts_under_torchrun_only(env):
    assert (environment.launch_id(), environment.restart_count()) == (None, 0)
    env.setenv("TORCHELASTIC_RUN_ID", "0b1c-22")
    env.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert (environment.launch_id(), environment.restart_count()) == ("0b1c-22", 2)
    env.setenv("TORCHELASTIC_RUN_ID", "../my run")
    assert environment.launch_id() == "..-my-run"


def test_launches_without_a_rendezvous_are_told_apart_by_their_address(env):
    env.setenv("TORCHELASTIC_RUN_ID", "none")
    env.setenv("MASTER_ADDR", "10.0.0.1")
    names = set()
    for port in ("29500", "29501"):
        env.setenv("MASTER_PORT", port)
        names.add(environment.launch_id())
    assert names == {"10.0.0.1-29500", "10.0.0.1-29501"}


def test_threads_are_the_usable_cpus_shared_by_the_machines_processes(env):
    env.setattr(environment, "num_usable_cpus", lambda: 12)
    assert environment.default_num_threads() == 12
    env.setenv("OMP_NUM_THREADS", "3")
    assert environment.default_num_threads() == 3
    # torchrun sets OMP_NUM_THREADS=1 for everyone; the share of the CPUs is better.
    env.setenv("OMP_NUM_THREADS", "1")
    env.setenv("WORLD_SIZE", "8")
    env.setenv("LOCAL_WORLD_SIZE", "4")
    assert environment.default_num_threads() == 3
    env.setenv("LOCAL_WORLD_SIZE", "40")
    assert environment.default_num_threads() == 1


@pytest.mark.parametrize("nonsense", ["", "0", "-2", "many"])
def test_a_meaningless_number_of_threads_is_passed_over(env, nonsense):
    env.setattr(environment, "num_usable_cpus", lambda: 6)
    env.setenv("OMP_NUM_THREADS", nonsense)
    assert environment.default_num_threads() == 6


def test_the_cache_and_the_runs_have_a_place_that_can_be_changed(env):
    assert environment.cache_dir() == Path.home() / ".cache" / "firstlight"
    env.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert environment.cache_dir() == Path("/elsewhere/firstlight")
    env.setenv("FIRSTLIGHT_CACHE", "~/mine")
    assert environment.cache_dir() == Path.home() / "mine"
    assert environment.own_cache_dir() == Path("/elsewhere/firstlight"), "what is compiled is not shared"
    assert environment.runs_dir() == Path("runs")
    env.setenv("FIRSTLIGHT_RUNS", "/big/disk/runs")
    assert environment.runs_dir() == Path("/big/disk/runs")


def test_the_compiler_is_the_one_that_cxx_names(env, tmp_path):
    compiler = tmp_path / "my-c++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    env.setenv("CXX", str(compiler))
    assert environment.cxx_compiler() == str(compiler)


def test_the_native_step_is_wanted_unless_0_says_no(env):
    assert environment.native_code_wanted()
    env.setenv("FIRSTLIGHT_NATIVE", "0")
    assert not environment.native_code_wanted()


def test_without_a_compiler_there_is_none(env, tmp_path):
    env.setenv("PATH", str(tmp_path))
    assert environment.cxx_compiler() is None


def test_versions_name_what_decides_the_numbers_without_importing_it():
    script = (
        "import sys; from firstlight.runtime import environment; print(environment.versions()['torch']);"
        "sys.exit('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert re.match(r"\d+\.\d+", run.stdout)
    assert environment.versions()["python"] == sys.version.split()[0]


def test_the_commit_is_forty_hex_digits_or_absent():
    commit = environment.git_commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)


def test_without_git_there_is_no_commit(env, tmp_path):
    env.setenv("PATH", str(tmp_path))
    assert environment.git_commit() is None


def test_a_pipe_and_a_dumb_terminal_are_not_watched(env, capsys):
    assert environment.is_terminal() is False
    env.setattr(sys.stderr, "isatty", lambda: True)
    env.setenv("TERM", "xterm")
    assert environment.is_terminal() is True
    env.setenv("TERM", "dumb")
    assert environment.is_terminal() is False


def test_memory_is_that_of_the_machine():
    total = environment.total_memory_bytes()
    if not Path("/proc/meminfo").exists():
        pytest.skip("no /proc/meminfo to compare with")
    found = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert found is not None
    assert total == pytest.approx(int(found.group(1)) * 1024, rel=0.01)
    assert 1 <= environment.num_usable_cpus() <= os.cpu_count()


def test_a_child_gets_the_environment_with_changes_and_ours_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTLIGHT_RUNS", "here")
    child = environment.child_environment({"FIRSTLIGHT_RUNS": "there", "NEW_ONE": "1"})
    assert (child["FIRSTLIGHT_RUNS"], child["NEW_ONE"], child["PATH"]) == ("there", "1", os.environ["PATH"])
    assert os.environ["FIRSTLIGHT_RUNS"] == "here"
    assert "NEW_ONE" not in os.environ
