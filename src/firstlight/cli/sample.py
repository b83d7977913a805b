"""`firstlight sample`: let a run's model continue a text."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter


def sample(
    run: str,
    /,
    *,
    prompt: Annotated[str, Parameter(name=["--prompt", "-p"], allow_leading_hyphen=True)],
    max_new_tokens: int = 128,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
    num_samples: int = 1,
    checkpoint: str = "latest",
    device: str = "auto",
    dtype: str = "run",
    threads: int | None = None,
    json: bool = False,
) -> None:
    """Let a run's model continue a text. One sample is shown as it is made.

    A prompt that leaves no room in the model's context loses its front (a warning says how much).

    For example:

        firstlight sample quickstart -p "Return the"
        firstlight sample mine -p "Once upon a time" --num-samples 3 --temperature 1 --seed 7
        echo "The function" | firstlight sample quickstart -p -

    Parameters
    ----------
    run
        Name of a run, or its folder.
    prompt
        Text to continue; - reads it from standard input (one line end at its end is cut).
    max_new_tokens
        Stop after this many tokens, if the model has not ended the text before.
    temperature
        0 takes the likeliest token each time; 1 samples as the model learned.
    top_k
        Choose among this many likeliest tokens only; 0 is off.
    seed
        The same seed gives the same text.
    num_samples
        Independent continuations.
    checkpoint
        latest, best (lowest bits per byte) or a step's number.
    device
        auto, cpu, cuda or mps.
    dtype
        Dtype of the matmuls: run (that of the training), auto, fp32, bf16 or fp16.
    threads
        CPU threads. [all that this process may use]
    json
        Print one JSON object.
    """
    import time

    from firstlight.eval.samples import continue_prompt
    from firstlight.recipes.loading import dtype_for, load_for_inference, slow_writing
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console
    from firstlight.runtime.context import open_runtime

    console = Console(is_terminal=environment.is_terminal())
    text = read_standard_input() if prompt == "-" else prompt
    if text != text.rstrip(" "):
        console.warn(
            "the prompt ends in a space: tokens begin with theirs, so a prompt without it is more like real text"
        )
    is_streamed = num_samples == 1 and not json
    with open_runtime(device=device, dtype=dtype_for(run, dtype, device=device), num_threads=threads) as runtime:
        loaded = load_for_inference(run, runtime, checkpoint=checkpoint, report=console.warn)
        for sentence in slow_writing(runtime):
            console.warn(sentence)
        if is_streamed:
            write(text)
        started_s = time.perf_counter()
        samples = continue_prompt(
            loaded.model,
            loaded.tokenizer,
            text,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            num_samples=num_samples,
            on_text=(lambda _, piece: write(piece)) if is_streamed else None,
        )
        elapsed_s = time.perf_counter() - started_s
    if is_streamed:
        write("\n")
    if samples[0].num_dropped:
        console.warn(
            f"the first {samples[0].num_dropped:,} tokens of the prompt were left out: "
            f"the model's context is {loaded.model.config.max_seq_len:,} tokens"
        )
    if json:
        console.json(
            {
                "run": loaded.record.name,
                "step": loaded.step,
                "checkpoint": str(loaded.checkpoint),
                "prompt": text,
                "seed": seed,
                "temperature": temperature,
                "top_k": top_k,
                "samples": [sample.to_dict() for sample in samples],
                "elapsed_s": elapsed_s,
                "tokens_per_s": sum(sample.num_tokens for sample in samples) / elapsed_s,
            }
        )
        return
    if not is_streamed:
        for number, each in enumerate(samples, start=1):
            write(f"--- {number} of {num_samples} ({each.num_tokens} tokens, {each.stop_reason})\n{text}{each.text}\n")
    elif samples[0].stop_reason == "context":
        console.warn(f"stopped: the model's context of {loaded.model.config.max_seq_len:,} tokens is full")


def read_standard_input() -> str:
    """All of standard input as text, without one line end at its end. Raises DataError where it is not UTF-8."""
    from firstlight.errors import DataError

    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8: {error}", hint="convert it, for example with iconv") from None
    return text.removesuffix("\n").removesuffix("\r")


def printable(text: str) -> str:
    """Text without control characters, which a model may have learned and a terminal would obey.

    >>> printable("a\\x1b[31mb\\n")
    'a\\ufffd[31mb\\n'
    """
    return "".join(c if c in "\n\t" or c >= "\xa0" or " " <= c <= "~" else "\ufffd" for c in text)


def write(text: str) -> None:
    """Show text on standard output at once; characters that its encoding lacks become ``?``."""
    encoding = sys.stdout.encoding or "utf-8"
    print(printable(text).encode(encoding, "replace").decode(encoding), end="", flush=True)
