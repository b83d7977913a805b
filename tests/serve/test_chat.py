"""Claims of serve/chat.py, through the official client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from firstlight.infer.engine import generate
from firstlight.infer.tools import PythonTool
from firstlight.tokens.conversation import Message, render_prompt
from tests.serve.helpers import Running, ScriptedEngine, make_tokenizer, scripted

TOKENIZER = make_tokenizer()
END = TOKENIZER.special_ids["<|assistant_end|>"]
ASKED = [{"role": "user", "content": "hello"}]


def greedy(loaded: Any, ids: list[int], num: int) -> list[int]:
    """The likeliest ids one by one, by the engine that `firstlight sample` uses; up to where a chat's answer ends."""
    names = ("assistant_end", "bos", "user_start", "user_end", "assistant_start")
    ends = {loaded.tokenizer.special_ids[f"<|{name}|>"] for name in names}
    return [i for (i,) in generate(loaded.model, ids, max_new_tokens=num, temperature=0.0, stop_ids=ends)]


def test_an_answer_is_what_the_model_says_alone(client: Any, loaded: Any) -> None:
    prompt = render_prompt([Message.of("user", "hello")], loaded.tokenizer)
    expected = greedy(loaded, prompt, 12)
    found = client.chat.completions.create(
        model="tiny", messages=ASKED, max_completion_tokens=12, temperature=0, logprobs=True, top_logprobs=3
    )
    assert found.object == "chat.completion"
    assert found.choices[0].message.role == "assistant"
    ids = [entry.id for entry in found.choices[0].logprobs.content]
    assert ids == [i for i in expected if i != END]
    assert found.usage.prompt_tokens == len(prompt)
    assert found.usage.completion_tokens == len(expected)
    assert found.usage.total_tokens == len(prompt) + len(expected)
    for entry in found.choices[0].logprobs.content:
        # Greedy: the chosen one is the likeliest of all.
        assert entry.top_logprobs[0].id == entry.id
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob, abs=1e-5)
        assert len(entry.top_logprobs) == 3
        assert bytes(entry.bytes) == loaded.tokenizer.id_bytes(entry.id)


def test_a_stream_adds_up_to_the_whole(client: Any) -> None:
    options = {"model": "tiny", "messages": ASKED, "max_tokens": 20, "seed": 5, "logprobs": True, "n": 2}
    whole = client.chat.completions.create(**options)
    texts, entries, reasons, roles = ["", ""], [[], []], ["", ""], ["", ""]
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        for choice in chunk.choices:
            roles[choice.index] += choice.delta.role or ""
            texts[choice.index] += choice.delta.content or ""
            entries[choice.index] += choice.logprobs.content if choice.logprobs else []
            reasons[choice.index] += choice.finish_reason or ""
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    for place, choice in enumerate(whole.choices):
        assert roles[place] == "assistant"
        assert texts[place] == choice.message.content
        assert reasons[place] == choice.finish_reason
        assert [entry.id for entry in entries[place]] == [entry.id for entry in choice.logprobs.content]


def test_a_seed_gives_the_same_answers_and_its_choices_differ(client: Any) -> None:
    def texts(seed: int) -> list[str]:
        found = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=16, seed=seed, n=3)
        return [choice.message.content for choice in found.choices]

    first = texts(11)
    assert texts(11) == first
    assert len(set(first)) == 3
    assert texts(12) != first


def test_an_answer_goes_on_behind_a_prefix(client: Any, loaded: Any) -> None:
    prompt = render_prompt([Message.of("user", "hello")], loaded.tokenizer)
    expected = greedy(loaded, [*prompt, *b"ok"], 6)
    found = client.chat.completions.create(
        model="tiny", messages=[*ASKED, {"role": "assistant", "content": "ok", "prefix": True}],
        max_tokens=6, temperature=0, logprobs=True,
    )  # fmt: skip
    assert [entry.id for entry in found.choices[0].logprobs.content] == [i for i in expected if i != END]


