"""How processes that were started together find each other, also after some of them were started again.

torchrun keeps one key-value store for all attempts of a launch (torch 2.13: its agent makes the server once), so addresses
that a dead process has left there look like those of a living one, and whoever connects to them waits until the timeout. A
count of restarts does not tell attempts apart either: on several machines each agent counts its own. So the processes first
agree on a word that only the living ones know, and everything after that is kept in the store under that word:

    every rank   writes a fresh word of its own                           hello/RANK
    rank 0       reads all of them and offers a word for all              offer      {word, hellos}
    every rank   that finds its own hello in the offer answers            ack/RANK   word
    rank 0       once all have answered with that word                    go         word

Rank 0 also counts the meetings in that store, which is how many times the processes were started, whatever each agent thinks.

A hello that is left from before is replaced when its rank comes up, and rank 0 then offers anew; nobody goes before all that
are in the offer have answered it.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from firstlight.errors import TrainingStopped

POLL_S = 0.02


@dataclass(frozen=True)
class Meeting:
    """word: what all living processes share, and nothing that was in the store before knows. number: of this attempt, from 1."""

    word: str
    number: int


def meet(store: dist.Store, *, rank: int, world_size: int, timeout_s: float) -> Meeting:
    """Agree with the other ``world_size - 1`` living processes. Collective.

    Raises TrainingStopped, which names the ranks that did not come, after ``timeout_s``.
    """
    own = uuid.uuid4().hex
    store.set(_key("hello", rank), own)
    number = store.add(_key("meetings"), 1) if rank == 0 else 0
    offer: dict[str, Any] = {}
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if rank == 0:
            hellos = [_read(store, _key("hello", other)) for other in range(world_size)]
            if all(hellos) and offer.get("hellos") != json.dumps(hellos):
                offer = {"word": uuid.uuid4().hex, "hellos": json.dumps(hellos), "number": number}
                store.set(_key("offer"), json.dumps(offer))
        else:
            offer = json.loads(_read(store, _key("offer")) or "{}")
        if offer and json.loads(offer["hellos"])[rank] == own:
            word = offer["word"]
            store.set(_key("ack", rank), word)
            if rank == 0 and all(_read(store, _key("ack", other)) == word for other in range(world_size)):
                store.set(_key("go"), word)
            if _read(store, _key("go")) == word:
                return Meeting(word, offer["number"])
        time.sleep(POLL_S)
    acks = [_read(store, _key("ack", other)) for other in range(world_size)]
    missing = [str(other) for other, ack in enumerate(acks) if ack != offer.get("word") or not ack]
    raise TrainingStopped(
        f"rank {rank} of {world_size}: after {timeout_s:.0f} s not all processes have met; missing: rank "
        f"{', '.join(missing[:8]) or 'unknown'}{' ...' * (len(missing) > 8)}",
        hint="see whether they were started, and have the same --nnodes, --nproc-per-node and --rdzv-endpoint (or --master-addr)",
    )


def _key(what: str, rank: int | None = None) -> str:
    return f"firstlight/{what}" if rank is None else f"firstlight/{what}/{rank}"


def _read(store: dist.Store, key: str) -> str:
    """The value of a key, or nothing; `Store.get` alone would wait for it."""
    return store.get(key).decode() if store.check([key]) else ""
