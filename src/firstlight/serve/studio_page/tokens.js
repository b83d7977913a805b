// The token viewer: a text, and a conversation with what carries loss, as the served run's tokenizer cuts them.

import { post } from "./api.js";
import { el, shown } from "./dom.js";

const ROLES = [["system", "System"], ["user", "User"], ["assistant", "Assistant"], ["python", "Assistant: Python"], ["python_output", "Output of Python"]];
const EXAMPLE = [
  { role: "user", content: "What is 12 * 34?" },
  { role: "assistant", content: [{ type: "python", text: "12 * 34" }, { type: "python_output", text: "408" }, { type: "text", text: "It is 408." }] },
];

export function tokensView() {
  const text = el("textarea", { id: "tok-text", rows: 5, value: "The first light of dawn: 3.14159 — naïve cafés, 日本語, and a 🙂.\ndef light(day):\n    return day.first()" });
  const textOut = el("div", { class: "tokens-out", "aria-live": "off" });
  const textFacts = el("p", { class: "soft", role: "status" });
  const list = el("div", { class: "turns-edit" });
  const talkOut = el("div", { class: "tokens-out masked", "aria-live": "off" });
  const talkFacts = el("p", { class: "soft", role: "status" });
  let lines = flat(EXAMPLE);

  const node = el("section", { class: "page tokens", "aria-label": "Tokens" },
    el("div", { class: "columns" },
      el("section", { "aria-labelledby": "tok-h1" }, el("h1", { id: "tok-h1" }, "A text as tokens"),
        el("p", { class: "soft" }, "As this run's tokenizer cuts it. Under each token its id; a space is ·, a line end ↵."),
        el("label", { class: "unseen", for: "tok-text" }, "Text"), text, textFacts, textOut),
      el("section", { "aria-labelledby": "tok-h2" }, el("h1", { id: "tok-h2" }, "A conversation as it is taught"),
        el("p", { class: "soft" }, "The model learns to write what is filled in; the rest it only reads."),
        list, el("p", {}, el("button", { type: "button", class: "quiet", onclick: () => { lines.push({ role: lines.at(-1)?.role === "user" ? "assistant" : "user", text: "" }); drawLines(); list.querySelector(".line:last-child textarea")?.focus(); } }, "+ Add a turn")),
        talkFacts, talkOut)));

  function flat(messages) {
    return messages.flatMap(({ role, content }) => typeof content === "string" ? [{ role, text: content }]
      : content.map((part) => ({ role: part.type === "text" ? role : part.type, text: part.text })));
  }

  /** Lines to messages: what the assistant and its tool say one after another is one message. */
  function messages() {
    const found = [];
    for (const { role, text: said } of lines) {
      if (role === "system" || role === "user") { found.push({ role, content: said }); continue; }
      const part = { type: role === "assistant" ? "text" : role, text: said };
      if (found.at(-1)?.role === "assistant") found.at(-1).content.push(part);
      else found.push({ role: "assistant", content: [part] });
    }
    return found;
  }

  function drawLines() {
    list.replaceChildren(...lines.map((line, index) => {
      const role = el("select", { "aria-label": `Who speaks in turn ${index + 1}` }, ROLES.map(([value, label]) => el("option", { value, selected: value === line.role }, label)));
      role.value = line.role;
      role.addEventListener("change", () => { line.role = role.value; renderTalk(); });
      const said = el("textarea", { rows: Math.min(6, line.text.split("\n").length), "aria-label": `Text of turn ${index + 1}`, value: line.text });
      said.addEventListener("input", () => { line.text = said.value; soon("talk", renderTalk); });
      return el("div", { class: "line" }, role, said, el("button", { type: "button", class: "icon", "aria-label": `Take turn ${index + 1} away`, onclick: () => { lines.splice(index, 1); drawLines(); } }, "×"));
    }));
    renderTalk();
  }

  const timers = {};
  function soon(name, action) {
    clearTimeout(timers[name]);
    timers[name] = setTimeout(action, 120);
  }

  // Answers may come in another order than the questions: only the newest is shown.
  const newest = {};
  async function ask(name, path, body, facts, out, show) {
    const own = (newest[name] = {});
    try {
      const answer = await post(path, body);
      if (newest[name] === own) show(answer);
    } catch (error) {
      if (newest[name] !== own) return;
      out.replaceChildren();
      facts.replaceChildren(el("span", { class: "problem" }, error.message));
    }
  }

  function renderText() {
    return ask("text", "/api/tokenize", { text: text.value }, textFacts, textOut, ({ tokens, num_bytes: bytes, vocab_size: size }) => {
      textFacts.textContent = tokens.length ? `${shown(tokens.length)} tokens for ${shown(bytes)} bytes: ${(bytes / tokens.length).toFixed(2)} bytes a token; ${shown(size)} ids in all.` : "Type a text.";
      textOut.replaceChildren(...tokens.map((token, index) => piece(token, `c${index % 5}`)));
    });
  }

  function renderTalk() {
    if (!lines.length) { talkFacts.textContent = "Add a turn."; talkOut.replaceChildren(); return null; }
    return ask("talk", "/api/render", { messages: messages() }, talkFacts, talkOut, ({ tokens, num_with_loss: num }) => {
      talkFacts.textContent = `${shown(tokens.length)} tokens, ${shown(num)} of them carry loss (filled).`;
      talkOut.replaceChildren(...tokens.map((token) => piece(token, token.carries_loss ? "loss" : "read")));
    });
  }

  function piece(token, style) {
    const words = [`id ${token.id}`, token.hex && `bytes ${token.hex}`, token.carries_loss !== undefined && (token.carries_loss ? "carries loss" : "no loss")].filter(Boolean).join(" · ");
    return el("span", { class: `piece ${style}${token.is_special ? " special" : ""}`, title: words, "data-id": token.id, "data-loss": token.carries_loss ?? null }, el("bdi", {}, token.text), el("small", {}, String(token.id)));
  }

  text.addEventListener("input", () => soon("text", renderText));
  return {
    node,
    show(given) {
      if (Array.isArray(given)) lines = flat(given);
      if (typeof given === "string") text.value = given;
      drawLines();
      renderText();
      if (given) node.querySelector(typeof given === "string" ? "#tok-h1" : "#tok-h2").scrollIntoView();
    },
  };
}
