"""The page's stages inside the model: the diagram, the weights, every tensor of a pass, the stream, and the maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from firstlight.recipes.explain.drawing import draw_big_map, draw_flow, draw_parts, esc, map_picture
from firstlight.recipes.explain.facts import Facts, Gate, Head, Part, Stage, Walk, Weight
from firstlight.runtime.console import format_bytes, format_count

KIND_WORDS = {
    "embedding": "token embedding", "head": "head", "attention": "attention matrices", "mlp": "MLP matrices",
    "value_embeds": "value embeddings", "scalars": "gates and scales",
}  # fmt: skip


CHUNKED = ("scores", "logits")
"""Stages that the training's loss never holds whole."""


def formula_of(facts: Facts, name: str) -> str:
    """How many parameters a group has, in letters and numbers."""
    c = facts.model
    D, F, V, L, kv = c.n_embd, c.mlp_inner, c.vocab_size, c.n_layer, c.n_kv_head * c.head_dim
    match name:
        case "embedding" | "head":
            return f"V × D = {V:,} × {D:,}"
        case "attention":
            return f"L × (2 D² + 2 D·G·K) = {L} × (2 × {D:,}² + 2 × {D:,} × {kv:,})"
        case "mlp":
            return f"L × {c.num_mlp_matrices} D·F = {L} × {c.num_mlp_matrices} × {D:,} × {F:,}"
        case "value_embeds":
            num = len(c.value_embed_layers)
            return f"V × G·K in {num} layer{'s' * (num > 1)} = {num} × {V:,} × {kv:,}"
        case _:
            return "small gates and scales"


def model_section(facts: Facts) -> str:
    """Stage 3: the diagram, the letters for sizes, and where the parameters are."""
    config, train = facts.model, facts.training
    D, H, K, F = config.n_embd, config.n_head, config.head_dim, config.mlp_inner
    rows, tokens = (1, len(facts.pieces)) if facts.walk else (train.device_batch_size, train.seq_len)
    mlp = (
        f"two matrices lead to {F:,} numbers, and one of them says how much of the other passes (SwiGLU)"
        if config.mlp == "swiglu"
        else f"{D:,} numbers become {F:,}, negative ones become 0 and the others are squared (ReLU²), then back"
    )
    sizes = (
        ("B", "rows in a batch", rows),
        ("T", "tokens in a row", tokens),
        ("D", "width: numbers that stand for a token", D),
        ("L", "layers (the depth)", config.n_layer),
        ("H", "attention heads in a layer", H),
        ("G", "key/value heads", config.n_kv_head),
        ("K", "numbers of a head: D / H", K),
        ("F", "numbers inside the MLP", F),
        ("V", "ids in the vocabulary", config.vocab_size),
    )
    table = "".join(f"<tr><th><b>{s}</b> {esc(what)}</th><td>{n:,}</td></tr>" for s, what, n in sizes)
    total = sum(facts.groups.values())
    parts = [Part(KIND_WORDS[name], n, formula_of(facts, name)) for name, n in facts.groups.items()]
    return (
        f"<p>Every token becomes a list of <b>{D:,} numbers</b>, looked up in a table. The list then passes {config.n_layer}"
        " layers. A layer does two things, and <i>adds</i> what each finds to the list, which is why the line on the left of the"
        " drawing is called the <b>residual stream</b>:</p><ul>"
        f"<li><b>Attention</b> lets tokens exchange information: in {'its one head' if H == 1 else f'each of {H} heads'} a token asks (query), all"
        " tokens up to itself offer (key), and what fits is mixed (value).</li>"
        f"<li><b>The MLP</b> then works on each token alone: {mlp}.</li></ul>"
        f"<p>At the end the head compares the list with all {config.vocab_size:,} ids: one score (logit) for each possible next"
        f" token.</p><div class='half'><div class='card pad'>"
        + draw_flow(config, num_rows=rows, num_tokens=tokens, layer_gates=config.value_embed_layers)
        + f"</div><div class='stack'><div class='card'><h3>Sizes, by letter</h3><table>{table}</table></div>"
        + f"<div class='card'><h3>{format_count(total)} parameters ({total:,})</h3>{draw_parts(parts, 'count')}</div></div></div>"
    )


