// The frame of the studio: views by the address's hash, colours, and which run is served.

import { get } from "./api.js";
import { el, announce, shown } from "./dom.js";
import { chatView } from "./chat.js";
import { explainView } from "./explain.js";
import { runsView } from "./runs.js";
import { tokensView } from "./tokens.js";

const VIEWS = { chat: chatView, tokens: tokensView, runs: runsView, explain: explainView };
const TITLES = { chat: "Chat", tokens: "Tokens", runs: "Runs", explain: "Explain" };
const THEMES = ["system", "light", "dark"];
const built = {};
const main = document.getElementById("main");
let current = null;

/** What views share: the served run, and how to go to another view with something in hand. */
const studio = { served: null, open(view, given) { studio.given = given; location.hash = `#/${view}`; }, given: null };

function route() {
  if (location.hash === "#main") { main.focus(); return; }
  const name = location.hash.replace(/^#\//, "").split("/")[0];
  const view = name in VIEWS ? name : "chat";
  built[view] ??= VIEWS[view](studio);
  built[current]?.hide?.();
  current = view;
  main.replaceChildren(built[view].node);
  built[view].show?.(studio.given);
  studio.given = null;
  for (const link of document.querySelectorAll(".tabs a")) {
    if (link.getAttribute("href") === `#/${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.body.dataset.view = view;
  document.title = `${TITLES[view]} · ${studio.served?.run ?? "firstlight"} · firstlight studio`;
}

const themeButton = document.getElementById("theme");
function setTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try { localStorage.setItem("studio.theme", theme); } catch { /* holds for this page then */ }
  const words = theme === "system" ? "as the system" : theme;
  themeButton.setAttribute("aria-label", `Colours: ${words}`);
  themeButton.title = `Colours: ${words}`;
  window.dispatchEvent(new Event("studio-theme"));
}
themeButton.addEventListener("click", () => {
  const at = THEMES.indexOf(document.documentElement.dataset.theme ?? "system");
  setTheme(THEMES[(at + 1) % THEMES.length]);
  announce(themeButton.title);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => window.dispatchEvent(new Event("studio-theme")));

async function start() {
  setTheme(document.documentElement.dataset.theme ?? "system");
  try {
    studio.served = await get("/api/studio");
    document.getElementById("run-name").textContent = studio.served.run;
    const facts = [
      { base: "base model", mid: "mid-trained", sft: "chat model", rl: "chat model, RL" }[studio.served.recipe] ?? studio.served.recipe,
      studio.served.val_bpb && `${shown(Number(studio.served.val_bpb.toFixed(3)))} bits per byte${studio.served.recipe === "sft" ? " of answers" : ""}`,
      studio.served.context && `context ${shown(studio.served.context)}`,
    ];
    document.getElementById("run-facts").textContent = facts.filter(Boolean).join(" · ");
  } catch (error) {
    main.append(el("p", { class: "problem", role: "alert" }, `The studio could not start: ${error.message}`));
  }
  window.addEventListener("hashchange", route);
  route();
}

start();
