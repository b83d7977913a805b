"""Total tokens/s of `firstlight serve`: many streams at once against the same requests one after another, through HTTP.

    python benchmarks/serve.py RUN [--streams 32] [--max-tokens 64]

The server is a process of its own, started here on a free port; the client is this process. Greedy requests of different
prompts and lengths; one after another and at once, in turns. The texts of both must be equal: what is compared is the same
work. In bf16 two tokens that are equally likely to the last digits can be decided otherwise by the company; such answers
are counted.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import results

COLUMNS = ("streams", "tokens", "one after another, tokens/s", "at once, tokens/s", "ratio", "time to first token, s")
WORDS = (
    "Return the list",
    "What does sorted do?",
    "Raises ValueError",
    "A function that",
    "Compute the sum of",
    "If the argument",
)


class Started:
    """A server of a run, until the block ends."""

    def __init__(self, run: str, options: list[str]) -> None:
        self._command = [sys.executable, "-m", "firstlight", "serve", run, "--port", "0", "--no-studio", *options]

    def __enter__(self) -> int:
        began_s = time.perf_counter()
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self._process.stdout is not None
        said = ""
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/v1", said.replace("\n", ""))):
            line = self._process.stdout.readline()
            if not line:
                raise SystemExit(f"the server did not start:\n{said}")
            said += line
        self.start_s = time.perf_counter() - began_s
        # Whatever it says later must not fill the pipe.
        threading.Thread(target=self._process.stdout.read, daemon=True).start()
        return int(found[1])

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)


def streamed(port: int, body: dict[str, Any]) -> tuple[str, int, float]:
    """One streamed request: its text, its tokens, and the seconds to the first of them."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    began_s = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"status {response.status}: {response.read().decode()}")
    text, num_tokens, first_s = "", 0, 0.0
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        first_s = first_s or time.perf_counter() - began_s
        chunk = json.loads(line[6:])
        text += "".join(choice["text"] for choice in chunk["choices"])
        if chunk["usage"]:
            num_tokens = chunk["usage"]["completion_tokens"]
    connection.close()
    return text, num_tokens, first_s


def requests(num: int, max_tokens: int) -> list[dict[str, Any]]:
    """Greedy requests with prompts of their own; they may be as long as three lengths."""
    return [
        {
            "prompt": f"{WORDS[i % len(WORDS)]} {i}", "max_tokens": max(1, max_tokens * (2 + i % 3) // 4), "temperature": 0,
            "stream": True, "stream_options": {"include_usage": True},
        }
        for i in range(num)
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run's name or folder")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument(
        "--max-tokens", type=int, default=64, help="longest answer; others have a half and three quarters"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="run")
    parser.add_argument("--json", type=Path, help="write the result here instead of results/serve.json")
    args = parser.parse_args()
    bodies = requests(args.streams, args.max_tokens)
    alone_s, at_once_s, first_s = [], [], []
    with (
        Started(args.run, ["--max-rows", str(args.streams), "--dtype", args.dtype]) as port,
        ThreadPoolExecutor(args.streams) as pool,
    ):
        streamed(port, bodies[0])
        for _ in range(args.rounds):
            began_s = time.perf_counter()
            alone = [streamed(port, body) for body in bodies]
            alone_s.append(time.perf_counter() - began_s)
            began_s = time.perf_counter()
            at_once = list(pool.map(lambda body: streamed(port, body), bodies))
            at_once_s.append(time.perf_counter() - began_s)
            first_s.append(statistics.median(each[2] for each in at_once))
    num_tokens = sum(each[1] for each in at_once)
    num_different = sum(a[0] != b[0] for a, b in zip(alone, at_once, strict=True))
    rates = [sum(each[1] for each in alone) / statistics.median(alone_s), num_tokens / statistics.median(at_once_s)]
    ratios = [a / b for a, b in zip(alone_s, at_once_s, strict=True)]
    first = statistics.median(first_s)
    rows = [
        [args.streams, num_tokens, round(rates[0]), round(rates[1]), f"{rates[1] / rates[0]:.1f}x", f"{first:.2f}"]
    ]  # fmt: skip
    results.show(COLUMNS, rows)
    print(
        f"ratios of the rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)}; answers that differ: {num_different}"
    )
    results.write_result(
        "serve", title="Serving", command="python benchmarks/serve.py RUN", columns=COLUMNS, rows=rows,
        notes=[
            f"Run {Path(args.run).name}, greedy streams of {args.max_tokens // 2} to {args.max_tokens} tokens through HTTP; medians "
            f"of {args.rounds} turns in alternation. Server and client share the machine.",
            f"{args.streams - num_different} of {args.streams} answers are equal to those alone.",
        ],
        figures={
            "alone_tokens_per_s": rates[0], "at_once_tokens_per_s": rates[1], "ratios": ratios, "first_token_s": first,
            "num_different": num_different,
        },
        path=args.json,
    )  # fmt: skip


if __name__ == "__main__":
    main()