def weights_section(weights: Sequence[Weight]) -> str:
    """Every learned tensor, those of the first layer shown and the other layers' folded away."""

    def line(weight: Weight) -> str:
        shape = " × ".join(f"{n:,}" for n in weight.shape)
        return (
            f"<tr><th scope='row'><code>{esc(weight.name)}</code></th><td>{shape}</td><td>{esc(weight.dtype)}</td>"
            f"<td>{weight.num_params:,}</td><td>{format_bytes(weight.num_bytes)}</td><td>{esc(weight.start)}</td>"
            f"<td>{weight.rule}</td><td>{weight.lr:.4g}</td></tr>"
        )

    def table(chosen: Iterable[Weight]) -> str:
        return (
            "<div class='scroll'><table class='wide-table'><thead><tr><th>tensor</th><th>shape</th><th>dtype</th>"
            "<th>parameters</th><th>bytes</th><th>start</th><th>updated by</th><th>rate</th></tr></thead><tbody>"
            + "".join(line(weight) for weight in chosen)
            + "</tbody></table></div>"
        )

    shown = [w for w in weights if not w.name.startswith("transformer.h.") or w.name.startswith("transformer.h.0.")]
    hidden = [w for w in weights if w not in shown]
    return (
        "<p>These tensors are all that the model learns; everything else is computed from them and the ids. A matrix that turns"
        " <i>a</i> numbers into <i>b</i> is kept as <i>b × a</i>, in 32-bit floats. How a tensor starts, and which rule updates"
        " it, are settled by its name; why there are two rules is told under <a href='#step'>A training step</a>.</p>"
        + table(shown)
        + (
            f"<details><summary>The other layers: {len(hidden)} tensors of the same kinds</summary>{table(hidden)}</details>"
            if hidden
            else ""
        )
    )


def pass_section(facts: Facts) -> str:
    """Stage 4: every tensor of a forward pass with its shape, bytes, FLOPs and, where the model was run, its moments."""
    train = facts.training
    big = {stage.key: stage for stage in train.stages}
    stages = facts.walk.stages if facts.walk else train.stages
    outside = [stage for stage in stages if stage.layer is None]
    first = [stage for stage in stages if stage.layer == 0]
    rest = [stage for stage in stages if stage.layer]
    before, after = [s for s in outside if s.key in ("ids", "embedding", "smear")], outside
    after = [stage for stage in after if stage not in before]
    total = sum(stage.flops for stage in stages)
    is_chunked = train.chunk_tokens < train.device_batch_size * train.seq_len
    what = f"this text (B = 1, T = {len(facts.pieces)})" if facts.walk else "one micro-batch of training"
    other = (
        f"<details><summary>{'Layer 1' if facts.model.n_layer == 2 else f'Layers 1 to {facts.model.n_layer - 1}'}: {len(rest)} tensors</summary>"
        f"{stage_table(rest, big)}</details>"
        if rest
        else ""
    )
    return (
        f"<p>Now the numbers flow. The table follows {what} through the model: each line is a tensor, made from the lines above"
        f" it. In all this takes <b>{format_count(total)} FLOPs</b> (additions and multiplications of the matrix products; the"
        " rest is too little to count). The last columns are what was seen: on average a normed list has rms 1, and"
        + (
            " after SiLU hardly a number is exactly 0."
            if facts.model.mlp == "swiglu"
            else " after ReLU² most numbers are exactly 0."
        )
        + f" <b>In training</b> the same line holds B = {train.device_batch_size:,} rows of T = {train.seq_len:,}.</p>"
        + stage_table(before + first, big)
        + other
        + stage_table(after, big, chunked=CHUNKED if is_chunked else ())
        + '<p class="hint2">Bytes in (brackets) are never held at once: the attention map is made piece by piece inside the kernel'
        + (", and in training the loss takes the logits in chunks.</p>" if is_chunked else ".</p>")
    )


