// Curves of several runs on one chart (uPlot), with the values under the pointer beside the names.

import uPlot from "./vendor/uplot/uPlot.esm.js";
import { el, duration, shown } from "./dom.js";

export const HUES = ["indigo", "amber", "teal", "rose", "violet", "green"];
const DASHES = [[], [7, 5], [2, 4]];
const AXES = { step: "step", tokens: "tokens", time: "training time" };

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

export function short(value) {
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit) return `${Number((value / unit).toPrecision(3))}${letter}`;
  }
  return size === 0 ? "0" : size < 1e-3 ? value.toExponential(0) : String(Number(value.toPrecision(3)));
}

const onAxis = (value, axis) => (axis === "time" ? duration(value) : axis === "tokens" ? short(value) : shown(Math.round(value)));

export class Chart {
  constructor(metric, { title, unit }) {
    this.metric = metric;
    this.legend = el("ul", { class: "legend" });
    this.place = el("span", { class: "soft at" });
    this.box = el("div", { class: "plot", "aria-hidden": "true" });
    this.node = el("figure", { class: "card chart", "data-metric": metric }, el("figcaption", {}, el("b", {}, title), el("small", {}, unit), this.place), this.legend, this.box);
    this.plot = null;
    this.shape = "";
    this.resize = new ResizeObserver(() => { if (this.plot && this.box.clientWidth) this.plot.setSize(this.size()); });
    this.resize.observe(this.box);
  }

  size() {
    return { width: Math.max(200, this.box.clientWidth), height: this.box.clientWidth < 420 ? 190 : 230 };
  }

  /** curves: [{name, hue (a number), curve: {x, y, low, high}, isPoints}]. */
  draw(curves, { axis, isWhole, isPlain }) {
    this.curves = curves.filter((each) => each.curve.x.length);
    this.axis = axis;
    this.node.hidden = !this.curves.length;
    this.node.dataset.points = String(this.curves.reduce((sum, each) => sum + each.curve.x.length, 0));
    this.node.dataset.runs = this.curves.map((each) => each.name).join(" ");
    if (!this.curves.length) return;
    this.values();
    const tables = this.curves.flatMap(({ curve, isPoints }) => (isPoints ? [[curve.x, curve.y]] : [[curve.x, curve.low, curve.high, curve.y]]));
    const data = tables.length === 1 ? tables[0] : uPlot.join(tables);
    const theme = [style("ink"), style("card")].join();
    const shape = JSON.stringify([this.curves.map((each) => [each.name, each.hue, each.isPoints]), axis, isPlain, theme]);
    this.range = isWhole ? null : lateRange(this.curves);
    if (shape !== this.shape || !this.plot) {
      this.shape = shape;
      this.plot?.destroy();
      this.plot = new uPlot(this.options(isPlain), data, this.box);
    } else {
      // Someone who has looked closer at a stretch keeps it.
      this.plot.setData(data, !this.isZoomed());
    }
  }

  isZoomed() {
    const { min, max } = this.plot.scales.x;
    const x = this.plot.data[0];
    return min !== null && (min > x[0] || max < this.lastMax);
  }

  options(isPlain) {
    const [soft, grid, line] = ["soft", "grid", "line"].map(style);
    const series = [{}];
    const bands = [];
    for (const { hue, isPoints } of this.curves) {
      const colour = style(HUES[hue % HUES.length]);
      const dash = DASHES[Math.floor(hue / HUES.length) % DASHES.length];
      const common = { spanGaps: true, dash };
      if (isPoints) {
        series.push({ ...common, stroke: colour, width: 2, points: { show: true, size: 7, width: 2, fill: style("card") } });
        continue;
      }
      const faint = isPlain ? "transparent" : `color-mix(in srgb, ${colour} 34%, transparent)`;
      bands.push({ series: [series.length + 1, series.length], fill: `color-mix(in srgb, ${colour} ${isPlain ? 0 : 16}%, transparent)` });
      series.push({ ...common, stroke: faint, width: 1, points: { show: false } }, { ...common, stroke: faint, width: 1, points: { show: false } });
      series.push({ ...common, stroke: colour, width: 2, points: { show: false } });
    }
    const font = "12px ui-sans-serif, system-ui, sans-serif";
    const axes = { stroke: soft, font, grid: { stroke: grid, width: 1 }, ticks: { stroke: line, width: 1, size: 4 } };
    return {
      ...this.size(),
      legend: { show: false },
      padding: [8, 14, 0, 0],
      cursor: { points: { size: 8 }, drag: { x: true, y: false }, y: false, sync: { key: "runs" } },
      scales: { x: { time: false, range: (u, min, max) => { this.lastMax = u.data[0].at(-1); return max - min > 1e-9 * Math.abs(max) ? [min, max] : [min - 1, max + 1]; } }, y: { range: (u, min, max) => this.limits(min, max) } },
      axes: [
        { ...axes, size: 34, gap: 4, values: (u, splits) => splits.map((v) => onAxis(v, this.axis)), space: 70, incrs: this.axis === "step" ? [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6] : undefined },
        { ...axes, size: 52, gap: 4, values: (u, splits) => splits.map(short), space: 34 },
      ],
      series,
      bands,
      hooks: { setCursor: [(u) => this.values(u.cursor.left >= 0 ? u.posToVal(u.cursor.left, "x") : null)] },
    };
  }

  limits(min, max) {
    if (min === null || max === null) return [0, 1];
    const [low, high] = this.range ?? [min, max];
    const size = Math.max(Math.abs(low), Math.abs(high)) || 1;
    // A constant differs from its own mean by a rounding error; no axis can be cut into such steps.
    const room = (high - low > 1e-6 * size ? high - low : size) * 0.06;
    return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
  }

  /** The names with the values at a place, or the newest ones. */
  values(at = null) {
    this.place.textContent = at === null ? "" : `${AXES[this.axis]} ${onAxis(at, this.axis)}`;
    this.legend.replaceChildren(...this.curves.map(({ name, hue, curve }) => {
      let index = curve.x.length - 1;
      if (at !== null) {
        index = curve.x.findIndex((x) => x >= at);
        if (index < 0) index = curve.x.length - 1;
        if (index > 0 && at - curve.x[index - 1] < curve.x[index] - at) index -= 1;
      }
      return el("li", { class: HUES[hue % HUES.length] }, el("i", { class: `swatch d${Math.floor(hue / HUES.length) % 3}` }), el("span", {}, name), el("b", {}, shown(curve.y[index])));
    }));
  }
}

/** Limits of y without the first twentieth, whose first fall would hide all else; null for few points. */
function lateRange(curves) {
  let low = Infinity;
  let high = -Infinity;
  let count = 0;
  for (const { curve, isPoints } of curves) {
    const from = Math.floor(curve.x.length * (isPoints ? 0 : 0.05));
    for (let i = isPoints && curve.x.length > 3 ? 1 : from; i < curve.y.length; i += 1) {
      low = Math.min(low, curve.y[i]);
      high = Math.max(high, curve.y[i]);
      count += 1;
    }
  }
  return count > 2 && high > low ? [low, high] : null;
}
