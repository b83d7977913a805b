"""Claims of serve/prometheus.py: the text format, as its specification writes it down."""

from __future__ import annotations

from firstlight.serve.prometheus import Counter, Gauge, Histogram, exposition


def test_the_format_is_as_written_down_by_hand() -> None:
    counter = Counter("a_total", "How many.", ["path"])
    counter.add('x"\\\n')
    counter.add("y", amount=2.5)
    plain = Counter("b_total", "None yet.")
    gauge = Gauge("c", "Now.", lambda: 7)
    histogram = Histogram("d_seconds", "Times.", bounds=(0.1, 1))
    for value in (0.1, 0.05, 0.5, 3.0):
        histogram.observe(value)
    assert exposition([counter, plain, gauge, histogram]) == (
        "# HELP a_total How many.\n"
        "# TYPE a_total counter\n"
        'a_total{path="x\\"\\\\\\n"} 1\n'
        'a_total{path="y"} 2.5\n'
        "# HELP b_total None yet.\n"
        "# TYPE b_total counter\n"
        "b_total 0\n"
        "# HELP c Now.\n"
        "# TYPE c gauge\n"
        "c 7\n"
        "# HELP d_seconds Times.\n"
        "# TYPE d_seconds histogram\n"
        'd_seconds_bucket{le="0.1"} 2\n'
        'd_seconds_bucket{le="1"} 3\n'
        'd_seconds_bucket{le="+Inf"} 4\n'
        "d_seconds_sum 3.65\n"
        "d_seconds_count 4\n"
    )
