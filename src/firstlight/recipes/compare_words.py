"""The tables of a comparison as text, for the page and for the terminal."""

from __future__ import annotations

from firstlight.recipes.compare import Comparison
from firstlight.runtime.console import format_count, format_duration

Table = tuple[list[str], list[list[str]]]


def final_rows(comparison: Comparison) -> Table:
    """(columns, rows) of the final numbers, one row a group."""
    has_seeds = any(one.spread is not None for one in comparison.final)
    has_price = comparison.usd_per_hour is not None
    columns = ["setting", "bpb ± se", *(["seeds spread by"] if has_seeds else []), "steps", "tokens", "FLOPs", "time"]
    columns += ["US dollars"] if has_price else []
    rows = []
    for one in comparison.final:
        bpb = "-" if one.bpb is None else f"{one.bpb:.4f}" + (f" ± {one.stderr:.4f}" if one.stderr is not None else "")
        spread = "-" if one.spread is None else f"{one.spread:.4f} ({len(one.runs)} seeds)"
        rows.append([
            one.name,
            bpb,
            *([spread] if has_seeds else []),
            "-" if one.steps is None else f"{one.steps:,.0f}",
            "-" if one.tokens is None else format_count(one.tokens),
            show_flops(one.flops),
            "-" if one.minutes is None else format_duration(60 * one.minutes),
            *(["-" if one.usd is None else f"{one.usd:,.2f}"] if has_price else []),
        ])  # fmt: skip
    return columns, rows


def needed_rows(comparison: Comparison) -> Table:
    """(columns, rows) of what each group needs to reach the baseline's final bpb, and in brackets as a part of
    what the baseline took.
    """
    axes = [
        axis for axis in ("tokens", "flops", "minutes", "usd") if all(axis in one.baseline for one in comparison.needed)
    ]
    names = {"tokens": "tokens", "flops": "FLOPs", "minutes": "training minutes", "usd": "US dollars"}
    base = comparison.groups[0].name
    columns = ["setting", f"to reach {base}'s bpb of", *(names[axis] for axis in axes)]
    rows = []
    for one in comparison.needed:
        documents = f"{one.target:.4f}" + (f" on {one.num_documents:,} documents" if one.num_documents else "")
        cells = []
        for axis in axes:
            if one.amounts is None:
                cells.append("not reached")
                continue
            amount, own = one.amounts[axis], one.baseline[axis]
            part = f" ({100 * amount / own:.0f} %)" if own else ""
            cells.append(_amount(axis, amount) + part)
        rows.append([one.name, documents, *cells])
    return columns, rows


def show_flops(flops: float | None) -> str:
    """1.23e14, or - where it is not known."""
    return "-" if flops is None else f"{flops:.2e}".replace("e+", "e")


def _amount(axis: str, value: float) -> str:
    match axis:
        case "flops":
            return show_flops(value)
        case "minutes" | "usd":
            return f"{value:,.2f}"
        case _:
            return format_count(value)
