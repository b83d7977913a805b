"""`firstlight runs compare`: runs side by side, with a verdict. Reads files only; torch is not loaded."""

from __future__ import annotations

from pathlib import Path


def compare(
    *run: str,
    page: Path | None = None,
    group: bool = True,
    val_hash: str | None = None,
    usd_per_hour: float | None = None,
    runs_dir: Path | None = None,
    json: bool = False,
) -> None:
    """Compare runs: what differs, final numbers, and paired differences with a verdict. The first is the baseline.

    Runs of one setting with different seeds are taken together; A1,A2,A3 writes such a group.

    For example:

        firstlight runs compare base wider
        firstlight runs compare base-s1 base-s2 base-s3 slow-s1 slow-s2 slow-s3 --page compare.html
        firstlight runs compare base-s1,base-s2 other --usd-per-hour 2.5 --json

    Parameters
    ----------
    run
        Names of runs or their folders, two or more.
    page
        Also write a page with the curves.
    group
        Take runs of one setting with different seeds together.
    val_hash
        Compare on the documents whose hash begins so (of `firstlight eval bpb RUN --data ...`). [each run's own]
    usd_per_hour
        Price of the machine, for the money columns. [left out]
    runs_dir
        Folder of the runs. [FIRSTLIGHT_RUNS, or ./runs]
    json
        Print one JSON object.
    """
    from firstlight.errors import ConfigError
    from firstlight.recipes.compare import compare_runs
    from firstlight.recipes.compare_page import write_comparison
    from firstlight.recipes.compare_words import final_rows, needed_rows
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console

    if not run:
        raise ConfigError("no run is named", hint="for example: firstlight runs compare mine other")
    console = Console()
    found = compare_runs(
        run, runs_dir or environment.runs_dir(), group=group, val_hash=val_hash, usd_per_hour=usd_per_hour
    )
    if page is not None:
        try:
            write_comparison(found, page)
        except OSError as error:
            raise ConfigError(
                f"--page {page} cannot be written: {error.strerror or error}",
                hint="give a file in a folder that exists",
            ) from error
    if json:
        console.json({**found.to_dict(), "page": str(page) if page else None})
        return
    names = [one.name for one in found.groups]
    matters = [one for one in found.differs if one.matters]
    if matters:
        console.table(["what differs", *names], [[one.name, *one.values] for one in matters])
    else:
        console.say("what differs: nothing that changes what is learnt")
    others = [one.name for one in found.differs if not one.matters]
    if others:
        console.say(f"also different, and not part of a setting: {', '.join(others)}")
    console.say()
    console.table(*final_rows(found))
    console.say()
    for one in found.verdicts:
        console.say(found.sentence(one))
        for line in found.small_print(one):
            console.say(f"  {line}")
    if found.needed:
        console.say()
        console.table(*needed_rows(found))
    if found.notes:
        console.say()
    for note in found.notes:
        console.say(f"note: {note}")
    if page is not None:
        console.say(f"page: {page}")


def publish(*run: str, lab: Path = Path("lab"), runs_dir: Path | None = None, json: bool = False) -> None:
    """Copy the records of finished runs, without anything private, to lab/runs, and make lab/RESULTS.md from all there.

    For example:

        firstlight runs publish base-s1 slow-s1
        firstlight runs publish --lab notes/lab

    Parameters
    ----------
    run
        Names of runs or their folders; none makes RESULTS.md again.
    lab
        Folder that holds runs/ and RESULTS.md.
    runs_dir
        Folder of the runs. [FIRSTLIGHT_RUNS, or ./runs]
    json
        Print one JSON object.
    """
    from firstlight.errors import ConfigError
    from firstlight.recipes import results
    from firstlight.recipes.record import find_run
    from firstlight.runtime import environment
    from firstlight.runtime.console import Console

    console = Console()
    folder = runs_dir or environment.runs_dir()
    try:
        paths = results.publish([find_run(name, folder) for name in run], lab)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or lab} cannot be written: {error.strerror or error}",
            hint="give a folder that you may write to with --lab",
        ) from error
    if json:
        console.json({"written": [str(path) for path in paths]})
        return
    for path in paths:
        console.say(str(path))
