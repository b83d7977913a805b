"""The studio in a real browser: everything that a person does with it, in one session of headless Chromium.

The chat's answers come from a scripted endpoint, so that what is on the page can be compared with what is written here; one
test talks to a model through the real server.
"""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from serve.studio_run import lines_of, make_run, train_row

from firstlight.serve.studio import add_studio

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra dev has it)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium is installed (Debian: apt install chromium)", allow_module_level=True)

pytestmark = pytest.mark.slow

MARKUP = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"
TIMEOUT_MS = 90_000


@dataclass
class Script:
    """What the endpoint says, by the last message; and what it was asked."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def tokens(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        last = body["messages"][-1]
        if last["role"] == "assistant":
            return [token(300, " ended", 0.5), token(301, ".", 0.9)]
        words = last["content"]
        if "markup" in words:
            return [token(400 + i, piece, 0.25) for i, piece in enumerate((MARKUP[:9], MARKUP[9:30], MARKUP[30:]))]
        if "slow" in words:
            return [token(500 + i, f" {i}", 0.5) for i in range(4000)]
        if "half" in words:
            face = "🙂".encode()
            return [token(600 + i, "", 0.5, data=face[i : i + 1]) for i in range(4)]
        if "tool" in words:
            return [
                token(266, "<|python_start|>", 0.9), token(49, "6*7", 0.8), token(267, "<|python_end|>", 0.9),
                token(268, "<|output_start|>", 0, forced=True), token(52, "42", 0, forced=True),
                token(269, "<|output_end|>", 0, forced=True), token(70, "It is 42.", 0.7),
            ]  # fmt: skip
        return [
            token(101, "The", 0.8),
            token(102, " sun", 0.4, {" moon": (202, 0.3), " day": (203, 0.1)}),
            token(103, " rises", 0.05),
        ]


def token(
    token_id: int,
    text: str,
    p: float,
    others: dict[str, tuple[int, float]] | None = None,
    *,
    data: bytes | None = None,
    forced: bool = False,
) -> dict[str, Any]:
    def entry(i: int, words: str, probability: float, raw: bytes) -> dict[str, Any]:
        logprob = math.log(probability) if probability else 0.0
        return {"token": words, "id": i, "bytes": list(raw), "logprob": logprob}

    own = entry(token_id, text, p, data if data is not None else text.encode())
    top = [own, *(entry(i, words, q, words.encode()) for words, (i, q) in (others or {}).items())]
    return own | {"top_logprobs": top, "is_forced": forced}


def make_app(runs_dir: Path, script: Script) -> FastAPI:
    app = FastAPI()
    add_studio(app, runs_dir=runs_dir, run_name="served")

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        body = await request.json()
        script.asked.append(body)

        async def events() -> AsyncIterator[str]:
            last = body["messages"][-1]["content"]
            try:
                yield event({"delta": {"role": "assistant", "content": ""}})
                if last == "error":
                    yield f"data: {json.dumps({'error': {'message': 'the model failed: out of memory'}})}\n\n"
                    return
                for each in script.tokens(body):
                    yield event({"delta": {"content": "unused"}, "logprobs": {"content": [each]}})
                    await asyncio.sleep(0.05 if "slow" in last else 0)
                yield event({"delta": {}, "finish_reason": "stop"}) + "data: [DONE]\n\n"
            except asyncio.CancelledError:
                script.left.append(last)
                raise

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


def event(choice: dict[str, Any]) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'finish_reason': None, **choice}]})}\n\n"


def serve(app: FastAPI) -> tuple[uvicorn.Server, threading.Thread, str]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    return server, thread, f"http://127.0.0.1:{port}"


@dataclass
class Studio:
    url: str
    runs_dir: Path
    script: Script
    browser: Any
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def open(self, view: str, **options: Any) -> Any:
        """A fresh page. Every request and every complaint of the browser is noted."""
        context = self.browser.new_context(**({"viewport": {"width": 1200, "height": 800}} | options))
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.problems.append(f"{error}\n{error.stack}"))
        page.on("console", lambda m: self.problems.append(m.text) if m.type == "error" else None)
        page.goto(f"{self.url}/#/{view}")
        return page


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    runs_dir = tmp_path_factory.mktemp("studio") / "runs"
    rows = lines_of(
        *(train_row(i) for i in range(20)), {"kind": "eval", "step": 20, "val_bpb": 1.5},
        {"kind": "sample", "step": 20, "samples": [{"prompt": "The ", "completion": MARKUP}]},
    )  # fmt: skip
    make_run(runs_dir, "served", rows=rows, with_model=True, recipe="sft", created_unix_s=3.0, final={"val_bpb": 1.5})
    make_run(runs_dir, "other", rows=lines_of(*(train_row(i, loss_nats=3.0) for i in range(30))), created_unix_s=2.0)
    script = Script()
    server, thread, url = serve(make_app(runs_dir, script))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield Studio(url, runs_dir, script, browser)
        browser.close()
    server.should_exit = True
    thread.join(20)


@pytest.fixture(autouse=True)
def nothing_goes_out(studio: Studio) -> Iterator[None]:
    """After every test: all requests went to this server, and the browser had nothing to complain of."""
    studio.requests.clear()
    studio.problems.clear()
    yield
    for context in studio.browser.contexts:
        context.close()
    assert studio.problems == []
    assert [url for url in studio.requests if not url.startswith((studio.url, "data:"))] == []


def ask(page: Any, words: str) -> None:
    page.fill("#ask", words)
    page.press("#ask", "Enter")
    page.wait_for_selector(".turn.assistant:last-of-type:not(.writing) .facts")


def answer_text(page: Any) -> str:
    return page.locator(".turn.assistant .answer").last.evaluate("node => node.textContent")


def has_no_overflow(page: Any) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_an_answer_streams_and_another_word_goes_on_from_there(studio: Studio) -> None:
    page = studio.open("chat")
    page.fill("#set-seed", "7")
    page.fill("#set-system", "Be kind.")
    ask(page, "What happens?\nSay it.")
    assert answer_text(page) == "The sun rises"
    asked = studio.script.asked[-1]
    assert asked["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "What happens?\nSay it."},
    ]
    assert (asked["stream"], asked["logprobs"], asked["seed"]) == (True, True, 7)
    tokens = page.locator(".tok")
    assert tokens.count() == 3
    tokens.nth(1).hover()
    assert page.locator(".tip").inner_text().split("\n")[0] == "40.0 %"
    # The less likely, the more shade: 0.8, 0.4 and 0.05.
    shades = [float(tokens.nth(i).evaluate("node => node.style.getPropertyValue('--l')")) for i in range(3)]
    assert shades == sorted(shades)
    assert shades[0] < 0.1 < shades[1] < 0.2 < shades[2]
    tokens.nth(1).click()
    assert page.locator(".panel .alt").all_inner_texts() == ["·sun\n40.0 %", "·moon\n30.0 %", "·day\n10.0 %"]
    page.locator(".panel .alt", has_text="moon").click()
    page.wait_for_selector(".versions")
    page.wait_for_selector(".turn.assistant:not(.writing)")
    assert answer_text(page) == "The moon ended."
    last = studio.script.asked[-1]["messages"][-1]
    assert last == {"role": "assistant", "content": "The moon", "prefix": True, "ids": [101, 202]}
    page.get_by_label("Earlier version").click()
    assert answer_text(page) == "The sun rises"
    page.reload()
    page.wait_for_selector(".tok")
    assert answer_text(page) == "The sun rises"


def test_what_a_model_says_is_text_whatever_it_says(studio: Studio) -> None:
    page = studio.open("chat")
    ask(page, f"markup {MARKUP}")
    assert answer_text(page) == MARKUP
    assert page.locator(".bubble").inner_text() == f"markup {MARKUP}"
    page.locator(".tok").first.click()
    page.goto(f"{studio.url}/#/runs")
    assert page.locator(".sample").first.inner_text() == f"The {MARKUP}"
    assert page.locator("img:not(.logo), #main b:has-text('bold')").count() == 0
    assert "owned" not in page.title()


def test_half_characters_tools_errors_and_stop(studio: Studio) -> None:
    page = studio.open("chat")
    ask(page, "half a face")
    assert page.locator(".tok").all_inner_texts() == ["🙂"]
    ask(page, "tool please")
    assert page.locator(".box.python .code").inner_text() == "6*7"
    assert page.locator(".box.output .code").inner_text() == "42"
    assert page.locator(".box.output .tok.plain").count() == 1, "a forced token has no probability"
    ask(page, "after the tool")
    parts = [
        {"type": "python", "text": "6*7"},
        {"type": "python_output", "text": "42"},
        {"type": "text", "text": "It is 42."},
    ]
    assert studio.script.asked[-1]["messages"][-2]["content"] == parts
    ask(page, "error")
    assert "out of memory" in page.locator(".turn .problem").inner_text()
    page.fill("#ask", "slow")
    page.press("#ask", "Enter")
    page.wait_for_selector(".writing .tok")
    page.get_by_label("Stop").click()
    page.wait_for_selector(".turn.assistant:last-of-type:not(.writing)")
    assert "stopped by you" in page.locator(".facts").last.inner_text()
    deadline = time.monotonic() + 20
    while "slow" not in studio.script.left:
        assert time.monotonic() < deadline, "the server was not told"
        page.wait_for_timeout(20)


def test_edit_answer_again_and_new_chat(studio: Studio) -> None:
    page = studio.open("chat")
    ask(page, "first")
    ask(page, "second")
    page.get_by_label("Edit and ask again").first.click()
    box = page.get_by_label("Edit your message")
    box.fill("changed")
    box.press("Enter")
    page.wait_for_selector(".turn.assistant:last-of-type:not(.writing) .facts")
    assert page.locator(".bubble").all_inner_texts() == ["changed"]
    assert studio.script.asked[-1]["messages"] == [{"role": "user", "content": "changed"}]
    page.get_by_label("Answer again").click()
    page.wait_for_selector(".versions >> text=2 of 2")
    page.get_by_role("button", name="New chat").click()
    assert page.locator(".turn").count() == 0


def test_curves_grow_while_a_run_writes_and_two_are_compared(studio: Studio) -> None:
    folder = make_run(studio.runs_dir, "live", rows=lines_of(*(train_row(i) for i in range(10))), status="running", process="", created_unix_s=9.0)  # fmt: skip
    page = studio.open("runs")
    loss = page.locator("[data-metric=loss_nats]")
    page.wait_for_selector("[data-metric=loss_nats][data-points='10'] canvas")
    assert loss.get_attribute("data-runs") == "live"
    with open(folder / "metrics.jsonl", "ab") as out:
        out.write(lines_of(*(train_row(i) for i in range(10, 25))) + b'{"kind": "train", "st')
        out.flush()
        page.wait_for_selector("[data-metric=loss_nats][data-points='25']")
        out.write(b'ep": 25, "loss_nats": 3.0, "tokens_seen": 49920, "elapsed_s": 13.0}\nnonsense\n')
    page.wait_for_selector("[data-metric=loss_nats][data-points='26']")
    page.wait_for_selector("text=1 damaged lines of live are left out")
    # A resumed run makes steps again: the file is shorter.
    (folder / "metrics.jsonl").write_bytes(lines_of(*(train_row(i) for i in range(5))))
    page.wait_for_selector("[data-metric=loss_nats][data-points='5']")
    page.check("#run-served")
    page.check("#run-other")
    page.wait_for_selector("[data-metric=loss_nats][data-points='55']")
    assert loss.get_attribute("data-runs") == "live served other"
    # Smoothed curves of constant values are those values; the newest are shown.
    assert loss.locator("li").last.inner_text().split() == ["other", "3"]
    assert page.locator("[data-metric=val_bpb]").get_attribute("data-points") == "1"
    for axis in ("Tokens", "Time", "Step"):
        page.get_by_role("radio", name=axis).check()
        assert loss.get_attribute("data-points") == "55"
    page.wait_for_selector("thead >> text=other")
    assert page.locator("tr", has_text="matrix lr").locator("td").all_inner_texts() == ["0.02", "0.02", "0.02"]
    page.uncheck("#run-live")
    page.wait_for_selector("[data-metric=loss_nats][data-points='50']")
    (folder / "run.json").unlink()


def test_tokens_and_the_mask(studio: Studio) -> None:
    page = studio.open("tokens")
    page.fill("#tok-text", "the wo")
    page.wait_for_selector(".tokens-out >> nth=0 >> .piece:has-text('260')")
    shown = page.locator(".tokens-out").first.locator(".piece").all_inner_texts()
    # No " the" at the start of a text: "t", "he"; then " wo" as " ", "wo".
    assert [text.split("\n") for text in shown] == [["t", "116"], ["he", "257"], ["·", "32"], ["wo", "260"]]
    page.wait_for_selector(".masked .piece")
    filled = page.locator(".masked .piece.loss bdi").all_inner_texts()
    assert filled[0] == "<|python_start|>"
    assert filled[-1] == "<|assistant_end|>"
    assert "<|output_start|>" not in filled


def test_the_walk_is_shown_in_a_frame_that_can_do_nothing(studio: Studio) -> None:
    page = studio.open("explain")
    frame = page.frame_locator("iframe")
    assert frame.locator("h1").inner_text() == "served, explained"
    assert page.locator("iframe").get_attribute("sandbox") == ""
    light = frame.locator("body").evaluate("node => getComputedStyle(node).backgroundColor")
    page.locator("#theme").click()
    page.locator("#theme").click()
    frame.locator("h1").wait_for()
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    page.wait_for_timeout(300)
    assert light == "rgb(250, 248, 245)"
    assert frame.locator("body").evaluate("node => getComputedStyle(node).backgroundColor") == "rgb(19, 18, 25)"
    page.fill("#walk-text", "the wo wo")
    page.get_by_role("button", name="Walk it").click()
    frame.locator("dd", has_text="9 bytes").or_(frame.locator("dd:has-text('9')").first).first.wait_for()


def test_light_dark_and_the_choice_is_kept(studio: Studio) -> None:
    page = studio.open("chat", color_scheme="light")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert light == "rgb(250, 248, 245)"
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark == "rgb(19, 18, 25)"
    page.get_by_label("Colours: as the system").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == light
    page.reload()
    page.get_by_label("Colours: light").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


@pytest.mark.parametrize("width", [360, 390])
def test_on_a_phone_nothing_scrolls_sideways_and_fingers_find_everything(studio: Studio, width: int) -> None:
    page = studio.open("chat", viewport={"width": width, "height": 760}, has_touch=True)
    assert has_no_overflow(page)
    ask(page, "x" * 300)
    page.locator(".tok").nth(1).tap()
    page.wait_for_selector(".panel")
    assert has_no_overflow(page)
    page.get_by_label("Close").tap()
    page.get_by_role("button", name="Settings").tap()
    assert page.locator("#set-temperature").is_visible()
    page.get_by_role("button", name="Done").tap()
    for view in ("Tokens", "Runs", "Explain", "Chat"):
        page.get_by_role("link", name=view).tap()
        page.wait_for_selector(f"body[data-view={view.lower()}] #main > *")
        if view == "Runs":
            page.wait_for_selector("[data-metric=loss_nats] canvas")
        assert has_no_overflow(page), view
        small = page.evaluate(
            "[...document.querySelectorAll('button, nav a, select')].filter(n => n.offsetParent && !n.disabled)"
            ".map(n => [n.textContent || n.ariaLabel, n.getBoundingClientRect()]).filter(([, r]) => r.height < 36 || r.width < 36)"
        )
        assert small == [], view


def test_with_the_keyboard_alone(studio: Studio) -> None:
    page = studio.open("chat")
    page.wait_for_selector(".welcome")
    page.keyboard.type("hello")
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn.assistant:not(.writing) .facts")

    def focused() -> str:
        return page.evaluate(
            "document.activeElement.ariaLabel || document.activeElement.textContent.trim() || document.activeElement.id"
        )

    def tab_to(words: str, *, back: bool = False) -> None:
        for _ in range(40):
            if focused().startswith(words):
                return
            page.keyboard.press("Shift+Tab" if back else "Tab")
        raise AssertionError(f"no Tab leads to {words!r}")

    tab_to("The, 80.0 %", back=True)
    page.keyboard.press("ArrowRight")
    assert focused() == "sun, 40.0 %"
    assert page.locator(".tip").inner_text().startswith("40.0 %")
    page.keyboard.press("Enter")
    assert focused() == "Go on with ·moon, 30.0 %"
    page.keyboard.press("Escape")
    assert focused() == "sun, 40.0 %"
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    assert focused() == "Go on with ·day, 10.0 %"
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn.assistant:not(.writing) .versions")
    assert answer_text(page) == "The day ended."
    for view in ("Tokens", "Runs", "Explain"):
        page.evaluate("document.activeElement.blur()")
        tab_to(view)
        assert page.evaluate("document.activeElement.matches(':focus-visible')")
        page.keyboard.press("Enter")
        page.wait_for_selector(f"body[data-view={view.lower()}]")


def test_a_real_model_answers_through_the_real_server(studio: Studio) -> None:
    from firstlight.recipes.loading import load_for_inference
    from firstlight.runtime.context import open_runtime
    from firstlight.serve.assembly import assemble
    from firstlight.serve.service import Limits

    with open_runtime(device="cpu", dtype="fp32", num_threads=1) as runtime:
        loaded = load_for_inference(studio.runs_dir / "served", runtime)
    parts = assemble(
        loaded, host="127.0.0.1", max_rows=2, queue=4, limits=Limits(), api_key="secret", origins=(), tools="off", studio=True,
    )  # fmt: skip
    server, thread, url = serve(parts.app)
    here, studio.url = studio.url, url
    try:
        page = studio.open("chat")
        page.fill("#key-field", "secret")
        page.get_by_role("button", name="Use it").click()
        page.wait_for_selector(".welcome")
        page.fill("#set-max_tokens", "12")
        page.fill("#set-temperature", "0")
        ask(page, "the")
        before = answer_text(page)
        tokens = page.locator(".tok[data-cell]")
        assert tokens.count() > 2
        tokens.nth(1).click()
        assert page.locator(".alt").count() == 10
        page.locator(".alt:not(.chosen)").first.click()
        page.wait_for_selector(".turn.assistant:not(.writing) .versions")
        assert answer_text(page) != before
        page.get_by_role("radio", name="Continue").check()
        ask(page, "the wo")
        assert page.locator(".turn.assistant").last.locator(".tok[data-cell]").count() > 2
        page.goto(f"{url}/#/explain")
        assert page.frame_locator("iframe").locator("h1").inner_text() == "served, explained"
        # The key was asked for by a refusal, which browsers write down.
        studio.problems[:] = [words for words in studio.problems if "401" not in words]
    finally:
        server.should_exit = True
        thread.join(20)
        parts.close()
        assert [request for request in studio.requests if not request.startswith((url, "data:"))] == []
        studio.requests.clear()
        studio.url = here
