"""Questions about functions and classes, answered with sentences of their documentation.

Without the documentation in the prompt (closed book) an answer can only be remembered, so such questions are for training
alone. With it (open book) the prompt decides the answer, and a model can answer for functions it has never met:

    user: Documentation of `Mailbox.unlock` in mailbox:
          Unlock the mailbox if it is locked.

          What does `Mailbox.unlock` do?
    assistant: Unlock the mailbox if it is locked.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from firstlight.data.chat.builtin_example import Example, Split, ask, split_of
from firstlight.data.chat.builtin_reading import Entry
from firstlight.tokens.conversation import Message

MAX_NAME_CHARS = 40
MAX_PER_PACKAGE = 3_000
"""So that one large package (sympy) does not become the subject of most questions."""
MAX_OPEN_ANSWER_CHARS = 90
MAX_EXCERPT_CHARS = 420
SYSTEM_FRAC = 0.1
SYSTEMS = (
    "You are a helpful assistant.",
    "You answer questions about Python in one sentence.",
    "Answer briefly and only with what the documentation says.",
    "You are firstlight, a small language model that knows some Python.",
)

DOES = ("What does {it} do?", "What does {it} do?", "Tell me what {it} does.")
IS = ("What is {it}?", "What is {it}?", "Tell me what {it} is.")
RETURNS = ("What does {it} return?", "What does {it} return?", "What do I get back from {it}?")
PARAM = ("What is the parameter `{name}` of {it}?", "What is `{name}` in {it}?", "What does {it} take as `{name}`?")
RAISES = ("Which exception does {it} raise?", "Which exception can {it} raise?", "What can {it} raise?")
WHEN = ("When does {it} raise {name}?", "Why would {it} raise {name}?")
MORE = {
    "returns": ("What does it return?", "And what does it return?"),
    "param": ("What is `{name}`?", "And the parameter `{name}`?"),
    "raises": ("Which exception does it raise?", "And what can it raise?"),
    "when": ("When does it raise {name}?", "When does that happen?"),
}


@dataclass(frozen=True)
class Asked:
    """One question about an entry. name: of the parameter or the exception, where it is about one."""

    task: str
    wordings: tuple[str, ...]
    answer: str
    name: str = ""


def usable(entries: list[Entry]) -> list[Entry]:
    """Entries that can be asked about: one for each name in a module, and one for each first sentence.

    Two functions with one sentence are often one function in two places; held-out answers must not be in training.
    """
    names = Counter((entry.module, entry.name) for entry in entries)
    kept: list[Entry] = []
    seen: set[str] = set()
    of_package: Counter[str] = Counter()
    for entry in sorted(entries, key=lambda each: mixed_place(each.module, each.name)):
        package = entry.module.split(".")[0]
        if names[entry.module, entry.name] > 1 or len(entry.name) > MAX_NAME_CHARS or entry.facts.does.lower() in seen:
            continue
        if not entry.facts.does or of_package[package] == MAX_PER_PACKAGE:
            continue
        seen.add(entry.facts.does.lower())
        of_package[package] += 1
        kept.append(entry)
    return kept


def mixed_place(module: str, name: str) -> bytes:
    """A place in a fixed mixed order, so that a cut of the list does not take the first letters of a package."""
    return hashlib.sha256(f"{module} {name}".encode()).digest()


def entry_name(entry: Entry) -> str:
    """Name of the fact that an entry is: all that is known of it goes into one split."""
    return f"doc {entry.module} {entry.name}"


def of_split(entries: list[Entry], split: Split) -> list[Entry]:
    """Those entries that belong to a split."""
    return [entry for entry in entries if split_of(entry_name(entry)) == split]


def subject(entry: Entry) -> str:
    """An entry as a question names it."""
    return f"`{entry.name}` in {entry.module}"


def questions_about(entry: Entry) -> list[Asked]:
    """All that can be asked about an entry."""
    facts = entry.facts
    found = [Asked("does", IS if entry.is_class else DOES, facts.does)]
    if facts.returns:
        found.append(Asked("returns", RETURNS, facts.returns))
    found += [Asked("param", PARAM, text, name) for name, text in facts.params]
    if len({name for name, _ in facts.raises}) == 1:
        name, when = facts.raises[0]
        found.append(Asked("raises", RAISES, f"It raises {name}.", name))
        if when and len(facts.raises) == 1:
            found.append(Asked("when", WHEN, when, name))
    return found


def excerpt(entry: Entry, asked: Asked) -> str:
    """The documentation as it is put in a prompt: always in this order, with at most one parameter beside the asked one."""
    facts = entry.facts
    lines = [f"Documentation of {subject(entry)}:", facts.does]
    others = [name for name, _ in facts.params if name != asked.name][:1]
    for name, text in facts.params:
        if name in others or (asked.task == "param" and name == asked.name):
            lines.append(f"`{name}`: {text}")
    if facts.returns:
        lines.append(f"Returns: {facts.returns}")
    for name, when in facts.raises[:2]:
        lines.append(f"Raises {name}: {when}" if when else f"Raises {name}.")
    return "\n".join(lines)


def open_book(entries: list[Entry], split: Split, limits: dict[str, int]) -> list[Example]:
    """Questions with the documentation in the prompt; at most ``limits[task]`` of a task."""
    rng = random.Random(f"builtin-chat docs open {split}")

    def make(entry: Entry, asked: Asked) -> Example | None:
        text = excerpt(entry, asked)
        if len(asked.answer) > MAX_OPEN_ANSWER_CHARS or len(text) > MAX_EXCERPT_CHARS:
            return None
        question = rng.choice(asked.wordings).format(it=f"`{entry.name}`", name=asked.name)
        messages = ask(f"{text}\n\n{question}", asked.answer)
        return Example("docs", f"{asked.task} open", messages, asked.answer, (entry_name(entry),))

    return list(_limited(_mixed(of_split(entries, split), rng), limits, make))


def closed_book(entries: list[Entry], limits: dict[str, int]) -> list[Example]:
    """Single questions without the documentation, for training."""
    rng = random.Random("builtin-chat docs closed")

    def make(entry: Entry, asked: Asked) -> Example:
        question = rng.choice(asked.wordings).format(it=subject(entry), name=asked.name)
        messages = ask(question, asked.answer, system=_system(rng))
        return Example("docs", f"{asked.task} closed", messages, None, (entry_name(entry),))

    return list(_limited(_mixed(of_split(entries, "train"), rng), limits, make))


def several_turns(entries: list[Entry], count: int) -> list[Example]:
    """Conversations of two or three questions about one function, for training."""
    rng = random.Random("builtin-chat docs turns")
    found: list[Example] = []
    for entry in rng.sample(pool := of_split(entries, "train"), len(pool)):
        first, *rest = questions_about(entry)
        if not rest or len(found) == count:
            continue
        rest = _one_parameter(rest, rng)[:2]
        messages = [*ask(rng.choice(first.wordings).format(it=subject(entry)), first.answer, system=_system(rng))]
        for asked in rest:
            wordings = MORE[asked.task]
            follows = asked.task == "when" and rest[0].task == "raises"
            user = wordings[1] if follows else wordings[0] if asked.task == "when" else rng.choice(wordings)
            messages += ask(user.format(name=asked.name), asked.answer)
        found.append(Example("docs", "turns", tuple(messages), None, (entry_name(entry),)))
    return found


def _one_parameter(rest: list[Asked], rng: random.Random) -> list[Asked]:
    params = [asked for asked in rest if asked.task == "param"]
    chosen = [rng.choice(params)] if params else []
    return [*chosen, *(asked for asked in rest if asked.task != "param")]


def _mixed(entries: list[Entry], rng: random.Random) -> Iterator[tuple[Entry, Asked]]:
    """All questions about all entries, in a mixed order."""
    pairs = [(entry, asked) for entry in entries for asked in questions_about(entry)]
    rng.shuffle(pairs)
    yield from pairs


def _limited(
    pairs: Iterator[tuple[Entry, Asked]], limits: dict[str, int], make: Callable[[Entry, Asked], Example | None]
) -> Iterator[Example]:
    made: Counter[str] = Counter()
    for entry, asked in pairs:
        if made[asked.task] < limits.get(asked.task, 0) and (example := make(entry, asked)) is not None:
            made[asked.task] += 1
            yield example


def _system(rng: random.Random) -> str:
    return rng.choice(SYSTEMS) if rng.random() < SYSTEM_FRAC else ""


def turns(*texts: str) -> tuple[Message, ...]:
    """Messages of user and assistant in turn."""
    return tuple(Message.of("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))
