// How the model is asked: kept in this browser, checked before it is sent.

import { el, remember, remembered } from "./dom.js";

const DEFAULTS = { temperature: "0.8", top_k: "50", max_tokens: "256", seed: "", system: "" };
const FIELDS = [
  ["temperature", "Temperature", { type: "number", min: 0, max: 2, step: 0.05 }, "0 takes the likeliest token each time"],
  ["top_k", "Top k", { type: "number", min: 0, max: 100000, step: 1 }, "choose among this many tokens; 0: among all"],
  ["max_tokens", "Most tokens", { type: "number", min: 1, max: 100000, step: 1 }, "an answer is cut there"],
  ["seed", "Seed", { type: "number", min: 0, max: 2147483647, step: 1, placeholder: "any" }, "the same seed gives the same answer; empty: another each time"],
];

export function settingsPanel() {
  const values = { ...DEFAULTS, ...remembered("settings", {}) };
  const inputs = {};
  const system = el("textarea", { id: "set-system", rows: 3, value: values.system, placeholder: "None" });
  system.addEventListener("input", () => { values.system = system.value; remember("settings", values); });
  const rows = FIELDS.map(([name, label, attributes, hint]) => {
    const input = el("input", { id: `set-${name}`, ...attributes, value: values[name], "aria-describedby": `hint-${name}`, inputmode: "decimal" });
    input.addEventListener("input", () => {
      if (input.validity.valid) { values[name] = input.value; remember("settings", values); }
    });
    inputs[name] = input;
    return el("div", { class: "row" }, el("label", { for: `set-${name}` }, label), input, el("small", { id: `hint-${name}` }, hint));
  });
  const reset = el("button", { type: "button", class: "quiet", onclick: () => {
    Object.assign(values, DEFAULTS);
    remember("settings", values);
    for (const [name, input] of Object.entries(inputs)) input.value = values[name];
    system.value = "";
  } }, "Back to the defaults");
  const close = el("button", { type: "button", class: "main only-narrow", onclick: () => node.classList.remove("open") }, "Done");
  const node = el("aside", { class: "settings", id: "settings", "aria-label": "Settings" }, el("h2", {}, "Settings"), rows,
    el("div", { class: "row" }, el("label", { for: "set-system" }, "System prompt"), system, el("small", {}, "goes before your first message")),
    el("p", { class: "right" }, reset, close));
  node.addEventListener("keydown", (event) => { if (event.key === "Escape") node.classList.remove("open"); });

  return {
    node,
    values,
    open() { node.classList.add("open"); inputs.temperature.focus(); },
    /** The fields of a request. */
    request() {
      const asked = { temperature: Number(values.temperature || 1), max_tokens: Number(values.max_tokens || 256) };
      if (Number(values.top_k) > 0) asked.top_k = Number(values.top_k);
      asked.seed = values.seed === "" ? Math.floor(Math.random() * 2 ** 31) : Number(values.seed);
      return asked;
    },
  };
}
