"""CORE beside nanochat's own scoring: the same decisions on the same weights and tokenizer, and how much sooner.

    python benchmarks/core.py RUN --bundle DIR --peer NANOCHAT_DIR
    python benchmarks/core.py RUN --bundle DIR --peer NANOCHAT_DIR --long-prompts extend

The peer's `evaluate_example` is imported from a checkout of it and called through thin wrappers of our model and tokenizer.
crop: prompts longer than the context lose their beginning in both, as nanochat does for models of other makers. extend:
positions go on beyond the context in both, as it does for its own. Multiple choice is timed in turns, the same examples
in both, and the median of the rounds is taken; of the other tasks only the decisions are compared.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import results
import torch

from firstlight.eval.core.bundle import Task, read_bundle, read_examples
from firstlight.eval.core.engine import GPTScorer, extended
from firstlight.eval.core.evaluate import score_examples
from firstlight.eval.core.prompts import ordered
from firstlight.recipes.loading import load_for_inference
from firstlight.runtime.context import open_runtime

COLUMNS = ("task", "examples", "cropped", "same decision", "peer examples/s", "ours examples/s", "ours / peer")


class PeerTokenizer:
    """What the peer's code asks of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def get_bos_token_id(self) -> int:
        return self.tokenizer.bos_id

    def __call__(self, texts: list[str], prepend: int) -> list[list[int]]:
        return [[prepend, *ids.tolist()] for ids in self.tokenizer.encode_batch(texts, torch.get_num_threads())]


class PeerModel:
    """What it asks of a model: logits, and how long a text may be."""

    def __init__(self, model: Any, max_seq_len: int | None) -> None:
        self.model, self.max_seq_len = model, max_seq_len

    def __call__(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids)


def peer_margin(peer: Any, model: PeerModel, tokenizer: PeerTokenizer, data: list, index: int, meta: dict) -> float:
    """Second best less best mean loss of the peer's own losses, for an example that came out differently."""
    seen: list[torch.Tensor] = []
    real = peer.forward_model

    def remembering(*arguments: Any) -> Any:
        losses, predictions = real(*arguments)
        seen.append(losses)
        return losses, predictions

    spans: list[Any] = []
    name = {"multiple_choice": "batch_sequences_mc", "schema": "batch_sequences_schema"}.get(meta["task_type"])
    if name is None:
        return float("nan")
    real_batch = getattr(peer, name)

    def remembering_batch(*arguments: Any) -> Any:
        spans.append(real_batch(*arguments))
        return spans[-1]

    peer.forward_model = remembering
    setattr(peer, name, remembering_batch)
    try:
        peer.evaluate_example(index, model, tokenizer, data, "cpu", meta)
    finally:
        peer.forward_model = real
        setattr(peer, name, real_batch)
    tokens, starts, ends = spans[0]
    most = model.max_seq_len or 10**9
    cuts = [max(0, len(text) - most) for text in tokens]
    means = sorted(
        seen[0][i, s - cut - 1 : e - cut - 1].double().mean().item()
        for i, (s, e, cut) in enumerate(zip(starts, ends, cuts, strict=True))
    )
    return means[1] - means[0]


