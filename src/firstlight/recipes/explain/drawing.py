"""What the page draws: heat maps as tiny pictures, bars, and the model as a diagram. Plain Python, no plotting library.

Everything that comes from a text or a run goes through `esc`.
"""

from __future__ import annotations

import base64
import html
import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache

from firstlight.model.config import GPTConfig
from firstlight.recipes.explain.facts import Head, Part
from firstlight.runtime.console import format_bytes, format_count

HUES = ("indigo", "amber", "teal", "violet", "rose", "green")


def esc(value: object) -> str:
    """Text for HTML, in an element or an attribute."""
    return html.escape(str(value), quote=True)


@lru_cache(maxsize=1)
def _palette() -> tuple[bytes, bytes]:
    """256 colours and their opacities: from nothing over indigo to amber, so that it reads on a light and a dark page."""
    stops = ((0x6C, 0x7B, 0xFF), (0x8A, 0x4F, 0xD8), (0xE0, 0x5A, 0x6E), (0xFF, 0xA9, 0x3D))
    colours, opacities = bytearray(), bytearray()
    for level in range(256):
        place = level / 255 * (len(stops) - 1)
        i = min(int(place), len(stops) - 2)
        colours += bytes(round(a + (b - a) * (place - i)) for a, b in zip(stops[i], stops[i + 1], strict=True))
        opacities.append(round(255 * min(1.0, 0.06 + 1.6 * level / 255)) if level else 0)
    return bytes(colours), bytes(opacities)


def level_of(share: float) -> int:
    """Place on the palette of a share between 0 and 1: its square root, so that small ones can be seen.

    >>> level_of(0.0), level_of(0.25), level_of(1.0)
    (0, 128, 255)
    """
    return round(255 * min(1.0, max(0.0, share)) ** 0.5)


def map_picture(rows: Sequence[Sequence[float]]) -> str:
    """A causal map (row t has t + 1 shares) as a PNG in a data URI, one pixel a share; the future is transparent."""
    size = len(rows)
    lines = bytearray()
    for row in rows:
        lines += b"\0" + bytes(level_of(share) for share in row) + bytes(size - len(row))
    colours, opacities = _palette()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", colours)
        + chunk(b"tRNS", opacities)
        + chunk(b"IDAT", zlib.compress(bytes(lines), 9))
        + chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(png).decode()


def draw_big_map(head: Head, words: Sequence[str], *, most: int = 24) -> str:
    """The first tokens of a head's map as SVG with their texts; each cell says its share when pointed at."""
    size, cell, left, top = min(most, len(head.weights)), 17, 116, 96
    labels = [word if len(word) <= 13 else word[:12] + "…" for word in words[:size]]
    colours, opacities = _palette()
    width, height = left + size * cell + 14, top + size * cell + 8
    out = [
        f'<svg class="bigmap" viewBox="0 0 {width} {height}" role="img" aria-label="attention of layer {head.layer},'
        f' head {head.head}, for the first {size} tokens">'
    ]
    for t, label in enumerate(labels):
        y, x = top + t * cell + cell - 5, left + t * cell + cell / 2 + 4
        out.append(f'<text x="{left - 7}" y="{y}" text-anchor="end">{esc(label)}</text>')
        out.append(f'<text transform="translate({x:.1f},{top - 7}) rotate(-60)">{esc(label)}</text>')
    for t, row in enumerate(head.weights[:size]):
        for s, share in enumerate(row):
            level = level_of(share)
            r, g, b = colours[3 * level : 3 * level + 3]
            out.append(
                f'<rect x="{left + s * cell}" y="{top + t * cell}" width="{cell - 1}" height="{cell - 1}"'
                f' fill="#{r:02x}{g:02x}{b:02x}" fill-opacity="{opacities[level] / 255:.2f}">'
                f"<title>{esc(labels[t])} gives {100 * share:.1f} % to {esc(labels[s])}</title></rect>"
            )
    out.append("</svg>")
    return "".join(out)


def draw_parts(parts: Sequence[Part], show: str = "bytes") -> str:
    """A stacked bar and its legend. show: ``bytes``, or ``count`` for FLOPs and parameters."""
    total = sum(part.amount for part in parts) or 1
    form = format_bytes if show == "bytes" else format_count
    shown = [(part, HUES[i % len(HUES)]) for i, part in enumerate(parts) if part.amount]
    bars = "".join(
        f'<i class="{hue}" style="width:{100 * part.amount / total:.2f}%" title="{esc(part.name)}"></i>'
        for part, hue in shown
    )
    lines = "".join(
        f'<li><b class="dot {hue}"></b><span>{esc(part.name)}</span><em>{esc(form(part.amount))}</em>'
        f"<em>{100 * part.amount / total:.1f} %</em><small>{esc(part.how)}</small></li>"
        for part, hue in shown
    )
    return f'<div class="bar" aria-hidden="true">{bars}</div><ul class="legend">{lines}</ul>'


