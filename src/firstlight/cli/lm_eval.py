"""`firstlight lm-eval ...`: the command line of lm-evaluation-harness, with our runs as a model of it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from firstlight.interop.lm_eval import Harness
    from firstlight.runtime.console import Console

MODEL_ARGS = ("run", "checkpoint", "dtype", "device", "threads", "batch_tokens", "add_bos", "seed")


def lm_eval(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """The command line of lm-evaluation-harness (package lm_eval), where `--model firstlight` is a run of ours.

    Everything behind `lm-eval` is its own: `firstlight lm-eval run --help` is its help, and `docs/lm-eval.md` has more.

    For example:

        firstlight lm-eval --model firstlight --model_args run=quickstart --tasks arc_easy --limit 100
        firstlight lm-eval --model firstlight --model_args run=mine,checkpoint=best --tasks hellaswag --output_path out/
        firstlight lm-eval ls tasks

    Parameters
    ----------
    arguments
        As for the command lm-eval. --model_args knows run, checkpoint, dtype, device, threads, batch_tokens, add_bos, seed.
    """
    from contextlib import ExitStack

    from firstlight.errors import ConfigError
    from firstlight.interop.lm_eval import harness_module, register
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console

    harness_module()
    if environment.world_size() > 1:
        raise ConfigError(
            f"firstlight lm-eval was started as {environment.world_size()} processes",
            hint="start it once, without torchrun",
        )
    from lm_eval.__main__ import cli_evaluate  # pyrefly: ignore

    console = Console(is_terminal=environment.is_terminal(), file=sys.stderr)
    before = sys.argv
    with ExitStack() as stack:
        register(model_opener(stack, console))
        # The harness reads its arguments there.
        sys.argv = ["lm-eval", *arguments]
        try:
            cli_evaluate()
        finally:
            sys.argv = before


def model_opener(stack: ExitStack, console: Console) -> Callable[..., Harness]:
    """A function from ``--model_args`` to a model, which is held open until ``stack`` is closed."""

    def open_model(**given: Any) -> Harness:
        from firstlight.config import did_you_mean
        from firstlight.errors import Problems
        from firstlight.eval.core.engine import GPTScorer
        from firstlight.interop.lm_eval import Harness
        from firstlight.recipes.loading import dtype_for, load_for_inference
        from firstlight.runtime.context import open_runtime

        problems = Problems()
        for name in given:
            if name not in MODEL_ARGS:
                problems.add(
                    f"--model_args {name}={given[name]} is not known",
                    hint=did_you_mean(name, MODEL_ARGS) or f"one of {', '.join(MODEL_ARGS)}",
                )
        for name in ("threads", "batch_tokens", "seed"):
            value = given.get(name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int) or value < (name != "seed")
            ):
                problems.add(f"--model_args {name}={value} is no number that is possible", hint="give a whole number")
        if not isinstance(given.get("add_bos", True), bool):
            problems.add(f"--model_args add_bos={given['add_bos']} is neither", hint="it is True or False")
        if "run" not in given:
            problems.add("--model_args names no run", hint="add run=NAME, or run=FOLDER")
        problems.raise_if_any()
        # The harness makes numbers of texts that look like one.
        run, checkpoint = str(given["run"]), str(given.get("checkpoint", "latest"))
        device = str(given.get("device") or "auto")
        dtype = dtype_for(run, str(given.get("dtype", "run")), device=device)
        runtime = stack.enter_context(open_runtime(device=device, dtype=dtype, num_threads=given.get("threads")))
        loaded = load_for_inference(run, runtime, checkpoint=checkpoint, report=console.warn)
        return Harness(
            loaded.model,
            loaded.tokenizer,
            GPTScorer(loaded.model, batch_tokens=given.get("batch_tokens"), report=console.warn),
            report=console.warn,
            add_bos=given.get("add_bos", True),
            seed=given.get("seed", 0),
            facts={
                "run": loaded.record.name,
                "step": loaded.step,
                "checkpoint": str(loaded.checkpoint),
                "model_num_parameters": sum(weight.numel() for weight in loaded.model.parameters()),
                "model_dtype": runtime.dtype_name,
                "model_device": str(runtime.device),
                "tokenizer_hash": loaded.tokenizer.content_hash,
            },
        )

    return open_model