def stage_table(stages: Sequence[Stage], in_training: dict[str, Stage], *, chunked: Sequence[str] = ()) -> str:
    """Stages as lines of a table. chunked: keys of those that training never holds whole."""

    def size(stage: Stage, *, is_whole: bool = True) -> str:
        text = format_bytes(stage.num_bytes)
        return f"({text})" if stage.is_transient or not is_whole else text

    def line(stage: Stage) -> str:
        s = stage.stats
        moments = (
            f"<td>{s.mean:.3g}</td><td>{s.std:.3g}</td><td>{s.rms:.3g}</td><td>{s.low:.3g}</td><td>{s.high:.3g}</td>"
            f"<td>{100 * s.zero_frac:.0f} %</td>"
            if s
            else "<td>–</td>" * 6
        )
        where = f"<i>{stage.layer}</i> " if stage.layer is not None else ""
        return (
            f"<tr><th scope='row'>{where}{esc(stage.name)}<small>{esc(stage.how)}</small></th>"
            f"<td>{esc(stage.symbols)}<small>({', '.join(f'{n:,}' for n in stage.shape)})</small></td><td>{stage.dtype}</td>"
            f"<td>{size(stage)}</td><td>{size(in_training[stage.key], is_whole=stage.key not in chunked)}</td>"
            f"<td>{format_count(stage.flops) if stage.flops else '–'}</td>{moments}</tr>"
        )

    return (
        "<div class='scroll'><table class='wide-table stages'><thead><tr><th>tensor</th><th>shape</th><th>dtype</th>"
        "<th>bytes</th><th>in training</th><th>FLOPs</th><th>mean</th><th>std</th><th>rms</th><th>min</th><th>max</th>"
        "<th>zeros</th></tr></thead><tbody>" + "".join(map(line, stages)) + "</tbody></table></div>"
    )


def stream_section(walk: Walk) -> str:
    """How large the residual stream is after each half of each layer, and the share of zeros inside the MLPs."""
    stats = {stage.key: stage.stats for stage in walk.stages if stage.stats}
    layers = sorted({stage.layer for stage in walk.stages if stage.layer is not None})
    points = [("into layer 0", stats["h.0.in"].rms, "amber")]
    for i in layers:
        points.append((f"layer {i} + attention", stats[f"h.{i}.mid"].rms, "indigo"))
        points.append((f"layer {i} + MLP", stats[f"h.{i}.out"].rms, "teal"))
    top = max(rms for _, rms, _ in points)
    bars = "".join(
        f'<div class="meter"><span>{name}</span><i><b class="{hue}" style="width:{100 * rms / top:.1f}%"></b></i>'
        f"<em>{rms:.3g}</em></div>"
        for name, rms, hue in points
    )
    zeros = "".join(
        f'<div class="meter"><span>layer {i}</span><i><b class="teal" style="width:{100 * stats[f"h.{i}.act"].zero_frac:.1f}%">'
        f"</b></i><em>{100 * stats[f'h.{i}.act'].zero_frac:.1f} %</em></div>"
        for i in layers
    )
    first, last = points[0][1], points[-1][1]
    if last > 1.05 * first:
        growth = f"so its numbers grow from layer to layer: from an rms of {first:.3g} to {last:.3g} here. That does no harm:"
    else:
        growth = f"so its numbers usually grow with the layers. Here they do not: the rms goes from {first:.3g} to {last:.3g}."
        growth += " (Before training the last matrix of each sublayer is 0, so it adds nothing.) In any case"
    return (
        f"<h3>The residual stream</h3><p>Every layer adds to the stream, {growth} each sublayer reads"
        " it through RMSNorm, which divides a list by its own rms: x / √(mean of x²).</p>"
        f"<div class='half'><div class='card pad'><h3>rms of the stream</h3>{bars}</div>"
        f"<div class='card pad'><h3>exact zeros inside the MLP</h3>{zeros}"
        "<p class='hint2'>A zero is a feature that did not fire for that token.</p></div></div>"
    )


