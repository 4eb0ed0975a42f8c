// Curves of what the ledger has sampled, drawn by uPlot. Each chart says in a line of text what it shows.

const number = new Intl.NumberFormat(undefined, { maximumSignificantDigits: 3 });
const figure = (value) => (value == null ? "–" : number.format(value));
const time = (value) => (value == null ? "–" : value < 1 ? `${Math.round(value * 1000)} ms` : `${number.format(value)} s`);

// The viewer's own way to write times: uPlot knows the American one.
const clock = new Intl.DateTimeFormat(undefined, { hour: "numeric", minute: "2-digit" });
const seconds = new Intl.DateTimeFormat(undefined, { hour: "numeric", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });
const moment = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "numeric", minute: "2-digit", second: "2-digit" });

// What stands below the ticks: the day where one begins, and under the first; else the time.
function ticks(plot, values, axis, space, step) {
  let before = "";
  return values.map((value) => {
    const at = new Date(value * 1000);
    const date = day.format(at);
    const isNew = date !== before;
    before = date;
    if (step >= 86400) return date;
    const said = (step < 60 ? seconds : clock).format(at);
    return isNew ? `${said}\n${date}` : said;
  });
}

const CHARTS = {
  requests: { format: figure, curves: [["requests", "requests"], ["errors", "errors"]] },
  tokens: { format: figure, curves: [["tokens", "generated"], ["prompt_tokens", "read"]] },
  ttft: { format: time, curves: [["ttft_p50", "50 %"], ["ttft_p95", "95 %"]] },
  jobs: { format: figure, curves: [["running", "running"], ["waiting", "waiting"]] },
};
const HEIGHT = 170;
const STEPS = [10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800]; // of ticks, in seconds

// The second curve of a chart is dashed: the colours are not all that tells them apart.
const STROKES = [["--gt-curve-1", []], ["--gt-curve-2", [5, 4]]];

// Only what has no neighbours to be joined with needs a point.
function alone(plot, series) {
  const values = plot.data[series];
  return values.flatMap((value, i) => (value != null && values[i - 1] == null && values[i + 1] == null ? [i] : []));
}

function options(name, width, styles) {
  const { format, curves } = CHARTS[name];
  const axis = {
    stroke: styles.getPropertyValue("--gt-quiet").trim(),
    grid: { stroke: styles.getPropertyValue("--gt-line").trim(), width: 1 },
    ticks: { show: false },
    font: `12px ${styles.fontFamily}`,
  };
  return {
    width,
    height: HEIGHT,
    cursor: { y: false },
    legend: { live: true },
    scales: { y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
    axes: [{ ...axis, space: 72, incrs: STEPS, values: ticks }, { ...axis, size: 56, values: (_, ticks) => ticks.map(format) }],
    series: [
      { label: "Time", value: (_, value) => (value == null ? "–" : moment.format(value * 1000)) },
      ...curves.map(([, label], i) => ({
        label,
        stroke: styles.getPropertyValue(STROKES[i][0]).trim(),
        dash: STROKES[i][1],
        width: 2,
        points: { show: true, size: 4, filter: alone },
        value: (_, value) => format(value),
      })),
    ],
  };
}

function summary(name, data) {
  const { format, curves } = CHARTS[name];
  return curves
    .map(([key, label]) => {
      const seen = data[key].filter((value) => value != null);
      const most = seen.length ? Math.max(...seen) : null;
      return `${label}: now ${format(seen.at(-1))}, most ${format(most)}`;
    })
    .join("; ");
}

export class Charts {
  constructor(root, address) {
    Object.assign(this, { root, address });
    this.range = root.querySelector("input[name=range]:checked").value;
    this.plots = new Map();
    root.addEventListener("change", (event) => {
      if (event.target.name !== "range") return;
      this.range = event.target.value;
      this.load();
    });
    new MutationObserver(() => this.draw(true)).observe(document.documentElement, { attributeFilter: ["class"] });
    new ResizeObserver(() => this.draw()).observe(root.querySelector(".gt-charts"));
    document.addEventListener("visibilitychange", () => document.hidden || this.due());
    setInterval(() => this.due(), 2000);
    this.load();
  }

  due() {
    const step = this.data ? this.data.step : 10;
    if (!document.hidden && Date.now() - this.asked >= Math.min(step, 60) * 1000) this.load();
  }

  async load() {
    this.asked = Date.now();
    const range = this.range;
    let data;
    try {
      const answer = await fetch(`${this.address}?range=${range}`, { headers: { Accept: "application/json" } });
      // A session that has ended leads to a page for logging in; the socket says so.
      if (!answer.ok || answer.redirected) return;
      data = await answer.json();
    } catch {
      return; // away: the socket says so
    }
    if (range !== this.range) return;
    this.data = data;
    this.draw();
  }

  draw(anew = false) {
    if (!this.data) return;
    const empty = this.data.requests.every((value) => value == null);
    this.root.querySelector("#gt-history-empty").hidden = !empty;
    this.root.querySelector(".gt-charts").hidden = empty;
    if (empty) return;
    for (const chart of this.root.querySelectorAll("[data-chart]")) this.drawOne(chart, anew);
  }

  drawOne(chart, anew) {
    const name = chart.dataset.chart;
    const place = chart.querySelector("div");
    const curves = [this.data.at, ...CHARTS[name].curves.map(([key]) => this.data[key])];
    const width = place.clientWidth; // none while the page is laid out for something that does not show charts
    let plot = this.plots.get(name);
    if (plot && width && (anew || plot.width !== width)) {
      plot.destroy();
      this.plots.delete(name);
      plot = undefined;
    }
    if (plot) plot.setData(curves);
    else if (width) {
      this.plots.set(name, new uPlot(options(name, width, getComputedStyle(this.root)), curves, place));
      place.querySelector("canvas")?.setAttribute("aria-hidden", "true");
    }
    chart.querySelector("p").textContent = summary(name, this.data);
  }
}
