"""What the server counts about itself, for ``/metrics``."""

from __future__ import annotations

from firstlight.serve.prometheus import Counter, Gauge, Histogram, exposition
from firstlight.serve.worker import EngineWorker


class Meters:
    """All of the server's counters."""

    def __init__(self, worker: EngineWorker) -> None:
        self.requests = Counter(
            "firstlight_requests_total", "HTTP requests by route and status.", ["route", "status"]
        )  # fmt: skip
        self.prompt_tokens = Counter("firstlight_prompt_tokens_total", "Tokens of prompts that were answered.")
        self.completion_tokens = Counter("firstlight_completion_tokens_total", "Tokens that were generated.")
        self.cancelled = Counter("firstlight_cancelled_total", "Requests whose client left before their end.")
        self.first_token_s = Histogram(
            "firstlight_time_to_first_token_seconds", "From the request to the first token of each answer."
        )
        self.token_s = Histogram("firstlight_time_per_token_seconds", "Between two tokens of an answer.")
        self._gauges = (
            Gauge("firstlight_rows_active", "Answers that are being written.", lambda: worker.num_active),
            Gauge("firstlight_rows_waiting", "Answers that wait for a row.", lambda: worker.num_waiting),
            Gauge("firstlight_rows_open", "Answers that are written or wait, as the queue limit counts.", lambda: worker.num_open),
            Gauge("firstlight_engine_healthy", "1 while the model answers.", lambda: int(worker.is_healthy)),
            Gauge("firstlight_engine_steps", "Steps of the model since the start.", lambda: worker.num_steps),
            Gauge("firstlight_engine_failures", "Steps that failed.", lambda: worker.num_failures),
        )  # fmt: skip

    def text(self) -> str:
        """All of them in Prometheus' text format."""
        return exposition(
            [
                self.requests,
                self.prompt_tokens,
                self.completion_tokens,
                self.cancelled,
                self.first_token_s,
                self.token_s,
                *self._gauges,
            ]
        )
