"""The command `firstlight`: names and where each command lives. Nothing is imported before it is called."""

from __future__ import annotations

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
app.command(
    "firstlight.cli.quickstart:quickstart",
    name="quickstart",
    help="Train a small model on the built-in text: about 5 minutes.",
)

train = App(name="train", help="Train a model.")
train.command("firstlight.cli.train:base", name="base", help="Pretrain a base model on text.")

data = App(name="data", help="Fetch, convert and measure text.")
data.command("firstlight.cli.data:fetch", name="fetch", help="Download a hub data set, verified.")
data.command("firstlight.cli.data:import_", name="import", help="Convert your files into verified parquet shards.")
data.command("firstlight.cli.data:info", name="info", help="Documents, bytes, tokens, lengths, packing, hashes.")

tokenizer = App(name="tokenizer", help="Train, measure and look at a tokenizer.")
tokenizer.command("firstlight.cli.tokenizer:train", name="train", help="Train a byte-level BPE tokenizer.")
tokenizer.command("firstlight.cli.tokenizer:evaluate", name="eval", help="Bytes per token by script and kind of text.")
tokenizer.command("firstlight.cli.tokenizer:show", name="show", help="Show a text cut into its tokens.")

evaluate = App(name="eval", help="Score a run.")
evaluate.command("firstlight.cli.evaluate:bpb", name="bpb", help="Bits per byte on validation documents.")
evaluate.command("firstlight.cli.evaluate:samples", name="samples", help="What the model says to fixed prompts.")

runs = App(name="runs", help="List, show and draw runs.")
runs.command("firstlight.cli.runs:list_", name="list", help="All runs, newest first.")
runs.command("firstlight.cli.runs:show", name="show", help="One run: settings, hashes, final numbers.")
runs.command("firstlight.cli.runs:report", name="report", help="Write the run's report.html again.")

for group in (train, data, tokenizer, evaluate, runs):
    app.command(group)
app.command("firstlight.cli.plan:plan", name="plan", help="Every number that follows from --depth, with its reason.")
app.command("firstlight.cli.sample:sample", name="sample", help="Let a run's model continue a text.")
app.command("firstlight.cli.doctor:doctor", name="doctor", help="What this machine can do, and what will be slow.")


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code. A user's mistake prints a message, never a traceback."""
    try:
        app(arguments)
    except FirstlightError as error:
        print(f"error: {error}", file=sys.stderr)
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
