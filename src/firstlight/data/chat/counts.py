"""What was read from conversations, what was skipped and why, and what was mended on the way."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

EXAMPLES_OF_A_REASON = 3

SKIP_REASONS = {
    "invalid_json": "lines that are not JSON",
    "invalid_utf8": "lines that are not UTF-8, or texts with half of a surrogate pair",
    "no_conversation": "rows without a conversation in a known form",
    "no_message": "conversations without a message",
    "bad_message": "a message that is not an object with a role and a content",
    "wrong_role": "a role that is not known",
    "not_text": "a content that is not a text (or a list of known parts)",
    "empty_user": "a user's message without a text",
    "empty_assistant": "an assistant's message without a text or a call",
    "tool_of_user": "a user's or system's message with a tool's part",
    "late_system": "a system message that is not the first",
    "no_answer": "no answer of the assistant to a user's message",
}

CHANGES = {
    "joined": "messages of one role in a row, joined with an empty line",
    "leading_assistant": "messages of the assistant before the user's first, dropped",
    "trailing_user": "last messages of the user without an answer, dropped",
    "empty_system": "empty system messages, dropped",
}


@dataclass
class ConversationCounts:
    """One value may count many files.

    conversations, messages, text_bytes: what was given out; bytes of UTF-8 in all parts.
    skipped: rows that gave no conversation, by reason (`SKIP_REASONS`). changed: messages that were mended, by kind
    (`CHANGES`). forms: conversations by file and by the form in which it has them. examples: the first few skipped rows of
    each reason, ``"file:row why"``.
    """

    conversations: int = 0
    messages: int = 0
    text_bytes: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    forms: dict[str, dict[str, int]] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def num_skipped(self) -> int:
        return sum(self.skipped.values())

    def skip(self, reason: str, where: str, why: str) -> None:
        """Count one skipped row. reason: one of SKIP_REASONS. where: ``"file:row"``."""
        assert reason in SKIP_REASONS, reason
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        kept = self.examples.setdefault(reason, [])
        if len(kept) < EXAMPLES_OF_A_REASON:
            kept.append(f"{where} {why}")

    def change(self, changes: dict[str, int]) -> None:
        """Count messages that were mended, by kind (one of CHANGES)."""
        for kind, count in changes.items():
            assert kind in CHANGES, kind
            self.changed[kind] = self.changed.get(kind, 0) + count

    def add_form(self, file: str, form: str) -> None:
        """Count one conversation of a file by its form."""
        forms = self.forms.setdefault(file, {})
        forms[form] = forms.get(form, 0) + 1

    def describe(self) -> list[str]:
        """Lines for people about what was skipped and mended; none where all is well."""
        lines = []
        if self.skipped:
            lines.append(f"rows skipped: {self.num_skipped:,}")
            for reason, count in self.skipped.items():
                lines.append(f"  {count:,} {reason} ({SKIP_REASONS[reason]})")
                lines += [f"    {example}" for example in self.examples.get(reason, [])]
        lines += [f"{kind}: {count:,} ({CHANGES[kind]})" for kind, count in self.changed.items()]
        return lines

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
