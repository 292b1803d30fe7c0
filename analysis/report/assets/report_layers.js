/* Inside a model: dimensions of its blocks, where they came from, entropy and values of its
   layers. */
"use strict";
const inside = { index: 0 };

function startLayers() {
  if (!D.layers.length) return hide("layers");
  $("layers").hidden = false;
  if (inside.index >= D.layers.length) inside.index = 0;
  const about = (row) => PICKS.get(row) || (FRONT.has(row) ? "on the front" : "");
  const name = (t) => [D.ids[t.row], about(t.row)].filter(Boolean).join(", ");
  $("layers-controls").replaceChildren(
    chooser(
      "trial",
      D.layers.map((t, i) => [String(i), name(t)]),
      String(inside.index),
      (value) => {
        inside.index = Number(value);
        drawLayers();
      },
    ),
  );
  drawLayers();
  state.painters.set("layers", drawLayers);
  state.choosers.set("layers", () => {
    const index = D.layers.findIndex((t) => t.row === (SEED_OF.get(state.row) ?? state.row));
    if (index < 0 || index === inside.index) return;
    inside.index = index;
    $("layers-controls").querySelector("select").value = String(index);
    drawLayers();
  });
}
function drawLayers() {
  const t = D.layers[inside.index];
  const color = token("accent");
  const panels = [];
  const dims = Object.entries(t.dims);
  const varied = dims.filter(([, values]) => new Set(values).size > 1);
  if (t.blocks.length) {
    const shown = dims.filter(([key]) => key !== "embed");
    const embed = t.dims.embed ? `Embedding ${t.dims.embed[0]}. ` : "";
    panels.push([
      "Dimensions of each block",
      embed + (varied.length ? "The outline is the widest block." : "All blocks are alike."),
      shown.map(([key, values]) => dimTrace(t, key, values, color)),
    ]);
  }
  if (t.sources.length)
    panels.push([
      "Where each layer came from",
      "Rows are the layers of the learngene, columns those of this model.",
      [mapTrace(t, color)],
    ]);
  if (t.histogram)
    panels.push([
      `The ${number(t.histogram.values.length)} values of the model`,
      "How often each value occurs among the weights; the axis is stretched around zero.",
      [valueTrace(t, color)],
    ]);
  for (const family of t.counts) {
    const [least, most] = [family.items[0][0], family.items.at(-1)[0]];
    const about = family.items[0][2];
    const note = about ? `${family.name}_${least}: ${about}; and so on.` : "";
    panels.push([
      `${family.name}_${least} to ${family.name}_${most}`,
      note,
      [countTrace(family, color)],
    ]);
  }
  if (t.quantised) {
    panels.push([
      "Entropy of each layer",
      "Bits per weight that no code of independent symbols beats.",
      [layerTrace(t, t.bits, "bits", color)],
    ]);
    panels.push(["Different values in each layer", "", [layerTrace(t, t.unique, "values", color)]]);
    if (t.zeros.some(Boolean))
      panels.push(["Share of zeros in each layer", "", [layerTrace(t, t.zeros, "zeros", color)]]);
  }
  const blocks = t.blocks.length ? `, ${number(t.blocks.length)} blocks` : "";
  $("layers-note").textContent =
    `${number(t.layers.length)} layers with weights${blocks}, from input to output.` +
    (D.layers.length > 1 ? " Click a mark on the front to see its model." : "") +
    (panels.length ? "" : " Nothing was pruned, shared or mapped.");
  while ($("layers-plots").children.length > panels.length) {
    Plotly.purge($("layers-plots").lastChild.lastChild);
    $("layers-plots").lastChild.remove();
  }
  panels.forEach(([heading, note, traces], i) => drawPanel(i, heading, note, traces));
}
function drawPanel(i, heading, note, traces) {
  const box = $("layers-plots");
  if (!box.children[i])
    box.append(
      el("article", {}, el("h3", {}), el("p", { class: "note" }), el("div", { class: "plot" })),
    );
  const [title_, note_, plot] = box.children[i].children;
  title_.textContent = heading;
  note_.textContent = note;
  box.children[i].classList.toggle("all", traces.length > 2);
  const many = traces.length > 1;
  const data = traces.flatMap((t, k) =>
    t.data.map((d) => ({ ...d, xaxis: "x" + (k ? k + 1 : ""), yaxis: "y" + (k ? k + 1 : "") })),
  );
  const look = layout({
    margin: { l: 46, r: 8, t: many ? 26 : 10, b: 34 },
    bargap: 0.25,
    barmode: "overlay",
  });
  /* Side by side, or, where that is too narrow, in rows of two, or one below the other. */
  const most = box.clientWidth < 480 ? 1 : box.clientWidth < 760 ? 2 : traces.length;
  const perRow = many ? Math.min(most, traces.length) : 1;
  const rows = Math.ceil(traces.length / perRow);
  plot.style.height = `${240 + (perRow > 1 ? 190 : 120) * (rows - 1)}px`;
  const left = (k) => (k % perRow) / perRow + (k % perRow ? 0.03 + 0.05 * (rows - 1) : 0);
  const top_ = (k) => 1 - Math.floor(k / perRow) / rows;
  traces.forEach((t, k) => {
    const domain = many ? [left(k), ((k % perRow) + 1) / perRow] : [0, 1];
    const base = layout({});
    const titled = (axis, own) => ({ ...axis, ...own, title: { ...axis.title, ...own.title } });
    look["xaxis" + (k ? k + 1 : "")] = titled(
      { ...base.xaxis, showgrid: false, anchor: "y" + (k ? k + 1 : ""), domain },
      t.x,
    );
    const height = [top_(k) - 1 / rows + (rows > 1 ? 0.06 : 0), top_(k) - (rows > 1 ? 0.06 : 0)];
    look["yaxis" + (k ? k + 1 : "")] = titled(
      { ...base.yaxis, anchor: "x" + (k ? k + 1 : ""), domain: height },
      t.y,
    );
  });
  if (many)
    look.annotations = traces.map((t, k) => ({
      text: inert(t.name),
      showarrow: false,
      xref: "paper",
      yref: "paper",
      yanchor: "bottom",
      xanchor: "left",
      x: left(k),
      y: top_(k) - (rows > 1 ? 0.06 : 0) + 0.01,
      font: { size: 12, color: token("muted") },
    }));
  draw(plot, data, look, { ...CONFIG, displayModeBar: false });
}
const positions = (values) => values.map((_, i) => i);
function dimTrace(t, key, values, color) {
  const most = Math.max(...values.map((v) => v || 0));
  const hovertext = values.map(
    (v, i) => `${inert(t.blocks[i])}: ${number(v)} ${D.dimensions[key]}`,
  );
  const ghost = {
    type: "bar",
    x: positions(values),
    y: values.map(() => most),
    marker: { color: "rgba(0,0,0,0)", line: { color: token("line"), width: 1 } },
    hoverinfo: "skip",
  };
  const bar = {
    type: "bar",
    x: positions(values),
    y: values,
    marker: { color },
    hovertext,
    hovertemplate: "%{hovertext}<extra></extra>",
  };
  return {
    name: D.dimensions[key],
    data: [ghost, bar],
    x: { title: { text: "" }, dtick: values.length > 14 ? 4 : 1 },
    y: { rangemode: "tozero", title: { text: "" } },
  };
}
function mapTrace(t, color) {
  const rows = [...new Set(t.sources)].sort((a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a) < String(b) ? -1 : 1,
  );
  const at = new Map(rows.map((name, i) => [name, i]));
  const text = t.sources.map((source, i) => `${inert(t.mapped[i])} from ${inert(source)}`);
  const marks = {
    type: "scatter",
    mode: "markers",
    x: positions(t.sources),
    y: t.sources.map((s) => at.get(s)),
    text,
    hovertemplate: hover,
    marker: { symbol: "square", size: 15, color },
  };
  return {
    name: "",
    data: [marks],
    x: {
      title: { text: "layer of this model" },
      dtick: t.sources.length > 14 ? 4 : 1,
      range: [-0.7, t.sources.length - 0.3],
    },
    y: {
      tickvals: rows.map((_, i) => i),
      ticktext: rows.map((r) => inert(clip(String(r), 14))),
      range: [rows.length - 0.4, -0.6],
      title: { text: "learngene" },
    },
  };
}
/* Values stretched around zero: most shared weights lie there, and their powers of two are then
   evenly spread. */