class _Flow:
    """Boxes down a page, with the residual stream as a line on their left."""

    WIDTH, STREAM = 470, 46

    def __init__(self) -> None:
        self.y = 8
        self.back: list[str] = []
        self.front: list[str] = []

    def box(self, title: str, words: str, hue: str, *, x: int = 16) -> None:
        height, width = (50, self.WIDTH - x - 16) if words else (32, self.WIDTH - x - 16)
        self.front.append(
            f'<g class="{hue}"><rect class="box" x="{x}" y="{self.y}" width="{width}" height="{height}" rx="9"/>'
            f'<rect class="edge" x="{x}" y="{self.y + 7}" width="4" height="{height - 14}" rx="2"/>'
            f'<text class="t" x="{x + 16}" y="{self.y + 21}">{esc(title)}</text>'
            + (f'<text class="w" x="{x + 16}" y="{self.y + 39}">{esc(words)}</text>' if words else "")
            + "</g>"
        )
        self.y += height

    def arrow(self, label: str = "", *, x: int | None = None, length: int = 26) -> None:
        at = self.STREAM if x is None else x
        self.back.append(f'<path class="arrow" d="M{at},{self.y}v{length - 7}"/>')
        self.back.append(f'<path class="tip" d="M{at - 4.5},{self.y + length - 8}h9l-4.5,7z"/>')
        if label:
            self.back.append(f'<text class="s" x="{at + 12}" y="{self.y + length / 2 + 4}">{esc(label)}</text>')
        self.y += length

    def branch(self, boxes: Sequence[tuple[str, str, str]]) -> None:
        """Boxes beside the stream, that read it at the top and add to it at the bottom."""
        top, x = self.y, 96
        self.y += 24
        self.back.append(f'<path class="arrow" d="M{self.STREAM},{top + 10}H{x + 34}V{self.y - 6}"/>')
        self.back.append(f'<path class="tip" d="M{x + 29.5},{self.y - 7}h9l-4.5,7z"/>')
        for i, (title, words, hue) in enumerate(boxes):
            if i:
                self.arrow(x=x + 34, length=18)
            self.box(title, words, hue, x=x)
        end = self.y + 22
        self.back.append(f'<path class="arrow" d="M{x + 34},{self.y}V{end}H{self.STREAM + 12}"/>')
        self.back.append(f'<path class="arrow" d="M{self.STREAM},{top}V{end - 10}"/>')
        self.front.append(
            f'<circle class="plus" cx="{self.STREAM}" cy="{end}" r="10"/>'
            f'<path class="sign" d="M{self.STREAM - 5},{end}h10M{self.STREAM},{end - 5}v10"/>'
        )
        self.y = end + 10


def draw_flow(config: GPTConfig, *, num_rows: int, num_tokens: int, layer_gates: Sequence[int] = ()) -> str:
    """The whole model as a diagram: every box with its size, every arrow with the shape that flows along it."""
    D, H, G, K, V, F = (
        config.n_embd, config.n_head, config.n_kv_head, config.head_dim, config.vocab_size, config.mlp_inner,
    )  # fmt: skip
    stream = f"x: ({num_rows}, {num_tokens}, {D:,})"
    kv = "" if G == H else f", {G} shared key/value heads"
    flow = _Flow()
    flow.box("Token ids", f"({num_rows}, {num_tokens}) whole numbers below {V:,}", "soft")
    flow.arrow(f"({num_rows}, {num_tokens})")
    flow.box("Token embedding", f"a table of {V:,} × {D:,}: {format_count(V * D)} parameters", "amber")
    if config.embed_norm:
        flow.arrow()
        flow.box("RMSNorm", "", "soft")
    flow.arrow(stream)
    begin = flow.y
    flow.y += 30
    attention = [
        ("RMSNorm", "", "soft"),
        ("Queries, keys, values", f"{D:,} → {H} × {K} each{kv}", "indigo"),
        ("RMSNorm and rotation of q and k", "the rotation tells positions apart", "indigo"),
    ]
    if layer_gates:
        layers = ", ".join(map(str, layer_gates[:6])) + (" …" if len(layer_gates) > 6 else "")
        attention.append(("+ gated value embedding", f"in layer{'s' * (len(layer_gates) > 1)} {layers}", "amber"))
    attention += [
        ("Causal attention", f"{H} map{'s' * (H > 1)} of {num_tokens} × {num_tokens}; no look ahead", "indigo"),
        ("Output matrix c_proj", f"{D:,} → {D:,}", "indigo"),
    ]
    flow.branch(attention)
    flow.arrow(length=16)
    wide = f"{D:,} → {F:,}"
    mlp = [("RMSNorm", "", "soft")]
    if config.mlp == "swiglu":
        mlp.append(("Gate c_gate and content c_fc", f"{wide} twice; SiLU(gate) × content", "teal"))
    else:
        mlp.append(("MLP, wide: c_fc, then ReLU²", f"{wide}; negative numbers become 0", "teal"))
    mlp.append(("MLP, back: c_proj", f"{F:,} → {D:,}", "teal"))
    flow.branch(mlp)
    flow.y += 12
    frame = (
        f'<rect class="frame" x="6" y="{begin}" width="{flow.WIDTH - 12}" height="{flow.y - begin}" rx="14"/>'
        f'<text class="t" x="{flow.WIDTH - 20}" y="{begin + 22}" text-anchor="end">× {config.n_layer} layers</text>'
    )
    flow.back.insert(0, frame + f'<path class="arrow" d="M{flow.STREAM},{begin - 2}V{begin + 32}"/>')
    flow.back.append(f'<path class="arrow" d="M{flow.STREAM},{flow.y - 12}v14"/>')
    flow.arrow(stream)
    flow.box("RMSNorm", "", "soft")
    flow.arrow()
    flow.box("Head", f"{D:,} → {V:,}: {format_count(V * D)} parameters", "violet")
    if config.softcap:
        flow.arrow()
        flow.box("Soft cap", f"{config.softcap:g} · tanh(z / {config.softcap:g})", "violet")
    flow.arrow(f"logits: ({num_rows}, {num_tokens}, {V:,})")
    flow.box("Softmax and cross-entropy", "one loss for each token, in nats", "rose")
    return (
        f'<svg class="flow" viewBox="0 0 {flow.WIDTH} {flow.y + 8}" role="img" aria-label="The model as a diagram: token ids,'
        f' embedding, {config.n_layer} blocks of attention and MLP on the residual stream, norm, head, loss">'
        + "".join(flow.back)
        + "".join(flow.front)
        + "</svg>"
    )
