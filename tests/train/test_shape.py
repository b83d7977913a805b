"""The shape that follows from depth, beside what the dial says by hand."""

from __future__ import annotations

from firstlight.train.shape import derive_shape


def test_every_number_has_its_line_and_what_is_given_wins():
    lines: dict[str, tuple[str, str]] = {}

    def line(name: str, value: str, why: str) -> None:
        lines[name] = (value, why)

    given = {"vocab_size": None, "seq_len": None, "head_dim": 128, "n_kv_head": None}
    model, row_len = derive_shape(4, **given, preset="classic", line=line)
    # 640 * 4^1.5 = 5,120, whose nearest power of two is 4,096; 64 * 4 = 256 wide; 2 heads of 128; rows of 256.
    assert (model.n_layer, model.n_embd, model.n_head, model.vocab_size, row_len) == (4, 256, 2, 4096, 256)
    assert lines["vocab_size"][0] == "4,096"
    assert set(lines) == {"depth", "vocab_size", "max_seq_len", "preset", "n_layer", "n_embd", "n_head", "n_kv_head"}
    model, row_len = derive_shape(4, **(given | {"vocab_size": 300, "seq_len": 64}), preset="classic", line=line)
    assert (model.vocab_size, model.max_seq_len, row_len) == (300, 64, 64)
    assert lines["vocab_size"] == ("300", "given")
