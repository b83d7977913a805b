"""How long training waits for a checkpoint: written behind the steps, and within them.

    python benchmarks/saving.py --depth 4 --rounds 7

Both ways save the same model and optimizer to the same disk and take turns. Steps are timed alone and while a checkpoint is
being written, since the writing takes a core's time from them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import results

from firstlight.recipes.bench.options import BenchOptions
from firstlight.recipes.bench.step import make_step_bench
from firstlight.runtime.channel import Channel
from firstlight.runtime.context import open_runtime
from firstlight.train.saving import SaveQueue


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured [a temporary one]")
    arguments = parser.parse_args()
    options = BenchOptions(
        depth=arguments.depth, vocab_size=arguments.vocab_size, max_seq_len=512, device_batch_size=8, device=arguments.device,
        compile="off",
    )  # fmt: skip
    with (
        tempfile.TemporaryDirectory(dir=arguments.folder) as folder,
        open_runtime(device=arguments.device, dtype="auto") as runtime,
    ):
        bench = make_step_bench(options, runtime)
        bench.step()
        model, optimizer = bench.parts.model, bench.parts.optimizer
        queues = {
            name: SaveQueue(Path(folder) / name, keep=1, channel=Channel(), asynchronous=name == "behind")
            for name in ("behind", "within")
        }

        def start(name: str, step: int) -> float:
            begun_s = time.perf_counter()
            queues[name].start(
                step=step, model=model.state_dict(), optimizer=optimizer.state_tensors(), shapes=optimizer.state_shapes(),
                state={"step": step},
            )  # fmt: skip
            return time.perf_counter() - begun_s

        waits: dict[str, list[float]] = {name: [] for name in queues}
        writes_s, alone_s, beside_s = [], [], []
        num_bytes = 0
        for step in range(1, arguments.rounds + 2):
            for name, queue in queues.items():
                waited_s = start(name, step)
                outcome = queue.wait()[0]
                if outcome.error is not None:
                    raise SystemExit(str(outcome.error))
                # The first save of a queue makes its buffers.
                if step > 1:
                    waits[name].append(waited_s)
                    writes_s.append(outcome.write_s)
                num_bytes = outcome.num_bytes
            alone_s.append(bench.step().elapsed_s)
            start("behind", 1000 + step)
            beside_s.append(bench.step().elapsed_s)
            queues["behind"].wait()
        for queue in queues.values():
            queue.close()
        device = str(runtime.device)
    behind, within = median(waits["behind"]), median(waits["within"])
    slower = median(b - a for a, b in zip(alone_s, beside_s, strict=True))
    results.write_result(
        "saving",
        title=f"Checkpoints of {num_bytes / 2**20:,.0f} MiB (depth {arguments.depth}, vocabulary {arguments.vocab_size:,})",
        command=f"python benchmarks/saving.py --depth {arguments.depth} --rounds {arguments.rounds}",
        columns=["way", "training waits, ms", "share"],
        rows=[
            ["within the steps (--no-async-save)", f"{1e3 * within:,.0f}", "100 %"],
            ["behind the steps", f"{1e3 * behind:,.1f}", f"{100 * behind / within:.1f} %"],
        ],
        notes=[
            f"Medians of {arguments.rounds}; a step takes {1e3 * median(alone_s):,.0f} ms alone, and {1e3 * slower:,.0f} ms "
            "more while a checkpoint is written beside it.",
        ],
        figures={
            "behind_s": waits["behind"], "within_s": waits["within"], "write_s": writes_s, "step_alone_s": alone_s,
            "step_beside_s": beside_s, "num_bytes": num_bytes,
        },
        device=device,
    )  # fmt: skip
    print(json.dumps({"behind_ms": 1e3 * behind, "within_ms": 1e3 * within, "share": behind / within,
                      "step_ms": 1e3 * median(alone_s), "slower_ms": 1e3 * slower}))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
