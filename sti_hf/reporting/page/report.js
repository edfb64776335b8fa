// Reads the report, draws the page, and follows the controls and the address, as in #T=40&S=1 (ms, MB).

const report = JSON.parse(document.getElementById("report-data").textContent);
const shown = { ...report.shown };
const latency = document.getElementById("latency");
const budget = document.getElementById("budget");
const profiles = document.getElementById("profile");
let profile = report.importance.find((each) => each.name === report.plannedWith) || report.importance[0];

function nearest(values, wanted) {
  const away = values.map((value) => Math.abs(value - wanted));
  return away.indexOf(Math.min(...away));
}

function followAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const at = (name, values, unit) => {
    const value = parseFloat(wanted.get(name)) * unit;
    return Number.isFinite(value) ? nearest(values, value) : null;
  };
  shown.t = at("T", report.latencies, 1) ?? shown.t;
  shown.s = at("S", report.budgets, 1e6) ?? shown.s;
}

function show(t, s) {
  Object.assign(shown, { t, s });
  history.replaceState(null, "", `#T=${report.latencies[t]}&S=${report.budgets[s] / 1e6}`);
  drawChosen();
}

// All that depends on T and S.
function drawChosen() {
  const plan = report.plans[shown.s][shown.t];
  const run = report.runs.find((each) => each.t === shown.t && each.s === shown.s);
  latency.value = shown.t;
  budget.value = shown.s;
  document.querySelector("output[for=latency]").textContent = ms(report.latencies[shown.t]);
  document.querySelector("output[for=budget]").textContent = size(report.budgets[shown.s]);
  latency.setAttribute("aria-valuetext", ms(report.latencies[shown.t]));
  budget.setAttribute("aria-valuetext", size(report.budgets[shown.s]));
  drawPlan(report, plan, report.latencies[shown.t], report.budgets[shown.s]);
  drawTimeline(report, plan, run, report.latencies[shown.t]);
  drawDistortion(report, shown);
  drawRuns();
  const submodels = document.getElementById("submodels");
  if (submodels) submodels.hidden = !profile.submodels.length;
  if (submodels && !submodels.hidden) drawSubmodels("submodels", profile, plan);
}

function drawRuns() {
  const buttons = report.runs.map((run) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `T = ${ms(report.latencies[run.t])}, S = ${size(report.budgets[run.s])}`;
    button.setAttribute("aria-pressed", run.t === shown.t && run.s === shown.s);
    button.addEventListener("click", () => show(run.t, run.s));
    return button;
  });
  document.getElementById("runs").replaceChildren("Run here: ", ...buttons);
}

function addSection(title, text, id) {
  const section = document.createElement("section");
  const [head, sentence, figure] = ["h2", "p", "div"].map((tag) => section.appendChild(document.createElement(tag)));
  head.textContent = title;
  sentence.textContent = text;
  figure.id = id;
  figure.className = "figure";
  document.getElementById("accuracy").append(section);
}

function addAccuracy() {
  report.results.forEach((results, place) => {
    const says = `Up and to the left is better. Measured: ${results.metric}; hollow points miss their T.`;
    addSection("Metric against latency: " + results.name, says, "results-" + place);
  });
  if (report.importance.some((each) => each.submodels.length)) {
    addSection("What fewer layers or slices cost",
      "Submodels of fewer layers and slices answer sooner and score lower. Each point is one, with all its " +
      "shards at 6 bits; the ring is the one that the plan above runs.", "submodels");
  }
}

function drawAll() {
  drawImportance(report, profile);
  drawChosen();
  report.results.forEach((results, place) => drawResults("results-" + place, results));
}

function build() {
  say("name", report.name);
  say("store",
    `A ${report.model} model cut into ${report.layers} layers × ${report.slices} slices, ` +
    `${size(report.bytes)} on disk (quantizer ${report.quantizer}). Planned for ${report.tokens} tokens on ` +
    `a device that reads ${size(report.device.bytesPerSecond)} a second and computes in ` +
    `${report.device.dtype}, ${report.plannedWith ? "with importance " + report.plannedWith : "without importance"}.`);
  latency.max = report.latencies.length - 1;
  budget.max = report.budgets.length - 1;
  const moved = () => show(Number(latency.value), Number(budget.value));
  for (const control of [latency, budget]) control.addEventListener("input", moved);
  document.getElementById("importance-controls").hidden = report.importance.length < 2;
  profiles.replaceChildren(...report.importance.map((each) => new Option(each.name, each.name, false, each === profile)));
  profiles.addEventListener("change", () => {
    profile = report.importance.find((each) => each.name === profiles.value);
    drawAll();
  });
  addAccuracy();
  addEventListener("hashchange", () => { followAddress(); drawChosen(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  followAddress();
  drawAll();
}

build();
