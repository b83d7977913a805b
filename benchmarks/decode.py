"""Tokens/s of greedy decoding with the key/value cache, at batch 1 and 32.

    python benchmarks/decode.py                     ours alone
    python benchmarks/decode.py --peer NANOCHAT_DIR   and nanochat's engine, from a checkout of it, in turns

Both run the same function: random weights, the peer's extras set so that they do nothing. Before anything is timed the
float32 logits are compared, and the greedy tokens of a whole generation. The peer reads its dtype when it is imported, so
each dtype is a process of its own (NANOCHAT_DTYPE; its default on a CPU is float32).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import results
import torch

from firstlight.infer.engine import generate
from firstlight.model.config import GPTConfig
from firstlight.model.gpt import GPT
from firstlight.runtime import environment

VOCAB_SIZE, SEQ_LEN, PROMPT, NEW_TOKENS = 4096, 512, list(range(1, 17)), 128
COLUMNS = ("dtype", "batch", "tokens/s", "peer tokens/s", "ours / peer")


class NoSpecialTokens:
    """What the peer's engine asks of a tokenizer: ids that never come, so that nothing ends early."""

    def encode_special(self, _: str) -> int:
        return -1

    def get_bos_token_id(self) -> int:
        return -1


def peer_like(ours: GPT, directory: Path) -> tuple[Any, Any]:
    """The peer's model with our weights, and its engine."""
    sys.path.insert(0, str(directory))
    from nanochat import gpt as peer_gpt
    from nanochat.engine import Engine

    c = ours.config
    with torch.device("meta"):
        model = peer_gpt.GPT(
            peer_gpt.GPTConfig(
                sequence_len=c.max_seq_len, vocab_size=c.vocab_size, n_layer=c.n_layer, n_head=c.n_head,
                n_kv_head=c.n_kv_head, n_embd=c.n_embd, window_pattern="L",
            )
        )  # fmt: skip
    model.to_empty(device="cpu")
    model.init_weights()
    found = ours.state_dict()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in found:
                weight.copy_(found[name])
            else:
                weight.fill_(1.0 if name == "resid_lambdas" else 0.0)
    return model, Engine(model, NoSpecialTokens())


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Seconds of whole generations, in turns, and the check where both are float32."""
    dtype = getattr(torch, case["dtype"])
    config = GPTConfig.from_depth(case["depth"], vocab_size=VOCAB_SIZE, max_seq_len=SEQ_LEN)
    config = GPTConfig(**{**vars(config), "qk_gain": 1.2, "rope_base": 100000.0})
    model = GPT(config, compute_dtype=dtype).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        # Embeddings of size 1, as at the start of training: the two have not the same epsilon in their norms.
        weight.normal_(0.0, 1.0 if "wte" in name else weight.shape[1] ** -0.5, generator=generator)
    turns = {
        "ours": lambda batch: [
            ids[0] for ids in generate(model, PROMPT, max_new_tokens=NEW_TOKENS, temperature=0.0, num_samples=batch)
        ]
    }
    out: dict[str, Any] = {}
    if case["peer"]:
        peer, engine = peer_like(model, Path(case["peer"]))
        turns["peer"] = lambda batch: [
            ids[0] for ids, _ in engine.generate(PROMPT, num_samples=batch, max_tokens=NEW_TOKENS, temperature=0.0)
        ]
        with torch.no_grad():
            ids = torch.tensor([PROMPT])
            out["logit_difference"] = (peer(ids) - model(ids)).abs().max().item()
        out["tokens_equal"] = turns["ours"](1) == turns["peer"](1)
        if dtype == torch.float32 and (out["logit_difference"] > 1e-3 or not out["tokens_equal"]):
            raise SystemExit(f"the two are not the same function: {out}")
    for batch in case["batches"]:
        times: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(case["rounds"]):
            for name, turn in turns.items():
                start = time.perf_counter()
                turn(batch)
                times[name].append(time.perf_counter() - start)
        out[str(batch)] = {name: batch * NEW_TOKENS / statistics.median(found) for name, found in times.items()}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="a checkout of nanochat to run beside")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path, help="write the result here instead of results/decode.json")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(json.loads(args.case))))
        return
    rows, figures = [], {}
    for dtype in args.dtypes:
        case = {
            "dtype": dtype, "depth": args.depth, "rounds": args.rounds, "batches": args.batches,
            "peer": str(args.peer.resolve()) if args.peer else "",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, __file__, "--case", json.dumps(case)],
            env={**os.environ, "NANOCHAT_DTYPE": dtype}, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
        if args.peer:
            print(f"{dtype}: logits differ by {found['logit_difference']:.1e}, tokens equal: {found['tokens_equal']}")
            figures[f"{dtype}_logit_difference"] = found["logit_difference"]
            figures[f"{dtype}_tokens_equal"] = found["tokens_equal"]
        for batch in args.batches:
            ours, peer = found[str(batch)]["ours"], found[str(batch)].get("peer")
            rows.append(
                [dtype, batch, round(ours), peer and round(peer), f"{ours / peer:.1f}x" if peer else None]
            )  # fmt: skip
            figures |= {f"{dtype}_{batch}_tokens_per_s": ours, f"{dtype}_{batch}_peer_tokens_per_s": peer}
    results.show(COLUMNS, rows)
    results.write_result(
        "decode", title="Decoding", command="python benchmarks/decode.py --peer DIR", columns=COLUMNS, rows=rows,
        notes=[
            f"Depth {args.depth}, {VOCAB_SIZE} tokens of vocabulary, prompt of {len(PROMPT)}, {NEW_TOKENS} new tokens, "
            f"greedy, prompt included; medians of {args.rounds} turns in alternation.",
            "The same random weights on both sides, the peer's extras set to nothing; float32 logits and tokens compared "
            "first. The peer's default on a CPU is float32.",
            *([] if "bf16" in environment.cpu_features() else ["This processor has no bf16 products: torch makes them of others."]),
        ],
        figures=figures, path=args.json,
    )  # fmt: skip


if __name__ == "__main__":
    main()