def attention_section(facts: Facts, walk: Walk) -> str:
    """Every head's map, the sharpest one with words, and the gates of the value embeddings."""
    words = [facts.bos.text, *(piece.text for piece in facts.pieces)][: len(walk.positions)]
    sharpest = min(walk.heads, key=lambda head: head.entropy_bits)
    maps = "".join(map_figure(head) for head in walk.heads)
    links = "".join(
        f"<div class='meter'><span><bdi>{esc(words[t])}</bdi> → <bdi>{esc(words[s])}</bdi></span><i><b class='rose'"
        f" style='width:{100 * share:.1f}%'></b></i><em>{100 * share:.0f} %</em></div>"
        for share, t, s in strongest_links(sharpest)
    )
    return (
        f"<p>Each head of each layer makes a map: line <i>t</i> says how token <i>t</i> divides its attention over the tokens up to"
        f" itself, and adds up to 1. The upper right is empty because nobody may look ahead (the <b>causal mask</b>). A map's"
        f" <b>entropy</b> says how spread out it is: 0 bits is one token only; evenly spread, {walk.heads[0].even_bits:.2f} bits"
        " on average. Much of the attention often rests on the first token: a place to look when there is nothing to find.</p>"
        f'<div class="maps">{maps}</div>'
        f"<div class='half mapside'><div class='card pad'><h3>Layer {sharpest.layer}, head {sharpest.head}: the most focused one, with words</h3>"
        f'<p class="hint2">Line: who looks. Column: at whom. Point at a cell for its share.</p><div class="scroll">'
        f"{draw_big_map(sharpest, words)}</div></div><div class='card pad'><h3>Its strongest links</h3>"
        f"<p class='hint2'>Without those to the first token.</p>{links}</div></div>"
        f'<p class="hint2">The kernel shows no maps, so these were computed again from its own queries, keys and values; multiplied'
        f" with the values they give the kernel's output to within {walk.attention_error:.1g}.</p>"
        + gates_card(walk.gates, words)
    )


def strongest_links(head: Head, *, most: int = 14) -> list[tuple[float, int, int]]:
    """(share, who looks, at whom) of a map's largest shares, without those to the first token and those of the first two
    lines, which have no choice."""
    found = [(p, t, s) for t, row in enumerate(head.weights) for s, p in enumerate(row) if t > 1 and s > 0]
    return sorted(found, key=lambda link: -link[0])[:most]


def map_figure(head: Head) -> str:
    """A head's map as a picture with its summary."""
    return (
        f'<figure class="card"><img alt="attention map" width="{len(head.weights)}" height="{len(head.weights)}"'
        f' src="{map_picture(head.weights)}"><figcaption><b>layer {head.layer} · head {head.head}</b>'
        f"<span>{head.entropy_bits:.2f} bits</span><small>first token {100 * head.on_first:.0f}&nbsp;%, itself"
        f" {100 * head.on_self:.0f}&nbsp;%, one before {100 * head.on_previous:.0f}&nbsp;%</small></figcaption></figure>"
    )


def gates_card(gates: Sequence[Gate], words: Sequence[str]) -> str:
    """Openness of every gate at every token; nothing where the model has no value embeddings."""
    if not gates:
        return ""
    lines = "".join(
        f'<div class="gate"><b>layer {gate.layer} · head {gate.head}</b><span>mean {sum(gate.values) / len(gate.values):.2f}</span>'
        '<div class="pieces">'
        + "".join(
            f'<span class="piece heat" style="--l:{min(1.0, value / 2):.2f}"><bdi>{esc(word)}</bdi><small>{value:.2f}</small></span>'
            for word, value in zip(words, gate.values, strict=True)
        )
        + "</div></div>"
        for gate in gates
    )
    return (
        "<div class='card pad'><h3>Value embeddings and their gates</h3><p>In some layers each token also brings a row of a second"
        " table, by its id, straight into the values. A gate between 0 (shut) and 2 decides token by token how much of it.</p>"
        f"{lines}</div>"
    )
