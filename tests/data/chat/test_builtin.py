"""builtin-chat as a whole: the invariants over every conversation, the cache, and the same bytes in every process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from firstlight.data.chat import builtin
from firstlight.data.chat.builtin import open_builtin_chat
from firstlight.data.sources import builtin as builtin_corpus
from firstlight.errors import DataError
from firstlight.infer.calculator import Calculator
from firstlight.runtime import environment

SMALL = ("jinja2", "rich", "mpmath")
KINDS = ["arithmetic", "choice", "counting", "docs", "spelling"]
SPLITS = ("train", "val", "test")
SIZES = {
    "NUM_TRAIN": {"spelling": 200, "counting": 200, "arithmetic": 200},
    "NUM_HELD_OUT": {"val": 20, "test": 40},
    "OPEN_LIMITS": {"does": 60, "returns": 60, "param": 60, "raises": 20, "when": 20},
    "CLOSED_LIMITS": {"does": 60, "returns": 20, "param": 20, "raises": 20, "when": 20},
    "NUM_SEVERAL_TURNS": 60,
    "NUM_TALK": 60,
    "CHOICE_LIMITS": {"raises": 40, "name": 40, "does": 40, "word": 40},
    "MIN_ENTRIES": 100,
}
"""A set of this size is made in about a second, by the same code."""

REAL = [(builtin, name, getattr(builtin, name)) for name in SIZES] + [
    (builtin_corpus, "find_packages", builtin_corpus.find_packages),
    (environment, "num_usable_cpus", environment.num_usable_cpus),
]
"""What `patched` changes for all tests of this file, as it was."""


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as patch:
        found = builtin_corpus.find_packages(builtin_corpus._versions())
        patch.setattr(builtin_corpus, "find_packages", lambda versions: [p for p in found if p.name in SMALL])
        patch.setattr(environment, "num_usable_cpus", lambda: 1)
        for name, value in SIZES.items():
            patch.setattr(builtin, name, value)
        yield patch


@pytest.fixture(scope="module")
def small(patched, tmp_path_factory):
    """The set of three small packages: the same code in about a second."""
    return open_builtin_chat(cache_dir=tmp_path_factory.mktemp("cache"))


def check_conversation(messages):
    """Roles in turns, texts without special tokens, calls that give what they printed."""
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    assert turns == ["user", "assistant"] * (len(turns) // 2)
    assert turns
    for message in messages:
        kinds = [part.kind for part in message.parts]
        assert kinds == (["python", "output", "text"] if "python" in kinds else ["text"])
        for part in message.parts:
            assert part.text.strip()
            assert not re.search(r"<\|\w+\|>", part.text)
        if "python" in kinds:
            assert message.role == "assistant"
            code, output, text = (part.text for part in message.parts)
            assert re.fullmatch(r'\d+[-+*]\d+|\("[a-z]+"\)\.count\("[a-z]"\)', code)
            assert output == str(eval(code))  # only digits and one sign, or letters to count
            assert text == f"#### {output}"


def asked_fact(messages, kind):
    """What a question is about, told from its words alone."""
    text = next(message.text for message in messages if message.role == "user")
    if kind == "arithmetic":
        return ("pair", *sorted(map(int, re.findall(r"\d+", text))))
    if kind in ("spelling", "counting"):
        return ("word", max(re.findall(r'"([a-z]+)"', text), key=len))
    if kind == "choice" and "spelled" in text:
        return ("word", re.search(r"spelled ([a-z -]+)\?", text)[1].replace(" - ", ""))
    if found := re.search(r"`([^`]+)` in (\S+?)[ :?]", text):
        return ("doc", found[1], found[2].rstrip(":?"))
    return None


def check_whole(chat, *, num_test):
    """The invariants of a set."""
    facts = {split: set() for split in SPLITS}
    prompts = {split: set() for split in SPLITS}
    for split in SPLITS:
        conversations = chat.conversations(split)
        assert len({where for where, _ in conversations}) == len(conversations)
        for (_, messages), example in zip(conversations, chat.examples(split), strict=True):
            check_conversation(messages)
            facts[split].add(asked_fact(messages, example.kind))
            prompts[split].add(messages[:-1])
            if example.kind == "spelling":
                word = asked_fact(messages, "spelling")[1]
                assert messages[-1].text == " - ".join(word)
            if example.kind == "choice":
                shown = dict(re.findall(r"^([A-Z])\. (.*)$", messages[-2].text, re.MULTILINE))
                assert len(set(shown.values())) == len(shown) == 4
                assert messages[-1].text in shown
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not (facts[a] & facts[b]) - {None}
        assert not prompts[a] & prompts[b]
    questions = chat.questions("test")
    assert len(questions) == num_test
    for question in questions:
        assert question.messages[-1].role == "user"
    for question, (_, messages) in zip(questions, chat.conversations("test"), strict=True):
        assert question.messages == messages[:-1]
        assert question.is_right(messages[-1].text)
        assert question.has_format(messages[-1].text)
        assert not question.is_right("")
        assert not question.has_format("")
        assert not question.is_right("I do not know.")
    assert all(question.answer for question in chat.questions("train"))


def test_the_invariants_of_a_small_set(small):
    check_whole(small, num_test=200)
    assert set(small.manifest["counts"]["train"]) == {*KINDS, "talk"}
    assert small.manifest["left_out"] == {}


def test_the_first_questions_are_balanced(small):
    for split, number in (("val", 20), ("test", 40)):
        kinds = [question.kind for question in small.questions(split)]
        assert Counter(kinds) == dict.fromkeys(KINDS, number)
        for start in range(0, len(kinds), 5):
            assert sorted(kinds[start : start + 5]) == KINDS
    assert len({tuple(question.kind for question in small.questions("test")[i : i + 5]) for i in range(0, 200, 5)}) > 5
    tasks = Counter(example.task for example in small.examples("test") if example.kind in ("docs", "choice"))
    assert len(tasks) == 9


def test_it_is_made_once_and_read_again(small, patched, monkeypatch):
    monkeypatch.setattr(builtin, "_build", None)
    again = open_builtin_chat(cache_dir=small.folder.parent)
    assert again.content_hash == small.content_hash
    assert again.conversations("val") == small.conversations("val")
    assert not list(small.folder.parent.glob(".builtin*"))


def test_a_damaged_cache_is_made_again_with_a_word(small, patched, tmp_path, monkeypatch):
    # Reading again gives the same; that is another test.
    found = [p for p in builtin_corpus.find_packages({}) if p.name == "mpmath"]
    saved = builtin.read_all([(p.name, f.relative_to(p.root).as_posix(), str(f)) for p in found for f in p.files], None)
    monkeypatch.setattr(builtin, "read_installed", lambda versions, progress: saved)
    first = open_builtin_chat(cache_dir=tmp_path)
    path = first.folder / "train.jsonl"
    whole = path.read_bytes()
    said = []
    for damage in (whole[: len(whole) // 2], whole.replace(b"a", b"e", 1), None):
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage)
        said.clear()
        again = open_builtin_chat(cache_dir=tmp_path, progress=lambda *each: said.append(each[0]))
        assert path.read_bytes() == whole
        assert again.content_hash == first.content_hash
        assert any("is damaged; making builtin-chat again" in each for each in said)
    assert not list(tmp_path.glob(".builtin*"))


def test_too_little_documentation_is_an_error_with_a_way_out(patched, tmp_path, monkeypatch):
    monkeypatch.setattr(builtin_corpus, "find_packages", lambda versions: [])
    with pytest.raises(DataError, match="found only 0 documented functions"):
        open_builtin_chat(cache_dir=tmp_path)
    assert not list(tmp_path.glob("**/*.jsonl"))


def test_a_cache_that_cannot_be_written_is_an_error_that_names_it(patched, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot be written to .*file/cache"):
        open_builtin_chat(cache_dir=tmp_path / "file" / "cache")


PROGRAM = """
import json, sys
from pathlib import Path
from firstlight.data.chat import builtin
from firstlight.data.sources import builtin as corpus
found = corpus.find_packages(corpus._versions())
corpus.find_packages = lambda versions: [p for p in found if p.name in ("rich", "jinja2", "mpmath")]
for name, value in json.loads(sys.argv[2]).items():
    setattr(builtin, name, value)
