"""Data sets on a Hugging Face hub: three presets, and any other as ``hf:owner/name[@revision][:folder][:N]``.

The list of a data set's files, with their sizes and hashes, is read once and kept beside the downloads together with
the commit that it belongs to. From then on the same name means the same bytes, with or without a network.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from firstlight.data.download import RemoteFile, download
from firstlight.data.sources.base import Progress, Source, SourceShard, natural_key
from firstlight.data.sources.reading import suffix_of
from firstlight.errors import ConfigError, DataError


@dataclass(frozen=True)
class HubData:
    """Which files of which data set.

    name: what the user wrote. repo: ``owner/name``. revision: branch, tag or commit. folder: only files below it.
    num_shards: training shards to use, in natural order of their names; None for all.
    val_shard: file set aside for validation; None: the first whose name says ``validation``, ``valid``, ``val`` or ``dev``.
    """

    name: str
    repo: str
    revision: str = "main"
    folder: str = ""
    num_shards: int | None = None
    val_shard: str | None = None


# The two shuffled sets are those that nanochat trains on (its nanochat/dataset.py, 2025 and 2026); the last shard of
# each is its validation shard. Sizes: about 90 MB and 250 million characters a shard.
PRESETS = {
    "fineweb-edu": HubData(
        "fineweb-edu", "karpathy/fineweb-edu-100b-shuffle", num_shards=8, val_shard="shard_01822.parquet"
    ),
    "climbmix": HubData("climbmix", "karpathy/climbmix-400b-shuffle", num_shards=8, val_shard="shard_06542.parquet"),
    "tinystories": HubData("tinystories", "roneneldan/TinyStories", folder="data"),
}

HUB_FORM = "hf:owner/name[@revision][:folder][:N]"
_HUB_NAME = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^:]+))?(:(?P<folder>[^:]*[^:0-9][^:]*))?(:(?P<num_shards>\d+))?"
)
_VALIDATION = re.compile(r"(^|[/_.-])(validation|valid|val|dev)([/_.-]|$)")
_TEST = re.compile(r"(^|[/_.-])test([/_.-]|$)")


def parse_hub_name(data: str) -> HubData | None:
    """What ``tinystories``, ``climbmix:20`` or ``hf:owner/name@revision:folder:4`` stand for; None for other names.

    Raises ConfigError for a name that begins like one of these and goes wrong.
    """
    if data.startswith("hf:"):
        match = _HUB_NAME.fullmatch(data)
        if match is None:
            raise ConfigError(
                f"--data {data} is not of the form {HUB_FORM}", hint="for example hf:roneneldan/TinyStories:data"
            )
        num_shards = _num_shards(data, match["num_shards"])
        folder = (match["folder"] or "").strip("/")
        return HubData(data, match["repo"], match["revision"] or "main", folder, num_shards)
    preset_name, _, num_shards = data.partition(":")
    if (preset := PRESETS.get(preset_name)) is None:
        return None
    chosen = _num_shards(data, num_shards) if ":" in data else preset.num_shards
    return HubData(data, preset.repo, preset.revision, preset.folder, chosen, preset.val_shard)


def _num_shards(data: str, digits: str | None) -> int | None:
    if digits is None:
        return None
    if not digits.isdecimal() or int(digits) < 1:
        raise ConfigError(f"--data {data}: {digits!r} is no number of shards", hint="it is a whole number from 1 up")
    return int(digits)


@dataclass(frozen=True)
class HubFetch:
    """Makes one shard local and verified. A value, so that another process can do it as well."""

    remote: RemoteFile
    path: Path

    def __call__(self, progress: Progress | None = None) -> Path:
        from huggingface_hub.utils import build_hf_headers

        return download(self.remote, self.path, progress=progress, headers=build_hf_headers())


def open_hub(hub: HubData, *, cache_dir: Path, endpoint: str | None = None) -> Source:
    """Source of a hub data set. Its shards are downloaded when they are first asked for.

    endpoint: the hub's address; the library's own (HF_ENDPOINT where set) where None.
    Raises DataError where the data set, its revision or files cannot be found or read, and ConfigError for more shards
    than there are.
    """
    folder = cache_dir / "hub" / f"{hub.repo.replace('/', '--')}@{hub.revision.replace('/', '--')}"
    listing = _kept_listing(folder / "listing.json") or _fetch_listing(hub, folder / "listing.json", endpoint)
    prefix = f"{hub.folder}/" if hub.folder else ""
    below = {name: facts for name, facts in listing["files"].items() if name.startswith(prefix)}
    names = sorted((name for name in below if suffix_of(name)), key=natural_key)
    validation = [name for name in names if _VALIDATION.search(name[len(prefix) :])]
    val_shard = hub.val_shard or (validation[0] if validation else None)
    train = [name for name in names if name != val_shard and name not in validation and not _TEST.search(name)]
    if val_shard is not None and val_shard not in names:
        raise DataError(f"{hub.name}: its validation shard {val_shard} is not among the files of {hub.repo}")
    if not train:
        raise DataError(
            f"{hub.name}: {hub.repo}@{hub.revision} has no text to read"
            + (f" under {hub.folder}/" if hub.folder else "")
            + f"; it holds {', '.join(sorted(listing['files'])[:5]) or 'nothing'}",
            hint="a folder may be given: " + HUB_FORM,
        )
    if hub.num_shards is not None and hub.num_shards > len(train):
        raise ConfigError(
            f"--data {hub.name} asks for {hub.num_shards} training shards, and {hub.repo} has {len(train)}",
            hint=f"the most is {len(train)}",
        )
    used = train[: hub.num_shards] + ([val_shard] if val_shard else [])
    shards = []
    for name in used:
        facts = below[name]
        remote = RemoteFile(
            url=_file_url(hub.repo, listing["commit"], name, endpoint),
            name=name,
            num_bytes=facts["num_bytes"],
            sha256=facts["sha256"],
            git_sha1=facts["git_sha1"],
        )
        path = folder / name
        is_here = path.is_file() and path.stat().st_size == remote.num_bytes
        fetch = HubFetch(remote, path)
        shards.append(SourceShard(name, path if is_here else None, remote.num_bytes, fetch, remote.sha256))
    ignored = tuple(name for name in sorted(below, key=natural_key) if name not in train and name != val_shard)
    facts = {"hub": hub.repo, "revision": hub.revision, "commit": listing["commit"]}
    return Source(hub.name, tuple(shards), val_shard=val_shard, ignored=ignored, facts=facts)


def _file_url(repo: str, commit: str, name: str, endpoint: str | None) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repo, name, repo_type="dataset", revision=commit, endpoint=endpoint)


def _kept_listing(path: Path) -> dict | None:
    """The listing of an earlier call, or None where there is none that can be read."""
    try:
        listing = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return listing if isinstance(listing, dict) and {"commit", "files"} <= listing.keys() else None


def _fetch_listing(hub: HubData, path: Path, endpoint: str | None) -> dict:
    """Ask the hub for the commit behind the revision and for its files, and keep the answer."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=endpoint)
    try:
        commit = api.dataset_info(hub.repo, revision=hub.revision).sha
        tree = api.list_repo_tree(hub.repo, repo_type="dataset", revision=commit, recursive=True)
        files = {
            each.path: {
                "num_bytes": each.lfs.size if each.lfs else each.size,
                "sha256": each.lfs.sha256 if each.lfs else None,
                "git_sha1": None if each.lfs else each.blob_id,
            }
            for each in tree
            if isinstance(each, RepoFile)
        }
    except RepositoryNotFoundError as error:
        raise DataError(
            f"{hub.name}: there is no data set {hub.repo} on {api.endpoint}, or it may not be read",
            hint="check the name; for a private or gated one log in with `hf auth login` or set HF_TOKEN",
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        raise DataError(
            f"{hub.name}: {api.endpoint} answers {status} for {hub.repo}@{hub.revision}: {str(error).splitlines()[0]}",
            hint="check the name and the revision",
        ) from error
    except (httpx2.HTTPError, OSError, OfflineModeIsEnabled) as error:
        raise DataError(
            f"{hub.name}: {api.endpoint} cannot be reached ({type(error).__name__}: {error})",
            hint="check the connection; --data builtin and directories need none",
        ) from error
    listing = {"repo": hub.repo, "revision": hub.revision, "commit": commit, "files": files}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(listing, indent=1))
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}", hint="set FIRSTLIGHT_CACHE") from error
    return listing
