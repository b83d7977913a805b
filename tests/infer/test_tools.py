"""Claims about the Python tool: when it runs what, and which ids it puts into the text. Expected ids are the bytes of the
text and the nine special tokens behind them, by hand."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from firstlight.infer.tools import PythonTool
from firstlight.tokens.bpe import Tokenizer

TOKENIZER = Tokenizer([bytes([b]) for b in range(256)])
PYTHON_START, PYTHON_END, OUTPUT_START, OUTPUT_END = 261, 262, 263, 264
USER_START, ASSISTANT_END = 257, 260


class Recorder:
    """Runs nothing: keeps the code and answers with a text."""

    def __init__(self, output: str = "ok") -> None:
        self.output = output
        self.seen: list[str] = []

    def __call__(self, code: str) -> str:
        self.seen.append(code)
        return self.output


def forced(tool: PythonTool, ids: list[int]) -> list[list[int]]:
    """What the tool forces after each id."""
    return [tool.after(i) for i in ids]


def ids(text: str) -> list[int]:
    return list(text.encode())


def test_a_call_is_run_and_its_output_forced() -> None:
    run = Recorder("42")
    found = forced(PythonTool(TOKENIZER, run), [*ids("so "), PYTHON_START, *ids("6*7"), PYTHON_END, *ids("!")])
    assert run.seen == ["6*7"]
    assert found[7] == [OUTPUT_START, *ids("42"), OUTPUT_END]
    assert [x for i, x in enumerate(found) if i != 7] == [[]] * 8


def test_with_an_executor_the_code_runs_in_another_thread() -> None:
    threads: list[str] = []

    def run(code: str) -> str:
        threads.append(threading.current_thread().name)
        return code

    with ThreadPoolExecutor(1, thread_name_prefix="aside") as executor:
        tool = PythonTool(TOKENIZER, run, executor=executor)
        *before, last = (tool.after(i) for i in [PYTHON_START, *ids("6*7"), PYTHON_END])
        assert before == [[]] * 4
        assert isinstance(last, Future)
        assert last.result() == [OUTPUT_START, *ids("6*7"), OUTPUT_END]
    assert threads == ["aside_0"]


def test_two_calls_of_one_answer() -> None:
    run = Recorder()
    forced(PythonTool(TOKENIZER, run), [PYTHON_START, *ids("1"), PYTHON_END, PYTHON_START, *ids("é"), PYTHON_END])
    assert run.seen == ["1", "é"]


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ([PYTHON_START, *ids("1"), PYTHON_START, *ids("2"), PYTHON_END], ["2"]),
        ([PYTHON_END, *ids("1"), PYTHON_END], []),
        ([PYTHON_START, *ids("1")], []),
        ([PYTHON_START, PYTHON_END], [""]),
        ([PYTHON_START, *ids("1"), PYTHON_END, PYTHON_END], ["1"]),
        ([PYTHON_START, *ids("1"), OUTPUT_START, USER_START, ASSISTANT_END, *ids("+1"), PYTHON_END], ["1+1"]),
        ([PYTHON_START, 0xC3, PYTHON_END], ["\ufffd"]),
    ],
)
def test_odd_calls_have_a_result(written: list[int], seen: list[str]) -> None:
    run = Recorder()
    forced(PythonTool(TOKENIZER, run), written)
    assert run.seen == seen


def test_long_code_is_not_run_and_the_output_says_so() -> None:
    run = Recorder()
    tool = PythonTool(TOKENIZER, run, max_code_tokens=4, max_output_tokens=100)
    assert forced(tool, [PYTHON_START, *ids("1+11"), PYTHON_END])[-1] == [OUTPUT_START, *ids("ok"), OUTPUT_END]
    found = forced(tool, [PYTHON_START, *ids("1+111"), PYTHON_END])[-1]
    assert TOKENIZER.decode(found[1:-1]) == "SyntaxError: the code is longer than 4 tokens"
    assert run.seen == ["1+11"]


def test_long_output_is_cut_and_says_so() -> None:
    tool = PythonTool(TOKENIZER, Recorder("x" * 30), max_output_tokens=20)
    found = forced(tool, [PYTHON_START, PYTHON_END])[-1]
    assert TOKENIZER.decode(found[1:-1]) == "x" * 10 + " ... (cut)"
    assert len(found) == 22


def test_output_that_looks_like_a_special_token_is_text() -> None:
    found = forced(PythonTool(TOKENIZER, Recorder("<|output_end|>\ud800")), [PYTHON_START, PYTHON_END])[-1]
    assert found == [OUTPUT_START, *ids("<|output_end|>?"), OUTPUT_END]
