"""The page's stages before the model: text, bytes, ids, and the batch."""

from __future__ import annotations

from collections.abc import Sequence

from firstlight.recipes.explain.drawing import esc
from firstlight.recipes.explain.facts import Facts, PackedBatch, Piece
from firstlight.recipes.explain.pieces import EMPTY, SMALL_T, visible

NUM_BYTES_SHOWN = 28


def text_section(facts: Facts) -> str:
    """Stage 1: the text as bytes and as coloured pieces with their ids."""
    raw = facts.text.encode()
    num = len(facts.pieces)
    more = "…" if len(raw) > NUM_BYTES_SHOWN else ""
    cells = "".join(
        f"<span><b>{esc(visible(bytes([byte])) if byte < 128 else '')}</b><small>{byte:02X}</small></span>"
        for byte in raw[:NUM_BYTES_SHOWN]
    )
    cut = (
        f'<p class="note">The text is longer: {facts.num_cut:,} more tokens were left out, so that the pictures can be read.</p>'
        if facts.num_cut
        else ""
    )
    return (
        f"<p>A computer keeps text as <b>bytes</b>, numbers from 0 to 255. This one has {len(facts.text):,} characters and"
        f" {len(raw):,} bytes in UTF-8: an English letter takes one byte, an é two, a € three.</p>"
        f'<div class="bytes">{cells}<span class="soft">{more}</span></div>'
        f"<p>The model does not read bytes one by one. A <b>tokenizer</b> cuts the text into pieces that are frequent in its"
        f" training text and replaces each by its number, the <b>token id</b>. Here {len(raw):,} bytes became"
        f" <b>{num:,} ids</b>: {len(raw) / num:.2f} bytes each. It knows {facts.tokenizer_size:,} ids: the 256 single bytes,"
        f" so that nothing is ever unknown, the pieces that it learned, and a few special ones ({esc(facts.tokenizer)}).</p>"
        f'<div class="pieces" dir="ltr">{pieces_strip(facts.pieces)}</div>'
        '<p class="hint2">· is a space, ↵ a line end; ⟨C3⟩ is one byte of a character that was cut apart. Point at a piece for'
        f" its bytes.</p>{cut}"
    )


def pieces_strip(pieces: Sequence[Piece]) -> str:
    """Pieces in a row, each in a colour of its own with its id under it."""
    return "".join(
        f'<span class="piece c{i % 6}" title="{esc(piece.raw.hex(" ").upper())}"><bdi>{esc(piece.text)}</bdi>'
        f"<small>{piece.id}</small></span>"
        for i, piece in enumerate(pieces)
    )


def batch_section(facts: Facts) -> str:
    """Stage 2: inputs and targets, the special token in front, and rows packed from several texts."""
    train = facts.training
    num = min(SMALL_T, len(facts.pieces))
    inputs = (facts.bos, *facts.pieces)[:num]
    targets = facts.pieces[:num]
    rows = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(f"<td><bdi>{esc(piece.text)}</bdi><small>{piece.id}</small></td>" for piece in row)
        + "</tr>"
        for name, row in (("inputs", inputs), ("targets", targets))
    )
    total = train.device_batch_size * train.seq_len
    return (
        "<p>The task is always the same: <b>given what came before, guess the next token</b>. So the targets are the inputs"
        f" moved by one place, and every position is an exercise of its own. {esc(facts.bos.text)} (id {facts.bos.id}) begins"
        " each document: without it the first token could not be a target.</p>"
        f'<div class="scroll"><table class="shift"><tbody>{rows}</tbody></table></div>'
        f"<p>Training does many rows at once. A batch has <b>B</b> rows of <b>T</b> tokens; here B = {train.device_batch_size:,}"
        f" and T = {train.seq_len:,}, so inputs and targets are each of shape ({train.device_batch_size:,}, {train.seq_len:,}):"
        f" {total:,} exercises in one pass. Documents are longer and shorter than T, so they are <b>packed</b>. Below are the"
        f" sentences of the text as if each were a document, packed ({esc(facts.batch.packing)}) into rows of T = {SMALL_T}"
        " by the code that does it in training: a row of T targets needs T + 1 places.</p>"
        + packed_table(facts.batch)
        + '<p class="hint2">Inputs are places 0 to T - 1, targets 1 to T. A sentence that does not fit is cut, and goes on in'
        " another row behind a token of its own.</p>"
    )


def packed_table(batch: PackedBatch) -> str:
    """Packed rows with both texts and ids; the first token of a document stands out, empty places are dashes."""

    def cell(id: int) -> str:
        if id == EMPTY:
            return '<td class="empty">–</td>'
        css = ' class="bos"' if id == batch.bos_id else ""
        return f"<td{css}><bdi>{esc(batch.words[id])}</bdi><small>{id}</small></td>"

    head = "".join(f"<th>{i}</th>" for i in range(SMALL_T + 1))
    rows = "".join(
        f'<tr><th scope="row">row {i}</th>' + "".join(cell(id) for id in row) + "</tr>"
        for i, row in enumerate(batch.rows)
    )
    return (
        f'<div class="scroll"><table class="shift packed"><thead><tr><th>place</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
