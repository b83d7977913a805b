"""From a name to conversations: ``builtin-chat``, a file or directory, or a data set on a Hugging Face hub."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from firstlight.data.chat.counts import ConversationCounts
from firstlight.data.chat.reading import (
    KINDS_IN_WORDS,
    check_file,
    check_whole,
    read_conversations,
    suffix_of,
    text_bytes,
)
from firstlight.data.sources.base import Progress, Source, SourceShard, natural_key
from firstlight.data.sources.directory import _some, _walk
from firstlight.data.sources.hub import HUB_FORM, HubData, HubFetch, open_hub, parse_hub_name
from firstlight.data.store import hash_file
from firstlight.errors import ConfigError, DataError
from firstlight.tokens.conversation import Message

if TYPE_CHECKING:
    from firstlight.data.chat.builtin import BuiltinChat

BUILTIN_CHAT = "builtin-chat"

# What nanochat's SFT reads (its scripts/chat_sft.py): smoltalk is for models that can use all of it, smol-smoltalk is its
# part for small ones. Files that are called test are left out.
CHAT_PRESETS = {
    "smoltalk": HubData("smoltalk", "HuggingFaceTB/smoltalk", folder="data/all"),
    "smol-smoltalk": HubData("smol-smoltalk", "HuggingFaceTB/smol-smoltalk", folder="data"),
}


class ConversationSource(Protocol):
    """Conversations in one fixed order.

    splits: names of the sides that the source itself has (``train`` and ``val``), or none: then they are made by the hash
    of each conversation. names: files that it reads, in order. content_hash: SHA-256 (hex) of the bytes behind them,
    whatever they are called; it is worked out when it is first asked for.
    """

    @property
    def name(self) -> str: ...
    @property
    def splits(self) -> tuple[str, ...]: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def content_hash(self) -> str: ...

    def read(self, counts: ConversationCounts, split: str | None = None) -> Iterator[tuple[str, tuple[Message, ...]]]:
        """("file:row", messages) of one of the ``splits``, or of all; counts them and what is skipped."""
        ...


@dataclass(frozen=True)
class FileConversations:
    """Conversations in files, here or on a hub. See `ConversationSource`."""

    source: Source
    progress: Progress | None = None

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "val") if self.source.val_shard is not None else ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(shard.name for shard in self.source.shards)

    @cached_property
    def content_hash(self) -> str:
        digest = hashlib.sha256(b"firstlight-conversations")
        for shard in self.source.shards:
            path = self.source.local_path(shard, self.progress)
            digest.update(bytes.fromhex(shard.sha256 or hash_file(path)) + bytes([shard.name == self.source.val_shard]))
        return digest.hexdigest()

    def read(self, counts: ConversationCounts, split: str | None = None) -> Iterator[tuple[str, tuple[Message, ...]]]:
        for shard in self.source.shards:
            if split is None or (split == "val") == (shard.name == self.source.val_shard):
                yield from read_conversations(self.source.local_path(shard, self.progress), counts, name=shard.name)


@dataclass(frozen=True)
class BuiltinConversations:
    """``builtin-chat``. Its test side is not given out here: it is for evaluation. See `ConversationSource`."""

    builtin: BuiltinChat

    name = BUILTIN_CHAT
    splits = ("train", "val")
    names = (BUILTIN_CHAT,)

    @property
    def content_hash(self) -> str:
        return self.builtin.content_hash

    def read(self, counts: ConversationCounts, split: str | None = None) -> Iterator[tuple[str, tuple[Message, ...]]]:
        sides: tuple[Literal["train", "val"], ...] = ("train", "val")
        for side in sides:
            if split is not None and side != split:
                continue
            for where, messages in self.builtin.conversations(side):
                counts.conversations += 1
                counts.messages += len(messages)
                counts.text_bytes += text_bytes(messages)
                counts.add_form(f"{BUILTIN_CHAT}/{side}", "messages")
                yield where, messages


def open_conversations(
    name: str, *, cache_dir: Path, progress: Progress | None = None, endpoint: str | None = None
) -> FileConversations | BuiltinConversations:
    """Conversations of ``builtin-chat``, a file or directory, ``smoltalk[:N]``, ``smol-smoltalk[:N]`` or ``hf:owner/name``.

    cache_dir: folder for what is made or downloaded. endpoint: a hub's address, for tests; the usual one where None.
    Known names win over a file of the same name; write ``./smoltalk`` for the file.
    Raises ConfigError for a name that is none of these, DataError where there is nothing to read.
    """
    if name == BUILTIN_CHAT:
        from firstlight.data.chat.builtin import open_builtin_chat

        return BuiltinConversations(open_builtin_chat(cache_dir=cache_dir, progress=progress))
    if (hub := _hub_data(name)) is not None:
        return FileConversations(_conversation_files(open_hub(hub, cache_dir=cache_dir, endpoint=endpoint)), progress)
    path = Path(name).expanduser()
    if name and path.exists():
        return FileConversations(_open_path(path, name), progress)
    known = [BUILTIN_CHAT, *CHAT_PRESETS]
    close = difflib.get_close_matches(name.lower().partition(":")[0], known, n=1, cutoff=0.6)
    if not close and name and path.parent.is_dir():
        beside = {each.name: str(path.with_name(each.name)) for each in path.parent.iterdir()}
        close = [beside[each] for each in difflib.get_close_matches(path.name, beside, n=1, cutoff=0.6)]
    did_you_mean = f"did you mean {close[0]}? " if close else ""
    raise ConfigError(
        f"{name or '(empty)'}: no conversations of that name are known, and no such file or directory exists",
        hint=f"{did_you_mean}It is one of {', '.join(known)}, a file or directory ({KINDS_IN_WORDS}), or {HUB_FORM}",
    )


def _hub_data(name: str) -> HubData | None:
    if name.startswith("hf:"):
        return parse_hub_name(name)
    preset_name, colon, num_shards = name.partition(":")
    preset = CHAT_PRESETS.get(preset_name)
    if preset is None:
        return None
    if not colon:
        return preset
    if not num_shards.isdecimal() or int(num_shards) < 1:
        raise ConfigError(f"{name}: {num_shards!r} is no number of shards", hint="it is a whole number from 1 up")
    return replace(preset, name=name, num_shards=int(num_shards))


def _conversation_files(source: Source) -> Source:
    """The source without files of other kinds (.txt), and whose files are checked as those of conversations."""
    kept = tuple(_checked(shard) for shard in source.shards if suffix_of(shard.name))
    left_out = tuple(shard.name for shard in source.shards if not suffix_of(shard.name))
    if not kept:
        raise DataError(
            f"{source.name} has no conversations to read; it holds {_some(list(left_out))}",
            hint=f"read are {KINDS_IN_WORDS}",
        )
    val_shard = source.val_shard if source.val_shard not in left_out else None
    return replace(source, shards=kept, val_shard=val_shard, ignored=(*source.ignored, *left_out))


def _checked(shard: SourceShard) -> SourceShard:
    assert isinstance(shard.fetch, HubFetch)
    return replace(shard, fetch=replace(shard.fetch, remote=replace(shard.fetch.remote, check=check_whole)))


def _open_path(path: Path, name: str) -> Source:
    if path.is_file():
        if suffix_of(path.name) is None:
            hint = f"conversations are in {KINDS_IN_WORDS}"
            if path.suffix.lower() == ".json":
                hint += f"; a list of them becomes one a line by: jq -c '.[]' {path.name} > {path.stem}.jsonl"
            raise DataError(f"{path} is not a kind of file that can be read", hint=hint)
        found, ignored = {path.name: path}, []
    else:
        readable, ignored = _walk(path)
        found = {each: file for each, file in readable.items() if suffix_of(each)}
        ignored += [each for each in readable if each not in found]
    if not found:
        beside = f"; it holds {_some(ignored)}" if ignored else ", and it is empty"
        raise DataError(f"{path} has no conversations to read{beside}", hint=f"what is looked for is {KINDS_IN_WORDS}")
    names = sorted(found, key=natural_key)
    for each in names:
        check_file(found[each], each)
    shards = tuple(SourceShard(each, found[each], found[each].stat().st_size) for each in names)
    return Source(name, shards, ignored=tuple(sorted(ignored, key=natural_key)))
