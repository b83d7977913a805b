// One answer: its tokens as the server streams them, and as spans that can be looked into.
//
// A cell is what one span shows: one token, or the few that make one character together. Kinds are text, python (a call of
// the tool) and output (what it printed).

import { el, percent, visible } from "./dom.js";

const OPENS = { "<|python_start|>": "python", "<|output_start|>": "output" };
const CLOSES = ["<|python_end|>", "<|output_end|>"];
const LABELS = { python: "Python that the model wrote", output: "What it printed" };

const FULL_SHADE_NATS = 6;

export class Answer {
  constructor(tokens = []) {
    this.cells = [];
    this.ids = [];
    this.finish = null;
    this.problem = null;
    this.seconds = 0;
    this.numNew = 0;
    this.kind = "text";
    this.waiting = [];
    this.decoder = new TextDecoder();
    for (const token of tokens) this.push(token);
  }

  /** Every token, in order; to begin another answer with some of them. */
  get tokens() {
    return [...this.cells.flatMap((cell) => cell.tokens), ...this.waiting];
  }

  get hasIds() {
    return this.tokens.every((token) => Number.isInteger(token.id));
  }

  /** Take a token {text, bytes, id, logprob, top, special}; returns the cell that it completes, or null. */
  push(token) {
    const marker = token.special ? token.text : null;
    if (marker !== null) {
      this.waiting.push(token);
      const cell = this.give(this.decoder.decode(), { hidden: true });
      this.decoder = new TextDecoder();
      this.kind = OPENS[marker] ?? (CLOSES.includes(marker) ? "text" : this.kind);
      return cell;
    }
    this.waiting.push(token);
    const text = token.bytes ? this.decoder.decode(new Uint8Array(token.bytes), { stream: true }) : token.text;
    return text ? this.give(text, {}) : null;
  }

  give(text, { hidden = false }) {
    const cell = { text, kind: this.kind, tokens: this.waiting, hidden: hidden && !text };
    this.waiting = [];
    this.cells.push(cell);
    return cell;
  }

  /** Nothing more comes: half a character, if any, shows as the sign for that. */
  end() {
    const rest = this.decoder.decode();
    return rest || this.waiting.length ? this.give(rest, {}) : null;
  }

  get text() {
    return this.cells.filter((cell) => cell.kind === "text").map((cell) => cell.text).join("");
  }

  /** The message's content for the server: a text, or its parts. */
  get content() {
    const parts = [];
    for (const cell of this.cells) {
      const type = cell.kind === "output" ? "python_output" : cell.kind;
      if (!cell.text) continue;
      if (parts.at(-1)?.type === type) parts.at(-1).text += cell.text;
      else parts.push({ type, text: cell.text });
    }
    return parts.some((part) => part.type !== "text") ? parts : this.text;
  }

  /** What is kept of it in this tab. */
  saved() {
    return { tokens: this.tokens, finish: this.finish, problem: this.problem, seconds: this.seconds, numNew: this.numNew };
  }

  static restored(saved) {
    const answer = new Answer(saved.tokens);
    if (saved.finish) answer.end();
    return Object.assign(answer, { finish: saved.finish, problem: saved.problem, seconds: saved.seconds, numNew: saved.numNew });
  }
}

// Letters and signs are never in one ordinary token (the tokenizer splits between them first), so this is a special one.
const isSpecial = (text) => /^<\|\w+\|>$/.test(text);

/** Tokens of one event of either stream, in the page's own words. */
export function tokensOf(choice) {
  if (choice.logprobs?.tokens) return textTokensOf(choice.logprobs);
  const content = choice.logprobs?.content;
  if (!content?.length) {
    const text = choice.delta?.content ?? choice.text ?? "";
    return text ? [{ text, top: [] }] : [];
  }
  const own = (each) => ({ id: each.id, text: each.token, bytes: each.bytes ?? null, logprob: each.logprob, special: isSpecial(each.token) });
  return content.map((each) => ({ ...own(each), ...(each.is_forced && { logprob: null }), top: (each.top_logprobs ?? []).map(own) }));
}

/** The older interface names a token by its text, and one that is no whole character as bytes:\\xc3. */
function textTokensOf({ tokens, token_logprobs: logprobs, top_logprobs: tops }) {
  const own = (name, logprob) => {
    const bytes = /^bytes:(\\x[0-9a-f]{2})+$/.test(name) ? name.match(/[0-9a-f]{2}(?=\\|$)/g).map((hex) => parseInt(hex, 16)) : [...new TextEncoder().encode(name)];
    return { text: name, bytes, logprob, special: isSpecial(name) };
  };
  return tokens.map((name, i) => ({ ...own(name, logprobs[i]), top: Object.entries(tops?.[i] ?? {}).map(([other, logprob]) => own(other, logprob)).sort((a, b) => b.logprob - a.logprob) }));
}

/** A token's own text; bytes that are no whole character as hexadecimal. */
export function nameOf(token) {
  if (token.special || !token.bytes) return visible(token.text);
  const bytes = new Uint8Array(token.bytes);
  try {
    return visible(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    return [...bytes].map((b) => `⟨${b.toString(16).toUpperCase().padStart(2, "0")}⟩`).join("");
  }
}

/** The least likely of a cell's tokens is what its shade and its words are about. */
export function probabilityOf(cell) {
  const known = cell.tokens.map((token) => token.logprob).filter((value) => typeof value === "number");
  return known.length ? Math.exp(Math.min(...known)) : null;
}

/** Shows an answer in a node; `add` appends one cell as it comes. */
export class AnswerView {
  constructor(answer) {
    this.node = el("div", { class: "answer", role: "group", "aria-label": "Answer, token by token: arrow keys move, Enter shows alternatives" });
    this.box = null;
    this.kind = "text";
    this.first = true;
    this.cellOf = new Map();
    answer.cells.forEach((cell, index) => this.add(cell, index));
  }

  add(cell, index) {
    if (cell.hidden) return;
    if (cell.kind !== this.kind || !this.box) {
      this.kind = cell.kind;
      this.box = cell.kind === "text" ? el("div", { class: "prose" })
        : el("div", { class: `box ${cell.kind}`, role: "group", "aria-label": LABELS[cell.kind] }, el("small", {}, LABELS[cell.kind]));
      if (cell.kind !== "text") this.box.append(el("div", { class: "code" }));
      this.node.append(this.box);
    }
    const p = probabilityOf(cell);
    const span = el("span", { class: `tok${p === null ? " plain" : ""}${/^\s*\n\s*$/.test(cell.text) ? " line-end" : ""}` }, cell.text);
    if (p !== null) {
      span.style.setProperty("--l", Math.min(1, -Math.log(p) / FULL_SHADE_NATS).toFixed(3));
      span.tabIndex = this.first ? 0 : -1;
      span.setAttribute("role", "button");
      span.setAttribute("aria-label", `${cell.text.trim() || "blank"}, ${percent(p)}`);
      span.dataset.cell = index;
      this.first = false;
    }
    this.cellOf.set(span, cell);
    (this.kind === "text" ? this.box : this.box.lastChild).append(span);
  }
}
