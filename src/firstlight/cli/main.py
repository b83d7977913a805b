"""The command `firstlight`: names and where each command lives. Nothing is imported before it is called."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from cyclopts import App

from firstlight import __version__
from firstlight.errors import FirstlightError

app = App(
    name="firstlight",
    version=__version__,
    help="Pretrain a language model from nothing: text and one number, --depth.\n\nStart with `firstlight quickstart`.",
    result_action="return_value",
)
app.command("firstlight.cli.quickstart:quickstart", name="quickstart")

train = App(name="train")
train.command("firstlight.cli.train:base", name="base")
train.command("firstlight.cli.tune:mid", name="mid")
train.command("firstlight.cli.tune:sft", name="sft")
train.command("firstlight.cli.tune:rl", name="rl")

data = App(name="data")
data.command("firstlight.cli.data:fetch", name="fetch")
data.command("firstlight.cli.data:import_", name="import")
data.command("firstlight.cli.data:info", name="info")
data.command("firstlight.cli.data_chat:chat", name="chat")

tokenizer = App(name="tokenizer")
tokenizer.command("firstlight.cli.tokenizer:train", name="train")
tokenizer.command("firstlight.cli.tokenizer:evaluate", name="eval")
tokenizer.command("firstlight.cli.tokenizer:show", name="show")

evaluate = App(name="eval")
evaluate.command("firstlight.cli.evaluate:bpb", name="bpb")
evaluate.command("firstlight.cli.evaluate:samples", name="samples")
evaluate.command("firstlight.cli.core:core", name="core")
evaluate.command("firstlight.cli.chat_eval:chat", name="chat")

runs = App(name="runs")
runs.command("firstlight.cli.runs:list_", name="list")
runs.command("firstlight.cli.runs:show", name="show")
runs.command("firstlight.cli.runs:report", name="report")
runs.command("firstlight.cli.compare:compare", name="compare")
runs.command("firstlight.cli.compare:publish", name="publish")

checkpoint = App(name="checkpoint")
checkpoint.command("firstlight.cli.checkpoint:verify", name="verify")
checkpoint.command("firstlight.cli.checkpoint:list_", name="list")
checkpoint.command("firstlight.cli.checkpoint:prune", name="prune")

bench = App(name="bench")
bench.command("firstlight.cli.bench:step", name="step")
bench.command("firstlight.cli.bench:loss", name="loss")
bench.command("firstlight.cli.bench:optim", name="optim")
bench.command("firstlight.cli.bench:data", name="data")
bench.command("firstlight.cli.bench:decode", name="decode")
bench.command("firstlight.cli.bench:evaluate", name="eval")
bench.command("firstlight.cli.bench:launch", name="launch")
bench.command("firstlight.cli.bench:all_", name="all")

export = App(name="export")
export.command("firstlight.cli.export:hf", name="hf")
export.command("firstlight.cli.export:gguf", name="gguf")

import_ = App(name="import")
import_.command("firstlight.cli.export:import_hf", name="hf")

for group in (train, data, tokenizer, evaluate, runs, checkpoint, bench, export, import_):
    app.command(group)
app.command("firstlight.cli.plan:plan", name="plan")
app.command("firstlight.cli.sample:sample", name="sample")
app.command("firstlight.cli.chat:chat", name="chat")
app.command("firstlight.cli.serve:serve", name="serve")
# Its arguments are the harness's, --help among them.
app.command("firstlight.cli.lm_eval:lm_eval", name="lm-eval", help_flags=[], version_flags=[])
app.command("firstlight.cli.scale:scale", name="scale")
app.command("firstlight.cli.explain:explain", name="explain")
app.command("firstlight.cli.doctor:doctor", name="doctor")


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code. A user's mistake prints a message, never a traceback."""
    try:
        app(arguments)
    except FirstlightError as error:
        from firstlight.runtime import environment

        if not error.is_same_on_all_ranks or environment.rank() == 0:
            print(f"error: {error}", file=sys.stderr)
        if error.ends_at_once:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(error.exit_code)
        return error.exit_code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2 if stop.code else 0
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def main() -> NoReturn:
    """Entry point of the console script and of ``python -m firstlight``."""
    sys.exit(run(sys.argv[1:]))
