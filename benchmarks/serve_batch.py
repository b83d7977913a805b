"""Tokens/s of 32 requests in one batch, against the same requests one after another.

    python benchmarks/serve_batch.py

Requests have prompts of different lengths and are greedy. Four ways, in turns: `infer.engine.generate` for each; the batched
engine with one row (a server that serves one at a time: weights are laid out once); with 32 rows; and 32 rows where requests
arrive a few at a time. Before anything is timed the ids of all ways are compared: in float32 they are equal.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import results
import torch

from firstlight.infer.batch import BatchEngine, Request
from firstlight.infer.engine import generate
from firstlight.model.config import GPTConfig
from firstlight.model.gpt import GPT

COLUMNS = ("dtype", "way", "tokens/s", "against one at a time", "first token, median ms")
ALONE, ONE_ROW, TOGETHER, ARRIVING = "generate, each alone", "one row", "32 rows", "32 rows, arriving 4 a step"


def random_model(depth: int, dtype: torch.dtype, *, vocab_size: int, seq_len: int) -> GPT:
    config = GPTConfig.from_depth(depth, vocab_size=vocab_size, max_seq_len=seq_len, preset="modern")
    model = GPT(config, compute_dtype=dtype).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        weight.normal_(0.0, 1.0 if "embed" in name or "wte" in name else weight.shape[1] ** -0.5, generator=generator)
    return model


def make_requests(num: int, *, vocab_size: int, prompt_tokens: tuple[int, int], new_tokens: int) -> list[Request]:
    draw = random.Random(0)
    return [
        Request(
            tuple(draw.randrange(vocab_size) for _ in range(draw.randint(*prompt_tokens))), new_tokens, temperature=0.0
        )
        for _ in range(num)
    ]


def alone(model: GPT, requests: list[Request]) -> tuple[list[list[int]], list[float]]:
    """Ids of each, and seconds to each one's first token since it began."""
    answers, first_s = [], []
    for request in requests:
        start = time.perf_counter()
        generation = generate(
            model, list(request.prompt_ids), max_new_tokens=request.max_new_tokens, temperature=request.temperature
        )
        answer = next(generation)
        first_s.append(time.perf_counter() - start)
        answers.append(answer + [i for (i,) in generation])
    return answers, first_s


def batched(engine: BatchEngine, requests: list[Request], *, per_step: int) -> tuple[list[list[int]], list[float]]:
    """Ids of each, and seconds to each one's first token since it was handed in. ``per_step`` come at each step."""
    answers: list[list[int]] = [[] for _ in requests]
    first_s: list[float] = []
    place_of: dict[int, int] = {}
    began_s: list[float] = []
    while len(place_of) < len(requests) or engine.num_active or engine.num_waiting:
        for request in requests[len(place_of) : len(place_of) + per_step]:
            place_of[engine.submit(request)] = len(began_s)
            began_s.append(time.perf_counter())
        for token in engine.step():
            place = place_of[token.handle]
            if not answers[place]:
                first_s.append(time.perf_counter() - began_s[place])
            answers[place].append(token.id)
    return answers, first_s


def one_by_one(engine: BatchEngine, requests: list[Request]) -> tuple[list[list[int]], list[float]]:
    found = [batched(engine, [request], per_step=1) for request in requests]
    return [answers[0] for answers, _ in found], [first[0] for _, first in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--max-seq-len", type=int, default=512)
    parser.add_argument("--prompt-tokens", type=int, nargs=2, default=[16, 64], metavar=("LEAST", "MOST"))
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--cpu-time", action="store_true", help="CPU seconds in place of the clock's: for a busy machine"
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path, help="write the result here instead of results/serve_batch.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.cpu_time else time.perf_counter
    requests = make_requests(
        args.requests, vocab_size=args.vocab_size, prompt_tokens=tuple(args.prompt_tokens), new_tokens=args.new_tokens
    )
    rows, figures = [], {}
    for dtype in args.dtypes:
        model = random_model(
            args.depth, getattr(torch, dtype), vocab_size=args.vocab_size, seq_len=args.max_seq_len
        )  # fmt: skip
        single, many = BatchEngine(model, max_rows=1), BatchEngine(model, max_rows=32)
        ways: dict[str, Callable[[], tuple[list[list[int]], list[float]]]] = {
            ALONE: lambda model=model: alone(model, requests),
            ONE_ROW: lambda engine=single: one_by_one(engine, requests),
            TOGETHER: lambda engine=many: batched(engine, requests, per_step=len(requests)),
            ARRIVING: lambda engine=many: batched(engine, requests, per_step=4),
        }
        first_answers = {name: way()[0] for name, way in ways.items()}
        num_equal = {
            name: sum(a == b for a, b in zip(found, first_answers[ALONE], strict=True))
            for name, found in first_answers.items()
        }
        if dtype == "float32" and set(num_equal.values()) != {len(requests)}:
            raise SystemExit(f"answers are not those of each request alone: equal are {num_equal}")
        times: dict[str, list[float]] = {name: [] for name in ways}
        firsts: dict[str, list[float]] = {name: [] for name in ways}
        num_tokens = sum(map(len, first_answers[ALONE]))
        for _ in range(args.rounds):
            for name, way in ways.items():
                start = clock()
                _, first_s = way()
                times[name].append(clock() - start)
                firsts[name] += first_s
        speeds = {name: num_tokens / statistics.median(found) for name, found in times.items()}
        for name, speed in speeds.items():
            ratio = speed / speeds[ONE_ROW]
            first_ms = 1e3 * statistics.median(firsts[name])
            rows.append([dtype, name, round(speed), f"{ratio:.1f}x", round(first_ms, 1)])
            figures |= {
                f"{dtype}_{name}_tokens_per_s": speed,
                f"{dtype}_{name}_equal_answers": num_equal[name],
                f"{dtype}_{name}_first_token_ms": first_ms,
            }
    results.show(COLUMNS, rows)
    results.write_result(
        "serve_batch", title="Many requests at once", command="python benchmarks/serve_batch.py", columns=COLUMNS,
        rows=rows, figures=figures, path=args.json,
        notes=[
            f"Depth {args.depth} (modern), {args.vocab_size} tokens of vocabulary, {args.requests} greedy requests with prompts "
            f"of {args.prompt_tokens[0]} to {args.prompt_tokens[1]} tokens and {args.new_tokens} new ones each, prompts "
            f"included; {args.threads} threads, medians of {args.rounds} turns in alternation"
            + (", in CPU seconds." if args.cpu_time else "."),
            "In float32 every answer has the ids of the same request alone; checked before anything is timed. In bf16 "
            + ", ".join(
                f"{figures[f'bfloat16_{name}_equal_answers']} of {args.requests} ({name})" for name in (TOGETHER, ARRIVING)
            ) + " have, as products of another number of rows round otherwise."
            if "bfloat16" in args.dtypes else "Every answer has the ids of the same request alone; checked first.",
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
