"""The tool is there where an environment allows it, and its calculator works."""

from __future__ import annotations

from rl.toy import ToyEnvironment

from firstlight.rl.tool import open_tool


def test_no_tool_where_there_is_none(tokenizer) -> None:
    with open_tool(ToyEnvironment(), tokenizer) as tool:
        assert tool is None


def test_a_call_is_calculated(tokenizer) -> None:
    special = tokenizer.special_ids
    with open_tool(ToyEnvironment(uses_python=True), tokenizer) as factory:
        assert factory is not None
        tool = factory()
        written = [special["<|python_start|>"], *b"12+34", special["<|python_end|>"]]
        forced = [tool.after(token_id) for token_id in written]
        assert factory() is not tool
    assert forced == [[]] * 6 + [[special["<|output_start|>"], *b"46", special["<|output_end|>"]]]
