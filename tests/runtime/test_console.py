"""What a person sees: the step line, bars, pipes, terminals that lack characters, ranks that keep quiet."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest

from firstlight.runtime import console as console_module
from firstlight.runtime.console import Console, StepLine, format_bytes, format_count, format_duration, format_table


def step_line(step=250, **changes):
    values = {
        "step": step, "num_steps": 10000, "loss_nats": 1.234567, "grad_norm": 0.8234, "lr_multiplier": 1.0,
        "step_time_s": 0.24532, "tokens_per_s": 2137856.0, "mfu": 0.4567, "elapsed_s": 615.0, "eta_s": 192.0,
    }  # fmt: skip
    return StepLine(**(values | changes))


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves: clock[0] is the time in seconds."""
    now = [1000.0]
    monkeypatch.setattr(console_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_the_step_line_is_the_documented_one():
    assert str(step_line()) == (
        "step 00250/10000 (2.50%) | loss: 1.234567 | grad norm: 0.8234 | lrm: 1.00 | dt: 245.32ms | tok/sec: 2,137,856"
        " | mfu: 45.67 | total time: 10.25m | eta: 3.2m"
    )


def test_the_step_line_shows_what_is_unknown_as_dashes_and_says_why_an_update_was_refused():
    line = str(
        step_line(
            num_steps=None, progress_frac=0.5, mfu=None, eta_s=None, loss_nats=float("nan"), skipped="loss is NaN"
        )
    )
    assert line.startswith("step 00250 (50.00%) | loss: nan |")
    assert "mfu: -- |" in line
    assert line.endswith("eta: -- | update refused: loss is NaN")
    assert str(step_line(num_steps=None)).startswith("step 00250 | loss")


def test_a_pipe_gets_a_line_every_n_steps_and_the_last_one():
    out, err = io.StringIO(), io.StringIO()
    console = Console(file=out, error_file=err)
    with console.training(10000, every_steps=4) as steps:
        for step in range(11):
            steps.show(step_line(step))
    assert [line[5:10] for line in out.getvalue().splitlines()] == ["00000", "00004", "00008", "00010"]
    assert err.getvalue() == ""
    assert "\x1b" not in out.getvalue()


def test_a_pipe_gets_at_most_one_line_in_every_few_seconds(clock):
    out = io.StringIO()
    with Console(file=out).training(10000, every_s=5) as steps:
        for step in range(14):
            steps.show(step_line(step, skipped="NaN" if step == 2 else None))
            clock[0] += 1
    assert [line[5:10] for line in out.getvalue().splitlines()] == ["00000", "00002", "00007", "00012", "00013"]


def test_other_ranks_say_nothing():
    out, err = Terminal(), Terminal()
    console = Console(is_main=False, is_terminal=True, file=out, error_file=err)
    console.say("hello")
    console.warn("careful")
    console.table(["a"], [[1]])
    with console.progress("work", 3) as bar:
        bar.advance()
    with console.training(10) as steps:
        steps.show(step_line())
    assert out.getvalue() + err.getvalue() == ""


def test_a_terminal_gets_a_bar_on_standard_error_that_disappears():
    out, err = io.StringIO(), Terminal()
    console = Console(is_terminal=True, file=out, error_file=err)
    with console.training(10000) as steps, console.progress("evaluating", 7, unit="documents") as bar:
        steps.show(step_line(5000))
        for _ in range(7):
            bar.advance()
        console._bars.refresh()
    assert "training" in err.getvalue()
    assert "50%" in err.getvalue()
    assert "evaluating" in err.getvalue()
    assert "7 of 7 documents" in err.getvalue()
    assert "\x1b" not in out.getvalue()
    assert out.getvalue().startswith("step 05000/10000")
    assert console._bars is None
    assert err.getvalue().rstrip().endswith("\x1b[2K\x1b[?25h")  # last: erase the line, show the cursor


def test_lines_on_the_same_terminal_are_printed_above_the_bar():
    screen = Terminal()
    console = Console(is_terminal=True, file=screen, error_file=screen)
    with console.progress("work", 2):
        console.say("a [bold]line[/bold] of text")
        console.warn("careful")
    assert "a [bold]line[/bold] of text" in screen.getvalue()
    assert "careful" in screen.getvalue()


def test_fast_work_is_silent_in_a_pipe_and_slow_work_is_one_line(clock):
    out = io.StringIO()
    console = Console(file=out)
    with console.progress("tokenising", 40, unit="shards") as bar:
        clock[0] += 1
        bar.advance(40)
    assert out.getvalue() == ""
    with console.progress("tokenising", 40, unit="shards") as bar:
        for _ in range(40):
            clock[0] += 0.25
            bar.advance()
    assert out.getvalue() == "tokenising: 40 shards in 10.0 s\n"


def test_long_work_in_a_pipe_says_how_far_it_is(clock):
    out = io.StringIO()
    with Console(file=out).progress("download", 100, unit="MB") as bar:
        for _ in range(50):
            clock[0] += 1
            bar.advance(2)
    assert out.getvalue().splitlines() == ["download: 60 of 100 MB, 20.0 s left", "download: 100 MB in 50.0 s"]


def test_work_that_fails_says_how_far_it_came(clock):
    out = io.StringIO()

    def download():
        with Console(file=out).progress("download", 8, unit="shards") as bar:
            bar.advance(3)
            clock[0] += 65
            raise KeyError("shard 3")

    with pytest.raises(KeyError):
        download()
    assert out.getvalue() == "download: ended early, 3 of 8 shards after 1 min 05 s\n"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_text_beyond_the_terminals_characters_never_crashes(is_terminal):
    raw = io.BytesIO()
    ascii_file = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    ascii_file.isatty = lambda: is_terminal
    console = Console(is_terminal=is_terminal, file=ascii_file, error_file=ascii_file)
    with console.training(10000) as steps, console.progress("caf\u00e9 \U0001f98a", 2) as bar:
        bar.advance()
        console.say("fox \U0001f98a and \ud800")
        console.warn("\u4e2d\u6587")
        steps.show(step_line())
    console.table(["\u00e9"], [["\u4e2d"]])
    assert b"fox ? and ?" in raw.getvalue()
    assert b"warning: ??" in raw.getvalue()


def test_a_reader_that_left_does_not_end_the_run():
    class Closed(io.StringIO):
        tries = 0

        def write(self, text):
            self.tries += 1
            raise BrokenPipeError

    out, err = Closed(), Closed()
    console = Console(file=out, error_file=err)
    console.say("a")
    console.say("b")
    console.warn("c")
    assert out.tries == 1


def test_the_same_warning_is_said_once_and_not_on_standard_output():
    out, err = io.StringIO(), io.StringIO()
    console = Console(file=out, error_file=err)
    for _ in range(3):
        console.warn("no C++ compiler was found")
    assert err.getvalue() == "warning: no C++ compiler was found\n"
    assert out.getvalue() == ""


def test_json_is_strict():
    out = io.StringIO()
    Console(file=out).json({"mfu": float("nan"), "name": "d4"})
    assert json.loads(out.getvalue(), parse_constant=pytest.fail) == {"mfu": None, "name": "d4"}


def test_a_table_is_aligned_also_with_wide_characters():
    text = format_table(["name", "steps", "ok"], [["d4", 1500, True], ["\u4e2d\u6587 run", None, False]])
    assert text.splitlines() == [
        "name      steps  ok",
        "--------  -----  ---",
        "d4        1,500  yes",
        "\u4e2d\u6587 run      -  no",
    ]


def test_numbers_for_people():
    assert [format_duration(s) for s in (0.04, 59.94, 185, 7620, 273600)] == [
        "0.0 s",
        "59.9 s",
        "3 min 05 s",
        "2 h 07 min",
        "3 d 04 h",
    ]
    assert [format_count(n) for n in (0, 950, 999.9, 12345, 999_950, 4_560_000, 1.234e9)] == [
        "0",
        "950",
        "1.00K",
        "12.3K",
        "1.00M",
        "4.56M",
        "1.23G",
    ]
    assert [format_bytes(n) for n in (512, 3.4 * 2**20, 78 * 2**30, 2**41)] == [
        "512 B",
        "3.4 MiB",
        "78.0 GiB",
        "2.0 TiB",
    ]
