"""Claims of serve/meters.py: every counter has a name and a help of its own, and the gauges read the worker."""

from __future__ import annotations

import re

from tests.serve.helpers import ScriptedEngine, scripted_service


def test_each_metric_is_described_once_and_the_gauges_are_live() -> None:
    service = scripted_service(ScriptedEngine(lambda request: [65]))
    service.worker.num_active = 3
    text = service.meters.text()
    names = re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE)
    assert len(names) == len(set(names)) == len(re.findall(r"^# HELP ", text, re.MULTILINE))
    assert all(name.startswith("firstlight_") for name in names)
    assert "firstlight_rows_active 3" in text.splitlines()
    # Its thread was never started.
    assert "firstlight_engine_healthy 0" in text.splitlines()
