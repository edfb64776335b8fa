// What disk and processor do in one inference: as predicted, and where it was run, as measured.

const KINDS = [
  ["reading", "reading shards"], ["words", "reading word embeddings"], ["waiting", "waiting for the disk"],
  ["decompressing", "decompressing"], ["computing", "computing"], ["rest", "outside the layers"],
];

function drawTimeline(report, plan, run, latency) {
  const sources = [["predicted", plan.predicted], ...(run ? [["measured", run.measured]] : [])];
  const lanes = sources.flatMap(([source, lanes]) => ["disk", "processor"].map((name) => [`${source}<br>${name}`, lanes[name]]));
  const spans = lanes.flatMap(([lane, all]) => all.map(([kind, layer, start, end]) => ({ lane, kind, layer, start, end })));
  const end = Math.max(...sources.map(([, lanes]) => lanes.end));
  const near = latency <= 1.6 * end;
  const range = [Math.min(0, ...spans.map((span) => span.start)), 1.02 * (near ? Math.max(end, latency) : end)];
  const line = { type: "line", x0: latency, x1: latency, y0: 0, y1: 1, yref: "paper", line: { color: color("ink"), width: 1.5, dash: "dot" } };
  draw("timeline", KINDS.map(([kind, name]) => bars(kind, name, spans.filter((span) => span.kind === kind))), {
    height: 90 + 62 * lanes.length, barmode: "overlay",
    xaxis: axis("time since the forward began, ms", { range }),
    yaxis: axis("", { type: "category", categoryarray: lanes.map(([lane]) => lane), autorange: "reversed", showgrid: false }),
    margin: { l: 10, r: 10, t: 26, b: 10 },
    shapes: near ? [line] : [],
    annotations: [{
      x: near ? latency : 1, xref: near ? "x" : "paper", y: 1, yref: "paper", yanchor: "bottom", xanchor: "right",
      showarrow: false, text: `T = ${ms(latency)}${near ? "" : " →"}`,
    }],
  }, KINDS.map(([kind, name]) => [name, color(kind)]));
  const waits = (lanes) => lanes.processor.filter(([kind]) => kind === "waiting");
  const waited = (lanes) => waits(lanes).reduce((total, [, , start, end]) => total + end - start, 0);
  const predicted = `The processor is predicted to wait ${ms(waited(plan.predicted))} of ${ms(plan.predicted.end)} for the disk`;
  say("timeline-says", run
    ? `${predicted}; run cold on this device it waited ${ms(waited(run.measured))} of ${ms(run.measured.end)}.`
    : `${predicted}. This plan was not run; the ones below were.`);
}

function bars(kind, name, spans) {
  const what = (span) => (span.layer < 0 ? name : `${name}, layer ${span.layer}`);
  return {
    type: "bar", orientation: "h", name, y: spans.map((span) => span.lane),
    base: spans.map((span) => span.start), x: spans.map((span) => span.end - span.start),
    width: kind === "words" ? 0.25 : 0.75, // shards may be read at the same time
    marker: {
      color: color(kind), line: { width: 1, color: color("page") },
      pattern: kind === "waiting" ? { shape: "/", size: 5, solidity: 0.25 } : undefined,
    },
    text: ["reading", "computing"].includes(kind) ? spans.map((span) => span.layer) : "",
    textposition: "inside", insidetextanchor: "middle", textangle: 0, constraintext: "inside",
    customdata: spans.map((span) => `${what(span)}<br>${ms(span.end - span.start)}, from ${ms(span.start)}`),
    hovertemplate: "%{customdata}<extra></extra>",
  };
}
