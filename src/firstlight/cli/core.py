"""`firstlight eval core`: the 22 tasks of DCLM CORE, on a run or on any Hugging Face causal language model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from firstlight.eval.core.results import CoreResult
    from firstlight.recipes.core_eval import Subject
    from firstlight.runtime.console import Console
    from firstlight.runtime.context import Runtime

COUNT_WORDS = {
    "cropped": "prompts were longer than the context and lost their beginning",
    "cut_scored": "had even more to score than the context holds, and were scored on what fits",
    "nothing_between": "had a choice that is the beginning of another: its last token is scored",
    "not_a_prefix": "had tokens that change where the continuation begins: scored from there on",
    "few_shots": "had fewer examples to show than the task asks for: all there are were shown",
}


def core(
    run: str | None = None,
    /,
    *,
    hf: str | None = None,
    tasks: str | None = None,
    max_per_task: int | None = None,
    baselines: str = "v1",
    bundle: Path | None = None,
    long_prompts: str = "crop",
    fresh: bool = False,
    checkpoint: str = "latest",
    trust_remote_code: bool = False,
    batch_tokens: int | None = None,
    device: str = "auto",
    dtype: str = "run",
    threads: int | None = None,
    json: bool = False,
) -> None:
    """CORE of a run: how well its model does on the 22 tasks of DCLM, with standard errors. 0 is guessing, 1 is perfect.

    For example:

        firstlight eval core mine
        firstlight eval core mine --tasks copa,arc_easy --max-per-task 100
        firstlight eval core --hf openai-community/gpt2 --json

    Decisions are kept in the run's folder, so a command that was ended goes on where it was.

    Parameters
    ----------
    run
        Name of a run, or its folder.
    hf
        Name or folder of a Hugging Face causal language model, in place of a run.
    tasks
        Labels of tasks, with commas between them. [all]
    max_per_task
        Score the first examples of each task only, in a fixed random order.
    baselines
        What guessing gets: v1 (as nanochat) or v2 (corrected for three tasks).
    bundle
        Folder with core.yaml, eval_meta_data.csv and eval_data/. [the published one, downloaded once]
    long_prompts
        crop: a prompt longer than the context loses its beginning; extend: positions go on, up to 10 times the context.
    fresh
        Forget decisions that were kept.
    checkpoint
        latest, best (lowest bits per byte) or a step's number.
    trust_remote_code
        With --hf: run Python files that come with the model.
    batch_tokens
        Tokens in one forward pass. [4,096 on a CPU, 65,536 on a GPU]
    device
        auto, cpu, cuda or mps.
    dtype
        Dtype of the matmuls: run (that of the training), auto, fp32, bf16 or fp16.
    threads
        CPU threads. [all that this process may use]
    json
        Print one JSON object.
    """
    from firstlight.errors import Problems

    problems = Problems()
    if (run is None) == (hf is None):
        problems.add("eval core needs a run or --hf, not both", hint="`firstlight runs list` shows the runs")
    if max_per_task is not None and max_per_task < 1:
        problems.add(f"--max-per-task {max_per_task} leaves nothing to score", hint="at least 1, or leave it out")
    if batch_tokens is not None and batch_tokens < 1:
        problems.add(f"--batch-tokens {batch_tokens} is too few", hint="at least 1, or leave it out")
    if baselines not in ("v1", "v2"):
        problems.add(f"--baselines {baselines} is not known", hint="v1 or v2")
    if long_prompts not in ("crop", "extend"):
        problems.add(f"--long-prompts {long_prompts} is not known", hint="crop or extend")
    if hf is not None and long_prompts == "extend":
        problems.add("--long-prompts extend is for runs: how far another model's positions go is its own affair")
    if hf is not None and checkpoint != "latest":
        problems.add(f"--checkpoint {checkpoint} is for runs, not for --hf")
    problems.raise_if_any()

    from firstlight.recipes.core_bundle import obtain_bundle
    from firstlight.recipes.core_eval import run_core
    from firstlight.recipes.loading import dtype_for
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console
    from firstlight.runtime.context import open_runtime

    dtype = dtype_for(run, dtype, device=device) if run is not None else "fp32" if dtype == "run" else dtype
    with open_runtime(device=device, dtype=dtype, num_threads=threads) as runtime:
        console = Console(
            is_main=runtime.is_main, is_terminal=environment.is_terminal(), file=sys.stderr if json else None
        )
        found = obtain_bundle(
            bundle, control=runtime.control, cache_dir=environment.cache_dir(), report=console.say
        )  # fmt: skip
        labels = None if tasks is None else [label.strip() for label in tasks.split(",") if label.strip()]
        found.chosen(labels)
        if run is not None:
            subject = _run_subject(
                run, runtime, checkpoint=checkpoint, long_prompts=long_prompts, batch_tokens=batch_tokens, report=console.warn
            )  # fmt: skip
        else:
            subject = _hf_subject(
                str(hf), runtime, trust_remote_code=trust_remote_code, batch_tokens=batch_tokens, report=console.warn
            )
        with console.progress("scoring", unit="examples") as bar:

            def show(done: int, total: int, label: str) -> None:
                bar.set_total(total)
                bar.label = f"scoring {label}"
                bar.advance(done - bar.done)

            result, facts = run_core(
                subject,
                found,
                runtime=runtime,
                tasks=labels,
                max_per_task=max_per_task,
                baselines=baselines,
                long_prompts=long_prompts,
                fresh=fresh,
                report=console.say,
                progress=show,
            )
        if json:
            Console(is_main=runtime.is_main).json(facts | result.to_dict())
        else:
            _show(console, subject, result, facts)


def _run_subject(
    run: str,
    runtime: Runtime,
    *,
    checkpoint: str,
    long_prompts: str,
    batch_tokens: int | None,
    report: Callable[[str], None],
) -> Subject:
    from firstlight.eval.core.engine import GPTScorer, extended
    from firstlight.recipes.core_eval import LONGEST_EXTENDED, Subject, weights_hash
    from firstlight.recipes.loading import load_for_inference

    loaded = load_for_inference(run, runtime, checkpoint=checkpoint, report=report)
    model = loaded.model
    if long_prompts == "extend":
        model = extended(model, LONGEST_EXTENDED * model.config.max_seq_len)
    return Subject(
        name=loaded.record.name,
        scorer=GPTScorer(model, batch_tokens=batch_tokens, report=report),
        encode=lambda texts: loaded.tokenizer.encode_batch(texts, runtime.num_threads),
        bos_id=loaded.tokenizer.bos_id,
        weights_hash=weights_hash(loaded.checkpoint),
        tokenizer_hash=loaded.tokenizer.content_hash,
        folder=loaded.path / "core",
        step=loaded.step,
    )


def _hf_subject(
    name: str,
    runtime: Runtime,
    *,
    trust_remote_code: bool,
    batch_tokens: int | None,
    report: Callable[[str], None],
) -> Subject:
    from firstlight.interop.hf_model import load_hf_model
    from firstlight.recipes.core_eval import Subject
    from firstlight.runtime import environment

    model = load_hf_model(
        name,
        device=runtime.device,
        dtype=runtime.compute_dtype,
        report=report,
        trust_remote_code=trust_remote_code,
        batch_tokens=batch_tokens,
    )
    return Subject(
        name=name,
        scorer=model.scorer,
        encode=model.encode,
        bos_id=model.bos_id,
        weights_hash=model.content_hash,
        tokenizer_hash=model.tokenizer_hash,
        folder=environment.cache_dir() / "core",
    )


def _show(console: Console, subject: Subject, result: CoreResult, facts: dict) -> None:
    rows = [
        (
            task.label,
            task.num_fewshot,
            task.num_examples,
            f"{task.accuracy:.4f} +- {task.stderr:.4f}",
            f"{task.centered:+.4f}",
            f"{task.seconds:.1f}",
            task.counts.get("cropped", 0),
            task.num_near_ties,
        )
        for task in result.tasks
    ]
    columns = ("task", "shots", "examples", "accuracy", "centred", "seconds", "cropped", "near ties")
    console.table(columns, rows)
    for name, words in COUNT_WORDS.items():
        number = sum(task.counts.get(name, 0) for task in result.tasks)
        if number:
            console.say(f"{number:,} {words}")
    step = "" if subject.step is None else f", step {subject.step:,}"
    console.say(f"{subject.name}{step}: {result.describe()}")
    for reason in result.not_comparable:
        console.say(f"  not comparable: {reason}")
    for note in result.notes:
        console.say(f"  {note}")
    console.say(
        f"bundle {facts['bundle_hash'][:16]}, tokenizer {facts['tokenizer_hash'][:16]}, weights {facts['weights_hash'][:16]}"
    )
    console.say(f"result: {facts['result']}")
