"""From what a user writes after ``--data`` to a source."""

from __future__ import annotations

import difflib
from pathlib import Path

from firstlight.data.sources.base import Progress, Source
from firstlight.data.sources.hub import HUB_FORM, PRESETS, open_hub, parse_hub_name
from firstlight.errors import ConfigError

BUILTIN = "builtin"


def open_source(data: str, *, cache_dir: Path, progress: Progress | None = None, endpoint: str | None = None) -> Source:
    """Source for ``builtin``, a directory or file, a preset (``tinystories``, ``climbmix:20``) or ``hf:owner/name``.

    cache_dir: folder for what is made or downloaded. endpoint: a hub's address, for tests; the usual one where None.
    Known names win over a directory of the same name; write ``./tinystories`` for the directory.
    Raises ConfigError for a name that is none of these, DataError where the text cannot be had.
    """
    if data == BUILTIN:
        from firstlight.data.sources.builtin import open_builtin

        return open_builtin(cache_dir=cache_dir, progress=progress)
    if (hub := parse_hub_name(data)) is not None:
        return open_hub(hub, cache_dir=cache_dir, endpoint=endpoint)
    path = Path(data).expanduser()
    if data and path.exists():
        from firstlight.data.sources.directory import open_directory

        return open_directory(path, name=data, progress=progress)
    known = [BUILTIN, *PRESETS]
    close = difflib.get_close_matches(data.lower().partition(":")[0], known, n=1, cutoff=0.6)
    if not close and data and path.parent.is_dir():
        beside = {each.name: str(path.with_name(each.name)) for each in path.parent.iterdir()}
        close = [beside[each] for each in difflib.get_close_matches(path.name, beside, n=1, cutoff=0.6)]
    did_you_mean = f"did you mean {close[0]}? " if close else ""
    raise ConfigError(
        f"--data {data or '(empty)'}: no data set of that name is known, and no such file or directory exists",
        hint=f"{did_you_mean}It is one of {', '.join(known)}, a directory, a file, or {HUB_FORM}",
    )