function valueTrace(t, color) {
  const { values, counts } = t.histogram;
  const small = values
    .map(Math.abs)
    .filter((v) => v > 0)
    .reduce((a, b) => Math.min(a, b), Infinity);
  const bend = Number.isFinite(small) ? Math.max(small, 1e-9) : 1;
  const place = (v) => Math.sign(v) * Math.log2(1 + Math.abs(v) / bend);
  const columns = getComputedStyle($("layers-plots")).gridTemplateColumns.split(" ").length;
  const apart = Math.max(2, $("layers-plots").clientWidth / columns / 65);
  const low = place(values[0]),
    high = place(values.at(-1));
  const ticks = [
    ...new Set(
      [values[0], -bend * 16, -bend, 0, bend, bend * 16, values.at(-1)].filter(
        (v) => place(v) >= low - 1e-9 && place(v) <= high + 1e-9,
      ),
    ),
  ]
    .sort((a, b) => a - b)
    .filter(
      (v, i, all) =>
        i === 0 ||
        i === all.length - 1 ||
        Math.min(place(v) - place(all[i - 1]), place(all.at(-1)) - place(v)) > (high - low) / apart,
    );
  const stems = {
    type: "scatter",
    mode: "lines",
    x: values.flatMap((v) => [place(v), place(v), null]),
    y: counts.flatMap((c) => [0.5, c, null]),
    line: { color, width: 1.6 },
    hoverinfo: "skip",
  };
  const heads = {
    type: "scatter",
    mode: "markers",
    x: values.map(place),
    y: counts,
    marker: { color, size: 5 },
    text: values.map((v, i) => `${number(v)}: ${number(counts[i])} weights`),
    hovertemplate: hover,
  };
  return {
    name: "",
    data: [stems, heads],
    x: {
      title: { text: "value" },
      tickvals: ticks.map(place),
      ticktext: ticks.map(number),
      tickangle: 0,
    },
    y: { type: "log", title: { text: "weights" }, dtick: 1, tickformat: "~s" },
  };
}
/* Metrics that count the same thing for 0, 1, 2 and so on. */
function countTrace({ name, items }, color) {
  const hovertext = items.map(
    ([k, n, about]) => `${inert(name)}_${k}: ${number(n)}${about ? `<br>${inert(about)}` : ""}`,
  );
  const bar = {
    type: "bar",
    x: items.map(([k]) => k),
    y: items.map(([, n]) => n),
    marker: { color },
    hovertext,
    hovertemplate: "%{hovertext}<extra></extra>",
  };
  return {
    name: "",
    data: [bar],
    x: { title: { text: inert(name) }, dtick: 1 },
    y: { title: { text: "" }, rangemode: "tozero", tickformat: "~s" },
  };
}
function layerTrace(t, values, unit, color) {
  const text = values.map((v, i) => {
    const value = unit === "zeros" ? percent(v) : number(v);
    return `${inert(t.layers[i])}: ${value} ${unit}, ${number(t.weights[i])} weights`;
  });
  const bar = {
    type: "bar",
    x: positions(values),
    y: values,
    marker: { color },
    hovertext: text,
    hovertemplate: "%{hovertext}<extra></extra>",
  };
  return {
    name: "",
    data: [bar],
    x: { title: { text: "layer" } },
    y: {
      rangemode: "tozero",
      title: { text: { zeros: "share", bits: "bits per weight" }[unit] || unit },
      ...(unit === "zeros" ? { tickformat: ".0%" } : {}),
    },
  };
}