def compare(
    peer: Any, task: Task, model: Any, tokenizer: Any, *, per_task: int, num_rounds: int, max_seq_len: int | None
) -> dict[str, Any]:
    """Decisions of both on ``per_task`` examples a round, and seconds an example."""
    raw = [json.loads(line) for line in task.path.open(encoding="utf-8")]
    random.Random(1337).shuffle(raw)
    examples = ordered(read_examples(task))
    meta = {
        "task_type": task.kind, "num_fewshot": task.num_fewshot, "continuation_delimiter": task.delimiter,
    }  # fmt: skip
    peer_model, peer_tokenizer = PeerModel(model, max_seq_len), PeerTokenizer(tokenizer)
    scorer = GPTScorer(model)

    def theirs(indices: range) -> list[bool | None]:
        found: list[bool | None] = []
        for i in indices:
            try:
                found.append(bool(peer.evaluate_example(i, peer_model, peer_tokenizer, raw, "cpu", meta)))
            except (AssertionError, ValueError):
                found.append(None)
        return found

    def ours(indices: range) -> list[dict[str, Any]]:
        return score_examples(
            scorer,
            lambda texts: tokenizer.encode_batch(texts, torch.get_num_threads()),
            tokenizer.bos_id,
            task,
            examples,
            list(indices),
        )

    rounds = num_rounds if task.kind == "multiple_choice" else 1
    seconds: dict[str, list[float]] = {"peer": [], "ours": []}
    different: list[dict[str, Any]] = []
    num, num_cropped, num_raised = 0, 0, 0
    # Neither side's first call counts.
    theirs(range(1))
    ours(range(1))
    for k in range(rounds):
        indices = range(min(k * per_task, len(raw)), min((k + 1) * per_task, len(raw)))
        if not indices:
            break
        started_s = time.perf_counter()
        them = theirs(indices)
        middle_s = time.perf_counter()
        us = ours(indices)
        seconds["peer"].append((middle_s - started_s) / len(indices))
        seconds["ours"].append((time.perf_counter() - middle_s) / len(indices))
        num += len(indices)
        num_cropped += sum("cropped" in record["marks"] for record in us)
        for i, a, record in zip(indices, them, us, strict=True):
            if a is None:
                num_raised += 1
            elif a != record["correct"]:
                margin = peer_margin(peer, peer_model, peer_tokenizer, raw, i, meta)
                different.append({"index": i, "peer": a, "peer_margin": margin, "ours": record})
    return {
        "task": task.label, "kind": task.kind, "num": num, "num_cropped": num_cropped, "num_peer_raised": num_raised,
        "different": different, **{f"{who}_s": statistics.median(values) for who, values in seconds.items()},
        "ratio": statistics.median([a / b for a, b in zip(seconds["peer"], seconds["ours"], strict=True)]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="name of a run, or its folder")
    parser.add_argument("--peer", type=Path, required=True, help="a checkout of nanochat")
    parser.add_argument("--bundle", type=Path, required=True, help="a bundle of tasks")
    parser.add_argument("--per-task", type=int, default=20, help="examples of a task in a round")
    parser.add_argument("--rounds", type=int, default=3, help="of multiple choice")
    parser.add_argument("--tasks", help="labels with commas between them")
    parser.add_argument("--long-prompts", choices=["crop", "extend"], default="crop")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="where the result goes, in place of results/")
    args = parser.parse_args()
    sys.path.insert(0, str(args.peer))
    from nanochat import core_eval as peer

    bundle = read_bundle(args.bundle)
    rows: list[list[Any]] = []
    found: list[dict[str, Any]] = []
    with open_runtime(device="cpu", dtype="fp32", num_threads=args.threads) as runtime:
        loaded = load_for_inference(args.run, runtime)
        model = loaded.model
        context = model.config.max_seq_len
        if args.long_prompts == "extend":
            model = extended(model, 32 * context)
        for task in bundle.chosen(args.tasks.split(",") if args.tasks else None):
            each = compare(
                peer, task, model, loaded.tokenizer, per_task=args.per_task, num_rounds=args.rounds,
                max_seq_len=context if args.long_prompts == "crop" else None,
            )  # fmt: skip
            found.append(each)
            is_timed = task.kind == "multiple_choice"
            same = each["num"] - len(each["different"]) - each["num_peer_raised"]
            rows.append([
                task.label, each["num"], each["num_cropped"],
                f"{same} of {each['num']}" + (f" (peer raises in {each['num_peer_raised']})" if each["num_peer_raised"] else ""),
                round(1 / each["peer_s"], 1) if is_timed else "", round(1 / each["ours_s"], 1) if is_timed else "",
                f"{each['ratio']:.1f}x" if is_timed else "",
            ])  # fmt: skip
            results.show(COLUMNS, rows[-1:])
            for other in each["different"]:
                print(f"  {task.label} {other}", flush=True)
    timed = [each for each in found if each["kind"] == "multiple_choice"]
    total = {who: sum(each[f"{who}_s"] for each in timed) for who in ("peer", "ours")}
    if timed:
        num_all = len(timed)
        rows.append([
            "all multiple choice", sum(e["num"] for e in timed), sum(e["num_cropped"] for e in timed), "",
            round(num_all / total["peer"], 1), round(num_all / total["ours"], 1), f"{total['peer'] / total['ours']:.1f}x",
        ])  # fmt: skip
    results.show(COLUMNS, rows)
    c = loaded.model.config
    results.write_result(
        "core" if args.long_prompts == "crop" else "core_extend",
        title=f"CORE beside nanochat's scoring, long prompts: {args.long_prompts}",
        command=f"python benchmarks/core.py RUN --bundle DIR --peer DIR --per-task {args.per_task} --long-prompts {args.long_prompts}",
        columns=COLUMNS,
        rows=rows,
        notes=[
            f"Depth {c.n_layer}, {c.vocab_size:,} ids, context {c.max_seq_len}, float32, {args.threads} threads; "
            "one example of each task weighs the same in the last row.",
            f"{sum(len(each['different']) for each in found)} decisions differ in all.",
        ],
        figures={"tasks": found, "ratio_all": total["peer"] / total["ours"] if timed else None},
        path=args.out,
    )


if __name__ == "__main__":
    main()
