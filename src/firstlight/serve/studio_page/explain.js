// The walk of a text through the served model: the page that `firstlight explain` makes, in a frame without scripts.

import { get, post } from "./api.js";
import { announce, el } from "./dom.js";

export function explainView() {
  const text = el("textarea", { id: "walk-text", rows: 3 });
  const most = el("input", { id: "walk-tokens", type: "number", min: 2, max: 256, step: 1, value: "48" });
  const go = el("button", { type: "submit", class: "main" }, "Walk it");
  const state = el("p", { class: "soft", role: "status" });
  const frame = el("iframe", { title: "The walk, stage by stage", sandbox: "", hidden: true, referrerpolicy: "no-referrer" });
  const form = el("form", { class: "walk" },
    el("div", {}, el("label", { for: "walk-text" }, "A text to walk through the model, from its bytes to its loss"), text),
    el("div", { class: "walk-side" }, el("label", { for: "walk-tokens" }, "Most tokens"), most, go));
  const node = el("section", { class: "explain", "aria-label": "Explain" }, form, state, frame);
  let begun = false;
  let page = null;

  // The frame is a page of its own, which knows of the system's colours only: the chosen ones are asked for.
  function showPage() {
    if (page) frame.src = `${page}?scheme=${document.documentElement.dataset.theme ?? "system"}`;
  }

  async function walk() {
    go.disabled = true;
    state.className = "soft";
    state.textContent = "Loading the weights and walking the text through them…";
    const began = performance.now();
    const clock = setInterval(() => { state.textContent = `Loading the weights and walking the text through them… ${Math.round((performance.now() - began) / 1000)} s`; }, 1000);
    try {
      ({ page } = await post("/api/explain", { text: text.value, max_tokens: Number(most.value) }));
      showPage();
      frame.hidden = false;
      state.textContent = "";
      announce("The walk is ready.");
    } catch (error) {
      state.className = "problem";
      state.textContent = error.message;
    } finally {
      clearInterval(clock);
      go.disabled = false;
    }
  }

  form.addEventListener("submit", (event) => { event.preventDefault(); walk(); });
  window.addEventListener("studio-theme", showPage);
  return {
    node,
    async show() {
      if (begun) { showPage(); return; }
      begun = true;
      try {
        const defaults = await get("/api/explain");
        text.value = defaults.text;
        most.value = String(defaults.max_tokens);
        most.max = String(defaults.most_tokens);
        await walk();
      } catch (error) {
        state.className = "problem";
        state.textContent = error.message;
      }
    },
  };
}
