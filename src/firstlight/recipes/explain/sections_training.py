"""The page's stages of training: the batch of a step, the optimizer's groups, the schedule, memory and work."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from firstlight.recipes.explain.drawing import draw_parts, esc
from firstlight.recipes.explain.facts import Facts, Training, Weight
from firstlight.recipes.report_svg import Chart, Series, draw_chart
from firstlight.runtime.console import format_bytes, format_count, format_duration


def step_section(facts: Facts) -> str:
    """Stage 8: accumulation, and what the optimizer does with each group of tensors."""
    train = facts.training
    one = train.device_batch_size * train.seq_len
    passes = (
        "one pass holds them all, so nothing has to be accumulated"
        if train.num_micro_batches == 1
        else f"that is done in {train.num_micro_batches:,} passes one after the other, whose gradients are added up"
        " (<b>gradient accumulation</b>), because memory does not hold more at once"
    )
    return (
        "<p>A training step has two halves. The <b>backward pass</b> finds for every weight in which direction the loss falls (its"
        " gradient), at about twice the work of the forward pass; then the <b>optimizer</b> moves the weights a little. A step"
        f" takes {train.total_batch_size:,} tokens: {passes}.</p>"
        f"<p class='formula'>{train.device_batch_size:,} rows × {train.seq_len:,} tokens × {train.num_micro_batches:,}"
        f" micro-batch{'es' * (train.num_micro_batches > 1)} × {train.world_size:,} process{'es' * (train.world_size > 1)} ="
        f" <b>{one * train.num_micro_batches * train.world_size:,} tokens</b></p>"
        "<p>Two rules share the weights. <b>AdamW</b> gives each number a step of its own size, which suits tables whose rows are"
        " seldom used. <b>Muon</b> takes a whole matrix: its running mean of gradients is replaced by the nearest matrix that"
        " turns and mirrors but does not stretch, so that every direction is learned at the same pace; its rate is multiplied by"
        " √(rows / columns) where a matrix is higher than wide."
        f" Gradients longer than {train.grad_clip:g} in all are cut down to that.</p>" + groups_table(facts.weights)
    )


def groups_table(weights: Sequence[Weight]) -> str:
    """The optimizer's groups: tensors, parameters, rule, rate, and the state that is kept for them."""
    ordered = sorted(weights, key=lambda weight: (weight.rule, weight.group))
    lines = []
    for (rule, group), found in groupby(ordered, key=lambda weight: (weight.rule, weight.group)):
        members = list(found)
        names = ", ".join(weight.name for weight in members[:2]) + (" …" if len(members) > 2 else "")
        lines.append(
            f"<tr><th scope='row'>{esc(group)}<small>{esc(names)}</small></th><td>{rule}</td><td>{len(members)}</td>"
            f"<td>{sum(w.num_params for w in members):,}</td><td>{members[0].lr:.4g}</td>"
            f"<td>{format_bytes(sum(w.state_bytes for w in members))}</td></tr>"
        )
    return (
        "<div class='scroll'><table class='wide-table'><thead><tr><th>group</th><th>rule</th><th>tensors</th><th>parameters</th>"
        "<th>rate</th><th>optimizer's memory</th></tr></thead><tbody>" + "".join(lines) + "</tbody></table></div>"
    )


def schedule_section(facts: Facts) -> str:
    """Stage 9: the curve that all rates follow, with the checkpoint's place on it."""
    train = facts.training
    at = train.at
    where = (
        f" The checkpoint (step {facts.step:,}) stands at {100 * at.done:.0f} % of it: its last update used"
        f" {at.lr_multiplier:.3f} of each rate, and momentum {at.momentum:.3f}."
        if at is not None and facts.step is not None
        else ""
    )
    return (
        f"<p>All rates follow one curve over the run ({esc(train.total)}): they rise in the first {100 * train.warmup_frac:g} %,"
        f" stay, and fall in the last {100 * train.warmdown_frac:g} % to {100 * train.final_lr_frac:g} % of themselves. Small steps"
        " at the end let the weights settle. Muon's momentum, the memory of its running mean, is shorter at the start, when"
        f" everything changes fast.{where}</p><figure class='card chartcard'>"
        + draw_chart(schedule_chart(train), width=700, height=300, css_class="wide")
        + draw_chart(schedule_chart(train), width=350, height=250, css_class="narrow")
        + "</figure>"
    )


def schedule_chart(train: Training) -> Chart:
    """Multiplier and momentum over the run in percent, and a mark where the checkpoint stands."""
    series = [Series("rate multiplier", [(100 * p.done, p.lr_multiplier) for p in train.schedule], hue="violet")]
    if train.at is not None:
        at = (100 * train.at.done, train.at.lr_multiplier)
        series.append(Series("this checkpoint", [at], kind="dots", hue="amber"))
    series.append(Series("momentum", [(100 * p.done, p.momentum) for p in train.schedule], hue="teal", dash="5 4"))
    return Chart("Schedule", "", series, hue="violet", x_label="% of the run", y_range=(0.0, 1.08))


def memory_section(train: Training) -> str:
    """Stage 10: bytes on one device while it trains."""
    total = sum(part.amount for part in train.memory)
    tokens = train.device_batch_size * train.seq_len
    chunks = (
        "small enough here that the loss takes them in one chunk"
        if train.chunk_tokens >= tokens
        else f"so the loss takes them in chunks of {train.chunk_tokens:,} tokens and never holds them at once"
    )
    return (
        "<p>While it trains, a device holds the weights, a gradient for each, the optimizer's running means, and every"
        " <b>activation</b> that the backward pass will need: those grow with the batch, the others only with the model. The"
        f" logits are the largest tensor of all, {format_bytes(train.whole_logits_bytes)} in 32-bit floats for the whole micro-batch:"
        f" {chunks}.</p>"
        f"<div class='card pad'><h3>About {format_bytes(total)} on each device</h3>{draw_parts(train.memory)}</div>"
    )


def work_section(train: Training) -> str:
    """Stage 11: FLOPs of a token and of a step, and the time that a step takes at the measured rate."""
    step = train.flops_per_token * train.total_batch_size
    timed = ""
    if train.tokens_per_s:
        seconds = train.total_batch_size / train.tokens_per_s
        timed = (
            f" The run did {train.tokens_per_s:,.0f} tokens a second (median): {format_duration(seconds)} for a step, or"
            f" {format_count(train.flops_per_token * train.tokens_per_s)} FLOPs a second."
        )
    return (
        "<p>A parameter of a matrix costs 2 FLOPs a token in the forward pass (multiply, add) and 4 in the backward pass; attention"
        " scores cost more the longer the row. The embedding is only looked up. That is"
        f" <b>{format_count(train.flops_per_token)} FLOPs a token</b> ({train.flops_per_token:,}; {train.flops_per_token_causal:,} if the"
        f" masked half of attention is left out) and {format_count(step)} a step.{timed}</p>"
        f"<div class='card pad'><h3>Where the work goes</h3>{draw_parts(train.flops, 'count')}</div>"
    )
