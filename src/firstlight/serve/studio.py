"""The studio: the page at the server's root, and the JSON that it reads. Hung on the server by `add_studio`.

    /                               the page (studio_page/: plain HTML, CSS and modules; nothing is built)
    /studio/static/...              its files
    /api/studio                     which run is served
    /api/runs, /api/runs/NAME       runs and their records            (studio_runs.py)
    /api/runs/NAME/metrics          a run's rows from a place on      (studio_curves.py)
    /api/tokenize, /api/render      a text, a conversation as tokens  (studio_tokens.py)
    /api/explain, /studio/walks/... the walk of a text                (studio_explain.py)

The page may fetch from this server only, and run no script but its own files: see ``PAGE_POLICY``. What a model or a run's
file says reaches it as JSON and is put in as text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.responses import Response

from firstlight.errors import FirstlightError
from firstlight.recipes.loading import choose_checkpoint
from firstlight.recipes.record import RunRecord, find_run, read_run
from firstlight.serve.studio_explain import add_explain
from firstlight.serve.studio_json import answer, problem
from firstlight.serve.studio_runs import add_runs
from firstlight.serve.studio_tokens import add_tokens

PAGE_DIR = Path(__file__).parent / "studio_page"

PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
# A newer firstlight has newer files under the same names; "no-cache" asks each time whether they have changed.
PAGE_HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def add_studio(app: FastAPI, *, runs_dir: Path, run_name: str) -> None:
    """Hang the page and its routes on a server.

    runs_dir: where the runs lie that it shows. run_name: the run that is served: a name in there, or a folder.
    Raises ConfigError where there is no such run, DataError where its record or its tokenizer is damaged.
    """
    run_dir = find_run(run_name, runs_dir)
    record = read_run(run_dir)
    files = static_files(PAGE_DIR)

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return FileResponse(PAGE_DIR / "index.html", media_type=MEDIA_TYPES[".html"], headers=PAGE_HEADERS)

    @app.get("/studio/static/{name:path}", include_in_schema=False)
    def static(name: str) -> Response:
        # Looked up, not joined: no name leads out of the folder.
        path = files.get(name)
        if path is None:
            return problem(f"the studio has no file {name[:100]!r}", status_code=404)
        return FileResponse(path, media_type=MEDIA_TYPES[path.suffix], headers=PAGE_HEADERS)

    @app.get("/api/studio", include_in_schema=False)
    def served() -> Response:
        return answer({"run": run_dir.name, **facts_of(record, run_dir)})

    add_runs(app, runs_dir=runs_dir, served_dir=run_dir)
    add_tokens(app, run_dir=run_dir)
    add_explain(app, run_dir=run_dir)


def static_files(folder: Path) -> dict[str, Path]:
    """Every file of the page that a browser may have, by its name under ``/studio/static/``."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in MEDIA_TYPES
    }


def facts_of(record: RunRecord, run_dir: Path) -> dict[str, Any]:
    """What the page says of the served run beside its name."""
    model = record.config.get("model")
    try:
        checkpoint: str | None = choose_checkpoint(run_dir, "latest").name
    except FirstlightError:
        checkpoint = None  # the server itself refuses to start on such a run
    context, val_bpb = (model.get("max_seq_len") if isinstance(model, dict) else None), record.final.get("val_bpb")
    return {
        "recipe": record.recipe,
        "checkpoint": checkpoint,
        "context": context if isinstance(context, int) else None,
        "val_bpb": val_bpb if isinstance(val_bpb, float) else None,
    }
