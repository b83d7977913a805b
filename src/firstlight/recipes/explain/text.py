"""The explanation for a terminal: the page's stages in two or three screens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from firstlight.recipes.explain.facts import Facts, Part, Piece, Stage, Walk
from firstlight.runtime.console import format_bytes, format_count, format_duration, format_table

BACKGROUNDS = (61, 130, 30, 97, 131, 65)
"""Colours of the 256-colour terminal for neighbouring pieces; white text is readable on each."""
MAX_POSITIONS = 20
BAR_WIDTH = 40


def render_text(facts: Facts, *, colours: bool = False) -> str:
    """All stages as text. colours: mark pieces by terminal colours instead of bars between them."""
    parts = [_title(facts), _text(facts, colours=colours), _batch(facts), _model(facts), _tensors(facts)]
    if facts.walk is not None:
        parts += [_attention(facts.walk), _guesses(facts.walk), _score(facts, facts.walk)]
    return "\n\n".join([*parts, _training(facts), _costs(facts)])


def _title(facts: Facts) -> str:
    step = f"step {facts.step:,}" if facts.step is not None else "before training"
    line = f"{facts.title}: preset {facts.preset}, depth {facts.model.n_layer}, {sum(facts.groups.values()):,} parameters, {step}"
    return "\n".join([line, *(f"  note: {note}" for note in facts.notes)])


def _text(facts: Facts, *, colours: bool) -> str:
    num_bytes, num = len(facts.text.encode()), len(facts.pieces)
    cut = f"; {facts.num_cut:,} more tokens were left out" if facts.num_cut else ""
    return (
        f"TEXT TO IDS: {num_bytes:,} bytes became {num:,} ids, {num_bytes / num:.2f} bytes each, of {facts.tokenizer_size:,} that"
        f" the tokenizer knows{cut}\n{_strip(facts.pieces, colours=colours)}"
    )


def _strip(pieces: Sequence[Piece], *, colours: bool, width: int = 100) -> str:
    """Pieces with their ids, in lines of about ``width`` characters."""
    lines, line, used = [], "", 0
    for i, piece in enumerate(pieces):
        words = f"{piece.text} {piece.id}"
        if used and used + len(words) + 3 > width:
            lines.append(line)
            line, used = "", 0
        line += f"\x1b[38;5;231;48;5;{BACKGROUNDS[i % 6]}m {words} \x1b[0m" if colours else f"[{words}]"
        used += len(words) + 2
    return "\n".join(f"  {text}" for text in [*lines, line])


def _batch(facts: Facts) -> str:
    train, num = facts.training, min(8, len(facts.pieces))
    inputs, targets = (facts.bos, *facts.pieces)[:num], facts.pieces[:num]
    table = format_table(
        ["position", *map(str, range(num))],
        [["inputs", *(p.text for p in inputs)], ["", *(str(p.id) for p in inputs)],
         ["targets", *(p.text for p in targets)], ["", *(str(p.id) for p in targets)]],
    )  # fmt: skip
    return (
        "BATCH: the targets are the inputs moved by one place; BOS begins every document\n"
        f"{_indented(table)}\n  in training: B = {train.device_batch_size:,} rows of T = {train.seq_len:,} tokens"
    )


def _model(facts: Facts) -> str:
    c = facts.model
    total = sum(facts.groups.values())
    rows = [[name, n, f"{100 * n / total:.1f} %", format_bytes(4 * n)] for name, n in facts.groups.items()]
    return (
        f"MODEL: D = {c.n_embd:,} wide, L = {count_of(c.n_layer, 'layer')}, H = {count_of(c.n_head, 'head')} of K = {c.head_dim} ({c.n_kv_head} for keys"
        f" and values), MLP {c.mlp} F = {c.mlp_inner:,}, V = {c.vocab_size:,} ids\n"
        + _indented(format_table(["parameters", "number", "share", "bytes"], rows))
    )


def _tensors(facts: Facts) -> str:
    stages = facts.walk.stages if facts.walk else facts.training.stages
    shown = [stage for stage in stages if not stage.layer]
    hidden = len(stages) - len(shown)
    rows = [_tensor_row(stage, is_measured=facts.walk is not None) for stage in shown]
    heads = ["tensor", "shape", "dtype", "bytes", "FLOPs", "mean", "rms", "min", "max", "zeros"]
    what = f"this text, B = 1, T = {len(facts.pieces)}" if facts.walk else "one micro-batch of training"
    more = (
        f"\n  and {hidden} more of the same kinds in the other layers (--json and the page have all)" if hidden else ""
    )
    total = sum(stage.flops for stage in stages)
    return (
        f"FORWARD PASS ({what}): {format_count(total)} FLOPs; (brackets): never held whole\n"
        + _indented(format_table(heads if facts.walk else heads[:5], rows))
        + more
    )


def _tensor_row(stage: Stage, *, is_measured: bool) -> list[object]:
    name = stage.name if stage.layer is None else f"{stage.layer} {stage.name}"
    size = format_bytes(stage.num_bytes)
    row: list[object] = [
        name, f"({', '.join(f'{n:,}' for n in stage.shape)})", stage.dtype, f"({size})" if stage.is_transient else size,
        format_count(stage.flops) if stage.flops else "-",
    ]  # fmt: skip
    s = stage.stats
    if s is not None:
        row += [f"{s.mean:.3g}", f"{s.rms:.3g}", f"{s.low:.3g}", f"{s.high:.3g}", f"{100 * s.zero_frac:.0f} %"]
    elif is_measured:
        row += [None] * 5
    return row


def _attention(walk: Walk) -> str:
    rows = [
        [f"{head.layer}.{head.head}", f"{head.entropy_bits:.2f}", f"{100 * head.on_first:.0f} %",
         f"{100 * head.on_self:.0f} %", f"{100 * head.on_previous:.0f} %"]
        for head in walk.heads
    ]  # fmt: skip
    return (
        f"ATTENTION: where each head looks; spread evenly, entropy would be {walk.heads[0].even_bits:.2f} bits"
        f" (maps give the model's own output to within {walk.attention_error:.1g})\n"
        + _indented(format_table(["layer.head", "entropy, bits", "first token", "itself", "one before"], rows))
    )


def _guesses(walk: Walk) -> str:
    rows = [
        [p.input.text, p.target.text, f"{p.probability:.4f}", p.rank, f"{p.loss_nats:.3f}",
         ", ".join(f"{g.text} {100 * g.probability:.0f} %" for g in p.top[:3])]
        for p in walk.positions[:MAX_POSITIONS]
    ]  # fmt: skip
    left = len(walk.positions) - len(rows)
    more = f"\n  and {left} more (--json and the page have all)" if left > 0 else ""
    heads = ["after", "true token", "p", "rank", "loss, nats", "first guesses"]
    return "GUESSES: what the model expected at each position\n" + _indented(format_table(heads, rows)) + more


def _score(facts: Facts, walk: Walk) -> str:
    score = walk.score
    known = f"; on {facts.val_of} {facts.val_bpb:.4f}" if facts.val_bpb is not None else ""
    return (
        f"SCORE: {score.nats:.3f} nats for {score.num_tokens} tokens: {score.nats_per_token:.4f} a token, perplexity"
        f" {score.perplexity:,.1f}\n"
        f"  right: bits per byte = {score.nats:.3f} / (ln 2 x {score.num_bytes:,}) = {score.bits_per_byte:.4f}{known}\n"
        f"  wrong: mean loss of a batch x its bytes / all bytes / ln 2 = {score.seed_bpb:.4f}, which is bits per token"
    )


def _training(facts: Facts) -> str:
    train = facts.training
    ordered = sorted(facts.weights, key=lambda weight: (weight.rule, weight.group))
    rows = []
    for (rule, group), found in groupby(ordered, key=lambda weight: (weight.rule, weight.group)):
        members = list(found)
        state = format_bytes(sum(w.state_bytes for w in members))
        rows.append([group, rule, len(members), sum(w.num_params for w in members), f"{members[0].lr:.4g}", state])
    at = train.at
    where = (
        f"; the checkpoint stands at {100 * at.done:.0f} %: multiplier {at.lr_multiplier:.3f}, momentum {at.momentum:.3f}"
        if at
        else ""
    )
    return (
        f"TRAINING STEP: {train.device_batch_size:,} rows x {train.seq_len:,} tokens x {count_of(train.num_micro_batches, 'micro-batch')} x"
        f" {count_of(train.world_size, 'process')} = {train.total_batch_size:,} tokens\n"
        + _indented(format_table(["group", "rule", "tensors", "parameters", "rate", "state"], rows))
        + f"\n  rates: {spark([p.lr_multiplier for p in train.schedule])} ({train.total}){where}"
    )


def _costs(facts: Facts) -> str:
    train = facts.training
    step = train.flops_per_token * train.total_batch_size
    timed = f"; {format_duration(train.total_batch_size / train.tokens_per_s)} at the run's {train.tokens_per_s:,.0f} tokens/s" if train.tokens_per_s else ""  # fmt: skip
    return (
        f"MEMORY: about {format_bytes(sum(part.amount for part in train.memory))} on each device while training\n"
        + _bars(train.memory, format_bytes)
        + f"\n\nWORK: {train.flops_per_token:,} FLOPs a token, {format_count(step)} a step{timed}\n"
        + _bars(train.flops, format_count)
    )


def _bars(parts: Sequence[Part], form: object) -> str:
    assert callable(form)
    total = sum(part.amount for part in parts) or 1
    width = max(len(part.name) for part in parts)
    return "\n".join(
        f"  {part.name:<{width}}  {form(part.amount):>10}  {100 * part.amount / total:5.1f} %  "
        + "#" * round(BAR_WIDTH * part.amount / total)
        for part in parts
    )


def spark(values: Sequence[float], *, width: int = 40) -> str:
    """A curve between 0 and 1 as a row of block characters.

    >>> spark([0.0, 0.5, 1.0], width=3)
    '▁▅█'
    """
    blocks = "▁▂▃▄▅▆▇█"
    picked = [values[round(i * (len(values) - 1) / max(1, width - 1))] for i in range(width)]
    return "".join(blocks[min(7, max(0, int(value * 7 + 0.5)))] for value in picked)


def count_of(number: int, thing: str) -> str:
    """A number of things.

    >>> count_of(1, "process"), count_of(3, "process"), count_of(2048, "token")
    ('1 process', '3 processes', '2,048 tokens')
    """
    ending = "" if number == 1 else "es" if thing.endswith(("s", "ch")) else "s"
    return f"{number:,} {thing}{ending}"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
