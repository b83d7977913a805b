// The numbers of one run as the server sends them bit by bit, and curves made of them. No drawing.

import { get } from "./api.js";

const MOST_POINTS = 6000;
const PLACES = ["step", "time_unix_s", "num_rows", "tokens_seen", "elapsed_s"];
const NOT_DRAWN = new Set([...PLACES, "eta_s", "epoch", "momentum", "num_targets", "step_time_s"]);

export class RunCurves {
  constructor(name) {
    this.name = name;
    this.busy = false;
    this.clear();
  }

  clear() {
    this.next = 0;
    this.tag = "";
    this.tables = { train: new Table(), rl: new Table() };
    this.rows = [];
    this.samples = [];
    this.numDamaged = 0;
    this.numLeftOut = 0;
    this.status = this.status ?? null;
    this.version = (this.version ?? 0) + 1;
  }

  get length() {
    return this.tables.train.length;
  }

  /** How many steps one point stands for at most. */
  get thinness() {
    return Math.max(1, ...(this.tables.train.columns.num_rows ?? []));
  }

  /** Ask for what is new; true where something is. Bounded work a call: the rest comes with the next. */
  async refresh() {
    if (this.busy) return false;
    this.busy = true;
    try {
      // A page that is open for days: begin again, and let the server thin it out.
      const isLong = this.length > MOST_POINTS;
      const from = isLong ? 0 : this.next;
      const tag = isLong ? "" : this.tag;
      const answer = await get(`/api/runs/${encodeURIComponent(this.name)}/metrics?from=${from}&tag=${tag}`);
      const changed = answer.next !== this.next || answer.is_reset || answer.status !== this.status;
      if (answer.is_reset || isLong) this.clear();
      this.status = answer.status;
      this.take(answer);
      this.hasMore = answer.has_more;
      return changed;
    } finally {
      this.busy = false;
    }
  }

  take(answer) {
    this.next = answer.next;
    this.tag = answer.tag;
    this.numDamaged += answer.num_damaged;
    this.numLeftOut += answer.num_left_out;
    for (const [kind, table] of Object.entries(this.tables)) if (table.take(answer[kind])) this.version += 1;
    if (answer.rows.length) { this.rows.push(...answer.rows); this.version += 1; }
    if (answer.samples.length) { this.samples = [...this.samples, ...answer.samples].slice(-12); this.version += 1; }
  }

  /** What this run has to draw: {id: {key, kind}}. Numbers of one name in rows of two kinds are two. */
  metrics() {
    const found = new Map();
    for (const [kind, table] of Object.entries(this.tables)) {
      for (const [key, values] of Object.entries(table.columns)) {
        if (NOT_DRAWN.has(key) || /_(low|high)$/.test(key)) continue;
        if (values.some((value) => value !== null)) found.set(kind === "train" ? key : `${kind}.${key}`, { key, kind });
      }
    }
    for (const row of this.rows) {
      if (row.kind === "run" || row.kind === "event" || row.kind === "save") continue;
      for (const [key, value] of Object.entries(row)) {
        const id = row.kind === "eval" ? key : `${row.kind}.${key}`;
        if (typeof value === "number" && !PLACES.includes(key) && !found.has(id)) found.set(id, { key, kind: row.kind });
      }
    }
    return found;
  }

  /** Places on the x axis of the points of a table. */
  places(axis, kind = "train") {
    const { columns } = this.tables[kind];
    const own = columns[{ step: "step", tokens: "tokens_seen", time: "elapsed_s" }[axis]];
    return kind === "train" || axis === "step" ? (own ?? []) : (columns.step ?? []).map((step) => this.placeOf(step, axis));
  }

  /** A step's place on an axis, between the two training points beside it. */
  placeOf(step, axis) {
    if (axis === "step") return step;
    const steps = this.tables.train.columns.step ?? [];
    const at = this.places(axis);
    if (!steps.length) return step === 0 ? 0 : null;
    // Row s is the update from s to s + 1: after it, s + 1 updates are done.
    let low = 0;
    let high = steps.length;
    while (low < high) { const middle = (low + high) >> 1; if (steps[middle] + 1 < step) low = middle + 1; else high = middle; }
    if (low === steps.length) return at[low - 1];
    const [x1, y1] = [steps[low] + 1, at[low]];
    const [x0, y0] = low ? [steps[low - 1] + 1, at[low - 1]] : [0, 0];
    if (y1 === null || y0 === null) return null;
    return x1 === x0 ? y1 : y0 + ((y1 - y0) * (step - x0)) / (x1 - x0);
  }

  /** {x, y, low, high} of a metric; low and high where the points are means of several steps. */
  curve(metric, kind, axis, smoothing) {
    if (kind in this.tables) {
      const { columns } = this.tables[kind];
      const x = this.places(axis, kind);
      const raw = columns[metric] ?? [];
      const kept = [];
      let last = -Infinity;
      for (let i = 0; i < x.length; i += 1) {
        if (x[i] === null || raw[i] === null || raw[i] === undefined || x[i] <= last) continue;
        kept.push(i);
        last = x[i];
      }
      const pick = (values) => kept.map((i) => values[i]);
      const y = pick(raw);
      return { x: pick(x), y: smoothed(y, smoothing), low: columns[`${metric}_low`] ? pick(columns[`${metric}_low`]) : y, high: columns[`${metric}_high`] ? pick(columns[`${metric}_high`]) : y };
    }
    const found = new Map();
    for (const row of this.rows) {
      if (row.kind !== kind || typeof row[metric] !== "number" || typeof row.step !== "number") continue;
      const at = this.placeOf(row.step, axis);
      if (at !== null && at !== undefined) found.set(at, row[metric]);
    }
    const x = [...found.keys()].sort((a, b) => a - b);
    return { x, y: x.map((at) => found.get(at)), low: null, high: null };
  }
}

/** Rows of one kind as columns that grow. */
class Table {
  constructor() {
    this.columns = {};
    this.length = 0;
  }

  /** Add the columns of an answer; true where there were any. */
  take(added) {
    const count = added?.num_rows.length ?? 0;
    if (!count) return false;
    const keys = new Set([...Object.keys(this.columns), ...Object.keys(added)]);
    for (const key of keys) {
      // Where a stretch is one row, its lowest and highest are the row itself.
      const plain = key.replace(/_(low|high)$/, "");
      const old = (this.columns[key] ??= plain === key ? new Array(this.length).fill(null) : this.columns[plain].slice(0, this.length));
      old.push(...(added[key] ?? added[plain] ?? new Array(count).fill(null)));
    }
    this.length += count;
    return true;
  }
}

/** Exponential moving average whose first values are not pulled towards zero. */
export function smoothed(values, weight) {
  let sum = 0;
  let total = 0;
  return values.map((value) => {
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return total ? sum / total : value;
  });
}
