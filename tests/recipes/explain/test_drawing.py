"""Claims of recipes/explain/drawing.py. Pictures are decoded here by hand (zlib and the PNG layout)."""

from __future__ import annotations

import base64
import struct
import zlib
from xml.etree import ElementTree

import pytest

from firstlight.model.config import GPTConfig
from firstlight.recipes.explain.drawing import draw_big_map, draw_flow, draw_parts, esc, level_of, map_picture
from firstlight.recipes.explain.facts import Head, Part


def decoded(uri: str) -> tuple[int, int, list[list[int]], dict[bytes, bytes]]:
    """Width, height, palette indices by row, and chunks of a PNG in a data URI; checksums are checked."""
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colour) == (8, 3)
    raw = zlib.decompress(chunks[b"IDAT"])
    rows = [list(raw[y * (width + 1) + 1 : (y + 1) * (width + 1)]) for y in range(height)]
    return width, height, rows, chunks


def test_a_map_is_one_pixel_a_share_and_the_future_is_clear() -> None:
    width, height, rows, chunks = decoded(map_picture([[1.0], [0.25, 0.75], [0.0, 0.04, 0.96]]))
    assert (width, height) == (3, 3)
    assert rows == [[255, 0, 0], [128, round(255 * 0.75**0.5), 0], [0, 51, round(255 * 0.96**0.5)]]
    assert chunks[b"tRNS"][0] == 0
    assert chunks[b"tRNS"][1] > 0
    assert len(chunks[b"PLTE"]) == 3 * 256


def test_levels_rise_with_the_share_and_stay_in_range() -> None:
    levels = [level_of(i / 100) for i in range(101)]
    assert levels == sorted(levels)
    assert (level_of(-0.1), level_of(1.2)) == (0, 255)


def test_a_big_map_has_a_cell_for_each_share_and_escapes_its_words() -> None:
    head = Head(0, 1, ((1.0,), (0.5, 0.5), (0.2, 0.3, 0.5)), 1.0, 1.0, 0.3, 0.4, 0.3)
    root = ElementTree.fromstring(draw_big_map(head, ["<b>", "&", '"x"']))
    cells = root.findall("rect")
    assert len(cells) == 6
    assert cells[-1].find("title").text == '"x" gives 50.0 % to "x"'  # pyrefly: ignore
    assert [label.text for label in root.findall("text")][:2] == ["<b>", "<b>"]
    assert len(ElementTree.fromstring(draw_big_map(head, ["a", "b", "c"], most=2)).findall("rect")) == 3


def test_bars_add_up_and_name_their_parts() -> None:
    drawn = draw_parts([Part("a<b", 300, "x"), Part("none", 0, ""), Part("c", 100, "y & z")], "count")
    assert "width:75.00%" in drawn
    assert "width:25.00%" in drawn
    assert "none" not in drawn
    assert "a&lt;b" in drawn
    assert "y &amp; z" in drawn
    assert "2.0 KiB" in draw_parts([Part("a", 2048, "")])


@pytest.mark.parametrize(
    ("options", "said", "unsaid"),
    [
        ({}, ["ReLU²", "Soft cap", "15 · tanh"], ["value embedding", "SiLU"]),
        ({"value_embed_every": 2}, ["gated value embedding", "in layer 1"], ["SiLU"]),
        ({"mlp": "swiglu", "mlp_width": 192, "softcap": 0.0, "embed_norm": False}, ["SiLU", "64 → 192"], ["Soft cap"]),
    ],
)
def test_the_diagram_is_that_of_the_config(options: dict, said: list[str], unsaid: list[str]) -> None:
    config = GPTConfig(300, 2, 4, 2, 64, 32, **options)
    drawn = draw_flow(config, num_rows=1, num_tokens=9, layer_gates=config.value_embed_layers)
    root = ElementTree.fromstring(drawn)
    words = " ".join(text.text or "" for text in root.iter("text"))
    for each in [*said, "× 2 layers", "x: (1, 9, 64)", "logits: (1, 9, 300)", "4 × 16 each, 2 shared key/value heads"]:
        assert each in words
    for each in unsaid:
        assert each not in words
    norms = words.count("RMSNorm") - words.count("RMSNorm and rotation")
    assert norms == 3 + config.embed_norm


def test_text_is_escaped_for_elements_and_attributes() -> None:
    assert esc("<a href=\"x\" b='y'>&") == "&lt;a href=&quot;x&quot; b=&#x27;y&#x27;&gt;&amp;"
