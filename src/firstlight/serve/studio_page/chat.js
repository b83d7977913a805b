// The chat: a conversation, its settings, and what can be done with an answer.

import { ApiProblem, stream } from "./api.js";
import { Answer, AnswerView, tokensOf } from "./answer.js";
import { announce, copyText, el, icon, percent, remember, remembered } from "./dom.js";
import { closePanel, hideTip, openPanel, showTip } from "./popover.js";
import { settingsPanel } from "./settings.js";

const NUM_ALTERNATIVES = 10;
const ICONS = {
  retry: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4", edit: "M5 19l1-4L16 5l3 3L9 18z", copy: "M9 9h10v10H9zM5 15V5h10",
  tokens: "M3 8h6v8H3zM10.5 8h4v8h-4zM16 8h5v8h-5z", send: "M5 12h13M12 6l6 6-6 6", stop: "M7 7h10v10H7z",
};
const ENDINGS = { stop: "ended by itself", length: "stopped at the limit", you: "stopped by you", problem: "broken off" };

export function chatView(studio) {
  let turns = restored();
  let running = null;
  let pinned = true;

  const log = el("div", { class: "log", "aria-label": "Conversation", role: "region" });
  const field = el("textarea", { id: "ask", rows: 1, placeholder: "Ask something", "aria-describedby": "ask-help" });
  const send = el("button", { type: "submit", class: "main send", "aria-label": "Send" }, icon(ICONS.send));
  const stop = el("button", { type: "button", class: "send stop", "aria-label": "Stop", hidden: true, onclick: () => running?.abort() }, icon(ICONS.stop));
  const shade = el("input", { type: "checkbox", id: "shade", checked: remembered("shade", true) });
  const modeKey = `mode.${studio.served?.run}`;
  let mode = remembered(modeKey, studio.served?.recipe === "base" ? "text" : "chat");
  const modes = el("fieldset", { class: "segments modes" }, el("legend", { class: "unseen" }, "How the model is asked"),
    [["chat", "Chat"], ["text", "Continue"]].map(([value, label]) =>
      el("label", {}, el("input", { type: "radio", name: "mode", value, checked: mode === value, onchange: () => { remember(modeKey, value); setMode(value); } }), el("span", {}, label))));
  const composer = el("form", { class: "composer" }, el("span", { id: "ask-help", class: "unseen" }, "Enter sends; Shift and Enter makes a new line."), el("div", { class: "field" }, field, stop, send),
    el("div", { class: "under" }, modes,
      el("label", { class: "check", for: "shade" }, shade, "Shade unlikely tokens"),
      el("button", { type: "button", class: "quiet", onclick: clear }, "New chat"),
      el("button", { type: "button", class: "quiet only-narrow", "aria-controls": "settings", onclick: () => settings.open() }, "Settings")));
  const settings = settingsPanel();
  const node = el("section", { class: "chat", "aria-label": "Chat" }, el("div", { class: "talk" }, log, composer), settings.node);

  function setMode(value) {
    mode = value;
    const words = mode === "text" ? "Begin a text; the model goes on" : "Ask something";
    field.placeholder = words;
    field.setAttribute("aria-label", words);
    if (!turns.length) draw();
  }

  function restored() {
    try {
      return JSON.parse(sessionStorage.getItem("studio.turns") ?? "[]").map((turn) =>
        turn.role === "user" ? turn : { role: "assistant", mode: turn.mode, at: turn.at, versions: turn.versions.map(Answer.restored) });
    } catch { return []; }
  }

  function keep() {
    const saved = turns.map((turn) => (turn.role === "user" ? turn : { role: turn.role, mode: turn.mode, at: turn.at, versions: turn.versions.map((each) => each.saved()) }));
    try { sessionStorage.setItem("studio.turns", JSON.stringify(saved)); } catch { /* too long to keep: it is on the page */ }
  }

  const answerOf = (turn) => turn.versions[turn.at];

  function messagesBefore(index) {
    const messages = turns.slice(0, index).filter((turn) => turn.mode !== "text").map((turn) =>
      turn.role === "user" ? { role: "user", content: turn.text } : { role: "assistant", content: answerOf(turn).content });
    const system = settings.values.system.trim();
    return system ? [{ role: "system", content: system }, ...messages] : messages;
  }

  function clear() {
    running?.abort();
    turns = [];
    keep();
    draw();
    field.focus();
  }

  function tool(label, path, action) {
    return el("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick: action }, icon(path));
  }

  function draw() {
    closePanel();
    hideTip();
    log.replaceChildren(...(turns.length ? turns.map(drawTurn) : [welcome()]));
    log.classList.toggle("shaded", shade.checked);
  }

  function welcome() {
    const isBase = studio.served?.recipe === "base" && mode === "chat";
    return el("div", { class: "welcome" }, el("h1", {}, `Talk to ${studio.served?.run ?? "the model"}`),
      el("p", {}, "Every token shows how likely the model found it: point at one, or press Tab and the arrow keys. Click it, or press Enter, for what else it might have said, and go on from there."),
      isBase && el("p", { class: "note" }, "This run was trained on plain text only. It was never taught to answer; \"Continue\", below, is what it can do."));
  }

  function drawTurn(turn, index) {
    if (turn.role === "user") {
      const bubble = el("div", { class: "bubble" }, turn.text);
      return el("article", { class: "turn user", "aria-label": "You" }, bubble,
        el("div", { class: "tools" }, tool("Edit and ask again", ICONS.edit, (event) => edit(event, turn, index)), tool("Copy", ICONS.copy, () => copyText(turn.text))));
    }
    const answer = answerOf(turn);
    const view = new AnswerView(answer);
    const foot = el("div", { class: "tools" });
    const article = el("article", { class: "turn assistant", "aria-label": "Answer" }, view.node, foot);
    watch(view, turn, index);
    turn.view = view;
    turn.foot = foot;
    turn.article = article;
    drawFoot(turn, index);
    return article;
  }

  function drawFoot(turn, index) {
    const answer = answerOf(turn);
    turn.article.classList.toggle("writing", !answer.finish);
    turn.article.querySelector(".problem")?.remove();
    if (answer.problem) turn.foot.before(el("p", { class: "problem", role: "alert" }, answer.problem));
    if (!answer.finish) { turn.foot.replaceChildren(el("span", { class: "soft" }, answer.cells.length ? "" : "Thinking of a first token…")); return; }
    const known = answer.tokens.map((token) => token.logprob).filter((value) => typeof value === "number");
    const mean = known.length ? Math.exp(known.reduce((a, b) => a + b, 0) / known.length) : null;
    const facts = [
      `${answer.tokens.length} tokens`, answer.numNew > 1 && answer.seconds > 0 && `${(answer.numNew / answer.seconds).toFixed(1)} a second`,
      mean !== null && `${percent(mean)} a token`, answer.endedEarly ?? ENDINGS[answer.finish],
    ];
    const isLast = index === turns.length - 1;
    turn.foot.replaceChildren(
      ...(turn.versions.length > 1 && isLast ? [el("span", { class: "versions" },
        el("button", { type: "button", class: "icon", "aria-label": "Earlier version", disabled: turn.at === 0, onclick: () => turnTo(turn, turn.at - 1) }, "‹"),
        el("span", {}, `${turn.at + 1} of ${turn.versions.length}`),
        el("button", { type: "button", class: "icon", "aria-label": "Later version", disabled: turn.at === turn.versions.length - 1, onclick: () => turnTo(turn, turn.at + 1) }, "›"))] : []),
      tool("Answer again", ICONS.retry, () => answerAgain(index)), tool("Copy", ICONS.copy, () => copyText(answer.text)),
      turn.mode === "text" ? tool("See this text as tokens", ICONS.tokens, () => studio.open("tokens", turns[index - 1].text + answer.text))
        : tool("See this conversation as tokens", ICONS.tokens, () => studio.open("tokens", messagesBefore(index + 1))),
      el("span", { class: "soft facts" }, facts.filter(Boolean).join(" · ")));
  }

  function turnTo(turn, at) {
    turn.at = at;
    keep();
    draw();
  }

  function watch(view, turn, index) {
    const spanOf = (event) => event.target.closest?.(".tok[data-cell]");
    for (const [on, off] of [["pointerover", "pointerout"], ["focusin", "focusout"]]) {
      view.node.addEventListener(on, (event) => { const span = spanOf(event); if (span && event.pointerType !== "touch") showTip(span, view.cellOf.get(span)); });
      view.node.addEventListener(off, hideTip);
    }
    const look = (span) => openPanel(span, view.cellOf.get(span), {
      choose: (token, other) => branch(turn, index, token, other),
      why: running ? "The answer is still being written: stop it first." : null,
    });
    view.node.addEventListener("click", (event) => {
      const span = spanOf(event);
      if (span && String(getSelection()) === "") look(span);
    });
    view.node.addEventListener("keydown", (event) => {
      const span = spanOf(event);
      if (!span) return;
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        look(span);
        return;
      }
      const all = [...view.node.querySelectorAll(".tok[data-cell]")];
      const at = all.indexOf(span);
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
      if (to === undefined || !all[to]) return;
      event.preventDefault();
      span.tabIndex = -1;
      all[to].tabIndex = 0;
      all[to].focus();
    });
  }

  /** Go on with another token in the place of one. Turns after it belong to another story and go. */
  function branch(turn, index, token, other) {
    const before = answerOf(turn).tokens;
    const kept = before.slice(0, before.indexOf(token));
    const chosen = { ...other, top: token.top };
    turns = turns.slice(0, index + 1);
    turn.versions.push(new Answer([...kept, chosen]));
    turn.at = turn.versions.length - 1;
    if (other.special && /_end\|>$|^<\|bos\|>$/.test(other.text) && !/python|output/.test(other.text)) {
      // The alternative was to end here.
      const answer = answerOf(turn);
      answer.end();
      answer.finish = "stop";
      keep();
      draw();
      return;
    }
    draw();
    if (turn.mode === "text" && answerOf(turn).waiting.length) {
      // This interface takes texts only.
      const answer = answerOf(turn);
      Object.assign(answer, { finish: "problem", problem: "This alternative is a part of a character: a text cannot go on from it. Choose another." });
      drawFoot(turn, index);
      return;
    }
    write(index, { goesOn: true });
  }

  function answerAgain(index) {
    if (running) return;
    const turn = turns[index];
    turns = turns.slice(0, index + 1);
    turn.versions.push(new Answer());
    turn.at = turn.versions.length - 1;
    draw();
    write(index, {});
  }

  function edit(event, turn, index) {
    if (running) return;
    const article = event.currentTarget.closest("article");
    const box = el("textarea", { "aria-label": "Edit your message", rows: Math.min(10, turn.text.split("\n").length + 1), value: turn.text });
    const ask = () => {
      if (!box.value.trim()) return;
      turns = turns.slice(0, index);
      say(box.value, turn.mode);
    };
    box.addEventListener("keydown", (pressed) => {
      if (pressed.key === "Escape") draw();
      if (pressed.key === "Enter" && !pressed.shiftKey && !pressed.isComposing) { pressed.preventDefault(); ask(); }
    });
    article.replaceChildren(el("div", { class: "editing" }, box, el("p", { class: "right" },
      el("button", { type: "button", class: "quiet", onclick: draw }, "Leave it"), el("button", { type: "button", class: "main", onclick: ask }, "Ask again"))));
    box.focus();
  }

  function say(text, asked = mode) {
    turns.push({ role: "user", mode: asked, text }, { role: "assistant", mode: asked, at: 0, versions: [new Answer()] });
    draw();
    pinned = true;
    write(turns.length - 1, {});
  }

  /** [path, body] of the request for an answer, or for more of it. */
  function requestOf(turn, index, goesOn) {
    const answer = answerOf(turn);
    if (turn.mode === "text") {
      const prompt = turns[index - 1].text + (goesOn ? answer.text : "");
      return ["/v1/completions", { prompt, stream: true, logprobs: NUM_ALTERNATIVES, ...settings.request() }];
    }
    const messages = messagesBefore(index);
    if (goesOn) messages.push({ role: "assistant", content: answer.content, prefix: true, ...(answer.hasIds && { ids: answer.tokens.map((token) => token.id) }) });
    return ["/v1/chat/completions", { messages, stream: true, logprobs: true, top_logprobs: NUM_ALTERNATIVES, truncation: "auto", ...settings.request() }];
  }

  /** Stream the answer of a turn from the server. */
  async function write(index, { goesOn = false }) {
    const turn = turns[index];
    const answer = answerOf(turn);
    const own = (running = new AbortController());
    setRunning(true);
    answer.finish = null;
    drawFoot(turn, index);
    scrollDown();
    announce("The model is writing.");
    const began = performance.now();
    try {
      for await (const event of stream(...requestOf(turn, index, goesOn), own.signal)) {
        const choice = event.choices?.[0];
        if (event.firstlight_ended_early) answer.endedEarly = event.firstlight_ended_early.replaceAll("_", " ");
        if (!choice) continue;
        for (const token of tokensOf(choice)) {
          const cell = answer.push(token);
          answer.numNew += 1;
          if (cell) turn.view.add(cell, answer.cells.length - 1);
        }
        if (choice.finish_reason) answer.finish = choice.finish_reason;
        answer.seconds = (performance.now() - began) / 1000;
        scrollDown();
      }
      answer.finish ??= "problem";
    } catch (error) {
      if (error.name === "AbortError") answer.finish = "you";
      else {
        answer.finish = "problem";
        answer.problem = error instanceof ApiProblem ? error.message : `The answer broke off: ${error.message}`;
      }
    }
    const rest = answer.end();
    if (rest) turn.view.add(rest, answer.cells.length - 1);
    if (running === own) { running = null; setRunning(false); }
    if (turns[index] !== turn) return;
    keep();
    drawFoot(turn, index);
    scrollDown();
    announce(answer.problem ?? `Answer of ${answer.tokens.length} tokens: ${answer.text}`);
  }

  function setRunning(is) {
    stop.hidden = !is;
    send.hidden = is;
    node.toggleAttribute("data-running", is);
  }

  // New text scrolls into view, unless the reader has gone up to read.
  function scrollDown() {
    if (pinned) log.scrollTop = log.scrollHeight;
  }
  log.addEventListener("scroll", () => { pinned = log.scrollHeight - log.scrollTop - log.clientHeight < 60; }, { passive: true });

  function grow() {
    field.style.height = "auto";
    field.style.height = `${Math.min(field.scrollHeight, 220)}px`;
  }
  field.addEventListener("input", grow);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      composer.requestSubmit();
    }
  });
  composer.addEventListener("submit", (event) => {
    event.preventDefault();
    if (running || !field.value.trim()) return;
    const text = field.value;
    field.value = "";
    grow();
    say(text);
  });
  shade.addEventListener("change", () => { remember("shade", shade.checked); log.classList.toggle("shaded", shade.checked); });

  setMode(mode);
  draw();
  return { node, show() { draw(); log.scrollTop = log.scrollHeight; if (matchMedia("(pointer: fine)").matches) field.focus({ preventScroll: true }); }, hide() { closePanel(); hideTip(); } };
}
