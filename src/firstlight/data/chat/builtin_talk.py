"""Greetings, thanks and who-are-you: small talk, so that a chat does not fail at "Hello". For training only."""

from __future__ import annotations

import itertools
import random

from firstlight.data.chat.builtin_docs import SYSTEMS, entry_name, of_split, subject, turns
from firstlight.data.chat.builtin_example import Example
from firstlight.data.chat.builtin_reading import Entry
from firstlight.tokens.conversation import Message

WHO = "I am a small language model trained by firstlight."
CAN = "I can say what some Python functions do, spell words, count letters and calculate."
HELLO = ("Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hey", "Good morning", "Good morning!", "Good evening", "Good day")
HELLO_REPLY = "Hello! What would you like to know?"
ASKED: tuple[tuple[tuple[str, ...], str], ...] = (
    (HELLO, HELLO_REPLY),
    (("Who are you?", "What are you?", "Tell me about yourself.", "Introduce yourself.", "What is your name?"), WHO),
    (("Who made you?", "Who trained you?", "Where do you come from?"), WHO),
    (("What can you do?", "What can I ask you?", "How can you help me?", "What do you know?", "Help"), CAN),
    (("Are you a person?", "Are you human?", "Are you alive?"), f"No. {WHO}"),
    (
        ("Are you always right?", "Can I trust you?", "Do you make mistakes?"),
        "I am small and often wrong. Please check what I say.",
    ),
    (("How are you?", "How are you today?", "How do you do?"), "I am well, thank you. What would you like to know?"),
    (("What did you learn from?", "What were you trained on?"), "I was trained on the documentation of Python and its packages."),
)  # fmt: skip
THANKS = (("Thanks", "Thanks!", "Thank you", "Thank you!", "Thank you very much."), "You are welcome.")
BYE = (("Bye", "Bye!", "Goodbye", "Goodbye!", "See you later."), "Goodbye!")


def talk(entries: list[Entry], count: int) -> list[Example]:
    """Up to ``count`` conversations: each single exchange, exchanges in pairs, and greetings around a question."""
    rng = random.Random("builtin-chat talk")
    found: list[tuple[Message, ...]] = []
    single = [(user, reply) for users, reply in (*ASKED, THANKS, BYE) for user in users]
    found += [turns(*pair) for pair in single]
    found += [
        (Message.of("system", system), *turns(user, reply))
        for (user, reply), system in itertools.product(single, SYSTEMS[:1])
    ]
    questions = [pair for users, reply in ASKED[1:] for pair in ((user, reply) for user in users)]
    for hello, (user, reply) in itertools.product(HELLO, questions):
        found.append(turns(hello, HELLO_REPLY, user, reply))
    asked = [entry for entry in of_split(entries, "train") if len(entry.facts.does) <= 90]
    chosen = rng.sample(asked, min(len(asked), count // 2))
    with_facts: list[Example] = []
    for i, entry in enumerate(chosen):
        question = (
            f"What {'is' if entry.is_class else 'does'} {subject(entry)}{'' if entry.is_class else ' do'}?",
            entry.facts.does,
        )
        users, reply = BYE if i % 3 == 2 else THANKS
        parts = [rng.choice(HELLO), HELLO_REPLY, *question] if i % 3 == 0 else [*question, rng.choice(users), reply]
        with_facts.append(Example("talk", "talk", turns(*parts), None, (entry_name(entry),)))
    rng.shuffle(found)
    plain = [Example("talk", "talk", messages, None, ()) for messages in found[: count - len(with_facts)]]
    return [*plain, *with_facts]
