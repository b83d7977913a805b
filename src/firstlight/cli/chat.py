"""`firstlight chat`: talk with a run's model in the terminal, or ask it one thing from a script."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from firstlight.recipes.chat_session import ChatSession, Reply
    from firstlight.recipes.loading import LoadedRun
    from firstlight.runtime.console import Console


def chat(
    run: str,
    /,
    *,
    prompt: Annotated[str | None, Parameter(name=["--prompt", "-p"], allow_leading_hyphen=True)] = None,
    lines: bool = False,
    system: str = "",
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    top_k: int = 50,
    top_p: float = 1.0,
    seed: int = 0,
    checkpoint: str = "latest",
    device: str = "auto",
    dtype: str = "run",
    threads: int | None = None,
    json: bool = False,
) -> None:
    """Talk with a run's model. In the terminal /help lists the commands, and Ctrl-C stops an answer.

    The model may call its Python tool: a calculator without files, network or time. When the context is full, the oldest
    turns are left out and a note says so.

    With -p, or where standard input is no terminal, only the answer is on standard output.

    For example:

        firstlight chat mine
        firstlight chat mine -p "How many r are in strawberry?" --temperature 0
        firstlight chat mine --lines --json < questions.txt

    Parameters
    ----------
    run
        Name of a run, or its folder. A run of `train sft` or `train rl` has learned to chat.
    prompt
        Ask this one thing and end; - reads it from standard input.
    lines
        Each line of standard input is a message of one conversation; without it all of standard input is one message.
    system
        Text in front of the first message: who the model should be, or what it should know.
    max_new_tokens
        Longest answer.
    temperature
        0 takes the likeliest token each time; 1 samples as the model learned.
    top_k
        Choose among this many likeliest tokens only; 0 is off.
    top_p
        Choose among the likeliest tokens that have this much probability together; 1 is off.
    seed
        The same seed and the same messages give the same answers.
    checkpoint
        latest, best (lowest bits per byte) or a step's number.
    device
        auto, cpu, cuda or mps.
    dtype
        Dtype of the matmuls: run (that of the training), auto, fp32, bf16 or fp16.
    threads
        CPU threads. [all that this process may use]
    json
        Print one JSON object; for -p and standard input.
    """
    from firstlight.cli.chat_screen import talk
    from firstlight.cli.sample import read_standard_input
    from firstlight.errors import ConfigError
    from firstlight.infer.calculator import Calculator
    from firstlight.recipes.chat_session import ChatSession, Settings
    from firstlight.recipes.loading import dtype_for, load_for_inference, slow_writing
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console
    from firstlight.runtime.context import open_runtime

    console = Console(is_terminal=environment.is_terminal())
    settings = Settings(temperature, top_k, top_p, max_new_tokens, seed)
    is_talk = prompt is None and sys.stdin.isatty()
    if lines and prompt not in (None, "-"):
        raise ConfigError("--lines reads standard input and -p is the message", hint="leave one of them out")
    if is_talk and (json or lines):
        raise ConfigError(
            f"--{'json' if json else 'lines'} is for messages that are not typed", hint="give -p or a pipe"
        )
    messages = [] if is_talk else [read_standard_input() if prompt in (None, "-") else str(prompt)]
    if lines:
        messages = [line for line in messages[0].splitlines() if line.strip()]
    if not is_talk and not any(message.strip() for message in messages):
        raise ConfigError("the message is empty", hint='give one: -p "What is a list?", or through a pipe')
    with (
        open_runtime(device=device, dtype=dtype_for(run, dtype, device=device), num_threads=threads) as runtime,
        Calculator() as calculator,
    ):
        loaded = load_for_inference(run, runtime, checkpoint=checkpoint, report=console.warn)
        for sentence in slow_writing(runtime):
            console.warn(sentence)
        if loaded.record.recipe == "base":
            console.warn(
                f"{loaded.record.name} is a base model: it continues texts and has not learned to chat "
                "(`firstlight train sft` teaches it; `firstlight sample` continues a text)"
            )
        session = ChatSession(loaded.model, loaded.tokenizer, run=calculator.run, settings=settings, system=system)
        if is_talk:
            talk(session, title=f"{loaded.record.name}, step {loaded.step}", console=console)
        else:
            _answer_all(session, messages, loaded, console=console, is_json=json, is_single=not lines)


def _answer_all(
    session: ChatSession,
    messages: list[str],
    loaded: LoadedRun,
    *,
    console: Console,
    is_json: bool,
    is_single: bool,
) -> None:
    """Answer messages that were not typed: text as it comes, or one JSON object at the end."""
    from firstlight.cli.sample import write

    turns: list[dict[str, Any]] = []
    for message in messages:
        reply = session.ask(
            message, on_piece=lambda piece: write(piece.text) if piece.kind == "text" and not is_json else None
        )
        if not is_json:
            write("\n")
        warn_of(reply, console, context=loaded.model.config.max_seq_len)
        turns.append(_as_json(message, reply))
    if is_json:
        found = {"run": loaded.record.name, "step": loaded.step, "checkpoint": str(loaded.checkpoint)}
        settings = {**vars(session.settings), "system": session.system}
        console.json(found | settings | (turns[0] if is_single else {"turns": turns}))


def _as_json(message: str, reply: Reply) -> dict[str, Any]:
    from firstlight.recipes.chat_session import parts_to_json

    return {
        "message": message,
        "answer": reply.text,
        "parts": parts_to_json(reply.parts),
        "num_prompt_tokens": reply.num_prompt_tokens,
        "num_tokens": reply.num_tokens,
        "finish_reason": reply.finish_reason,
        "num_dropped_turns": reply.num_dropped_turns,
    }


def warn_of(reply: Reply, console: Console, *, context: int) -> None:
    """Say once that turns were left out, and that an answer was not ended by the model."""
    if reply.num_dropped_turns:
        console.warn(f"the context of {context:,} tokens is full: the oldest turns are left out from here on")
    if reply.finish_reason == "length":
        console.warn(f"an answer ended at {reply.num_tokens:,} tokens (--max-new-tokens)")
    elif reply.finish_reason == "context":
        console.warn(f"an answer ended because the context of {context:,} tokens is full")
