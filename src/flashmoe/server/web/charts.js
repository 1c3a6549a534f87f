// Three small charts of the last two minutes, from differences of the server's counters.

import { metrics } from "./api.js";

const POINTS = 120;
const PERIOD_MS = 1000;
const COUNTERS = {
  tokens: "flashmoe_completion_tokens_total",
  hits: "flashmoe_expert_cache_hits_total",
  misses: "flashmoe_expert_cache_misses_total",
  bytes: "flashmoe_read_bytes_total",
};

class Chart {
  constructor(id, format, ceiling) {
    this.svg = document.getElementById(id);
    this.label = document.getElementById(`${id}-now`);
    this.format = format;
    this.ceiling = ceiling;
    this.values = [];
    this.path = this.svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "path"));
    this.svg.setAttribute("viewBox", `0 0 ${POINTS - 1} 100`);
    this.svg.setAttribute("preserveAspectRatio", "none");
  }

  /** Shows one more second; null: nothing happened that could be measured. */
  push(value) {
    this.values = [...this.values, value].slice(-POINTS);
    this.label.textContent = value === null ? "–" : this.format(value);
    this.path.setAttribute("d", this.line());
  }

  line() {
    const top = this.ceiling ?? Math.max(1e-9, ...this.values);
    const first = POINTS - this.values.length;
    let pen = "M";
    return this.values.map((value, i) => {
      if (value === null) {
        pen = "M";
        return "";
      }
      const point = `${pen}${first + i} ${96 - (92 * value) / top}`;
      pen = "L";
      return point;
    }).join("");
  }
}

export class Charts {
  constructor() {
    this.speed = new Chart("speed", (v) => v.toFixed(1));
    this.hits = new Chart("hits", (v) => `${(100 * v).toFixed(0)} %`, 1);
    this.disk = new Chart("disk", (v) => `${(v / 1e9).toFixed(2)} GB/s`);
  }

  /** Polls until the page is closed; a failed poll leaves a gap. */
  async run(key) {
    let last = null;
    for (;;) {
      const now = await this.sample(key());
      if (last && now) this.show(last, now);
      last = now ?? last;
      await new Promise((resume) => setTimeout(resume, PERIOD_MS));
    }
  }

  async sample(key) {
    try {
      const counters = await metrics(key);
      const values = Object.entries(COUNTERS).map(([name, metric]) => [name, counters[metric] ?? 0]);
      return { at: performance.now() / 1000, ...Object.fromEntries(values) };
    } catch {
      return null;
    }
  }

  show(last, now) {
    const seconds = now.at - last.at;
    const hits = now.hits - last.hits;
    const asked = hits + now.misses - last.misses;
    this.speed.push((now.tokens - last.tokens) / seconds);
    this.hits.push(asked > 0 ? hits / asked : null);
    this.disk.push((now.bytes - last.bytes) / seconds);
  }
}
