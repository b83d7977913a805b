"""JSON answers of the studio's routes, and refusals in the shape of the server's other errors."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from firstlight.serve.errors import ApiError

NO_STORE = {"Cache-Control": "no-store"}


def answer(value: Any, *, status_code: int = 200) -> Response:
    """Strict JSON. In ASCII: a run's file may hold half a character, which UTF-8 cannot carry and an escape can."""
    body = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Response(body, status_code=status_code, media_type="application/json", headers=NO_STORE)


def problem(what: str, *, hint: str = "", status_code: int = 400) -> Response:
    """What is wrong, and what would be right."""
    return answer(ApiError(status_code, f"{what}: {hint}" if hint else what).to_dict(), status_code=status_code)
