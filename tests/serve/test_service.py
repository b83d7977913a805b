"""Claims of serve/service.py: seeds of choices, limits of answers, and a tool that has seen an answer's beginning."""

from __future__ import annotations

import pytest

from firstlight.serve.assembly import tool_maker
from firstlight.serve.bodies import CompletionBody
from firstlight.serve.errors import ApiError
from firstlight.serve.service import Limits, choice_seed
from tests.serve.helpers import ScriptedEngine, scripted_service


class Notes:
    """A tool that writes down what it sees."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def after(self, token_id: int) -> list[int]:
        self.seen.append(token_id)
        return []


def service(**changes):
    return scripted_service(ScriptedEngine(lambda request: [65]), **changes)


def test_choices_have_seeds_of_their_own_within_64_bits() -> None:
    for seed in (0, 7, -1, 2**63, -(2**200)):
        seeds = [choice_seed(seed, place) for place in range(128)]
        assert len(set(seeds)) == 128
        assert all(0 <= s < 2**63 for s in seeds)
        assert seeds == [choice_seed(seed, place) for place in range(128)]
    assert choice_seed(42, 0) == 42


def test_without_a_seed_two_requests_differ() -> None:
    body = CompletionBody(prompt="a")
    made = [service().requests(body, [[1]], max_new_tokens=1, num_top=0, ends=frozenset())[0].seed for _ in range(20)]
    assert len(set(made)) == 20


def test_an_answers_length_is_within_what_was_asked_the_servers_limit_and_the_context() -> None:
    assert service(context=100).max_new_tokens(None) == 100
    assert service(context=100).max_new_tokens(7) == 7
    assert service(context=100).max_new_tokens(10**9) == 100
    assert service(context=100, limits=Limits(max_new_tokens=20)).max_new_tokens(50) == 20
    assert service(context=100, limits=Limits(max_new_tokens=20)).max_new_tokens(None) == 20


def test_a_tool_sees_the_beginning_of_an_answer_that_goes_on() -> None:
    made = service(make_tool=Notes).tool_after((5, 6))
    assert made is not None
    assert made().seen == [5, 6]
    assert service(make_tool=Notes).tool_after(())().seen == []
    assert service().tool_after((5, 6)) is None


def test_a_call_that_the_beginning_has_closed_is_not_run_again() -> None:
    made = service()
    start, end = (made.tokenizer.special_ids[f"<|python_{name}|>"] for name in ("start", "end"))
    ran: list[str] = []
    maker = tool_maker(made.tokenizer, lambda code: ran.append(code) or "x")
    make = service(make_tool=maker).tool_after((start, 49, end, 65, start, 50, end, start, 51))
    assert make is not None
    tool = make()
    assert ran == []
    tool.after(end)
    assert ran == ["3"]


def test_another_model_is_not_here() -> None:
    service().check_model(None)
    service().check_model("tiny")
    with pytest.raises(ApiError) as caught:
        service().check_model("x" * 10_000)
    assert caught.value.status == 404
    assert len(caught.value.message) < 300
