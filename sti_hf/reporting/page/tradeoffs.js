// What latency and memory buy: distortion as predicted, the metric where it is known.

const METRIC_HOVER = "%{customdata}<br>%{y:.1f} after %{x:.1f} ms<extra></extra>";

// Distortions of models of different sizes cannot be compared: these are of plans that run every shard.
function drawDistortion(report, shown) {
  const whole = (plan) => plan.feasible && plan.distortion > 0 && plan.bits.flat().every((bits) => bits > 0);
  const placed = report.plans.map((row) => row.map((plan, t) => ({ plan, t })).filter(({ plan }) => whole(plan)));
  const lines = report.budgets.map((budget, s) => ({ budget, plans: placed[s] })).filter(({ plans }) => plans.length);
  document.getElementById("distortion").hidden = !lines.length;
  if (!lines.length) {
    say("distortion-says",
      "No plan of this grid runs every shard within its T, and distortions of smaller models cannot be " +
      "compared.");
    return;
  }
  say("distortion-says",
    "Lower is closer to the checkpoint's own outputs: more time lowers it, and so does a larger preload " +
    "buffer at the same time. Plans that run every shard; the ring is the plan shown above.");
  const traces = lines.map(({ budget, plans }, place) => ({
    ...line("S = " + size(budget), shade(place, lines.length)),
    x: plans.map(({ plan }) => plan.predicted.end), y: plans.map(({ plan }) => plan.distortion),
    customdata: plans.map(({ t }) => `T = ${ms(report.latencies[t])}, S = ${size(budget)}`),
    hovertemplate: "%{customdata}<br>distortion %{y:.3~g} after %{x:.1f} ms<extra></extra>",
  }));
  const legend = traces.map((each) => [each.name, each.line.color]);
  const current = report.plans[shown.s][shown.t];
  if (whole(current)) traces.push(ring(current.predicted.end, current.distortion));
  const distortion = axis("predicted distortion", { type: "log", exponentformat: "power", dtick: "D2" });
  draw("distortion", traces, { height: 400, xaxis: axis("predicted latency, ms"), yaxis: distortion }, legend);
}

function drawSubmodels(id, profile, shown) {
  const widths = [...new Set(profile.submodels.map((each) => each.slices))].sort((a, b) => a - b);
  const traces = widths.map((width, place) => {
    const of = profile.submodels.filter((each) => each.slices === width).sort((a, b) => a.layers - b.layers);
    return {
      ...line(width + " slices", shade(place, widths.length)),
      x: of.map((each) => each.latency), y: of.map((each) => each.metric * 100),
      customdata: of.map((each) => `${each.layers} layers × ${each.slices} slices`), hovertemplate: METRIC_HOVER,
    };
  });
  const legend = traces.map((each) => [each.name, each.line.color]);
  const [n, m] = shown.submodel;
  const current = profile.submodels.find((each) => each.layers === n && each.slices === m);
  if (current) traces.push(ring(current.latency, current.metric * 100));
  const latency = axis("predicted latency, all in memory, ms", { rangemode: "tozero" });
  draw(id, traces, { height: 400, xaxis: latency, yaxis: axis(`${profile.metric}, points`) }, legend);
}

const STRATEGIES = [["sti", "circle"], ["std_pipeline", "square"], ["load_exec", "triangle-up"], ["preload", "diamond"]];

function drawResults(id, results) {
  const names = Object.keys(results.lines);
  const ours = names.filter((name) => name.startsWith("sti"));
  const traces = names.map((name) => {
    const place = Math.max(0, STRATEGIES.findIndex(([strategy]) => name.startsWith(strategy)));
    const points = results.lines[name];
    return {
      ...line(name, place ? color("line-" + place) : shade(ours.indexOf(name), ours.length)),
      marker: { size: 8, symbol: points.map((point) => STRATEGIES[place][1] + (point.feasible ? "" : "-open")) },
      x: points.map((point) => point.latency), y: points.map((point) => point.metric),
      customdata: points.map((point) => name + ", " + point.what), hovertemplate: METRIC_HOVER,
    };
  });
  const latency = axis("latency when cold, median, ms", { type: "log", dtick: "D2" });
  const metric = axis(results.metric.split(" on ")[0] + ", points");
  draw(id, traces, { height: 430, xaxis: latency, yaxis: metric }, traces.map((each) => [each.name, each.line.color]));
}

function line(name, stroke) {
  return { type: "scatter", mode: "lines+markers", name, line: { color: stroke, width: 2 }, marker: { size: 7 } };
}

function ring(x, y) {
  const marker = { size: 16, color: "rgba(0,0,0,0)", line: { width: 2, color: color("ink") } };
  return { type: "scatter", mode: "markers", x: [x], y: [y], marker, hoverinfo: "skip" };
}
