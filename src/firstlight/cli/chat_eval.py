"""`firstlight eval chat`: questions asked in the form of a conversation, answered by a letter or in words."""

from __future__ import annotations

import sys
from pathlib import Path


def chat(
    run: str,
    /,
    *,
    compare: str | None = None,
    tasks: str | None = None,
    data: Path | None = None,
    max_per_task: int | None = None,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    max_rows: int = 32,
    fresh: bool = False,
    checkpoint: str = "latest",
    device: str = "auto",
    dtype: str = "run",
    threads: int | None = None,
    json: bool = False,
) -> None:
    """Ask a run's model questions as a user would, and score its answers, with standard errors.

    For example:

        firstlight eval chat mine
        firstlight eval chat mine --compare base --max-per-task 200
        firstlight eval chat mine --tasks arc_easy,gsm8k --data DIR

    Answers are kept in the run's folder, so a command that was ended goes on where it was.

    Parameters
    ----------
    run
        Name of a run, or its folder.
    compare
        A second run (such as the one before the tuning), shown beside it with the differences.
    tasks
        Names with commas between them: builtin-chat, spelling, arc_easy, arc_challenge, mmlu, gsm8k, humaneval, svamp, or core, offline, all. [offline; with --data those that it has]
    data
        Folder with the tasks' files. [the hub, once; builtin-chat and spelling need none]
    max_per_task
        Ask the first questions of each task only, in a fixed random order.
    max_new_tokens
        Longest answer, in tokens. [each task's own]
    temperature
        0 takes the likeliest token each time.
    seed
        Of the answers, where the temperature is above 0.
    max_rows
        Answers written at the same time.
    fresh
        Forget answers that were kept.
    checkpoint
        latest, best (lowest bits per byte) or a step's number; of the run, not of the one it is compared with.
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
    for flag, value in (
        ("--max-per-task", max_per_task),
        ("--max-new-tokens", max_new_tokens),
        ("--max-rows", max_rows),
    ):
        if value is not None and value < 1:
            problems.add(f"{flag} {value} is too small", hint="the smallest is 1")
    if max_per_task == 1 and compare is not None:
        problems.add("--max-per-task 1 gives no error of a difference", hint="ask at least 2")
    if not 0 <= temperature < float("inf"):
        problems.add(f"--temperature {temperature} is not possible", hint="0 or more")
    problems.raise_if_any()

    from firstlight.eval.chat.catalog import chosen
    from firstlight.recipes.chat_bundle import available, open_tasks
    from firstlight.recipes.chat_eval import evaluate_run, show_chat
    from firstlight.recipes.loading import dtype_for, load_for_inference, slow_writing
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console
    from firstlight.runtime.context import open_runtime

    named = None if tasks is None else chosen([each.strip() for each in tasks.split(",") if each.strip()])
    with open_runtime(device=device, dtype=dtype_for(run, dtype, device=device), num_threads=threads) as runtime:
        console = Console(
            is_main=runtime.is_main, is_terminal=environment.is_terminal(), file=sys.stderr if json else None
        )  # fmt: skip
        loaded = load_for_inference(run, runtime, checkpoint=checkpoint, report=console.warn)
        for sentence in slow_writing(runtime):
            console.warn(sentence)
        other = None if compare is None else load_for_inference(compare, runtime, report=console.warn)
        if named is None:
            named, lacking = available(data)
            if lacking:
                console.say(f"left out, since {data} has no file of them: {', '.join(lacking)}")
        opened = open_tasks(
            named, data=data, control=runtime.control, cache_dir=environment.cache_dir(), report=console.say
        )
        results = [
            evaluate_run(
                each, opened, runtime=runtime, console=console, max_per_task=max_per_task, seed=seed, fresh=fresh,
                max_new_tokens=max_new_tokens, temperature=temperature, max_rows=max_rows,
            )
            for each in (loaded, other)
            if each is not None
        ]  # fmt: skip
        (result, facts), *rest = results
        names = [f"{each[1]['model']} (step {each[1]['step']:,})" for each in results]
        gains = show_chat(console, names[0], result, beside=(names[1], rest[0][0]) if rest else None)
        if json:
            shown = facts | result.to_dict()
            if rest:
                shown["compared_with"] = rest[0][1] | rest[0][0].to_dict()
                shown["gains"] = [gain.to_dict() for gain in gains]
            Console(is_main=runtime.is_main).json(shown)
            return
        for _, each in results:
            console.say(
                f"weights {each['weights_hash'][:16]}, tokenizer {each['tokenizer_hash'][:16]}, result: {each['result']}"
            )
