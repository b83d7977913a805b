r"""The file ``tokenizer.json``: JSON that a person can read and compare, one id per line. Never a pickle.

Ids are written as their text; bytes that are not UTF-8 text, or that one cannot see, as ``\xNN``, and a backslash as
``\\`` (JSON doubles each backslash once more):

    {
      "format": "firstlight-bpe",
      "version": 1,
      "content_hash": "f0...",
      "pattern": "'(?i:[sdmt]|...",
      "special_tokens": ["<|bos|>", ...],
      "training": {"num_documents": 20000, ...},
      "ranks": [
        "\\x00",
        ...
        " the",
        ...
      ]
    }
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from firstlight.errors import DataError

FORMAT = "firstlight-bpe"
VERSION = 1
FILE_NAME = "tokenizer.json"
_ESCAPE = re.compile(r"\\(?:\\|x[0-9a-f]{2})")


@dataclass(frozen=True)
class Fields:
    """What the file holds. tokens: raw bytes of each ordinary id, in the order of the ids."""

    tokens: tuple[bytes, ...]
    pattern: str
    special_tokens: tuple[str, ...]
    facts: dict
    content_hash: str


def escape(token: bytes) -> str:
    r"""Bytes as readable text.

    >>> print(escape(b" caf\xc3\xa9"), escape(b"\xc3"), escape(b"\n"), escape(b"\\"))
     café \xc3 \x0a \\
    """
    text = token.replace(b"\\", rb"\\").decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() else "".join(f"\\x{b:02x}" for b in c.encode()) for c in text)


def unescape(text: str) -> bytes:
    r"""Bytes of an escaped text; raises ValueError for a backslash that begins no escape.

    >>> unescape(r" caf\xc3\xa9")
    b' caf\xc3\xa9'
    """
    parts = []
    done = 0
    for match in _ESCAPE.finditer(text):
        parts.append(_plain(text[done : match.start()]))
        code = match.group()[1:]
        parts.append(b"\\" if code == "\\" else bytes([int(code[1:], 16)]))
        done = match.end()
    parts.append(_plain(text[done:]))
    return b"".join(parts)


def _plain(text: str) -> bytes:
    if "\\" in text:
        raise ValueError(f"a backslash in {text!r} begins no escape")
    return text.encode()


def find(path: Path) -> Path:
    """The file itself, or the ``tokenizer.json`` in a directory; raises DataError where there is none."""
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise DataError(f"no tokenizer at {path}", hint="make one with `firstlight tokenizer train --out FILE`")
    return path


def write(path: Path, fields: Fields) -> None:
    """Write the file whole: temporary name in the same directory, flushed, renamed; raises DataError where it cannot."""
    head = {
        "format": FORMAT,
        "version": VERSION,
        "content_hash": fields.content_hash,
        "pattern": fields.pattern,
        "special_tokens": list(fields.special_tokens),
        "training": fields.facts,
    }
    lines = [f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items()]
    ranks = ",\n".join(f"    {json.dumps(escape(token), ensure_ascii=False)}" for token in fields.tokens)
    content = "{\n" + ",\n".join([*lines, f'  "ranks": [\n{ranks}\n  ]']) + "\n}\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)  # mkstemp makes it readable by its owner alone
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DataError(f"cannot write the tokenizer to {path}: {error.strerror}") from error


def read(path: Path) -> Fields:
    """Read the file; raises DataError that names what is wrong with it. The caller compares the content hash."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if data.startswith(b"\x80"):
        raise DataError(
            f"{path} looks like a pickle and is refused: loading one can run any code",
            hint="a firstlight tokenizer is JSON text; make one with `firstlight tokenizer train`",
        )
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not JSON text: {error}", hint="the file is cut off, damaged or something else"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise DataError(
            f'{path} is not a firstlight tokenizer: "format" is {found!r}, not "{FORMAT}"',
            hint="tokenizer files of other libraries cannot be read",
        )
    if content.get("version") != VERSION:
        raise DataError(
            f'{path}: "version" is {content.get("version")!r}; this firstlight reads {VERSION}',
            hint="use the firstlight that wrote it",
        )
    ranks = _field(path, content, "ranks", list)
    special_tokens = _field(path, content, "special_tokens", list)
    for name, values in (("ranks", ranks), ("special_tokens", special_tokens)):
        for i, value in enumerate(values):
            if not isinstance(value, str):
                raise DataError(f'{path}: item {i} of "{name}" is {value!r}, not a string')
    tokens = []
    for i, value in enumerate(ranks):
        try:
            tokens.append(unescape(value))
        except ValueError as error:
            raise DataError(f'{path}: item {i} of "ranks" is not readable: {error}') from None
    return Fields(
        tokens=tuple(tokens),
        pattern=_field(path, content, "pattern", str),
        special_tokens=tuple(special_tokens),
        facts=_field(path, content, "training", dict),
        content_hash=_field(path, content, "content_hash", str),
    )


def _field(path: Path, content: dict, name: str, kind: type):
    if name not in content:
        raise DataError(f'{path}: the field "{name}" is missing', hint="the file is damaged or was edited")
    if not isinstance(content[name], kind):
        raise DataError(f'{path}: the field "{name}" is a {type(content[name]).__name__}, not a {kind.__name__}')
    return content[name]
