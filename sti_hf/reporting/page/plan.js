// The heat map of a plan: the fidelity of every shard.

const FIDELITIES = [0, 2, 3, 4, 5, 6, 32];

function drawPlan(report, plan, latency, budget) {
  const running = plan.bits.flat().filter((bits) => bits > 0);
  const mean = running.reduce((total, bits) => total + bits, 0) / running.length;
  const [n, m] = plan.submodel;
  const whole = n === report.layers && m === report.slices;
  const grid = `${report.layers} × ${report.slices}`;
  const what = whole ? `all ${grid} shards run` : `${n} layers of ${m} slices run, of ${grid},`;
  say("plan-says", plan.feasible
    ? `Within ${ms(latency)} and from ${size(budget)} in memory ${what} at ${digits(mean, 2)} bits on ` +
      `average; an inference reads ${size(plan.streamed)} and is predicted to take ` +
      `${ms(plan.predicted.end)}.`
    : `No plan keeps ${ms(latency)}. The fastest, ${n} layer of ${m} slices, is predicted to take ` +
      `${ms(plan.predicted.end)}.`);
  const colors = FIDELITIES.map((bits) => color("bits-" + bits));
  const marks = ["", "◦", "•"];
  const names = shardNames(report);
  const states = ["", "<br>partly preloaded", "<br>preloaded"];
  const cells = (write) => plan.bits.map((row, l) => row.map((bits, i) => write(bits, plan.preloaded[l][i], names[l][i])));
  draw("plan", [{
    type: "heatmap", z: cells((bits) => FIDELITIES.indexOf(bits)), zmin: -0.5, zmax: FIDELITIES.length - 0.5,
    colorscale: colors.flatMap((shown, place) => [[place / colors.length, shown], [(place + 1) / colors.length, shown]]),
    text: cells((bits, state) => (bits ? bits + marks[state] : "")),
    texttemplate: report.slices <= 24 ? "%{text}" : "",
    customdata: cells((bits, state, name) => `${name}<br>${fidelity(bits)}${states[state]}`),
    hovertemplate: "%{customdata}<extra></extra>", xgap: 2, ygap: 2, showscale: false,
  }], gridLayout("plan", report), planLegend(plan, colors));
}

function fidelity(bits) {
  return bits ? bits + " bits" : "not run";
}

function planLegend(plan, colors) {
  const shards = plan.bits.flat();
  const count = (bits) => shards.filter((each) => each === bits).length;
  const entries = FIDELITIES.map((bits, place) => [`${fidelity(bits)} × ${count(bits)}`, colors[place]]);
  const used = entries.filter((_, place) => shards.includes(FIDELITIES[place]));
  return plan.preloaded.flat().some((state) => state > 0) ? [...used, ["• preloaded, ◦ partly"]] : used;
}
