"""`firstlight data chat` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich import console as rich_console

from firstlight.cli.main import run
from firstlight.tokens.bpe import Tokenizer

CALL = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "2*3 🐕?\nSay <|bos|>"},
    {"role": "assistant", "content": [{"type": "python", "text": "2*3"}, {"type": "python_output", "text": "6"}]},
]
QA = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def talks(tmp_path: Path) -> str:
    lines = [
        json.dumps(CALL),
        "{broken",
        json.dumps({"messages": QA}),
        json.dumps(QA),
        '{"instruction": "a", "output": ""}',
    ]
    (tmp_path / "talks.jsonl").write_text("\n".join(lines))
    return "talks.jsonl"


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> str:
    Tokenizer([bytes([b]) for b in range(256)]).save(tmp_path / "tokenizer.json")
    return "tokenizer.json"


def test_without_a_tokenizer_loss_is_shown_by_stretches(talks, capsys) -> None:
    assert run(["data", "chat", talks, "--num", "2"]) == 0
    said = capsys.readouterr().out
    assert "talks.jsonl: 2 in the form list, 1 in the form messages" in said
    assert "rows skipped: 2" in said
    assert "1 empty_assistant" in said
    assert "talks.jsonl:1 (line 2) is not JSON" in said
    assert (
        "--- talks.jsonl:0: 12 pieces, 4 carry loss\n"
        "<|bos|><|user_start|>Be short.\\n\\n2*3 🐕?\\nSay <|bos|><|user_end|>\n"
        "<|assistant_start|>[<|python_start|>][2*3][<|python_end|>]<|output_start|>6<|output_end|>[<|assistant_end|>]\n"
    ) in said
    assert "<|assistant_start|>[yo][<|assistant_end|>]" in said
    assert "tokens" not in said


def test_with_a_tokenizer_each_token_that_carries_loss_has_its_bracket(talks, tokenizer_file, capsys) -> None:
    arguments = ["data", "chat", talks, "--tokenizer", tokenizer_file, "--num", "2", "--ids", "--max-seq-len", "8"]
    assert run(arguments) == 0
    said = capsys.readouterr().out
    assert (
        "--- talks.jsonl:2: 9 ids, 3 carry loss\n"
        "<|bos|><|user_start|>hi<|user_end|>\n"
        "<|assistant_start|>[y][o][<|assistant_end|>]\n"
        "256 257 104 105 258 259 [121] [111] [260]\n"
    ) in said
    assert "2*3 🐕?\\nSay <|bos|>" in said  # four bytes, four ids, one character
    # 45 of text and specials in the first, 8 in each of the others; 6 + 3 + 3 carry loss.
    first = 4 + len("Be short.\n\n2*3 🐕?\nSay <|bos|>".encode()) + 4 + 3 + 1
    assert f"{first + 16:,} (" in said
    assert f"12 ({100 * 12 / (first + 16):.1f} %)" in said
    assert "1 conversations are the same as an earlier one" in said
    assert "rows of 8 tokens, --too-long cut: 2 rows, 2 conversations, 100.0 % of the places filled" in said
    assert "1 skipped: no target in what a row holds" in said
    assert "--too-long skip: 2 rows" in said


def test_in_json(talks, tokenizer_file, capsys) -> None:
    assert (
        run(["data", "chat", talks, "--tokenizer", tokenizer_file, "--num", "1", "--max-seq-len", "64", "--json"]) == 0
    )
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["conversations"] == 3
    assert found["skipped"] == {"invalid_json": 1, "empty_assistant": 1}
    assert found["targets"] == 12
    assert found["packing"]["cut"]["rows"] == 1
    (shown,) = found["shown"]
    assert shown["where"] == "talks.jsonl:0"
    assert shown["pieces"][0] == {"id": 256, "text": "<|bos|>", "is_special": True, "carries_loss": False}
    assert [piece["id"] for piece in shown["pieces"] if piece["carries_loss"]] == [261, 50, 42, 51, 262, 260]


def test_in_json_without_a_tokenizer(talks, capsys) -> None:
    assert run(["data", "chat", talks, "--num", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["conversations"], found["num_skipped"], found["shown"]) == (3, 2, [])
    assert "tokens" not in found
    assert len(found["content_hash"]) == 64


def test_a_run_gives_its_tokenizer_and_row_length(talks, make_tiny_run, capsys) -> None:
    tiny = make_tiny_run(context=32)
    assert run(["data", "chat", talks, "--run", tiny.name]) == 0
    assert "rows of 32 tokens" in capsys.readouterr().out


def test_on_a_terminal_loss_is_green_and_underlined(talks, tokenizer_file, capsys, monkeypatch) -> None:
    import sys

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    real = rich_console.Console

    def terminal(**arguments):
        return real(**arguments, force_terminal=True, color_system="standard", width=200, file=sys.stdout)

    monkeypatch.setattr(rich_console, "Console", terminal)
    assert run(["data", "chat", talks, "--tokenizer", tokenizer_file, "--num", "2"]) == 0
    said = capsys.readouterr().out
    assert "\x1b[4;32myo\x1b[0m" in said
    assert "\x1b[1;4;32m<|assistant_end|>\x1b[0m" in said
    assert "\x1b[1;2m<|user_end|>\x1b[0m" in said
    assert "\x1b[2mhi\x1b[0m" in said


def test_text_that_a_terminal_would_obey_is_shown(tmp_path, capsys) -> None:
    row = [{"role": "user", "content": "\x1b[31m\x07[bold]x"}, {"role": "assistant", "content": "\x9b2J"}]
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert run(["data", "chat", "a.jsonl"]) == 0
    said = capsys.readouterr().out
    assert "\\x1b[31m\\x07[bold]x" in said
    assert "[\\xc2\\x9b2J]" in said
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nothing"], 2, "nothing: no conversations of that name"),
        (["empty.jsonl", "--tokenizer", "tokenizer.json"], 3, "empty.jsonl has no conversation"),
        (["talks.jsonl", "--num", "-1"], 2, "--num -1"),
        (["talks.jsonl", "--max-seq-len", "8"], 2, "--max-seq-len needs --tokenizer"),
        (["talks.jsonl", "--ids"], 2, "--ids needs --tokenizer"),
        (["talks.jsonl", "--tokenizer", "tokenizer.json", "--max-seq-len", "0"], 2, "--max-seq-len 0"),
        (["talks.jsonl", "--tokenizer", "tokenizer.json", "--run", "x"], 2, "both name a tokenizer"),
        (["talks.jsonl", "--tokenizer", "none.json"], 3, "none.json"),
        (["talks.jsonl", "--run", "none"], 2, "none"),
        (["text.jsonl"], 3, "text.jsonl: none of its first 1 rows gives a conversation"),
    ],
)
def test_mistakes(arguments, code, words, talks, tokenizer_file, tmp_path, capsys) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "text.jsonl").write_text('{"text": "x"}\n')
    assert run(["data", "chat", *arguments]) == code
    printed = capsys.readouterr()
    assert words in printed.err
    assert "Traceback" not in printed.err
