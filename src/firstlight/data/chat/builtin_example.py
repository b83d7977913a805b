"""One conversation of `builtin-chat` as it is made and stored, and the rule that puts its facts into a split."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from firstlight.data.chat.builtin_answers import Kind
from firstlight.tokens.conversation import Message, Part, parse_messages

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
VAL_PERCENT = 6
TEST_PERCENT = 12


@dataclass(frozen=True)
class Example:
    """kind: of the question, or "talk" for a conversation that asks nothing. task: the finer kind, for counts.

    answer: what a right reply to the last user's turn gives, or None where the prompt does not decide it.
    facts: names of what is asked, such as ``("word strawberry",)``. No fact is in two splits.
    """

    kind: Kind | Literal["talk"]
    task: str
    messages: tuple[Message, ...]
    answer: str | None
    facts: tuple[str, ...]

    def to_line(self) -> str:
        """One line of JSON: the conversation in the general form, and what is known about it."""
        messages = [{"role": message.role, "content": _content(message)} for message in self.messages]
        value = {"messages": messages, "kind": self.kind, "task": self.task, "answer": self.answer, "facts": self.facts}
        return json.dumps(value, ensure_ascii=False)


def parse_line(line: str, *, where: str) -> Example:
    """The example that `Example.to_line` wrote."""
    value = json.loads(line)
    messages = parse_messages(value["messages"], where=where)
    return Example(value["kind"], value["task"], messages, value["answer"], tuple(value["facts"]))


def _content(message: Message) -> str | list[dict[str, str]]:
    if len(message.parts) == 1 and message.parts[0].kind == "text":
        return message.parts[0].text
    return [{"type": part.kind, "text": part.text} for part in message.parts]


def ask(user: str, reply: str, *, system: str = "") -> tuple[Message, ...]:
    """A question and its answer, both of text alone; a system message in front where there is one."""
    front = (Message.of("system", system),) if system else ()
    return (*front, Message.of("user", user), Message.of("assistant", reply))


def ask_with_tool(user: str, code: str, output: str, reply: str) -> tuple[Message, ...]:
    """A question that the assistant answers with one call of the Python tool."""
    parts = (Part("python", code), Part("output", output), Part("text", reply))
    return (Message.of("user", user), Message("assistant", parts))


def split_of(fact: str) -> Split:
    """The split to which a fact belongs: a function of its name alone, the same in every version and process."""
    place = int.from_bytes(hashlib.sha256(fact.encode()).digest()[:4], "big") % 100
    return "test" if place < TEST_PERCENT else "val" if place < TEST_PERCENT + VAL_PERCENT else "train"
