"""`firstlight runs`: list the runs, show one, draw its report again. Reads files only; torch is not loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def list_(*, runs_dir: Path | None = None, json: bool = False) -> None:
    """List all runs, the newest first: state, score, steps, time. Damaged ones are listed too.

    For example:

        firstlight runs list
        firstlight runs list --json
        firstlight runs list --runs-dir /big/disk/runs

    Parameters
    ----------
    runs_dir
        Folder of the runs. [FIRSTLIGHT_RUNS, or ./runs]
    json
        Print one JSON object.
    """
    from firstlight.recipes.record import list_runs
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console, format_count, format_duration

    console = Console()
    folder = runs_dir or environment.runs_dir()
    runs = list_runs(folder)
    if json:
        console.json({"runs_dir": str(folder), "runs": [_listed(run) for run in runs]})
        return
    if not runs:
        console.say(f"no runs in {folder} yet; start one with `firstlight quickstart` or `firstlight train base`")
        return
    rows = []
    for run in runs:
        if run.record is None:
            rows.append([run.name, None, "damaged", None, None, None, None, None, None])
            continue
        final, elapsed_s = run.record.final, run.record.cost.get("elapsed_s")
        rows.append([
            run.name,
            run.record.recipe,
            run.record.shown_status(),
            _score(final),
            _answers(final),
            final.get("steps"),
            format_count(final["tokens"]) if final.get("tokens") is not None else None,
            format_duration(elapsed_s) if elapsed_s is not None else None,
            _ago(run.record.created_unix_s),
        ])  # fmt: skip
    console.table(["run", "stage", "status", "val bpb", "answers", "steps", "tokens", "time", "started"], rows)
    for run in runs:
        if run.problem is not None:
            console.warn(f"run {run.name} is damaged: {run.problem}")


def show(run: str, /, *, runs_dir: Path | None = None, json: bool = False) -> None:
    """Show one run: final numbers, settings, hashes, machine, notes.

    For example:

        firstlight runs show mine
        firstlight runs show mine --json

    Parameters
    ----------
    run
        Name of the run, or its folder.
    runs_dir
        Folder of the runs. [FIRSTLIGHT_RUNS, or ./runs]
    json
        Print the run record as one JSON object (final.val_bpb is the score).
    """
    from firstlight.recipes.record import find_run, flatten, read_run
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console, format_count, format_duration

    console = Console()
    run_dir = find_run(run, runs_dir or environment.runs_dir())
    record = read_run(run_dir)
    if json:
        console.json({**record.to_dict(), "shown_status": record.shown_status()})
        return
    final, elapsed_s = record.final, record.cost.get("elapsed_s")
    facts = {
        "status": record.shown_status(),
        "val bpb": _score(final),
        "train loss": f"{final['train_loss_nats']:.4f} nats" if final.get("train_loss_nats") is not None else None,
        "steps": f"{final['steps']:,}" if final.get("steps") is not None else None,
        "tokens": format_count(final["tokens"]) if final.get("tokens") is not None else None,
        "time": format_duration(elapsed_s) if elapsed_s is not None else None,
        "started": _ago(record.created_unix_s),
        "machine": ", ".join(
            str(v) for v in (record.hardware.get("gpu") or record.hardware.get("cpu"), record.dtype) if v
        ),
        "data hash": record.data_hash,
        "tokenizer hash": record.tokenizer_hash,
        "val hash": record.val_hash,
        "code": record.git_commit,
        "started from": ", ".join(record.parents) or None,
    }
    console.say(f"{record.name} ({run_dir})")
    _pairs(console, {key: value for key, value in facts.items() if value is not None})
    settings = {key: value for key, value in flatten(record.config).items() if value is not None}
    if settings:
        console.say("\nsettings")
        _pairs(console, settings)
    if record.notes:
        console.say("\nchoices made, and why")
        for note in record.notes:
            console.say(f"  - {note}")
    console.say()
    if (run_dir / "report.html").exists():
        console.say(f"picture:    {run_dir / 'report.html'}")
    if record.shown_status() in ("stopped", "killed", "failed"):
        console.say(f"go on with: firstlight train base --run {record.name} --resume")
    elif record.status == "done":
        console.say(f'try it:     firstlight sample {record.name} -p "The"')


def report(
    *run: str,
    runs_dir: Path | None = None,
    picture: Path | None = None,
    page: Path | None = None,
    json: bool = False,
) -> None:
    """Write a run's report.html again (also while it is running), and say where it is. Of several runs: a page of all.

    For example:

        firstlight runs report mine
        firstlight runs report mine --picture docs/mine.svg
        firstlight runs report mine other --page compare.html

    Parameters
    ----------
    run
        Name of the run, or its folder; several are compared as `firstlight runs compare` does.
    runs_dir
        Folder of the runs. [FIRSTLIGHT_RUNS, or ./runs]
    picture
        Also write one picture (SVG) of the loss and the score of one run, for a README.
    page
        Where the page of several runs goes. [compare.html in the first one's folder]
    json
        Print one JSON object.
    """
    from firstlight.errors import ConfigError
    from firstlight.recipes.record import find_run
    from firstlight.recipes.report import write_curve_svg, write_report
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console

    folder = runs_dir or environment.runs_dir()
    if not run:
        raise ConfigError("no run is named", hint="for example: firstlight runs report mine")
    if len(run) > 1 and picture is not None:
        raise ConfigError(f"--picture {picture} of {len(run)} runs", hint="name one run, or leave --picture out")
    if len(run) == 1 and page is not None:
        raise ConfigError(f"--page {page} of one run", hint="the report of one run is in its folder; name several runs")
    console = Console()
    run_dir = find_run(run[0].split(",")[0] if len(run) > 1 else run[0], folder)
    try:
        if len(run) > 1:
            from firstlight.recipes.compare import compare_runs
            from firstlight.recipes.compare_page import write_comparison

            written = {"page": str(write_comparison(compare_runs(run, folder), page or run_dir / "compare.html"))}
        else:
            written = {"report": str(write_report(run_dir))}
        if picture is not None:
            written["picture"] = str(write_curve_svg(run_dir, picture))
    except OSError as error:
        raise ConfigError(
            f"{error.filename or run_dir} cannot be written: {error.strerror or error}",
            hint="free some space there, or check that you may write to it",
        ) from error
    if json:
        console.json(written)
        return
    for path in written.values():
        console.say(path)


def _listed(run: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": run.name, "path": str(run.path)}
    if run.record is None:
        return {**entry, "status": "damaged", "problem": run.problem}
    record = run.record
    return {
        **entry,
        "status": record.shown_status(),
        "recipe": record.recipe,
        "final": record.final,
        "cost": record.cost,
        "created_unix_s": record.created_unix_s,
        "val_hash": record.val_hash,
    }


def _score(final: dict[str, Any]) -> str | None:
    bpb, error = final.get("val_bpb"), final.get("val_bpb_stderr")
    if bpb is None:
        return None
    return f"{bpb:.4f} ± {error:.4f}" if error is not None else f"{bpb:.4f}"


def _answers(final: dict[str, Any]) -> str | None:
    """Mean reward of RL, or accuracy on the chat tasks."""
    if final.get("reward_mean") is not None:
        return f"reward {final['reward_mean']:.3f}"
    tasks = final.get("chat", {}).get("tasks", [])
    return ", ".join(f"{task['task']} {100 * task['accuracy']:.1f} %" for task in tasks) or None


def _ago(unix_s: float) -> str:
    import time

    from firstlight.runtime.console import format_duration

    return f"{format_duration(max(0.0, time.time() - unix_s))} ago"


def _pairs(console: Any, pairs: dict[str, Any]) -> None:
    width = max(len(key) for key in pairs)
    for key, value in pairs.items():
        console.say(f"  {key:<{width}}  {value}")
