// Runs: which there are, their curves as they grow, several on one chart, and what was asked of each.

import { get } from "./api.js";
import { Chart, HUES } from "./charts.js";
import { RunCurves } from "./curves.js";
import { announce, el, remember, remembered } from "./dom.js";
import { samplesOf, tableOf } from "./run_facts.js";

const LIVE_MS = 2000;
const KNOWN = {
  "rl.reward_mean": ["Reward", "mean of a step's samples"],
  "reward.reward_mean": ["Held-out reward", "mean on test problems"],
  loss_nats: ["Training loss", "nats per token"],
  val_bpb: ["Validation", "bits per byte"],
  "core.core": ["CORE", "0 is guessing"],
  "chat.mean_centered": ["Chat tasks", "mean centred score, 0 is guessing"],
  "rl.entropy_nats": ["Entropy", "nats per token of the samples"],
  "rl.length_mean": ["Length", "tokens of a sample, mean"],
  "rl.kl_nats": ["KL", "nats per token from the model before"],
  lr_multiplier: ["Learning rate", "multiplier, 0 to 1"],
  tokens_per_s: ["Speed", "tokens per second"],
  grad_norm: ["Gradient norm", "before clipping"],
  mfu: ["MFU", "part of the machine's peak"],
};
const UNSMOOTHED = new Set(["lr_multiplier"]);
const MOST_CHARTS = 40;

