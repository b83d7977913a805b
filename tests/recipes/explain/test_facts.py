"""Claims of recipes/explain/facts.py: all facts are plain JSON, and nothing is lost in it."""

from __future__ import annotations

import json


def test_facts_are_json_with_every_number(facts_of_run) -> None:
    facts = facts_of_run("modern")
    values = json.loads(json.dumps(facts.to_dict(), allow_nan=False))
    assert values["walk"]["score"]["nats"] == facts.walk.score.nats
    assert len(values["walk"]["heads"]) == 3 * 4
    assert [len(row) for row in values["walk"]["heads"][0]["weights"]] == list(range(1, len(facts.pieces) + 1))
    assert values["pieces"][0]["raw"] == facts.pieces[0].raw.hex()
    assert [stage["key"] for stage in values["walk"]["stages"]] == [stage.key for stage in facts.walk.stages]
    assert sum(weight["num_params"] for weight in values["weights"]) == sum(values["groups"].values())
    assert len(values["walk"]["positions"]) == len(facts.pieces)
    assert values["model"]["n_embd"] == 64
