"""Routes for those who watch a server: is it well, and what has it done."""

from __future__ import annotations

from starlette.responses import PlainTextResponse, Response

from firstlight.serve.replies import JsonResponse
from firstlight.serve.service import Service

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def health(service: Service) -> Response:
    """200 while the model's thread answers, 503 when it hangs or has ended or the server is ending."""
    worker = service.worker
    status = "shutting_down" if worker.is_closing else "ok" if worker.is_healthy else "failing"
    body = {
        "status": status,
        "model": service.model_id,
        "rows_active": worker.num_active,
        "rows_waiting": worker.num_waiting,
    }
    return JsonResponse(body, status_code=200 if status == "ok" else 503)


def metrics(service: Service) -> Response:
    """Counters for Prometheus."""
    return PlainTextResponse(service.meters.text(), media_type=METRICS_TYPE)