export function runsView() {
  const curves = new Map();
  const charts = new Map();
  const hues = new Map();
  let chosen = new Set();
  let listed = [];
  let timer = null;
  let isShown = false;
  let records = new Map();
  const view = { axis: "step", smoothing: 0.8, isWhole: false, isAll: false, ...remembered("runs", {}) };

  const list = el("ul", { class: "runs-list" });
  const filter = el("input", { type: "search", placeholder: "Find a run", "aria-label": "Find a run", hidden: true });
  const listFacts = el("p", { class: "soft" });
  const grid = el("div", { class: "charts" });
  const empty = el("p", { class: "soft" }, "Choose a run.");
  const notes = el("p", { class: "soft", role: "status" });
  const facts = el("div", { class: "facts-box" });
  const said = el("div", { class: "samples-box" });
  const axes = el("fieldset", { class: "segments" }, el("legend", { class: "unseen" }, "Along the curves"),
    [["step", "Step"], ["tokens", "Tokens"], ["time", "Time"]].map(([value, label]) =>
      el("label", {}, el("input", { type: "radio", name: "axis", value, checked: view.axis === value, onchange: () => set({ axis: value }) }), el("span", {}, label))));
  const smooth = el("input", { type: "range", id: "smooth", min: 0, max: 0.98, step: 0.02, value: String(view.smoothing), oninput: (event) => set({ smoothing: Number(event.target.value) }) });
  const whole = el("input", { type: "checkbox", id: "whole", checked: view.isWhole, onchange: (event) => set({ isWhole: event.target.checked }) });
  const all = el("input", { type: "checkbox", id: "all-curves", checked: view.isAll, onchange: (event) => set({ isAll: event.target.checked }) });
  const node = el("section", { class: "runs", "aria-label": "Runs" },
    el("aside", { class: "runs-side", "aria-label": "Choose runs" }, el("h2", {}, "Runs"), filter, list, listFacts),
    el("div", { class: "runs-main" },
      el("div", { class: "bar" }, axes, el("label", { class: "smooth", for: "smooth" }, "Smoothing", smooth),
        el("label", { class: "check" }, whole, "From the first step"), el("label", { class: "check" }, all, "Every number")),
      notes, empty, grid, said, facts));

  function set(changes) {
    Object.assign(view, changes);
    remember("runs", view);
    draw();
  }

  function hueOf(name) {
    if (!hues.has(name)) {
      const taken = new Set([...chosen].filter((each) => each !== name).map((each) => hues.get(each)));
      let hue = 0;
      while (taken.has(hue)) hue += 1;
      hues.set(name, hue);
    }
    return hues.get(name);
  }

  function choose(name, is) {
    if (is) chosen.add(name);
    else { chosen.delete(name); hues.delete(name); }
    remember("chosen", [...chosen]);
    if (is && !curves.has(name)) curves.set(name, new RunCurves(name));
    drawList();
    draw();
    drawFacts();
    refresh().catch(() => { /* the next look says what is wrong */ });
  }

  function drawList() {
    const words = filter.value.trim().toLowerCase();
    filter.hidden = listed.length < 9;
    const found = listed.filter((run) => run.name.toLowerCase().includes(words));
    const focused = document.activeElement?.closest?.(".runs-list") ? document.activeElement.id : null;
    list.replaceChildren(...found.map((run) => {
      const id = `run-${run.name}`;
      const is = chosen.has(run.name);
      const box = el("input", { type: "checkbox", id, checked: is, onchange: (event) => choose(run.name, event.target.checked) });
      const progress = run.num_steps && run.step !== null && run.status === "running"
        ? el("progress", { max: run.num_steps, value: String(Math.min(run.step, run.num_steps)), "aria-label": "Steps done" }) : null;
      const what = [run.recipe && run.recipe !== "base" && run.recipe, run.depth && `depth ${run.depth}`, run.step !== null && run.step !== undefined && `step ${run.step.toLocaleString("en")}`,
        typeof run.val_bpb === "number" && `${run.val_bpb.toFixed(3)} bpb`].filter(Boolean).join(" · ");
      return el("li", { class: is ? HUES[hueOf(run.name) % HUES.length] : "" }, el("label", { for: id }, box,
        el("span", { class: "name" }, el("b", {}, run.name), el("small", {}, run.problem ?? what), progress),
        run.status !== "done" && el("span", { class: `pill ${run.status}` }, run.status)));
    }));
    if (focused) document.getElementById(focused)?.focus();
  }

  /** The runs that are there, now. */
  async function readList() {
    const answer = await get("/api/runs");
    listed = answer.runs;
    listFacts.textContent = answer.num_left_out ? `${answer.num_left_out} older runs are not listed.` : "";
    drawList();
    return answer;
  }

  async function refresh() {
    const open = [...chosen].map((name) => curves.get(name)).filter(Boolean);
    const changed = await Promise.all(open.map((each) => each.refresh()));
    if (changed.some(Boolean)) draw();
    return open.some((each) => each.hasMore);
  }

  async function tick() {
    let wait = LIVE_MS;
    try {
      if (document.visibilityState === "visible") {
        const before = JSON.stringify(listed.map((run) => [run.name, run.status]));
        await readList();
        const statusBefore = [...chosen].map((name) => curves.get(name)?.status).join();
        if (await refresh()) wait = 50;
        const statusNow = [...chosen].map((name) => curves.get(name)?.status).join();
        if (before !== JSON.stringify(listed.map((run) => [run.name, run.status])) || statusBefore !== statusNow) drawFacts();
        if (!listed.some((run) => run.status === "running")) wait = Math.max(wait, 2 * LIVE_MS);
        notes.classList.remove("problem");
      }
    } catch (error) {
      notes.classList.add("problem");
      notes.textContent = error.message;
      wait = 3 * LIVE_MS;
    }
    if (isShown) timer = setTimeout(tick, wait);
  }

  function draw() {
    const open = [...chosen].map((name) => curves.get(name)).filter(Boolean);
    const kinds = new Map();
    for (const each of open) for (const [metric, of] of each.metrics()) if (!kinds.has(metric)) kinds.set(metric, of);
    const names = [...Object.keys(KNOWN).filter((name) => kinds.has(name)),
      ...[...kinds.keys()].filter((name) => !(name in KNOWN) && view.isAll)].slice(0, MOST_CHARTS);
    empty.hidden = open.length > 0;
    for (const [metric, chart] of charts) if (!names.includes(metric)) { chart.node.remove(); chart.plot?.destroy(); charts.delete(metric); }
    for (const metric of names) {
      if (!charts.has(metric)) {
        const { key, kind } = kinds.get(metric);
        const [title, unit] = KNOWN[metric] ?? [key.replaceAll("_", " "), kind === "train" ? "each step" : kind];
        charts.set(metric, new Chart(metric, { title, unit }));
      }
      const chart = charts.get(metric);
      if (grid.children[names.indexOf(metric)] !== chart.node) grid.insertBefore(chart.node, grid.children[names.indexOf(metric)] ?? null);
      const { key, kind } = kinds.get(metric);
      const isPlain = UNSMOOTHED.has(metric);
      chart.draw(open.map((each) => ({
        name: each.name, hue: hueOf(each.name), isPoints: !(kind in each.tables),
        curve: each.curve(key, kind, view.axis, isPlain ? 0 : view.smoothing),
      })), { axis: view.axis, isWhole: view.isWhole || isPlain, isPlain });
    }
    const damaged = open.filter((each) => each.numDamaged).map((each) => `${each.numDamaged} damaged lines of ${each.name} are left out`);
    const thin = open.filter((each) => each.thinness > 1).map((each) => `${each.name}: each point is the mean of up to ${each.thinness} steps, the faint band runs from the lowest to the highest`);
    const less = open.filter((each) => each.numLeftOut).map((each) => `${each.numLeftOut} older rows of ${each.name} are not shown`);
    notes.textContent = [...thin, ...damaged, ...less].join(". ");
    said.replaceChildren(...open.map((each) => samplesOf(each, HUES[hueOf(each.name) % HUES.length], said)).filter(Boolean));
  }

  async function drawFacts() {
    const names = [...chosen];
    records = new Map(await Promise.all(names.map(async (name) => {
      try { return [name, await get(`/api/runs/${encodeURIComponent(name)}`)]; } catch (error) { return [name, { name, problem: error.message }]; }
    })));
    facts.replaceChildren(...(names.length ? [tableOf([...records.values()], (name) => HUES[hueOf(name) % HUES.length])] : []));
  }

  filter.addEventListener("input", drawList);
  window.addEventListener("studio-theme", () => { if (isShown) draw(); });
  document.addEventListener("visibilitychange", () => { if (isShown && document.visibilityState === "visible") { clearTimeout(timer); tick(); } });

  let isBegun = false;
  return {
    node,
    async show() {
      isShown = true;
      if (!isBegun) {
        isBegun = true;
        try {
          const { served } = await readList();
          const there = new Set(listed.map((run) => run.name));
          const running = listed.filter((run) => run.status === "running").map((run) => run.name);
          const kept = remembered("chosen", []).filter((name) => there.has(name));
          chosen = new Set(kept.length ? kept : running.length ? running.slice(0, 3) : [served]);
          for (const name of chosen) curves.set(name, new RunCurves(name));
          drawList();
          drawFacts();
        } catch (error) {
          notes.textContent = error.message;
        }
        announce(`${listed.length} runs.`);
      }
      clearTimeout(timer);
      await tick();
      draw();
    },
    hide() { isShown = false; clearTimeout(timer); },
  };
}
