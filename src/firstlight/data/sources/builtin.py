"""The text that every install carries: English documentation from Python's own library and from what it needs to run.

Read are the reference topics of ``pydoc`` and the docstrings of the standard library and of the packages in PACKAGES.
Files are parsed, never imported. Docstrings are cleaned into prose (``prose.py``), near copies are left out, and the
rest is shuffled by a fixed seed into a few Parquet files in the cache. The same versions give the same files.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import random
import shutil
import sysconfig
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from firstlight.data.lock import one_at_a_time, put_in_place
from firstlight.data.sources import prose
from firstlight.data.sources.base import Progress, Source, SourceShard
from firstlight.data.sources.docstrings import Part, helper_for, read_files, topics
from firstlight.errors import DataError
from firstlight.runtime import environment

FORMAT_VERSION = 1
"""Raise when the same versions of Python and packages should give other files."""
# Import name -> distribution. Only what firstlight needs in every install, so that extras do not change the corpus.
PACKAGES = {
    "numpy": "numpy",
    "torch": "torch",
    "sympy": "sympy",
    "networkx": "networkx",
    "mpmath": "mpmath",
    "pyarrow": "pyarrow",
    "huggingface_hub": "huggingface_hub",
    "cyclopts": "cyclopts",
    "rich": "rich",
    "fsspec": "fsspec",
    "jinja2": "jinja2",
}
SKIPPED_FOLDERS = frozenset(
    [
        "test",
        "tests",
        "testing",
        "idle_test",
        "turtledemo",
        "_vendor",
        "vendor",
        "third_party",
        "site-packages",
        "dist-packages",
        "__pycache__",
    ]
)
NUM_SHARDS = 6
SHUFFLE_SEED = 20251125
FILES_AT_ONCE = 64
MIN_TEXT_BYTES = 400_000
MANIFEST = "manifest.json"
# A paragraph at least this long that was seen before counts as a copy; a document with this share of copies is left out.
COPY_MIN_CHARS = 80
COPY_MAX_FRAC = 0.6


@dataclass(frozen=True)
class Package:
    """A package whose docstrings are read. files: all its Python files, in a fixed order."""

    name: str
    version: str
    root: Path
    files: tuple[Path, ...]


def open_builtin(*, cache_dir: Path, progress: Progress | None = None) -> Source:
    """Source of the built-in corpus; makes it first where the cache has none for these versions (about 10 s).

    Raises DataError where too little text is found (an install without sources), or the cache cannot be written.
    """
    versions = _versions()
    key = hashlib.sha256(json.dumps([FORMAT_VERSION, versions], sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir / f"builtin-{key}"
    if (manifest := _whole_manifest(folder)) is None:
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            # One of several processes builds, the others wait. Where a file system ignores locks, each builds its own
            # and the renaming below lets one of them win.
            with one_at_a_time(cache_dir / f"builtin-{key}.lock", progress=progress):
                if _whole_manifest(folder) is None:
                    _build(folder, versions, progress)
        except OSError as error:
            raise DataError(
                f"the built-in corpus cannot be written to {cache_dir}: {error.strerror or error}",
                hint="set FIRSTLIGHT_CACHE to a folder with 50 MB of space",
            ) from error
        manifest = _whole_manifest(folder)
        if manifest is None:
            raise DataError(
                f"the built-in corpus in {folder} is damaged again after it was made", hint="check the disk"
            )
    shards = tuple(
        SourceShard(each["name"], folder / each["name"], each["num_bytes"], sha256=each["sha256"])
        for each in manifest["shards"]
    )
    return Source("builtin", shards, facts={"content_sha256": manifest["content_sha256"], **versions})


def read_manifest(source: Source) -> dict:
    """What was read, kept and left out when the built-in corpus was made."""
    path = source.shards[0].path
    assert path is not None
    return json.loads((path.parent / MANIFEST).read_text())


def _versions() -> dict[str, str]:
    """Versions that decide the corpus. Packages that are not installed are not in it."""
    found = {"python": platform.python_version()}
    for name, distribution in PACKAGES.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return found


def _whole_manifest(folder: Path) -> dict | None:
    """The manifest of a corpus whose files are all there, whole and unchanged; else None."""
    from firstlight.data.store import hash_file

    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format_version"] != FORMAT_VERSION:
            return None
        for each in manifest["shards"]:
            if hash_file(folder / each["name"]) != each["sha256"]:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest


# Finding and reading


def find_packages(versions: dict[str, str]) -> list[Package]:
    """The standard library and those of PACKAGES that are here, with their files; nothing is imported."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    packages = [Package("stdlib", versions["python"], stdlib, _python_files(stdlib))]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name) if name in versions else None
        if spec is None or not spec.submodule_search_locations:
            continue
        root = Path(next(iter(spec.submodule_search_locations)))
        packages.append(Package(name, versions[name], root, _python_files(root)))
    return packages


