// What was asked of runs and what came out, beside each other; and what they said on the way.

import { duration, el, shown } from "./dom.js";

const SECTIONS = [
  ["Result", (run) => ({ status: run.status, ...run.final, ...Object.fromEntries(Object.entries(run.cost ?? {}).map(([k, v]) => [`cost.${k}`, v])) })],
  ["Plan", (run) => flat(run.config?.plan ?? {})],
  ["Model", (run) => flat(run.config?.model ?? {})],
  ["Settings", (run) => flat(run.config?.settings ?? {})],
  ["Where it ran", (run) => ({ device: run.device, dtype: run.dtype, world_size: run.world_size, ...flat(run.hardware ?? {}), ...flat(run.versions ?? {}), git_commit: run.git_commit?.slice(0, 12), parents: (run.parents ?? []).join(", ") || null })],
  ["Notes", (run) => Object.fromEntries((run.notes ?? []).map((note, index) => [`${index + 1}`, note]))],
];
const OPEN = new Set(["Result", "Plan"]);
let onlyDifferent = false;

function flat(values, prefix = "") {
  const found = {};
  for (const [key, value] of Object.entries(values)) {
    if (value !== null && typeof value === "object" && !Array.isArray(value)) Object.assign(found, flat(value, `${prefix}${key}.`));
    else found[`${prefix}${key}`] = Array.isArray(value) ? value.join(", ") : value;
  }
  return found;
}

function cell(key, value) {
  if (/_hash$/.test(key) && typeof value === "string") return value.slice(0, 12);
  if (/(^|\.)\w*_s$/.test(key) && typeof value === "number") return duration(value);
  if (/_bytes$/.test(key) && typeof value === "number" && value > 1e6) return `${shown(value / 2 ** 20)} MiB`;
  if (typeof value === "boolean") return value ? "yes" : "no";
  return shown(value);
}

/** One table of all runs' records, a column a run. */
export function tableOf(records, hueOf) {
  const box = el("section", { class: "card facts", "aria-label": "The runs' records" });
  const draw = () => {
    const several = records.length > 1;
    const differ = several && el("label", { class: "check" }, el("input", { type: "checkbox", checked: onlyDifferent, onchange: (event) => { onlyDifferent = event.target.checked; draw(); } }), "Only what differs");
    const sections = SECTIONS.map(([title, values]) => {
      const of = records.map((run) => (run.problem ? {} : values(run)));
      const keys = [...new Set(of.flatMap((each) => Object.keys(each)))].filter((key) => of.some((each) => each[key] !== null && each[key] !== undefined && each[key] !== ""));
      const isSame = (key) => of.every((each) => String(each[key]) === String(of[0][key]));
      const rows = keys.filter((key) => !(several && onlyDifferent && isSame(key)));
      if (!rows.length) return null;
      return el("details", { open: OPEN.has(title) }, el("summary", {}, title), el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, el("table", {},
        several && el("thead", {}, el("tr", {}, el("th", {}), records.map((run) => el("th", { scope: "col", class: hueOf(run.name) }, el("i", { class: "swatch" }), run.name)))),
        el("tbody", {}, rows.map((key) => el("tr", { class: several && !isSame(key) ? "differs" : "" }, el("th", { scope: "row" }, key.replaceAll("_", " ")), of.map((each) => el("td", {}, cell(key, each[key])))))))));
    });
    box.replaceChildren(...[el("header", {}, el("h2", {}, several ? "Side by side" : `The record of ${records[0].name}`), differ),
      ...records.filter((run) => run.problem).map((run) => el("p", { class: "problem" }, run.problem)), ...sections].filter(Boolean));
  };
  draw();
  return box;
}

/** The newest samples of a run. */
export function samplesOf(curves, hue, before) {
  const newest = curves.samples.at(-1);
  if (!newest?.samples.length) return null;
  const key = `${curves.name}@${newest.step}`;
  // Left as it is while nothing new was said: someone may be reading or copying.
  const same = [...before.children].find((node) => node.dataset.key === key);
  return same ?? el("section", { class: `said ${hue}`, "data-key": key, "aria-label": `Samples of ${curves.name}` },
    el("h2", {}, el("i", { class: "swatch" }), `What ${curves.name} said`, el("small", {}, newest.step === null ? "" : ` at step ${shown(newest.step)}`)),
    el("div", { class: "samples" }, newest.samples.map(({ prompt, completion }) => el("p", { class: "card sample" }, el("b", {}, prompt), completion))));
}
