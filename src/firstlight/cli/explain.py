"""`firstlight explain`: one text through one model, stage by stage, with every number."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def explain(
    run: str | None = None,
    /,
    *,
    depth: int | None = None,
    preset: Literal["classic", "modern", "portable"] | None = None,
    text: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    checkpoint: str | None = None,
    page: Path | None = None,
    max_tokens: int = 48,
    device: str = "auto",
    dtype: str = "run",
    threads: int | None = None,
    json: bool = False,
) -> None:
    """Walk one text through a model and show each stage: ids, batch, tensors, attention, guesses, loss, training, costs.

    Prints it, and writes it as a page (explain.html in the run's folder). With --depth in place of a run: the model that
    training would start from, untrained; a large one is explained by arithmetic, without being built.

    For example:

        firstlight explain quickstart
        firstlight explain quickstart --text "Return the value of the key." --page lesson.html
        firstlight explain --depth 4 --preset portable --page d4.html
        firstlight explain --depth 26 --json

    Parameters
    ----------
    run
        Name of a run, or its folder.
    depth
        Explain the untrained model of this depth instead.
    preset
        Architecture for --depth: modern, classic or portable. [modern]
    text
        Text to walk through; - reads it from standard input. [two short sentences]
    checkpoint
        latest, best (lowest bits per byte) or a step's number. [latest]
    page
        File for the page. [explain.html in the run's folder; none with --depth or --json]
    max_tokens
        Walk at most this many tokens of the text; the rest is left out.
    device
        auto, cpu, cuda or mps.
    dtype
        Dtype of the matmuls: run (that of the training), auto, fp32, bf16 or fp16.
    threads
        CPU threads. [all that this process may use]
    json
        Print one JSON object with every number.
    """
    from firstlight.cli.sample import read_standard_input
    from firstlight.errors import Problems
    from firstlight.recipes.explain.collect import check_walk, explain_depth, explain_run
    from firstlight.recipes.explain.page import write_page
    from firstlight.recipes.explain.text import render_text
    from firstlight.recipes.loading import dtype_for
    from firstlight.recipes.record import find_run
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console
    from firstlight.runtime.context import open_runtime

    console = Console(is_terminal=environment.is_terminal())
    problems = Problems()
    if run is None and depth is None:
        problems.add("nothing to explain was named", hint="give a run, or --depth N for a model before training")
    if run is not None and depth is not None:
        problems.add(f"a run ({run}) and --depth {depth} are both given", hint="explain one of them")
    if depth is None and preset is not None:
        problems.add(f"--preset {preset} goes with --depth", hint="a run has the preset of its training")
    if depth is not None and checkpoint is not None:
        problems.add(f"--checkpoint {checkpoint} goes with a run", hint="--depth explains an untrained model")
    if page is not None and not page.absolute().parent.is_dir():
        problems.add(f"--page {page}: there is no folder {page.parent}", hint="make it, or name another file")
    words = read_standard_input() if text == "-" else text
    check_walk(words, max_tokens=max_tokens, problems=problems)
    problems.raise_if_any()
    if run is not None:
        run_dir = find_run(run, environment.runs_dir())
        chosen = dtype_for(run, dtype, device=device)
        page = page if page is not None or json else run_dir / "explain.html"
    else:
        chosen = "fp32" if dtype == "run" else dtype
    with (
        open_runtime(device=device, dtype=chosen, num_threads=threads) as runtime,
        console.progress("walking the text through the model"),
    ):
        if run is not None:
            facts = explain_run(
                run, runtime, text=words, checkpoint=checkpoint or "latest", max_tokens=max_tokens, report=console.warn
            )
        else:
            assert depth is not None
            facts = explain_depth(depth, runtime, preset=preset or "modern", text=words, max_tokens=max_tokens)
    written = write_page(facts, page) if page is not None else None
    if json:
        console.json(facts.to_dict() | {"page": str(written) if written else None})
        return
    console.say(render_text(facts, colours=console.is_terminal))
    console.say()
    console.say(
        f"page: {written}" if written else "add --page FILE.html for the page, with pictures of every attention map"
    )