def _python_files(root: Path) -> tuple[Path, ...]:
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return tuple(sorted(found, key=lambda path: path.relative_to(root).as_posix()))


def read_all(packages: list[Package], progress: Progress | None) -> tuple[list[str], Counter[str]]:
    """Prose of all packages in a fixed order, and counts. Another process reads every second part where there are two CPUs."""
    files = [path for package in packages for path in package.files]
    parts = [files[i : i + FILES_AT_ONCE] for i in range(0, len(files), FILES_AT_ONCE)]
    helper = helper_for(parts[1::2]) if environment.num_usable_cpus() > 1 else None
    done: dict[int, Part] = {}
    for i, part in enumerate(parts):
        if helper is None or i % 2 == 0:
            done[i] = read_files(part)
            if progress is not None:
                read_so_far = min(
                    len(files), (2 if helper else 1) * sum(each.counts["files"] for each in done.values())
                )
                progress("reading the documentation of Python and its packages", read_so_far, len(files))
    if helper is not None:
        done.update({2 * i + 1: part for i, part in enumerate(helper.results())})
    texts: list[str] = []
    counts: Counter[str] = Counter()
    for i, part in enumerate(parts):
        # A helper that ended early (no memory, a signal) costs time, not text.
        found = done[i] if i in done else read_files(part)
        texts += found.texts
        counts += found.counts
    return texts, counts


def without_copies(texts: Iterable[str]) -> tuple[list[str], Counter[str]]:
    """Drop texts that were seen before (but for white space), and those that mostly repeat paragraphs seen before."""
    seen: set[bytes] = set()
    seen_paragraphs: set[bytes] = set()
    kept: list[str] = []
    counts: Counter[str] = Counter()

    def digest(text: str) -> bytes:
        return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()

    for text in texts:
        if (whole := digest(text)) in seen:
            counts["left_out_same_text"] += 1
            continue
        seen.add(whole)
        paragraphs = {digest(part): len(part) for part in text.split("\n\n") if len(part) >= COPY_MIN_CHARS}
        copied = sum(length for key, length in paragraphs.items() if key in seen_paragraphs)
        if copied > COPY_MAX_FRAC * len(text):
            counts["left_out_near_copy"] += 1
            continue
        seen_paragraphs.update(paragraphs)
        kept.append(text)
    return kept, counts


# Writing


def _build(folder: Path, versions: dict[str, str], progress: Progress | None) -> None:
    packages = find_packages(versions)
    texts, counts = read_all(packages, progress)
    pydoc = importlib.util.find_spec("pydoc_data")
    locations = list(pydoc.submodule_search_locations or ()) if pydoc else []
    topic_files = [path for each in locations if (path := Path(each, "topics.py")).is_file()]
    topic_texts = [prose.clean(text) for path in topic_files for text in topics(path)]
    # Longest first: the long topics contain many of the short ones.
    topic_texts = sorted(filter(prose.is_prose, topic_texts), key=lambda text: (-len(text), text))
    counts["topics"] = len(topic_texts)
    texts, copies = without_copies([*topic_texts, *texts])
    counts += copies
    random.Random(SHUFFLE_SEED).shuffle(texts)
    num_bytes = sum(len(text.encode()) for text in texts)
    if num_bytes < MIN_TEXT_BYTES:
        raise DataError(
            f"the built-in corpus has only {num_bytes:,} bytes: the sources of Python's library were not found in "
            f"{packages[0].root}",
            hint="train on your own text with --data DIRECTORY",
        )
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    temporary.mkdir(parents=True)
    try:
        shards = _write_shards(texts, temporary)
        content = hashlib.sha256()
        for text in texts:
            content.update(hashlib.sha256(text.encode()).digest())
        manifest = {
            "format_version": FORMAT_VERSION,
            "versions": versions,
            "documents": len(texts),
            "text_bytes": num_bytes,
            "content_sha256": content.hexdigest(),
            "counts": dict(sorted(counts.items())),
            "shards": shards,
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        put_in_place(temporary, folder, is_whole=lambda each: _whole_manifest(each) is not None)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_shards(texts: list[str], folder: Path) -> list[dict]:
    from firstlight.data.sources.writing import write_parquet

    shards = []
    for i in range(NUM_SHARDS):
        part = texts[len(texts) * i // NUM_SHARDS : len(texts) * (i + 1) // NUM_SHARDS]
        shards.append(write_parquet(folder / f"builtin_{i:05d}.parquet", part))
    return shards
