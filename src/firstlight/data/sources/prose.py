"""Turn a docstring into prose: take out code, tables and markup that is no English, and say how English the rest is.

Pure functions over strings. What stays is what a reader would read aloud; the aim is that a small model trained on it
writes sentences and not prompts (``>>>``), tables or formulas.
"""

from __future__ import annotations

import re

MIN_CHARS = 200
"""Documents shorter than this, after cleaning, are left out."""
MIN_COMMON_WORDS_FRAC = 0.16
MIN_LETTERS_FRAC = 0.72

# The most frequent English words that carry grammar. In running English they are about 40 % of all words; in code,
# tables and lists of names hardly any.
COMMON_WORDS = frozenset(
    [
        "a",
        "about",
        "after",
        "all",
        "also",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "be",
        "because",
        "been",
        "before",
        "but",
        "by",
        "can",
        "each",
        "for",
        "from",
        "has",
        "have",
        "how",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "may",
        "more",
        "most",
        "must",
        "no",
        "not",
        "of",
        "on",
        "one",
        "only",
        "or",
        "other",
        "should",
        "so",
        "some",
        "such",
        "than",
        "that",
        "the",
        "their",
        "then",
        "there",
        "these",
        "they",
        "this",
        "to",
        "two",
        "was",
        "we",
        "were",
        "when",
        "where",
        "which",
        "while",
        "will",
        "with",
        "would",
        "you",
    ]
)
_WORD = re.compile(r"[A-Za-z']+")
_ROLE = re.compile(r":(?:[a-z]+:){0,2}[a-z]+:`[~!]?([^`<]*?)(?:\s*<[^>`]*>)?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^>`]+>`__?")
_FOOTNOTE = re.compile(r"\s*\[[0-9A-Z][\w.-]*\]_")
_UNDERLINE = re.compile(r"([=\-~^*#])\1{2,}")
_CODE_DIRECTIVE = re.compile(
    r"\.\. +(code-block|code|sourcecode|math|plot|testcode|testoutput|testsetup|doctest|image|figure|graphviz|highlight|"
    r"table|list-table|csv-table|autosummary|autofunction|autoclass|automethod|automodule|toctree|currentmodule|module|"
    r"include|only|_[^:]+|index|autodata|autoattribute|ipython|parsed-literal)\b",
    re.IGNORECASE,
)
_DROPPED_SECTIONS = frozenset(
    ("references", "reference", "see also", "example", "examples", "doctest", "doctests", "authors", "author")
)


def clean(text: str) -> str:
    """The prose of a docstring (already dedented): without examples, literal code, formulas, references and markup.

    Paragraphs are parted by one blank line, lines keep their breaks, and the end has none. May be empty.
    """
    lines = [line.rstrip() for line in text.expandtabs().replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    lines = _without_code(lines)
    lines = _without_sections(lines)
    text = "\n".join(lines)
    text = _FOOTNOTE.sub("", _LINK.sub(r"\1", _ROLE.sub(r"\1", text)))
    text = text.replace("``", "`")
    paragraphs = [part.strip("\n") for part in re.split(r"\n\s*\n", text)]
    return "\n\n".join(part for part in paragraphs if part.strip()).strip()


def is_prose(text: str) -> bool:
    """True for a text that is mostly English sentences: long enough, of letters, and with the small words of grammar.

    False also for a text that UTF-8 cannot hold (half of a surrogate pair, from an escape in a string).
    """
    if len(text) < MIN_CHARS or text.encode(errors="ignore").decode() != text:
        return False
    letters = sum(map(str.isalpha, text)) + text.count(" ") + text.count("\n")
    if letters < MIN_LETTERS_FRAC * len(text) or text.count("  ") > len(text) / 8:
        return False
    words = _WORD.findall(text.lower())
    return sum(word in COMMON_WORDS for word in words) >= MIN_COMMON_WORDS_FRAC * len(words)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _without_code(lines: list[str]) -> list[str]:
    """Drop doctests, fenced blocks, code directives with their blocks, and ``::`` blocks that do not read like text."""
    kept: list[str] = []
    i = 0
    while i < len(lines):
        line = lines[i]
        bare = line.strip()
        if bare.startswith((">>>", "In [")):
            # A doctest with its output ends at a blank line.
            while i < len(lines) and lines[i].strip():
                i += 1
        elif bare.startswith(("```", "~~~")):
            fence = bare[:3]
            i += 1
            while i < len(lines) and not lines[i].strip().startswith(fence):
                i += 1
            i += 1
        elif _CODE_DIRECTIVE.match(bare):
            i = _end_of_block(lines, i + 1, _indent(line))
        elif bare.endswith("::") and not bare.startswith(".."):
            end = _end_of_block(lines, i + 1, _indent(line))
            block = lines[i + 1 : end]
            kept.append(line[:-1])
            if _reads_like_text(block):
                kept.extend(block)
            i = end
        elif bare.startswith(".. ") and "::" in bare:
            # ``.. note::`` and its kind hold prose: keep the word and the block.
            kind, _, rest = bare[3:].partition("::")
            kept.append(" " * _indent(line) + f"{kind.strip().capitalize()}:{rest}")
            i += 1
        elif _UNDERLINE.fullmatch(bare.replace(" ", "")) and (" " in bare or bare[0] not in "=-~^*#" or not kept):
            i += 1  # a table's rule
        elif bare.startswith(("|", "+-", "+=")):
            i += 1  # a table's row
        else:
            kept.append(line)
            i += 1
    return kept


def _end_of_block(lines: list[str], start: int, indent: int) -> int:
    """Index after the block that is indented deeper than ``indent``."""
    end = start
    for i in range(start, len(lines)):
        if lines[i].strip():
            if _indent(lines[i]) <= indent:
                break
            end = i + 1
    return max(end, start)


def _reads_like_text(lines: list[str]) -> bool:
    words = _WORD.findall(" ".join(lines).lower())
    return bool(words) and sum(word in COMMON_WORDS for word in words) >= 0.3 * len(words)


def _without_sections(lines: list[str]) -> list[str]:
    """Drop the sections in _DROPPED_SECTIONS, sections that are empty now, and the rules under the other headings."""
    headings = [
        i
        for i in range(len(lines) - 1)
        if lines[i].strip() and _UNDERLINE.fullmatch(lines[i + 1].strip()) and len(lines[i].strip()) < 80
    ]
    sections: list[tuple[str | None, list[str]]] = [(None, lines[: headings[0]] if headings else lines)]
    for at, after in zip(headings, [*headings[1:], len(lines)], strict=False):
        sections.append((lines[at], lines[at + 2 : after]))
    kept: list[str] = []
    for heading, body in sections:
        body = _without_google_examples(body)
        if heading is None:
            kept.extend(body)
        elif any(line.strip() for line in body) and heading.strip().rstrip(":").lower() not in _DROPPED_SECTIONS:
            kept.extend(["", heading.rstrip() + ("" if heading.rstrip().endswith(":") else ":"), "", *body])
    return kept


def _without_google_examples(lines: list[str]) -> list[str]:
    """Drop ``Example:``, ``References:``, ... blocks: a heading with a colon and an indented block."""
    kept: list[str] = []
    i = 0
    while i < len(lines):
        bare = lines[i].strip()
        if bare.endswith(":") and bare.strip(":* ").lower() in _DROPPED_SECTIONS:
            i = _end_of_block(lines, i + 1, _indent(lines[i]))
        else:
            kept.append(lines[i])
            i += 1
    return kept
