"""One conversation with a model: what was said, what still fits the context, and answers as they come.

The terminal's chat is a view of this; nothing here prints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from firstlight.errors import ConfigError
from firstlight.infer.batch import BatchEngine, Request, Tool
from firstlight.infer.chat import PartStream, split_parts, stop_ids, trim_history
from firstlight.infer.sampling import check_sampling
from firstlight.infer.tools import PythonTool
from firstlight.model.gpt import GPT
from firstlight.tokens.bpe import Tokenizer
from firstlight.tokens.conversation import Message, Part, render_prompt


@dataclass
class Settings:
    """How answers are made: see `firstlight.infer.engine.generate`. Raises ConfigError for values without meaning."""

    temperature: float = 0.7
    top_k: int | None = 50
    top_p: float | None = None
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        check_sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens {self.max_new_tokens} is too small", hint="the smallest is 1")


@dataclass(frozen=True)
class Reply:
    """One answer. num_tokens: all its ids, the end token and the tool's output included.

    finish_reason: ``end``, ``length`` (as long as asked), ``context`` (no place left) or ``stopped`` (by the person).
    num_dropped_turns: oldest turns that the prompt was made without.
    """

    parts: tuple[Part, ...]
    num_tokens: int
    finish_reason: str
    num_dropped_turns: int
    num_prompt_tokens: int

    @property
    def text(self) -> str:
        """The answer without calls of the tool."""
        return "".join(part.text for part in self.parts if part.kind == "text")


FINISH_REASONS = {"stop_id": "end", "max_new_tokens": "length", "context_full": "context"}


class ChatSession:
    """A conversation. messages: user and assistant in turns, oldest first. system: text in front of the first turn, or "".

    run: runs the tool's code. The seed of an answer is made of the settings' seed and the number of answers asked for before
    it, so the same conversation has the same answers, and one that is asked for again has another.
    """

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, *, run: Callable[[str], str], settings: Settings, system: str = ""
    ) -> None:
        self.settings = settings
        self.system = system
        self.messages: list[Message] = []
        self._tokenizer = tokenizer
        self._run = run
        self._context = model.config.max_seq_len
        self._engine = BatchEngine(model, max_rows=1)
        self._stop_ids = stop_ids(tokenizer)
        self._num_asked = 0

    def ask(
        self,
        text: str,
        *,
        on_piece: Callable[[Part], None] = lambda piece: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Reply:
        """Answer a message and keep both. ``on_piece`` is told of the answer as it comes, never with half a character.

        should_stop: asked between tokens; an answer that is stopped is kept as far as it came, and where nothing had been
            said neither it nor the message is kept.
        Raises ConfigError for a message of blanks or one that does not fit the context alone; nothing is kept then.
        """
        if not text.strip():
            raise ConfigError("the message is empty", hint="write something")
        user = Message.of("user", text)
        front = [Message.of("system", self.system)] if self.system else []
        fitting, num_dropped = trim_history(
            [*front, *self.messages, user],
            self._tokenizer,
            context=self._context,
            max_new_tokens=self.settings.max_new_tokens,
        )
        prompt_ids = tuple(render_prompt(fitting, self._tokenizer))
        ids, reason = self._answer(prompt_ids, on_piece=on_piece, should_stop=should_stop)
        parts = split_parts(ids, self._tokenizer)
        if parts or reason != "stopped":
            self.messages += [user, Message("assistant", parts)]
        return Reply(parts, len(ids), reason, num_dropped, len(prompt_ids))

    def _answer(
        self, prompt_ids: tuple[int, ...], *, on_piece: Callable[[Part], None], should_stop: Callable[[], bool]
    ) -> tuple[list[int], str]:
        settings, stream = self.settings, PartStream(self._tokenizer)
        handle = self._engine.submit(
            Request(
                prompt_ids,
                settings.max_new_tokens,
                temperature=settings.temperature,
                top_k=settings.top_k,
                top_p=settings.top_p,
                seed=(settings.seed + 1_000_003 * self._num_asked) % 2**63,
                stop_ids=self._stop_ids,
                tool=self._new_tool,
            )
        )
        self._num_asked += 1
        ids: list[int] = []
        reason = ""
        try:
            while not reason:
                if should_stop():
                    reason = "stopped"
                    break
                for token in self._engine.step():
                    ids.append(token.id)
                    for piece in stream.push(token.id):
                        on_piece(piece)
                    if token.finish_reason is not None:
                        reason = FINISH_REASONS[token.finish_reason]
        finally:
            self._engine.cancel(handle)
        for piece in stream.flush():
            on_piece(piece)
        return ids, reason

    def _new_tool(self) -> Tool:
        return PythonTool(self._tokenizer, self._run)

    def undo(self) -> str | None:
        """Take the last message and its answer back; the message's text, or None where there is none."""
        if not self.messages:
            return None
        user = self.messages[-2]
        del self.messages[-2:]
        return user.text

    def reset(self) -> None:
        """Forget everything that was said; the system text stays."""
        self.messages.clear()

    def save(self, path: Path) -> None:
        """Write the conversation as one line of JSON, as training reads it (`firstlight.tokens.conversation`).

        Raises ConfigError where there is nothing to save, the file exists, or it cannot be written.
        """
        if not self.messages:
            raise ConfigError("there is nothing to save yet", hint="say something first")
        front = [Message.of("system", self.system)] if self.system else []
        line = json.dumps({"messages": to_json([*front, *self.messages])}, ensure_ascii=False)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(line + "\n")
        except FileExistsError:
            raise ConfigError(f"{path} exists", hint="give a name that is not taken") from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from None


def to_json(messages: Sequence[Message]) -> list[dict[str, object]]:
    """Messages as JSON values that `parse_messages` reads back.

    >>> to_json([Message.of("user", "hello")])
    [{'role': 'user', 'content': 'hello'}]
    """
    return [{"role": message.role, "content": _content(message.parts)} for message in messages]


def _content(parts: Sequence[Part]) -> str | list[dict[str, str]]:
    if all(part.kind == "text" for part in parts):
        return "".join(part.text for part in parts)
    return parts_to_json(parts)


def parts_to_json(parts: Sequence[Part]) -> list[dict[str, str]]:
    """Parts as JSON values."""
    names = {"output": "python_output"}
    return [{"type": names.get(part.kind, part.kind), "text": part.text} for part in parts]
