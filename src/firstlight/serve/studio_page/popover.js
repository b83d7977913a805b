// What a token's span tells: its probability on hover and focus, and its alternatives in a small panel.

import { el, percent } from "./dom.js";
import { nameOf, probabilityOf } from "./answer.js";

const tip = el("div", { class: "tip", "aria-hidden": "true", hidden: true });
let open = null;

function place(node, near, gap = 6) {
  const box = near.getClientRects()[0] ?? near.getBoundingClientRect();
  const width = node.offsetWidth;
  const height = node.offsetHeight;
  const left = Math.max(8, Math.min(box.left + box.width / 2 - width / 2, document.documentElement.clientWidth - width - 8));
  const above = box.top - height - gap;
  const below = box.bottom + gap;
  const top = node === tip ? (above > 4 ? above : below) : below + height < innerHeight - 8 ? below : Math.max(8, above);
  node.style.left = `${left}px`;
  node.style.top = `${top}px`;
}

export function showTip(span, cell) {
  const p = probabilityOf(cell);
  if (p === null) return;
  if (!tip.isConnected) document.body.append(tip);
  const rank = cell.tokens.length === 1 ? cell.tokens[0].top.findIndex((each) => each.id === cell.tokens[0].id && each.text === cell.tokens[0].text) : -1;
  tip.replaceChildren(el("b", {}, percent(p)), el("span", {}, rank === 0 ? "likeliest" : rank > 0 ? `${rank + 1}. likeliest` : ""));
  tip.hidden = false;
  place(tip, span);
}

export function hideTip() {
  tip.hidden = true;
}

export function closePanel(returnFocus = false) {
  if (!open) return;
  const { panel, span } = open;
  open = null;
  panel.remove();
  span.removeAttribute("aria-expanded");
  span.classList.remove("open");
  if (returnFocus) span.focus();
}

/** The alternatives of a cell; `choose(token, alternative)` goes on from one, `why` (if given) says why none can be chosen. */
export function openPanel(span, cell, { choose, why }) {
  closePanel();
  hideTip();
  const panel = el("div", { class: "panel", role: "dialog", "aria-label": "Alternatives to this token" });
  for (const token of cell.tokens.filter((each) => typeof each.logprob === "number")) {
    panel.append(el("header", {}, el("code", {}, nameOf(token)), el("b", {}, percent(Math.exp(token.logprob))),
      el("small", {}, `${token.logprob.toFixed(2)} nats`),
      el("button", { type: "button", class: "icon close", "aria-label": "Close", onclick: () => closePanel(true) }, "×")));
    const isIt = (each) => each.id === token.id && each.text === token.text;
    const all = token.top.some(isIt) ? token.top : [...token.top, { ...token, top: [] }];
    const list = el("ul", { "aria-label": "Likeliest tokens here" });
    for (const each of all) {
      const p = Math.exp(each.logprob);
      const bar = el("i", { "aria-hidden": "true" });
      bar.style.setProperty("--p", `${Math.max(0.6, 100 * p).toFixed(1)}%`);
      const inside = [bar, el("code", {}, nameOf(each)), el("span", {}, percent(p))];
      list.append(el("li", {}, isIt(each)
        ? el("button", { type: "button", class: "alt chosen", "aria-current": "true", "aria-label": `${nameOf(each)}, ${percent(p)}, the one written`, onclick: () => closePanel(true) }, inside)
        : el("button", { type: "button", class: "alt", disabled: Boolean(why), "aria-label": `Go on with ${nameOf(each)}, ${percent(p)}`, onclick: () => { closePanel(); choose(token, each); } }, inside)));
    }
    panel.append(list);
    if (all.length < 2) panel.append(el("p", { class: "soft" }, "The server gave no alternatives for this token."));
  }
  panel.append(el("p", { class: "soft" }, why ?? "Choose one to go on from there."));
  document.body.append(panel);
  span.setAttribute("aria-expanded", "true");
  span.classList.add("open");
  place(panel, span);
  open = { panel, span };
  (panel.querySelector(".alt:not(.chosen):not([disabled])") ?? panel.querySelector("button")).focus({ preventScroll: true });
}

document.addEventListener("keydown", (event) => {
  if (!open) return;
  if (event.key === "Escape") {
    event.preventDefault();
    closePanel(true);
    return;
  }
  const buttons = [...open.panel.querySelectorAll(".alt:not([disabled])")];
  const at = buttons.indexOf(document.activeElement);
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step && buttons.length) {
    event.preventDefault();
    buttons[(at + step + buttons.length) % buttons.length].focus();
  }
});
document.addEventListener("pointerdown", (event) => {
  if (open && !open.panel.contains(event.target) && !open.span.contains(event.target)) closePanel();
});
// A panel beside a token that moved would point at another one.
for (const what of ["hashchange", "resize"]) window.addEventListener(what, () => { closePanel(); hideTip(); });
document.addEventListener("scroll", () => { hideTip(); if (open) place(open.panel, open.span); }, { capture: true, passive: true });