print(builtin.open_builtin_chat(cache_dir=Path(sys.argv[1])).content_hash)
"""


def test_another_process_with_another_hash_seed_and_a_helper_makes_the_same_bytes(small, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), json.dumps(SIZES)],
        env=os.environ | {"PYTHONHASHSEED": "77"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == small.content_hash, done.stderr


def test_the_files_are_conversations_that_the_general_reader_takes(small):
    lines = (small.folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
    for line, (_, messages) in zip(lines, small.conversations("test"), strict=True):
        stored = json.loads(line)["messages"]
        assert [each["role"] for each in stored] == [message.role for message in messages]


def test_the_calculator_of_the_chat_prints_what_the_conversations_say(small):
    parts = [m[-1].parts for _, m in small.conversations("test") if m[-1].parts[0].kind == "python"]
    assert len(parts) == 80
    with Calculator() as calculator:
        for code, output, _ in parts[:30]:
            assert calculator.run(code.text) == output.text


@pytest.mark.slow
def test_the_invariants_of_the_whole_set(tmp_path, monkeypatch):
    for module, name, value in REAL:
        monkeypatch.setattr(module, name, value)
    chat = open_builtin_chat(cache_dir=tmp_path)
    check_whole(chat, num_test=1_000)
    assert 15_000 <= len(chat.conversations("train")) <= 31_000
    assert len(chat.conversations("val")) == 500
    kinds = Counter(question.kind for question in chat.questions("test")[:200])
    assert kinds == dict.fromkeys(KINDS, 40)
    letters = Counter(example.answer for example in chat.examples("train") if example.kind == "choice")
    # 4,894 answers; three standard deviations of a fair draw are 91, and they are dealt evenly.
    assert max(letters.values()) - min(letters.values()) < 60
