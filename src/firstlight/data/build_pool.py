"""Build shards in the background: worker processes that only tokenise, each led by a thread of this process.

A worker is ``python -m firstlight.data.build_worker``: it reads one JSON line per shard and answers with one. It never
imports torch or the program that started it, and it ends when its input does, so it cannot outlive a killed parent.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight.data.sources.base import Progress
from firstlight.data.store import FAILURE_FILE, write_durably
from firstlight.errors import DataError, FirstlightError
from firstlight.tokens.bpe import Tokenizer


@dataclass(frozen=True)
class BuildJob:
    """One shard to build: its index in the store and its name in the source."""

    index: int
    name: str


class PoolBuilder:
    """Builds ``jobs`` in order with ``num_workers`` processes (0: in one thread of this process), ahead of who reads.

    The first failure ends the build; ``failure`` tells it, and a file in the store tells other processes.
    fetch: index -> local file of the shard. build_here: ``build_shard``, for num_workers 0. niceness: how far workers
    step back for other work after their first shard. num_built: shards that were there before, for ``progress``.
    """

    def __init__(
        self,
        jobs: list[BuildJob],
        *,
        directory: Path,
        tokenizer: Tokenizer,
        tokenizer_path: Path,
        fetch: Callable[[int], Path],
        build_here: Callable[..., dict[str, Any]],
        num_workers: int,
        niceness: int = 0,
        num_built: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self._waiting = list(jobs)
        self._directory = directory
        self._tokenizer = tokenizer
        self._tokenizer_path = tokenizer_path
        self._fetch = fetch
        self._build_here = build_here
        self._niceness = niceness
        self._progress = progress
        self._done, self._total = num_built, num_built + len(jobs)
        self._lock = threading.Lock()
        self._failure: DataError | None = None
        self._stopped = False
        self._workers: list[subprocess.Popen[str]] = []
        lead = self._lead_worker if num_workers > 0 else self._build_in_thread
        self._threads = [
            threading.Thread(target=self._guarded, args=(lead,), name=f"firstlight-build-{i}", daemon=True)
            for i in range(max(1, min(num_workers, len(jobs))))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def failure(self) -> DataError | None:
        """Why nothing more is built, or None while the build runs. (A build that ended well has one too.)"""
        with self._lock:
            if self._failure is not None:
                return self._failure
            stopped = self._stopped
        if not stopped and any(thread.is_alive() for thread in self._threads):
            return None
        return DataError(
            f"the build of the token store {self._directory} {'was stopped' if stopped else 'ended'} before this shard",
            hint="it was not asked for this shard, or was ended early: start again to build the rest",
        )

    def want(self, index: int) -> None:
        """Move a shard that waits to the front."""
        with self._lock:
            self._waiting.sort(key=lambda job: job.index != index)

    def stop(self) -> None:
        """Kill the workers and wait for their threads. A download that is under way ends with the process."""
        with self._lock:
            self._stopped = True
            self._waiting.clear()
            workers = list(self._workers)
        for worker in workers:
            worker.kill()
        for thread in self._threads:
            thread.join(timeout=2.0)

    def _next_job(self) -> BuildJob | None:
        with self._lock:
            return None if self._failure or not self._waiting else self._waiting.pop(0)

    def _finished(self) -> None:
        with self._lock:
            self._done += 1
            done = self._done
        if self._progress is not None:
            self._progress("tokenising", done, self._total)

    def _guarded(self, lead: Callable[[], None]) -> None:
        try:
            lead()
        except FirstlightError as error:
            self._fail(DataError(error.what, hint=error.hint))
        except Exception as error:
            self._fail(DataError(f"building the token store failed: {type(error).__name__}: {error}"))

    def _fail(self, error: DataError) -> None:
        with self._lock:
            if self._stopped or self._failure is not None:
                return
            self._failure = error
        try:
            left_behind = json.dumps({"what": error.what, "hint": error.hint}).encode()
            write_durably(self._directory / FAILURE_FILE, left_behind)
        except OSError:
            pass  # a full disk may be the failure itself; the processes of this run hear it from `failure`

    def _build_in_thread(self) -> None:
        while (job := self._next_job()) is not None:
            path = self._fetch(job.index)
            self._build_here(path, name=job.name, index=job.index, directory=self._directory, tokenizer=self._tokenizer)
            self._finished()

    def _lead_worker(self) -> None:
        worker: subprocess.Popen[str] | None = None
        try:
            while (job := self._next_job()) is not None:
                path = self._fetch(job.index)
                if worker is None:
                    worker = self._start_worker()
                    if worker is None:
                        return
                self._run_job(worker, job, path)
                self._finished()
        finally:
            if worker is not None:
                worker.kill()
                worker.communicate()

    def _start_worker(self) -> subprocess.Popen[str] | None:
        with self._lock:
            if self._stopped:
                return None
            worker = subprocess.Popen(
                [
                    sys.executable, "-m", "firstlight.data.build_worker", str(self._tokenizer_path),
                    str(self._directory), str(self._niceness),
                ],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
            )  # fmt: skip
            self._workers.append(worker)
        return worker

    def _run_job(self, worker: subprocess.Popen[str], job: BuildJob, path: Path) -> None:
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write(json.dumps({"index": job.index, "name": job.name, "path": str(path)}) + "\n")
            worker.stdin.flush()
            answer = worker.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            status = worker.wait()
            died = f"by signal {-status}" if status < 0 else f"with status {status}"
            raise DataError(
                f"the process that tokenised {job.name} ended {died} before it was done",
                hint="signal 9 often means that memory ran out: use smaller files, or fewer workers"
                if status < 0
                else "",
            )
        result = json.loads(answer)
        if "what" in result:
            raise DataError(result["what"], hint=result["hint"])