def test_a_long_history_is_refused_or_trimmed_as_asked(client: Any) -> None:
    history = [{"role": role, "content": "x" * 30} for _ in range(5) for role in ("user", "assistant")]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=[*history, *ASKED])
    assert caught.value.code == "context_length_exceeded"
    found = client.chat.completions.with_raw_response.create(
        model="tiny", messages=[*history, *ASKED], max_tokens=4, extra_body={"truncation": "auto"}
    )
    assert int(found.headers["x-firstlight-dropped-turns"]) >= 1
    assert found.parse().usage.prompt_tokens <= 160


def test_an_unknown_model_is_not_found(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=ASKED)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught_tools:
        client.chat.completions.create(
            model="tiny", messages=ASKED, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert caught_tools.value.param == "tools"


def script(text: str) -> list[int]:
    """Ids of a text in which special tokens stand for themselves."""
    ids: list[int] = []
    while text:
        name = next((n for n in TOKENIZER.special_ids if text.startswith(n)), None)
        ids += [TOKENIZER.special_ids[name]] if name else list(text[0].encode())
        text = text[len(name) if name else 1 :]
    return ids


def ask(server: Running, **fields: Any) -> dict:
    reply = server.ask("/v1/chat/completions", {"messages": ASKED} | fields)
    assert reply.status == 200, reply.body
    return reply.json


def test_a_call_of_the_tool_is_run_and_its_output_forced() -> None:
    said = "It is <|python_start|>6*7<|python_end|> so 42.<|assistant_end|>"
    engine = ScriptedEngine(lambda request: script(said))
    results = {"6*7": "42"}
    with scripted(engine, make_tool=lambda: PythonTool(TOKENIZER, results.__getitem__)) as server:
        choice = ask(server, logprobs=True)["choices"][0]
        assert choice["message"]["content"] == "It is  so 42."
        parts = [
            {"type": "text", "text": "It is "},
            {"type": "python", "text": "6*7"},
            {"type": "python_output", "text": "42"},
            {"type": "text", "text": " so 42."},
        ]
        assert choice["message"]["firstlight_parts"] == parts
        forced = "".join(entry["token"] for entry in choice["logprobs"]["content"] if entry["is_forced"])
        assert forced == "<|output_start|>42<|output_end|>"
        stream = server.ask("/v1/chat/completions", {"messages": ASKED, "stream": True}).body.decode()
        deltas = [
            json.loads(line[6:])["choices"][0]["delta"] for line in stream.splitlines() if line.startswith("data: {")
        ]
        assert "".join(delta.get("content") or "" for delta in deltas) == "It is  so 42."
        code = [
            part["text"] for delta in deltas for part in delta.get("firstlight_parts", ()) if part["type"] == "python"
        ]
        assert "".join(code) == "6*7"
        # A call that the prefix opened is still the tool's.
        engine.script = lambda request: script("*7<|python_end|>!<|assistant_end|>")
        prefix = {"role": "assistant", "content": "", "prefix": True, "ids": script("<|python_start|>6")}
        message = ask(server, messages=[*ASKED, prefix])["choices"][0]["message"]
        assert [part["text"] for part in message["firstlight_parts"]] == ["*7", "42", "!"]


def test_a_stop_across_tokens_is_never_shown_and_frees_the_row() -> None:
    engine = ScriptedEngine(lambda request: [*script("one, STO two STOP three"), 65])
    with scripted(engine) as server:
        choice = ask(server, stop=["STOP", "nothing"], max_tokens=100_000)["choices"][0]
        assert choice["message"]["content"] == "one, STO two "
        assert choice["finish_reason"] == "stop"
        stream = server.ask(
            "/v1/chat/completions", {"messages": ASKED, "stop": "STOP", "stream": True, "max_tokens": 100_000}
        ).body.decode()
        events = [line[6:] for line in stream.splitlines() if line]
        assert events[-1] == "[DONE]"
        chunks = [json.loads(event)["choices"][0] for event in events[:-1]]
        assert "".join(chunk["delta"].get("content") or "" for chunk in chunks) == "one, STO two "
        assert chunks[-1]["finish_reason"] == "stop"
        server.until("firstlight_rows_active", 0)


def test_a_base_model_answers_with_a_warning() -> None:
    with scripted(ScriptedEngine(lambda request: script("x<|assistant_end|>")), warning="base") as server:
        reply = server.ask("/v1/chat/completions", {"messages": ASKED})
        assert reply.headers["x-firstlight-warning"] == "base"
