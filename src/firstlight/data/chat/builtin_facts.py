"""What a docstring states about its function, in short sentences: what it does, takes, returns and raises.

Sections are read in the three common styles: NumPy's (a heading and a rule), Google's (``Args:`` and an indented block)
and Sphinx's (``:param x:``). A statement that is no clean sentence of English is left out, never mended by guessing.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field

MAX_CHARS = 140
"""A longer sentence is left out: an answer should be short enough for a small model."""
MIN_CHARS = 8

_ROLE = re.compile(r":(?:[a-z]+:){0,2}[a-z]+:`[~!]?([^`<]*?)(?:\s*<[^>`]*>)?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^>`]+>`__?")
_FOOTNOTE = re.compile(r"\s*\[[0-9A-Z][\w.-]*\]_")
_STRONG = re.compile(r"\*\*([^*]+)\*\*|(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])")
_SIGNATURE = re.compile(r"[\w.]+\([^\n]*\)?(\s*->.*)?")
_SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)(?<!\bcf)(?<!\bapprox)[.!?](?=\s|$)")
_JUNK = re.compile(
    r"::|>>>|->|--|[{}]|https?:|\\|\$|\.\.|[<>|=#~^@;_*]{2}|\s[*=<>|^~]|``|:math|TODO|FIXME|XXX|[^\x20-\x7e]|deprecated|"
    r"\bsee\b|\brefer to\b|\babove\b|\bbelow\b|\bfollowing\b|\balias\b|docstring|__|<\|",
    re.IGNORECASE,
)
_DEFAULT = re.compile(
    r"\s*\((?:default|optional|required)\b[^()]*\)|[,;]?\s*(?:default|defaults to)\b[^.]*$", re.IGNORECASE
)
_TYPE_IN_FRONT = re.compile(r"^`{0,2}[\w.]+(?:\[[^\]]*\])?`{0,2}(?: (?:of|or) [\w.]+)?:\s+")
_NAME = re.compile(r"\*{0,2}([A-Za-z]\w*)")
_CUT_SHORT = re.compile(
    r"\b(the|a|an|and|or|of|to|by|with|is|are|if|in|for|on|at|from|as|that|which|current|this)$", re.IGNORECASE
)
"""Ends of a sentence that has lost its end, mostly a default value."""
_LINK_OF_MARKDOWN = re.compile(r"\[(`[^`\]]+`)\](?:\([^)]*\))?")
_EXCEPTION = re.compile(r"[A-Z]\w+")
_FIELD = re.compile(r":(\w+)((?:\s+[\w.*\[\], |]+)?):\s*(.*)")

_KIND_OF = {
    "parameters": "params", "args": "params", "arguments": "params",
    "returns": "returns", "return": "returns", "raises": "raises",
}  # fmt: skip
_OTHER_SECTIONS = frozenset(
    ["example", "examples", "note", "notes", "yields", "yield", "attributes", "warning", "warnings", "see also", "shape",
     "keyword args", "keyword arguments", "references", "usage", "methods", "other parameters", "inputs", "outputs"]
)  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """Sentences about one function or class; "" and empty where the docstring has no clean one.

    does: what it does. params: (name, what it is). returns: what it returns. raises: (exception, when), all of them.
    """

    does: str = ""
    params: tuple[tuple[str, str], ...] = ()
    returns: str = ""
    raises: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict) -> Facts:
        """The facts that `to_json` gave."""
        pairs = {name: tuple((a, b) for a, b in value[name]) for name in ("params", "raises")}
        return cls(does=value["does"], returns=value["returns"], **pairs)


@dataclass
class _Sections:
    """Lines of the front text and of each section that is used; in a section, in its own style."""

    front: list[str] = field(default_factory=list)
    params: list[tuple[str, str]] = field(default_factory=list)
    returns: list[str] = field(default_factory=list)
    raises: list[tuple[str, str]] = field(default_factory=list)


def facts_of(docstring: str) -> Facts:
    """The facts in a docstring that is dedented already."""
    lines = [line.rstrip() for line in docstring.expandtabs().splitlines()]
    found = _sections(lines)
    params = [(name, text) for name, raw in found.params if (text := sentence(raw)) and len(text.split()) > 2]
    raises = [(name.rsplit(".", 1)[-1], sentence(raw)) for name, raw in found.raises]
    if not all(_EXCEPTION.fullmatch(name) for name, _ in raises):
        raises = []  # what is no name of a class was misread, and the list would lack it
    return Facts(
        does=_summary(found.front),
        params=tuple(dict(params).items()),
        returns=sentence(found.returns[0]) if len(found.returns) == 1 else "",
        raises=tuple(raises),
    )


def _summary(front: list[str]) -> str:
    paragraphs = "\n".join(front).strip().split("\n\n")
    if len(paragraphs) > 1 and _SIGNATURE.fullmatch(paragraphs[0].strip()):
        paragraphs = paragraphs[1:]
    text = sentence(paragraphs[0])
    return text if len(text.split()) >= 3 else ""


def sentence(text: str) -> str:
    """The first sentence of a description as an answer: markup out, a capital in front, a full stop behind; or "".

    >>> sentence("the number of ``items`` to take. More about it.")
    'The number of `items` to take.'
    """
    paragraph = re.split(r"\n\s*\n", text.strip(), maxsplit=1)[0]
    if re.search(r"^\s*([-*+]|\d+\.) ", paragraph, re.MULTILINE):
        return ""
    line = _without_markup(" ".join(paragraph.split()))
    end = _SENTENCE_END.search(line)
    first = line[: end.start()] if end else line
    if line[len(first) : len(first) + 1] in ("!", "?") or (end is None and first.endswith((":", ","))):
        return ""
    if "default" in first.lower() or "(" in first:
        first = _DEFAULT.sub("", first)
    first = first.strip().rstrip(",;")
    if not first or not _is_clean(first):
        return ""
    return first[0].upper() + first[1:] + "."


def _without_markup(line: str) -> str:
    if "`" in line:
        line = _LINK.sub(r"\1", _ROLE.sub(r"`\1`", line)).replace("``", "`")
        line = _LINK_OF_MARKDOWN.sub(r"\1", line).replace("`~", "`")
    if "*" in line:
        line = _STRONG.sub(lambda found: found[1] or found[2], line)
    return _FOOTNOTE.sub("", line) if "]_" in line else line


def _is_clean(text: str) -> bool:
    if not MIN_CHARS <= len(text) <= MAX_CHARS or _JUNK.search(text) or ":" in text:
        return False
    if (
        text.count("`") % 2
        or text.count('"') % 2
        or text.count("(") != text.count(")")
        or text.count("[") != text.count("]")
    ):
        return False
    if not re.match(r"[A-Za-z`]", text) or text[-1] in ".-(," or _CUT_SHORT.search(text):
        return False
    letters = sum(map(str.isalpha, text)) + text.count(" ") + text.count("`")
    words = text.split()
    return len(words) >= 2 and letters >= 0.85 * len(text) and max(map(len, words)) <= 30 and not text.isupper()


def _sections(lines: list[str]) -> _Sections:
    found = _Sections()
    i = 0
    in_front = True
    while i < len(lines):
        line = lines[i]
        bare = line.strip()
        title = bare.rstrip(":").lower()
        is_ruled = bool(bare) and i + 1 < len(lines) and _is_rule(lines[i + 1])
        if is_ruled:
            end = _end_of_ruled(lines, i + 2)
            _add_numpy(found, _KIND_OF.get(title), lines[i + 2 : end])
            i, in_front = end, False
        elif bare.endswith(":") and (title in _KIND_OF or title in _OTHER_SECTIONS):
            indent = len(line) - len(line.lstrip())
            end = i + 1
            while end < len(lines) and (not lines[end].strip() or len(lines[end]) - len(lines[end].lstrip()) > indent):
                end += 1
            _add_google(found, _KIND_OF.get(title), lines[i + 1 : end])
            i, in_front = end, False
        elif bare.startswith(":") and (match := _FIELD.match(bare)):
            end = i + 1
            while end < len(lines) and lines[end].strip() and not lines[end].strip().startswith(":"):
                end += 1
            text = " ".join([match[3], *(each.strip() for each in lines[i + 1 : end])])
            _add_field(found, match[1], match[2].strip(), text)
            i, in_front = end, False
        else:
            if in_front:
                found.front.append(line)
            i += 1
    return found


def _is_rule(line: str) -> bool:
    bare = line.strip()
    return len(bare) >= 3 and not bare.strip("-=~")


def _end_of_ruled(lines: list[str], start: int) -> int:
    """Index of the next heading with a rule under it, or the end."""
    for i in range(start, len(lines) - 1):
        if lines[i].strip() and _is_rule(lines[i + 1]):
            return i
    return len(lines)


def _entries(block: list[str]) -> list[tuple[str, str]]:
    """(head line, text of the deeper lines) of a block; the least indented lines are heads."""
    filled = [line for line in block if line.strip()]
    if not filled:
        return []
    least = min(len(line) - len(line.lstrip()) for line in filled)
    found: list[tuple[str, list[str]]] = []
    for line in block:
        if line.strip() and len(line) - len(line.lstrip()) == least:
            found.append((line.strip(), []))
        elif found:
            found[-1][1].append(line)
    return [(head, "\n".join(text)) for head, text in found]


def _add_numpy(found: _Sections, kind: str | None, block: list[str]) -> None:
    entries = _entries(block)
    if kind == "params":
        for head, text in entries:
            name = head.split(":", 1)[0].strip()
            if (match := _NAME.fullmatch(name)) and text.strip():
                found.params.append((match[1], text))
    elif kind == "returns":
        if all(not text.strip() for _, text in entries):
            # Plain sentences without a type in front.
            plain = " ".join(head for head, _ in entries)
            if len(plain.split()) > 3 and " : " not in plain:
                found.returns.append(plain)
        else:
            found.returns += [text or head for head, text in entries]
    elif kind == "raises":
        found.raises += [(head.split(":", 1)[0].strip(), text) for head, text in entries]


def _add_google(found: _Sections, kind: str | None, block: list[str]) -> None:
    if kind == "returns":
        text = "\n".join(block).strip("\n")
        if text.strip():
            found.returns.append(_TYPE_IN_FRONT.sub("", text.strip()))
        return
    for head, more in _entries(block) if kind else ():
        name, colon, text = head.partition(":")
        name = name.split("(", 1)[0].strip(" `*") if kind == "params" else name.strip(" `")
        if not colon or not _NAME.fullmatch(name.rsplit(".", 1)[-1]):
            continue
        (found.params if kind == "params" else found.raises).append((name, f"{text.strip()}\n{more}".strip()))


def _add_field(found: _Sections, name: str, argument: str, text: str) -> None:
    if name in ("param", "parameter", "arg") and argument:
        found.params.append((argument.split()[-1].strip("*"), text))
    elif name in ("return", "returns") and not argument:
        found.returns.append(text)
    elif name in ("raise", "raises", "except") and argument:
        found.raises.append((argument.split()[-1], text))
