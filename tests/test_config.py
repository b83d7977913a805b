"""Claims of config.py: strict both ways, every mistake named, nothing converted in silence."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from firstlight.config import ABSENT, did_you_mean, differences, from_dict, load_toml, to_dict
from firstlight.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    width: int
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    depth: int = 4
    tied: bool = False
    tokens: float | None = None
    path: Path | None = None
    mode: Literal["fast", "slow"] = "fast"
    sizes: tuple[int, ...] = ()
    pair: tuple[int, str] = (1, "a")
    many: tuple[Inner, ...] = ()
    notes: dict[str, float] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()


FULL = Outer(
    name="x", inner=Inner(8, 0.25), depth=6, tied=True, tokens=1e9, path=Path("a/b"), mode="slow", sizes=(1, 2),
    pair=(3, "b"), many=(Inner(1), Inner(2)), notes={"a": 1.5}, tags=frozenset({"p", "q"}),
)  # fmt: skip


def fails(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        from_dict(Outer, {"name": "x", "inner": {"width": 8}} | values, where="run.toml")
    assert "run.toml" in str(caught.value)
    return str(caught.value)


def test_a_dataclass_survives_json_unchanged() -> None:
    assert from_dict(Outer, json.loads(json.dumps(to_dict(FULL))), where="run.json") == FULL


def test_defaults_fill_what_is_not_said() -> None:
    assert from_dict(Outer, {"name": "x", "inner": {"width": 8}}, where="f") == Outer(name="x", inner=Inner(8))


def test_an_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    message = fails({"dept": 4})
    assert "unknown key 'dept' in run.toml" in message
    assert "did you mean 'depth'?" in message


def test_an_unknown_key_with_no_near_name_lists_the_known_ones() -> None:
    assert "known keys: name, inner, depth" in fails({"zzzzzz": 4})


def test_an_unknown_key_in_a_nested_table_is_named_with_its_path() -> None:
    assert "unknown key 'inner.widht'" in fails({"inner": {"width": 8, "widht": 3}})


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"key 'inner\.width' is missing in run\.toml"):
        from_dict(Outer, {"name": "x", "inner": {}}, where="run.toml")


@pytest.mark.parametrize(
    ("key", "value", "must_be"),
    [
        ("depth", "4", "an integer"),
        ("depth", 4.0, "an integer"),
        ("depth", True, "an integer"),
        ("depth", None, "an integer"),
        ("tied", 1, "true or false"),
        ("name", 3, "text"),
        ("tokens", "1e9", "a finite number"),
        ("tokens", float("nan"), "a finite number"),
        ("tokens", True, "a finite number"),
        ("path", 3, "a path"),
        ("mode", "fats", "did you mean 'fast'?"),
        ("mode", 3, "one of fast, slow"),
        ("sizes", 3, "tuple"),
        ("inner", 3, "a table of keys and values"),
        ("notes", [1], "dict"),
        ("pair", [1], "2 are expected"),
    ],
)
def test_a_value_of_a_wrong_type_is_named_with_what_it_must_be(key: str, value: Any, must_be: str) -> None:
    message = fails({key: value})
    assert key in message
    assert must_be in message


def test_a_wrong_item_of_a_list_is_named_by_its_place() -> None:
    assert "sizes[1] = 'b'" in fails({"sizes": [1, "b"]})
    assert "unknown key 'many[0].w'" in fails({"many": [{"width": 1, "w": 2}]})


def test_every_mistake_is_named_in_one_go() -> None:
    message = fails({"dept": 4, "depth": "x", "mode": "fats"})
    assert "3 things are wrong" in message


def test_an_integer_becomes_a_float_where_a_float_is_wanted() -> None:
    made = from_dict(Outer, {"name": "x", "inner": {"width": 8}, "tokens": 1000}, where="f")
    assert made.tokens == 1000.0
    assert isinstance(made.tokens, float)


def test_non_finite_numbers_are_never_written() -> None:
    with pytest.raises(ConfigError, match="rate"):
        to_dict(Inner(3, float("inf")))


def test_toml_keys_may_have_hyphens(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("max-seq-len = 256\n[inner-table]\nn-head = 2\n", encoding="utf-8")
    assert load_toml(file) == {"max_seq_len": 256, "inner_table": {"n_head": 2}}


def test_a_toml_key_said_with_hyphen_and_underscore_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("max-seq-len = 256\nmax_seq_len = 512\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="said twice"):
        load_toml(file)


def test_broken_toml_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("depth = 4\nrun = mine\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"not valid TOML.*line 2"):
        load_toml(file)


def test_a_missing_toml_file_names_a_near_one(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("")
    with pytest.raises(ConfigError, match=r"did you mean 'run\.toml'"):
        load_toml(tmp_path / "rum.toml")


def test_a_directory_or_binary_file_is_not_a_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_toml(tmp_path)
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_toml(tmp_path / "b.toml")


def test_did_you_mean_ignores_case_and_hyphens() -> None:
    assert did_you_mean("--Max-Seq-Len", ["max_seq_len", "depth"]) == "did you mean 'max_seq_len'?"
    assert did_you_mean("", ["depth"]) == ""


def test_differences_are_dotted_and_know_absent_keys() -> None:
    old = {"a": 1, "m": {"x": 1, "y": [1, 2]}, "gone": 0, "same": None}
    new = {"a": 1, "m": {"x": 2, "y": (1, 2)}, "new": 5, "same": None}
    assert differences(old, new) == [("gone", 0, ABSENT), ("m.x", 1, 2), ("new", ABSENT, 5)]


def test_true_and_one_differ() -> None:
    assert differences({"a": 1}, {"a": True}) == [("a", 1, True)]
