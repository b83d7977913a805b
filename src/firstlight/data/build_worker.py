"""The worker process of ``build_pool``: ``python -m firstlight.data.build_worker TOKENIZER_JSON STORE_DIRECTORY NICENESS``.

Reads one JSON object a line, ``{"index", "name", "path"}``, tokenises that file into the store, and answers with
``{"index"}`` or ``{"what", "hint"}`` (an error for the user). Ends as soon as its input ends.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from pathlib import Path

from firstlight.data.build import build_shard
from firstlight.errors import FirstlightError
from firstlight.tokens.bpe import Tokenizer


def main(tokenizer_path: str, directory: str, niceness: int) -> None:
    """Answer jobs until standard input ends. niceness: how far to step back once the first shard is done."""
    jobs: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    tokenizer: Tokenizer | None = None
    while True:
        job = json.loads(jobs.get())
        try:
            tokenizer = tokenizer or Tokenizer.load(tokenizer_path)
            build_shard(
                Path(job["path"]), name=job["name"], index=job["index"], directory=Path(directory), tokenizer=tokenizer
            )
            answer = {"index": job["index"]}
        except FirstlightError as error:
            answer = {"what": error.what, "hint": error.hint}
        except Exception as error:
            answer = {"what": f"tokenising {job['name']} failed: {type(error).__name__}: {error}", "hint": ""}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
        # The first shard is waited for; after it training runs on the same cores and must not be slowed down.
        if niceness and hasattr(os, "nice"):
            os.nice(niceness)
            niceness = 0


def _read_jobs(jobs: queue.Queue[str]) -> None:
    for line in sys.stdin:
        jobs.put(line)
    # The parent is gone or has closed the pipe. Whatever is half written has no manifest yet and is never trusted.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
