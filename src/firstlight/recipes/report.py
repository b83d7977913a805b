"""A run as one self-contained page, ``report.html``, and as one picture for a README.

The page carries its style, its curves (inline SVG) and its samples; it asks nothing of the network, works without
scripts, and reads on a phone, on paper, and in the dark. Everything that came from a run is escaped.
"""

from __future__ import annotations

import html
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from firstlight.recipes.record import RunRecord, flatten, read_run
from firstlight.recipes.report_chat import answers, chat_table, reward_card, reward_charts
from firstlight.recipes.report_samples import samples_by_step
from firstlight.recipes.report_style import HOVER_JS, LOGO, PAGE_CSS, PICTURE_CSS
from firstlight.recipes.report_svg import Chart, Series, draw_chart, robust_top, smooth
from firstlight.runtime.console import format_bytes, format_count, format_duration
from firstlight.runtime.metrics import read_metrics

Row = Mapping[str, Any]

PAGE_POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline';"
    " script-src 'unsafe-inline'\">"
)
"""Forbids a page to fetch anything, whatever a sample says."""


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` of the run in a folder, finished or not; returns its path.

    Raises DataError where run.json is missing or damaged. Damaged lines of metrics.jsonl are left out and named in
    the page.
    """
    damaged: list[str] = []
    record = read_run(run_dir)
    rows = read_metrics(run_dir / "metrics.jsonl", damaged=damaged)
    path = run_dir / "report.html"
    write_page(path, render_page(record, rows, damaged=damaged))
    return path


def write_curve_svg(run_dir: Path, out: Path) -> Path:
    """Write one standalone picture (1200 x 480, light and dark) of a run's training loss and validation bpb; returns
    ``out``.

    Raises DataError where run.json is missing or damaged.
    """
    record = read_run(run_dir)
    rows = read_metrics(run_dir / "metrics.jsonl", damaged=[])
    charts = [_loss_chart(record, rows), _bpb_chart(rows)]
    words = shown_text(" · ".join(_about(record)))
    score = _score(record, rows)
    verdict = f"{score[0]:.3f}" if score else ""
    body = "".join(
        draw_chart(chart, width=568, height=352, nested_at=(20 + 588 * i, 108)) for i, chart in enumerate(charts)
    )
    write_page(
        out,
        '<svg xmlns="http://www.w3.org/2000/svg" width="1200" height="480" viewBox="0 0 1200 480" role="img"'
        f' aria-label="{shown_text(f"Training loss and validation bits per byte of the run {record.name}")}">'
        f"<style>{PICTURE_CSS}</style>"
        '<rect class="card" x=".5" y=".5" width="1199" height="479" rx="16"/>'
        f'<text class="name" x="34" y="48">{shown_text(record.name)}</text><text class="words" x="34" y="74">{words}</text>'
        + (
            f'<text class="big" x="1166" y="52" text-anchor="end">{verdict}</text>'
            '<text class="words" x="1166" y="76" text-anchor="end">bits per byte of unseen text</text>'
            if score
            else ""
        )
        + f"{body}</svg>\n",
    )
    return out


def render_page(record: RunRecord, rows: Sequence[Row], *, damaged: Sequence[str] = ()) -> str:
    """The whole page as text."""
    charts = [
        _loss_chart(record, rows),
        _bpb_chart(rows),
        _core_chart(rows),
        *reward_charts(lambda key, kind: _series(rows, key, kind=kind)),
        _plain_chart("Learning rate", "multiplier, 0 to 1", "violet", _series(rows, "lr_multiplier"), (0.0, 1.08)),
        _noisy_chart("Gradient norm", "before clipping", "teal", _series(rows, "grad_norm")),
        _noisy_chart("Speed", "tokens per second", "green", _series(rows, "tokens_per_s")),
        _noisy_chart("MFU", "% of the machine's peak", "rose", [(x, 100 * y) for x, y in _series(rows, "mfu")]),
    ]
    is_rl = record.recipe == "rl"
    figures = "".join(
        '<figure class="card" style="margin:0">'
        + draw_chart(chart, width=548, height=310, css_class="wide")
        + draw_chart(chart, width=350, height=250, css_class="narrow")
        + "</figure>"
        for chart in charts
        if any(series.points for series in chart.series)
        or (chart.title in ("Training loss", "Validation") and not is_rl)
    )
    status = record.shown_status()
    warning = "".join(f"<li>{shown_text(line)}</li>" for line in damaged)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"{PAGE_POLICY}<title>{shown_text(record.name)} · firstlight</title><style>{PAGE_CSS}</style></head><body>"
        '<div class="dawn"></div><header><div class="top">'
        f'{LOGO}<h1>{shown_text(record.name)}</h1><span class="pill {status}">{status}</span></div>'
        f'<p class="sub">{shown_text(" · ".join(_about(record)))}</p></header><main>'
        f'<section class="verdict" aria-label="Results">{reward_card(record) or _score_card(record, rows)}{_tiles(record, rows)}</section>'
        + (
            f'<div class="card warning">Lines of metrics.jsonl were left out:<ul class="notes">{warning}</ul></div>'
            if warning
            else ""
        )
        + f'<section class="charts" aria-label="Curves">{figures}</section>{chat_table(record, shown_text)}{answers(rows, shown_text)}{_samples(rows)}{_details(record, rows)}</main>'
        f"<footer>Made by firstlight {shown_text(record.versions.get('firstlight', ''))} on {shown_date(time.time())}."
        " Every number is in metrics.jsonl beside this page, one JSON object a line.</footer>"
        f"<script>{HOVER_JS}</script></body></html>\n"
    )


def _loss_chart(record: RunRecord, rows: Sequence[Row]) -> Chart:
    points = _series(rows, "loss_nats")
    vocab_size = _settings(record).get("vocab_size")
    level = None
    if isinstance(vocab_size, int) and vocab_size > 1:
        level = (math.log(vocab_size), f"guessing: ln {vocab_size:,} = {math.log(vocab_size):.2f}")
    refused = [row["step"] for row in rows if row.get("kind") == "train" and "loss_nats" in row.get("nonfinite", ())]
    return Chart(
        "Training loss", "nats per token",
        [Series("each step", points, "faint"), Series("smoothed", smooth(points))],
        level=level, marks=refused,
    )  # fmt: skip


def _bpb_chart(rows: Sequence[Row]) -> Chart:
    points = _series(rows, "val_bpb", kind="eval")
    errors = dict(_series(rows, "val_bpb_stderr", kind="eval"))
    return Chart(
        "Validation", "bits per byte, ± 1 standard error",
        [Series("", points, "dots", [errors.get(x, 0.0) for x, _ in points] if errors else [])],
        hue="amber", y_range=late_range(points),
    )  # fmt: skip


def _core_chart(rows: Sequence[Row]) -> Chart:
    """The mean centred score of the tasks, which is CORE where all 22 were scored; empty where none was scored."""
    points = _series(rows, "mean_centered", kind="core")
    errors = dict(_series(rows, "mean_centered_stderr", kind="core"))
    limits = sorted({row["max_per_task"] for row in rows if row.get("kind") == "core" and row.get("max_per_task")})
    words = f", at most {' or '.join(map(str, limits))} examples a task" if limits else ""
    return Chart(
        "CORE" if _series(rows, "core", kind="core") else "Mean over tasks",
        f"0 is guessing, ± 1 standard error{words}",
        [Series("", points, "dots", [errors.get(x, 0.0) for x, _ in points] if errors else [])],
        hue="indigo", level=(0.0, "guessing"),
    )  # fmt: skip


def late_range(points: list[tuple[float, float]]) -> tuple[float, float] | None:
    """Limits of y that show what happens after the first 5 % of x, because the first fall hides all else. None for few
    points.
    """
    last = max((x for x, _ in points), default=0.0)
    late = [y for x, y in points if x >= 0.05 * last]
    if len(late) < 3:
        return None
    room = 0.12 * (max(late) - min(late)) or 0.1
    return min(late) - room, max(late) + room


def _plain_chart(
    title: str, unit: str, hue: str, points: list[tuple[float, float]], y_range: tuple[float, float]
) -> Chart:
    return Chart(title, unit, [Series("", points)], hue=hue, y_range=y_range)


def _noisy_chart(title: str, unit: str, hue: str, points: list[tuple[float, float]]) -> Chart:
    top = robust_top([y for _, y in points]) if points else 1.0
    return Chart(
        title, unit, [Series("each step", points, "faint"), Series("smoothed", smooth(points))],
        hue=hue, y_range=(0.0, top if top > 0 else 1.0),
    )  # fmt: skip


def _series(rows: Sequence[Row], key: str, *, kind: str = "train") -> list[tuple[float, float]]:
    """(step, value) of one key, by step; of rows with the same step the last counts; missing and null values are left
    out.
    """
    found = {}
    for row in rows:
        value = row.get(key)
        if row.get("kind") == kind and isinstance(row.get("step"), int) and isinstance(value, (int, float)):
            found[row["step"]] = float(value)
    return sorted((float(step), value) for step, value in found.items())


def _score(record: RunRecord, rows: Sequence[Row]) -> tuple[float, float | None, str] | None:
    """(bpb, standard error, where from): the record's final one, else the last in the metrics, else None."""
    bpb, error = record.final.get("val_bpb"), record.final.get("val_bpb_stderr")
    if isinstance(bpb, (int, float)):
        return float(bpb), error, "final"
    points = _series(rows, "val_bpb", kind="eval")
    if not points:
        return None
    step, bpb = points[-1]
    return bpb, dict(_series(rows, "val_bpb_stderr", kind="eval")).get(step), f"at step {step:g}"


def _score_card(record: RunRecord, rows: Sequence[Row]) -> str:
    score = _score(record, rows)
    if score is None:
        return (
            '<div class="card score"><p class="what">Validation</p><div class="value">–</div>'
            "<p>No score yet: the model has not been evaluated.</p></div>"
        )
    bpb, error, where = score
    plus_minus = (
        f" <small>± {error:.3f} bits per byte</small>" if error is not None else " <small>bits per byte</small>"
    )
    return (
        f'<div class="card score"><p class="what">Validation score, {where}</p><div class="value">{bpb:.3f}{plus_minus}</div>'
        f"<p>The bits that the model needs for each byte of text it has never seen. Plain text takes 8; lower is better.</p></div>"
    )


def _tiles(record: RunRecord, rows: Sequence[Row]) -> str:
    train = [row for row in rows if row.get("kind") == "train"]
    last = train[-1] if train else {}
    losses = smooth(_series(rows, "loss_nats"))
    speeds = sorted(y for _, y in _series(rows, "tokens_per_s"))
    mfus = sorted(y for _, y in _series(rows, "mfu"))
    steps = record.final.get("steps", last.get("step", -1) + 1 if train else None)
    tokens = record.final.get("tokens", last.get("tokens_seen"))
    loss = record.final.get("train_loss_nats", losses[-1][1] if losses else None)
    elapsed = record.cost.get("elapsed_s", last.get("elapsed_s"))
    tiles = [
        ("Training loss", f"{loss:.3f} <small>nats per token</small>" if loss is not None else None),
        ("Steps", f"{steps:,}" if steps is not None else None),
        ("Tokens seen", format_count(tokens) if tokens is not None else None),
        ("Time", format_duration(elapsed) if elapsed is not None else None),
        ("Speed", f"{speeds[len(speeds) // 2]:,.0f} <small>tokens/s, median</small>" if speeds else None),
        ("MFU", f"{100 * mfus[len(mfus) // 2]:.1f} % <small>of peak, median</small>" if mfus else None),
    ]
    cells = "".join(f'<div class="tile"><dt>{name}</dt><dd>{value or "–"}</dd></div>' for name, value in tiles)
    return f'<dl class="card tiles">{cells}</dl>'


def _samples(rows: Sequence[Row]) -> str:
    steps = samples_by_step(rows)
    if not steps:
        return ""

    def cards(samples: list[tuple[str, str]]) -> str:
        return '<div class="samples">' + "".join(
            f'<p class="card sample" dir="auto"><b>{shown_text(prompt)}</b>{shown_text(said)}</p>' for prompt, said in samples
        ) + "</div>"  # fmt: skip

    newest, *older = steps
    return (
        f'<h2>What it says at step {newest[0]:,}</h2><p class="hint">The prompt is in colour; the rest is the model\'s own.</p>'
        + cards(newest[1])
        + "".join(f"<details><summary>At step {step:,}</summary>{cards(samples)}</details>" for step, samples in older)
    )


def _details(record: RunRecord, rows: Sequence[Row]) -> str:
    hardware: dict[str, Any] = {}
    for key, value in record.hardware.items():
        if key.endswith("_bytes") and value:
            hardware[key.removesuffix("_bytes")] = format_bytes(value)
        elif key.endswith("_flops_per_s") and value:
            hardware[key.removesuffix("_flops_per_s")] = f"{value / 1e12:,.3g} TFLOP/s"
        else:
            hardware[key] = value
    machine = {"device": record.device, "dtype": record.dtype, "processes": record.world_size, **hardware}
    hashes = {"data": record.data_hash, "tokenizer": record.tokenizer_hash, "validation": record.val_hash}
    origin = {
        **{f"{name} hash": f"<code>{shown_text(value)}</code>" for name, value in hashes.items() if value},
        "code": f"<code>{shown_text(record.git_commit)}</code>" if record.git_commit else "–",
        "started from": shown_text(", ".join(record.parents)) or "nothing (random weights)",
        "started": shown_date(record.created_unix_s),
        "last change": shown_date(record.updated_unix_s),
    }
    cost = {
        k.removesuffix("_s"): format_duration(v) if k.endswith("_s") and v is not None else v
        for k, v in record.cost.items()
    }
    events = [
        f"<li>{'Step ' + format(row['step'], ',') + ': ' if isinstance(row.get('step'), int) else ''}{shown_text(row.get('what', ''))}</li>"
        for row in rows
        if row.get("kind") in ("event", "run")
    ]
    notes = "".join(f"<li>{shown_text(note)}</li>" for note in record.notes)
    parts = [_table("Where", _escaped(machine)), _table("From what", origin), _table("Cost", _escaped(cost))]
    if notes:
        parts.append(f'<div class="card"><h3>Choices made, and why</h3><ul class="notes">{notes}</ul></div>')
    if events:
        parts.append(f'<div class="card"><h3>What happened</h3><ul class="notes">{"".join(events)}</ul></div>')
    parts.append(_table("Versions", _escaped(record.versions)))
    return (
        '<h2>Settings and origin</h2><div class="two">'
        + _table("Settings", _escaped({k: v for k, v in flatten(record.config).items() if v is not None}))
        + f'<div class="stack">{"".join(parts)}</div></div>'
    )


def _table(title: str, cells: Mapping[str, str]) -> str:
    if not cells:
        return ""
    lines = "".join(f'<tr><th scope="row">{_breakable(key)}</th><td>{value}</td></tr>' for key, value in cells.items())
    return f'<div class="card"><h3>{title}</h3><table>{lines}</table></div>'


def _escaped(values: Mapping[str, Any]) -> dict[str, str]:
    def show(value: Any) -> str:
        match value:
            case None:
                return "–"
            case bool():
                return "yes" if value else "no"
            case int() if abs(value) >= 10_000:
                return f"{value:,}"
            case float():
                return f"{value:.6g}"
            case _:
                return shown_text(value)

    return {key.replace("_", " ") if "." not in key else key: show(value) for key, value in values.items()}


def _about(record: RunRecord) -> list[str]:
    settings = _settings(record)
    about = []
    if settings.get("depth") is not None:
        about.append(f"depth {settings['depth']}")
    if isinstance(settings.get("num_params"), int):
        about.append(f"{format_count(settings['num_params'])} parameters")
    if settings.get("data"):
        about.append(f"on {Path(str(settings['data'])).name}")
    machine = record.hardware.get("gpu") or record.hardware.get("cpu") or record.device
    count = record.world_size if record.device.startswith("cuda") else record.hardware.get("num_threads")
    about.append(f"{count} × {machine}" if record.device.startswith("cuda") and count else f"{machine}")
    if not record.device.startswith("cuda") and count:
        about.append(f"{count} thread{'s' if count != 1 else ''}")
    about.append(record.dtype)
    return about


def _settings(record: RunRecord) -> dict[str, Any]:
    """Settings by their last name (``vocab_size`` of ``model.vocab_size``), without those that are not set."""
    return {key.rsplit(".", 1)[-1]: value for key, value in flatten(record.config).items() if value is not None}


def _breakable(name: str) -> str:
    return shown_text(name).replace(".", ".<wbr>").replace("_", "_<wbr>")


def shown_text(value: object) -> str:
    """Escaped for HTML and SVG; control characters, which neither may hold, become U+FFFD."""
    visible = "".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in str(value).replace("\r\n", "\n"))
    return html.escape(visible.encode("utf-8", "replace").decode("utf-8"), quote=True)


def shown_date(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(unix_s))


def write_page(path: Path, text: str) -> None:
    """Write a page in one move: a reader sees the old one or the new one. Raises OSError."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", errors="replace")
    os.replace(temporary, path)
