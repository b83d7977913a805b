"""Claims of serve/completions.py, through the official client."""

from __future__ import annotations

import math
from typing import Any

import openai
import pytest
import torch

from firstlight.infer.engine import generate


def greedy(loaded: Any, ids: list[int], num: int) -> list[int]:
    ends = set(loaded.tokenizer.special_ids.values())
    return [i for (i,) in generate(loaded.model, ids, max_new_tokens=num, temperature=0.0, stop_ids=ends)]


def test_a_completion_is_what_the_model_says_alone(client: Any, loaded: Any) -> None:
    tokenizer = loaded.tokenizer
    prompt = [tokenizer.bos_id, *tokenizer.encode("once upon")]
    expected = greedy(loaded, prompt, 16)
    found = client.completions.create(model="tiny", prompt="once upon", temperature=0, logprobs=2)
    shown = [i for i in expected if i not in tokenizer.special_ids.values()]
    assert found.choices[0].text == tokenizer.decode(shown)
    assert found.usage.prompt_tokens == len(prompt)
    # 16 is the interface's own default.
    assert found.usage.completion_tokens == len(expected) <= 16
    logprobs = found.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == len(shown)
    # By a pass over the whole text, and float64.
    with torch.no_grad():
        logits = loaded.model(torch.tensor([[*prompt, *expected]]))[0].double()
    for place, token_id in enumerate(shown):
        by_hand = float(logits[len(prompt) - 1 + place].log_softmax(-1)[token_id])
        assert math.isclose(logprobs.token_logprobs[place], by_hand, abs_tol=1e-4)
        assert len(logprobs.top_logprobs[place]) == 2


def test_prompts_and_choices_come_in_openais_order(client: Any) -> None:
    options = {"model": "tiny", "temperature": 0, "max_tokens": 8}
    alone = [client.completions.create(prompt=p, **options).choices[0].text for p in ("a", "bb")]
    found = client.completions.create(prompt=["a", "bb"], n=2, **options)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in found.choices] == [alone[0], alone[0], alone[1], alone[1]]


def test_ids_are_taken_as_they_are(client: Any, loaded: Any) -> None:
    ids = [loaded.tokenizer.bos_id, *loaded.tokenizer.encode("abc")]
    options = {"model": "tiny", "temperature": 0, "max_tokens": 8}
    by_text = client.completions.create(prompt="abc", **options).choices[0].text
    assert client.completions.create(prompt=ids, **options).choices[0].text == by_text
    assert client.completions.create(prompt=[ids, ids[1:]], **options).choices[0].text == by_text


def test_echo_shows_the_prompt_first_also_in_a_stream(client: Any) -> None:
    options = {"model": "tiny", "prompt": "größe", "echo": True, "seed": 3, "max_tokens": 8}
    whole = client.completions.create(**options).choices[0].text
    assert whole.startswith("größe")
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**options, stream=True)) == whole


def test_streamed_log_probabilities_are_those_of_the_whole(client: Any) -> None:
    options = {"model": "tiny", "prompt": "a", "seed": 4, "max_tokens": 12, "logprobs": 0}
    whole = client.completions.create(**options).choices[0]
    names, offsets, reason = [], [], None
    for chunk in client.completions.create(**options, stream=True):
        logprobs = chunk.choices[0].logprobs
        names += logprobs.tokens if logprobs else []
        offsets += logprobs.text_offset if logprobs else []
        reason = chunk.choices[0].finish_reason or reason
    assert names == whole.logprobs.tokens
    assert offsets == whole.logprobs.text_offset
    assert reason == whole.finish_reason


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": "x" * 200}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": "a", "n": 128}, "n"),
        ({"prompt": "a", "echo": True, "logprobs": 1}, "echo"),
        ({"prompt": "a", "model": "b"}, "model"),
    ],
)  # fmt: skip
def test_what_cannot_be_completed_is_refused(client: Any, fields: dict, param: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(**({"model": "tiny"} | fields))
    assert caught.value.status_code in (400, 404)
    assert caught.value.param == param


def test_an_answer_ends_where_the_context_is_full(client: Any) -> None:
    found = client.completions.create(model="tiny", prompt="x" * 150, max_tokens=1000, seed=1, temperature=2)
    assert found.choices[0].finish_reason in ("length", "stop")
    # BOS and 150 before; the last new one needs no place of its own.
    assert found.usage.completion_tokens <= 160 - 151 + 1
