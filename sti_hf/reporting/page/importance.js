// The heat map of what every shard is worth.

function drawImportance(report, profile) {
  document.getElementById("importance").hidden = !profile;
  if (!profile) {
    say("importance-says",
      "This store has no importance profile, so plans take whole layers, from the first. Measure what its " +
      "shards are worth with `sti profile-importance STORE --task TASK`, and report again.");
    return;
  }
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const total = sum(profile.worth.map(sum)) || 1;
  const layers = profile.worth.map((row) => sum(row) / total);
  const best = layers.indexOf(Math.max(...layers));
  const shards = profile.worth.flat().sort((a, b) => b - a);
  const tenth = sum(shards.slice(0, Math.ceil(shards.length / 10))) / total;
  const points = profile.method === "exhaustive";
  const measured = points ? `the ${profile.metric} with it alone raised` : "how far its error alone moves the outputs";
  say("importance-says",
    `Of all that raising shards is worth, layer ${best} holds ${Math.round(layers[best] * 100)} % and the ` +
    `best tenth of the shards ${Math.round(tenth * 100)} %. A shard's worth here is ${measured}, on ` +
    `${profile.examples}.`);
  const unit = points ? `worth, points of ${profile.metric}` : "share of all worth, %";
  draw("importance", [{
    type: "heatmap", z: profile.worth.map((row) => row.map((value) => (value * 100) / (points ? 1 : total))),
    text: shardNames(report), hovertemplate: "%{text}<br>" + unit + ": %{z:.3~g}<extra></extra>",
    colorscale: ["low", "middle", "high"].map((name, place) => [place / 2, color("worth-" + name)]),
    zmin: points ? undefined : 0, xgap: 2, ygap: 2, colorbar: { title: { text: unit, side: "right" }, thickness: 10, outlinewidth: 0, len: 1 },
  }], gridLayout("importance", report));
}
