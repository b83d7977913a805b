"""The studio's walk: `firstlight explain` of the served run, made on demand and kept for a while.

The walk loads its own copy of the weights on the CPU, so that the engine's thread and its device are left alone. The page is
shown in a frame that may neither run scripts nor fetch anything.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Annotated, Literal

import torch
from fastapi import Body, FastAPI
from starlette.responses import HTMLResponse, Response

from firstlight.errors import FirstlightError, Problems
from firstlight.recipes.explain.collect import DEFAULT_TEXT, MAX_TOKENS, MOST_TOKENS, check_walk, explain_run
from firstlight.recipes.explain.page import render_page
from firstlight.recipes.loading import dtype_for
from firstlight.runtime.context import open_runtime
from firstlight.serve.studio_json import answer, problem

FRAME_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
FRAME_HEADERS = {"Content-Security-Policy": FRAME_POLICY, "X-Frame-Options": "SAMEORIGIN", "Cache-Control": "no-store"}
MOST_KEPT = 6
MOST_CHARS = 4000


class Walks:
    """The newest pages, by what was asked for and by the address under which a frame fetches them."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._lock = threading.Lock()
        self._address_of: OrderedDict[tuple[str, int], str] = OrderedDict()
        self._pages: dict[str, str] = {}

    def address(self, text: str, max_tokens: int) -> str:
        """Address of the page of a text, which is made where it is not there. One at a time: each holds a whole model.

        Raises FirstlightError for what cannot be explained.
        """
        with self._lock:
            key = (text, max_tokens)
            if key in self._address_of:
                self._address_of.move_to_end(key)
            else:
                page = self._make(text, max_tokens)
                # Not to be guessed: a frame cannot send an API key, so the address itself is what lets one in.
                self._address_of[key] = address = secrets.token_urlsafe(18)
                self._pages[address] = page
                if len(self._address_of) > MOST_KEPT:
                    del self._pages[self._address_of.popitem(last=False)[1]]
            return self._address_of[key]

    def page(self, address: str) -> str | None:
        """The page at an address, or None where it is gone."""
        return self._pages.get(address)

    def _make(self, text: str, max_tokens: int) -> str:
        # Threads: as many as this process may use already; nothing of the server's own settings is changed.
        run = str(self._run_dir)
        dtype = dtype_for(run, "run", device="cpu")
        with open_runtime(device="cpu", dtype=dtype, num_threads=torch.get_num_threads()) as runtime:
            return render_page(explain_run(run, runtime, text=text, max_tokens=max_tokens))


def add_explain(app: FastAPI, *, run_dir: Path) -> None:
    """Hang ``GET /api/explain`` (what is asked for where nothing is said), ``POST /api/explain`` and its pages on a server."""
    walks = Walks(run_dir)

    @app.get("/api/explain", include_in_schema=False)
    def defaults() -> Response:
        return answer({"text": DEFAULT_TEXT, "max_tokens": MAX_TOKENS, "most_tokens": MOST_TOKENS})

    @app.post("/api/explain", include_in_schema=False)
    def explain(
        text: Annotated[str, Body(embed=True)], max_tokens: Annotated[int, Body(embed=True)] = MAX_TOKENS
    ) -> Response:
        # A plain function: the framework runs it in a thread of its own.
        if len(text) > MOST_CHARS:
            return problem(f"the text is longer than {MOST_CHARS:,} characters", status_code=413)
        problems = Problems()
        check_walk(text, max_tokens=max_tokens, problems=problems)
        try:
            problems.raise_if_any()
            return answer({"page": f"/studio/walks/{walks.address(text, max_tokens)}"})
        except FirstlightError as error:
            return problem(error.what, hint=error.hint)

    @app.get("/studio/walks/{address}", include_in_schema=False)
    def page(address: str, scheme: Literal["light", "dark", "system"] = "system") -> Response:
        found = walks.page(address)
        if found is None:
            return problem("this page is no longer kept", hint="ask for it again", status_code=404)
        return HTMLResponse(coloured(found, scheme), headers=FRAME_HEADERS)


def coloured(page: str, scheme: str) -> str:
    """A page in the colours that the studio has: those of the system, or of one side of the page's own media rule."""
    rule = {"light": "not all", "dark": "all"}.get(scheme)
    return page if rule is None else page.replace("@media (prefers-color-scheme:dark)", f"@media {rule}")
