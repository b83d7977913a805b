"""Makes folders of runs with known scores by document, for tests of comparisons."""

from __future__ import annotations

import json
import math

import numpy as np

from firstlight.eval.document_scores import DocumentScores, scores_path, write_document_scores
from firstlight.recipes.record import new_record, write_run

VAL = "ab" * 32


def make_run(
    runs_dir, name, *, seed=1, bpb=2.0, noise=0.01, n=200, matrix_lr=None, plan_lr=0.02, val_hash=VAL, window=256,
    with_documents=True, status="done", steps=100, settings=None, commit="c" * 40, curve_shift=0.0,
):  # fmt: skip
    """A run of 100 steps of 1,000 tokens in 60 s, with n documents of 100 bytes; each has ``bpb`` and its own noise, which
    is the same for a seed.
    """
    run_dir = runs_dir / name
    run_dir.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    size = np.full(n, 100)
    hard = np.random.default_rng(99).normal(0, 0.3, n)
    nats = (bpb + hard - hard.mean() + rng.normal(0, noise, n)) * size * math.log(2)
    final = {"val_bpb": float(nats.sum() / math.log(2) / size.sum()), "val_bpb_stderr": 0.02, "steps": steps,
             "tokens": 1000 * steps, "val_hash": val_hash, "num_documents": n}  # fmt: skip
    config = {
        "settings": {"seed": seed, "data": "/home/ann/wiki", "matrix_lr": matrix_lr, "depth": 2, **(settings or {})},
        "model": {"max_seq_len": window, "n_layer": 2},
        "plan": {
            "matrix_lr": plan_lr,
            "flops_per_token": 1e6,
            "num_steps": steps,
            "horizon": {"kind": "steps", "value": 9},
        },
        "val": "last",
    }
    record = new_record(
        name, status=status, config=config, git_commit=commit, data_hash="d" * 64, tokenizer_hash="e" * 64,
        val_hash=val_hash, final=final if status == "done" else {}, cost={"elapsed_s": 120.0},
        hardware={"cpu": "a CPU", "num_threads": 2}, notes=("read from /home/ann/wiki/a.txt",),
    )  # fmt: skip
    write_run(run_dir, record)
    rows = []
    for step in range(steps):
        rows.append({"kind": "train", "step": step, "loss_nats": 3 + 5 * math.exp(-step / 20),
                     "tokens_seen": 1000 * (step + 1), "elapsed_s": 0.6 * (step + 1)})  # fmt: skip
    for step in range(0, steps, 10):
        value = bpb + curve_shift + 2 * math.exp(-step / 20)
        rows.append({"kind": "eval", "step": step, "val_bpb": value, "val_bpb_stderr": 0.03, "num_documents": 50})
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if with_documents and status == "done":
        header = {"run": name, "step": steps, "val_hash": val_hash, "tokenizer_hash": "e" * 64, "data": "wiki",
                  "val": "last", "max_seq_len": window, "dtype": "fp32", "num_documents_total": n}  # fmt: skip
        scores = DocumentScores(header, nats, size, np.full(n, 30), ("x",) * n)
        write_document_scores(scores_path(run_dir, step=steps, val_hash=val_hash), scores)
    return run_dir
