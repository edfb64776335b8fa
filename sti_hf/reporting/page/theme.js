// Colours and type of every figure, from style.css; and how numbers are written.

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
}

// The colour of line `place` of `count` that stand for ascending amounts.
function shade(place, count) {
  const [low, high] = ["bits-3", "bits-32"].map((name) => color(name).match(/[0-9a-f]{2}/gi).map((part) => parseInt(part, 16)));
  const share = count > 1 ? place / (count - 1) : 0.5;
  return `rgb(${low.map((part, k) => Math.round(part + share * (high[k] - part)))})`;
}

function axis(title, more) {
  return {
    title: { text: title, font: { size: 13, color: color("soft") }, standoff: 10 },
    gridcolor: color("line"), linecolor: color("line"), zeroline: false, automargin: true, fixedrange: true, ...more,
  };
}

// Draws a figure in the element `id`, or redraws it; below it a legend: [text, colour] each.
function draw(id, traces, layout, legend = []) {
  const element = document.getElementById(id);
  drawLegend(element, legend);
  const common = {
    font: { family: color("font"), size: 12, color: color("ink") },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 10, r: 10, t: 12, b: 10 },
    hoverlabel: { bgcolor: color("surface"), bordercolor: color("line"), font: { family: color("font"), color: color("ink") } },
    showlegend: false,
  };
  return Plotly.react(element, traces, { ...common, ...layout }, { displayModeBar: false, responsive: true });
}

function drawLegend(element, entries) {
  const list = element.nextElementSibling?.matches(".legend") ? element.nextElementSibling : document.createElement("ul");
  list.className = "legend";
  list.replaceChildren(...entries.map(([text, background]) => {
    const item = document.createElement("li");
    if (background) item.appendChild(document.createElement("span")).style.background = background;
    item.append(text);
    return item;
  }));
  element.after(list);
}

// Height and axes of a heat map over the grid, which is as wide as its cells need to be at most.
function gridLayout(id, report) {
  document.getElementById(id).style.maxWidth = Math.max(320, report.slices * 64 + 130) + "px";
  const step = (count, most) => Math.max(1, Math.ceil(count / most));
  return {
    height: Math.min(Math.max(report.layers * 28, 90), 1200) + 70,
    xaxis: axis("slice", { dtick: step(report.slices, 16), showgrid: false }),
    yaxis: axis("layer", { dtick: step(report.layers, 32), showgrid: false, autorange: "reversed" }),
  };
}

function shardNames(report) {
  return report.heads.map((heads, layer) => heads.map((head, slice) => `layer ${layer}, slice ${slice}${report.droppable ? ` (the checkpoint's head ${head})` : ""}`));
}

function digits(value, count) {
  return Number(value.toPrecision(count)).toLocaleString("en", { maximumFractionDigits: 6 });
}

function ms(value) {
  return (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : digits(value, 3)) + " ms";
}

function size(bytes) {
  return bytes >= 1e9 ? digits(bytes / 1e9, 3) + " GB" : bytes >= 1e5 || bytes === 0 ? digits(bytes / 1e6, 3) + " MB" : digits(bytes / 1e3, 3) + " kB";
}

function say(id, text) {
  document.getElementById(id).textContent = text;
}
