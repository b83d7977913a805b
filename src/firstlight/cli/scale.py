"""`firstlight scale`: a scaling study, from its plan to its page."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Literal


def scale(
    *,
    name: str = "scaling",
    data: str | None = None,
    val: str | None = None,
    depths: str | None = None,
    minutes: float | None = None,
    flops: str | None = None,
    preset: Literal["classic", "modern", "portable"] | None = None,
    seeds: int | None = None,
    seed_noise: float | None = None,
    val_documents: int | None = None,
    vocab_size: int | None = None,
    max_seq_len: int | None = None,
    total_batch_size: int | None = None,
    head_dim: int | None = None,
    tokenizer: Path | None = None,
    compile: Literal["auto", "off"] | None = None,
    device: str | None = None,
    dtype: Literal["auto", "fp32", "bf16", "fp16"] | None = None,
    threads: int | None = None,
    resume: bool = False,
    dry_run: bool = False,
    page_only: bool = False,
    json: bool = False,
) -> None:
    """Find the best size for an amount of compute: train a grid of sizes and budgets, fit it, draw it.

    At each budget of FLOPs a model of each depth is trained on the tokens that the budget pays for. The page shows where
    the lowest score lies, how that place moves with more compute, and how sure it is. Cells are ordinary runs, NAME-d2-c1
    and so on; a study that was stopped goes on with --resume.

    For example:

        firstlight scale --minutes 35 --name mine --data my_texts/ --val last
        firstlight scale --minutes 35 --dry-run
        firstlight scale --depths 2,3,4 --flops 1e13,3e13,1e14 --seeds 2
        firstlight scale --name mine --resume
        firstlight scale --name mine --page-only

    Parameters
    ----------
    name
        Name of the study; its folder is runs/NAME.
    data
        Text to learn from, as in `firstlight train base`. [builtin]
    val
        Validation documents, as in `firstlight train base`.
    depths
        Sizes, such as 2,3,4. [three around the size that is expected to be the best]
    minutes
        Wall-clock minutes of the whole study: three budgets are chosen that fit.
    flops
        Budgets in training FLOPs, rising, such as 1e13,3e13,1e14. Instead of --minutes.
    preset
        Architecture of all cells. [modern]
    seeds
        Runs of each cell. With 2 or more the noise between seeds is measured. [1]
    seed_noise
        Standard deviation between seeds in bits per byte that is assumed where each cell has one. [0.005]
    val_documents
        Validation documents that each cell is scored on, the same for all; 0: all. [200]
    vocab_size
        Vocabulary of all cells. [the dial's for the middle depth]
    max_seq_len
        Row length of all cells. [the dial's for the largest depth]
    total_batch_size
        Tokens in an optimizer step of all cells. [by the dial, from each cell's tokens]
    head_dim
        Size of an attention head. [128]
    tokenizer
        A tokenizer.json to use. Trained on the data where not given.
    compile
        torch.compile: auto uses it for the depths where it pays. [auto]
    device
        auto, cpu, cuda or mps.
    dtype
        Dtype of the matmuls.
    threads
        CPU threads. [all that this process may use]
    resume
        Go on with the study of that name: cells that are done stay, one that was interrupted goes on.
    dry_run
        Print the plan and stop. The text is tokenised (into the cache) and the machine measured; nothing is trained.
    page_only
        Fit and draw again from the cells that are there.
    json
        Print one JSON object; words go to standard error.
    """
    started_s = time.monotonic()
    from dataclasses import replace

    from firstlight.config import to_dict
    from firstlight.errors import ConfigError
    from firstlight.recipes.scale import planning, running, study
    from firstlight.recipes.scale.results import to_json
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console

    console = Console(is_terminal=environment.is_terminal(), file=sys.stderr if json else None)
    asked: dict[str, Any] = {
        "data": data, "val": val, "depths": numbers(depths, "--depths", int), "minutes": minutes,
        "flops": numbers(flops, "--flops", float), "preset": preset, "num_seeds": seeds, "seed_noise": seed_noise,
        "val_documents": val_documents, "vocab_size": vocab_size, "max_seq_len": max_seq_len,
        "total_batch_size": total_batch_size, "head_dim": head_dim, "tokenizer": tokenizer, "compile": compile,
        "device": device, "dtype": dtype, "threads": threads,
    }  # fmt: skip
    given = {key: value for key, value in asked.items() if value is not None}
    runs_dir = environment.runs_dir()
    if resume or page_only:
        fixed = sorted(set(given) - {"seed_noise", "threads"})
        if fixed:
            words = ", ".join("--" + key.removeprefix("num_").replace("_", "-") for key in fixed)
            raise ConfigError(
                f"{words} with {'--resume' if resume else '--page-only'}: a study keeps the plan that it began with",
                hint="leave them away (only --threads and --seed-noise may change), or begin another with --name",
            )
        folder = study.find_study(name, runs_dir)
        found = study.read_study(folder)
        if seed_noise is not None:
            found = replace(found, seed_noise=seed_noise)
        if threads is not None:
            found = replace(found, common=replace(found.common, threads=threads))
        if resume and folder.resolve().parent != runs_dir.resolve():
            raise ConfigError(
                f"--resume: the study {folder} is not in the folder of the runs, {runs_dir}",
                hint=f"set FIRSTLIGHT_RUNS={folder.resolve().parent}, where its cells are",
            )
        if page_only:
            results = running.write_results(found, folder.parent, study_dir=folder)
        else:
            results = running.run_study(found, runs_dir=runs_dir, console=console, started_s=started_s)
    else:
        planned = planning.plan_study(planning.Request(name=name, **given), console=console, started_s=started_s)
        study.check_free(planned, runs_dir)
        planning.show_plan(planned, console)
        if dry_run:
            if json:
                Console().json({**to_dict(planned), "expected_s": planned.expected_s})
            return
        folder = study.begin(runs_dir, planned)
        results = running.run_study(planned, runs_dir=runs_dir, console=console, started_s=started_s)
    if json:
        Console().json(to_json(results))
        return
    running.say_results(results, console)
    console.say(f"page: {folder / study.REPORT_FILE}")


def numbers(text: str | None, flag: str, kind: type[int] | type[float]) -> tuple[Any, ...] | None:
    """Numbers of a list such as ``2,3,4``; None stays None. Raises ConfigError that names what is no number.

    >>> numbers("1e13, 3e13", "--flops", float)
    (10000000000000.0, 30000000000000.0)
    """
    from firstlight.errors import ConfigError

    if text is None:
        return None
    found = []
    for word in text.split(","):
        try:
            found.append(kind(word.strip()))
        except ValueError:
            example = "2,3,4" if kind is int else "1e13,3e13,1e14"
            raise ConfigError(
                f"{flag} {text}: {word.strip()!r} is no number", hint=f"for example {flag} {example}"
            ) from None
    return tuple(found)
