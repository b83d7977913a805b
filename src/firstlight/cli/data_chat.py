"""`firstlight data chat`: conversations as a model sees them, and which of their tokens carry loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstlight.data.chat.counts import ConversationCounts
    from firstlight.data.chat.measure import Mark
    from firstlight.data.chat.tokenised import TokenisedConversations
    from firstlight.runtime.console import Console


def chat(
    source: str,
    /,
    *,
    tokenizer: Path | None = None,
    run: str | None = None,
    num: int = 3,
    ids: bool = False,
    max_seq_len: int | None = None,
    json: bool = False,
) -> None:
    """Look at conversations before training on them: counts, what is skipped and why, tokens, and what carries loss.

    Special tokens are shown by their names. What carries loss (the assistant's text and the end of its turn) is green and
    underlined on a terminal, each token in a [bracket] of its own elsewhere.

    For example:

        firstlight data chat builtin-chat --run quickstart
        firstlight data chat talks.jsonl --num 1
        firstlight data chat smoltalk:1 --tokenizer tokenizer.json --max-seq-len 1024 --json

    Parameters
    ----------
    source
        builtin-chat, a file or directory (.jsonl, .jsonl.gz, .jsonl.zst, .parquet), smoltalk[:N], smol-smoltalk[:N], or
        hf:owner/name[@revision][:folder][:N].
    tokenizer
        A tokenizer.json. Without it (or --run) there are no numbers of tokens, and loss is shown by stretches of text.
    run
        A run, by name or folder, whose tokenizer and row length are used.
    num
        Conversations to show: the first ones.
    ids
        Show the number of each token as well.
    max_seq_len
        Tokens of a training row, for the packing numbers. [the run's]
    json
        Print one JSON object.
    """
    from firstlight.cli.data import _bars
    from firstlight.data.chat.sources import open_conversations
    from firstlight.errors import Problems
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console

    problems = Problems()
    if num < 0:
        problems.add(f"--num {num} is no number of conversations", hint="0 shows none")
    if tokenizer is not None and run is not None:
        problems.add("--tokenizer and --run both name a tokenizer", hint="give one of them")
    if tokenizer is None and run is None:
        for flag, is_given in (("--max-seq-len", max_seq_len is not None), ("--ids", ids)):
            if is_given:
                problems.add(f"{flag} needs --tokenizer FILE or --run NAME", hint="it is about tokens")
    if max_seq_len is not None and max_seq_len < 1:
        problems.add(f"--max-seq-len {max_seq_len} is too small", hint="the smallest is 1; 512 to 2048 is usual")
    problems.raise_if_any()
    if run is not None:
        tokenizer, max_seq_len = _of_run(run, max_seq_len)
    console = Console(is_terminal=environment.is_terminal())
    with _bars(console, quiet=json) as progress:
        cache_dir = environment.cache_dir()
        opened = open_conversations(source, cache_dir=cache_dir, progress=progress)
        if tokenizer is None:
            counts, shown = _read_all(opened, num)
            found: dict[str, Any] = {}
        else:
            from firstlight.data.chat.measure import marks_of_ids, token_facts
            from firstlight.data.chat.tokenised import tokenise_conversations
            from firstlight.tokens.bpe import Tokenizer

            loaded = Tokenizer.load(tokenizer)
            tokenised = tokenise_conversations(
                opened, loaded, cache_dir=cache_dir, num_threads=environment.num_usable_cpus(), progress=progress
            )
            counts = tokenised.counts
            shown = [
                (document.source, marks_of_ids(document, loaded))
                for document in (tokenised.tokens[i] for i in range(min(num, len(tokenised.tokens))))
            ]
            found = {"tokenizer_hash": loaded.content_hash, **token_facts(tokenised)}
            if max_seq_len is not None:
                found["packing"] = _packing(tokenised, max_seq_len, loaded.bos_id)
    if json:
        console.json(
            {
                "source": opened.name, "content_hash": opened.content_hash, **counts.to_dict(),
                "num_skipped": counts.num_skipped, **found,
                "shown": [{"where": where, "pieces": [_mark_json(mark) for mark in marks]} for where, marks in shown],
            }
        )  # fmt: skip
        return
    _say_counts(console, opened.name, counts, found)
    for where, marks in shown:
        _show(console, where, marks, with_ids=ids)


def _of_run(run: str, max_seq_len: int | None) -> tuple[Path, int | None]:
    from firstlight.recipes.record import find_run, read_run
    from firstlight.runtime import environment

    path = find_run(run, environment.runs_dir())
    model = read_run(path).config.get("model")
    trained = model.get("max_seq_len") if isinstance(model, dict) else None
    return path / "tokenizer.json", max_seq_len or trained


def _read_all(opened: Any, num: int) -> tuple[ConversationCounts, list[tuple[str, list[Mark]]]]:
    from firstlight.data.chat.counts import ConversationCounts
    from firstlight.data.chat.measure import marks_of_text

    counts = ConversationCounts()
    shown = []
    for where, messages in opened.read(counts):
        if len(shown) < num:
            shown.append((where, marks_of_text(messages)))
    return counts, shown


def _packing(tokenised: TokenisedConversations, max_seq_len: int, bos_id: int) -> dict[str, Any]:
    """Rows of all training conversations, in words and numbers, for both answers to what is too long."""
    from firstlight.data.chat.packed import pack_conversations
    from firstlight.errors import DataError

    found: dict[str, Any] = {}
    for too_long in ("cut", "skip"):
        try:
            packed = pack_conversations(
                tokenised.split("train"), seq_len=max_seq_len, seed=0, bos_id=bos_id, too_long=too_long
            )
            found[too_long] = packed.facts | {"words": packed.counts.describe()}
        except DataError as error:
            found[too_long] = {"rows": 0, "seq_len": max_seq_len, "words": error.what}
    return found


def _say_counts(console: Console, name: str, counts: ConversationCounts, found: dict[str, Any]) -> None:
    rows = [
        ["conversations", f"{counts.conversations:,}"],
        ["messages", f"{counts.messages:,}"],
        ["text", f"{counts.text_bytes:,} bytes"],
        ["skipped rows", f"{counts.num_skipped:,}"],
    ]
    if found:
        sides = f"{found['train']:,} for training, {found['val']:,} for validation ({found['sides']})"
        if found["val_in_train"]:
            sides += f"; {found['val_in_train']:,} are on both sides and used for training only"
        rows += [
            ["sides", sides],
            ["copies", f"{found['duplicates']:,} conversations are the same as an earlier one"],
            ["tokens", f"{found['tokens']:,} ({found['bytes_per_token']:.2f} bytes of text each)"],
            ["carry loss", f"{found['targets']:,} ({100 * found['targets_frac']:.1f} %)"],
        ]
        if found["without_target"]:
            rows.append(["without loss", f"{found['without_target']:,} conversations"])
    console.table(["what", "value"], rows, title=name)
    for file, forms in list(counts.forms.items())[:10]:
        console.say(f"{file}: " + ", ".join(f"{count:,} in the form {form}" for form, count in forms.items()))
    if len(counts.forms) > 10:
        console.say(f"... and {len(counts.forms) - 10:,} more files")
    for line in counts.describe():
        console.say(line)
    if found:
        names = list(found["tokens_per_conversation"])
        lengths = [[kind, *found[f"{kind}_per_conversation"].values()] for kind in ("tokens", "targets")]
        console.say()
        console.table(["in a conversation", *names], lengths)
    for too_long, packing in found.get("packing", {}).items():
        console.say(
            f"rows of {packing['seq_len']:,} tokens, --too-long {too_long}: {packing['rows']:,} rows, {packing['words']}"
        )


def _show(console: Console, where: str, marks: Sequence[Mark], *, with_ids: bool) -> None:
    import sys

    from rich.console import Console as RichConsole
    from rich.text import Text

    num_loss = sum(mark.carries_loss for mark in marks)
    unit = "pieces" if marks[0].id is None else "ids"
    console.say()
    console.say(f"--- {where}: {len(marks):,} {unit}, {num_loss:,} carry loss")
    if not sys.stdout.isatty():
        console.say("".join(_in_brackets(mark, text) for mark, text in _lines(marks, join_loss=False)))
        if with_ids:
            console.say(" ".join(f"[{mark.id}]" if mark.carries_loss else str(mark.id) for mark in marks))
        return
    terminal = RichConsole(highlight=False)
    terminal.print(Text.assemble(*((text, _style(mark)) for mark, text in _lines(marks, join_loss=True))))
    if with_ids:
        terminal.print(Text(" ").join(Text(str(mark.id), style=_style(mark)) for mark in marks))


def _lines(marks: Sequence[Mark], *, join_loss: bool) -> list[tuple[Mark, str]]:
    """Each stretch as text, every turn on a line of its own. What looks alike is joined: without loss always, so that
    characters of several ids are whole; with loss where ``join_loss``.
    """
    starts = (b"<|user_start|>", b"<|assistant_start|>")
    joined: list[Mark] = []
    for mark in marks:
        last = joined[-1] if joined else None
        is_alike = last is not None and not (mark.is_special or last.is_special)
        if last is not None and is_alike and mark.carries_loss == last.carries_loss <= join_loss:
            joined[-1] = replace(last, raw=last.raw + mark.raw)
        else:
            joined.append(mark)
    return [
        (mark, ("\n" if i > 1 and mark.is_special and mark.raw in starts else "") + _visible(mark.raw))
        for i, mark in enumerate(joined)
    ]


def _visible(raw: bytes) -> str:
    """Text in one line: a line end as ``\\n``, bytes that are no text as ``\\xNN``."""
    from firstlight.tokens.tokenizer_file import escape

    return escape(raw).replace("\\x0a", "\\n").replace("\\x09", "\\t")


def _in_brackets(mark: Mark, text: str) -> str:
    if not mark.carries_loss or not text:
        return text
    # The line's break stays outside.
    shown = text.removeprefix("\n")
    return text[: len(text) - len(shown)] + f"[{shown}]"


def _style(mark: Mark) -> str:
    return " ".join(["bold" if mark.is_special else "", "green underline" if mark.carries_loss else "dim"]).strip()


def _mark_json(mark: Mark) -> dict[str, Any]:
    known = {} if mark.id is None else {"id": mark.id}
    return {
        **known, "text": _visible(mark.raw), "is_special": mark.is_special, "carries_loss": mark.carries_loss,
    }  # fmt: skip
