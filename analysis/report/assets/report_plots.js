/* What Plotly draws, and how: learning curves, progress, what a choice buys. */
"use strict";
const SVG_BUTTON = {
  name: "Save as SVG",
  icon: Plotly.Icons.disk,
  click: (plot) => Plotly.downloadImage(plot, { format: "svg", filename: plot.id || "plot" }),
};
/* No button that would send the data anywhere. */
const CONFIG = {
  displaylogo: false,
  responsive: true,
  showSendToCloud: false,
  plotlyServerURL: "",
  showTips: false,
  modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage", SVG_BUTTON]],
};
const CONFIG_3D = {
  ...CONFIG,
  modeBarButtons: [["orbitRotation", "pan3d", "resetCameraDefault3d", "toImage"]],
};

function layout(extra) {
  const axis = () => ({
    gridcolor: token("grid"),
    linecolor: token("line"),
    zeroline: false,
    tickfont: { color: token("muted"), size: 12 },
    title: { font: { color: token("text"), size: 13 }, standoff: 12 },
    automargin: true,
    exponentformat: "power",
    ticks: "",
  });
  const base = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    showlegend: false,
    /* what the reader has zoomed into stays when new data come */
    uirevision: [extra.xaxis, extra.yaxis].map((a) => a?.title?.text ?? "").join("|"),
    hovermode: "closest",
    margin: { l: 56, r: 14, t: 30, b: 48 },
    xaxis: axis(),
    yaxis: axis(),
    font: { family: getComputedStyle(document.body).fontFamily, color: token("text"), size: 12.5 },
    hoverlabel: {
      bgcolor: token("card"),
      bordercolor: token("line"),
      align: "left",
      font: { color: token("text"), size: 12.5 },
    },
    modebar: {
      bgcolor: "rgba(0,0,0,0)",
      color: token("muted"),
      activecolor: token("text"),
      orientation: "h",
    },
  };
  for (const [key, value] of Object.entries(extra)) {
    base[key] = /axis$|margin/.test(key)
      ? {
          ...base[key],
          ...value,
          ...(value.title ? { title: { ...base[key].title, ...value.title } } : {}),
        }
      : value;
  }
  return base;
}
/* Axis of a column: its name, its scale, no further than its values can be; fractions as percent. */
function axisOf(column) {
  const axis = { title: { text: inert(column.title) }, type: column.log ? "log" : "linear" };
  const isShare = column.unit === "fraction" && column.values.every((v) => v === null || v <= 1);
  if (!column.log && column.values.every((v) => v === null || v >= 0))
    axis.autorangeoptions = isShare ? { clipmin: 0, clipmax: 1 } : { clipmin: 0 };
  if (column.unit === "fraction") return { ...axis, tickformat: ".3~p" };
  if (!column.log) return axis;
  /* few ticks, written out */
  const known = column.values.filter((v) => v !== null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const isClose = high / low < (innerWidth > 600 ? 1e3 : 30);
  return { ...axis, dtick: isClose ? "D2" : 1, tickformat: low >= 1 ? "~s" : ".4~g" };
}
/* Axis of things that are counted: no ticks between whole numbers. */
function countAxis(title, most) {
  const axis = { title: { text: title }, rangemode: "tozero" };
  return most <= 10 ? { ...axis, tick0: 0, dtick: 1 } : { ...axis, tickformat: ",d" };
}
const hover = "%{text}<extra></extra>";

/* Draw, and once per element let a click choose a trial. */
function draw(plot, traces, look, config = CONFIG) {
  const paper = document.documentElement.classList.contains("print");
  Plotly.react(
    plot,
    traces,
    paper ? { ...look, width: plot.clientWidth, height: plot.clientHeight } : look,
    config,
  );
  if (plot.dataset.live) return;
  plot.dataset.live = "yes";
  plot.on("plotly_click", (event) => {
    const point = event.points[0];
    if (point && typeof point.customdata === "number") select(point.customdata);
  });
}

const curve = { metric: null };
inAddress(
  "curve",
  () => (curve.metric === D.curves.metrics[0]?.name ? null : curve.metric),
  (text) => {
    const names = D.curves.metrics.map((m) => m.name);
    curve.metric = names.includes(text) ? text : (names[0] ?? null);
  },
);
function startCurves() {
  const trials = D.curves.trials.filter((t) => t.values.length && t.values[0].length);
  if (!trials.length) return hide("curves");
  $("curves").hidden = false;
  const metrics = D.curves.metrics;
  if (!metrics.some((m) => m.name === curve.metric)) curve.metric = metrics[0].name;
  $("curves-controls").replaceChildren();
  if (metrics.length > 1) {
    $("curves-controls").append(
      chooser(
        "show",
        metrics.map((m) => [m.name, m.name]),
        curve.metric,
        (value) => {
          curve.metric = value;
          drawCurves();
        },
      ),
    );
  }
  drawCurves();
  state.painters.set("curves", drawCurves);
  state.choosers.set("curves", drawCurves);
}
/* What is drawn, in words. */
function explainCurves(isMany) {
  const { trials, of } = D.curves;
  const part = trials.length < of ? `${number(trials.length)} of ${number(of)} trials, those of the front first.` : "each trial.";
  const how = isMany
    ? " Of so many, a band holds eight of ten curves of a colour at each epoch, and a line runs in" +
      " their middle; thin lines are trials on the front."
    : "";
  $("curves-note").textContent = `The last training stage of ${part}${how}`;
}
/* The bands of a group of colours: of a ramp, which has no groups, one in grey. */
function bandsOf(group, trials, index) {
  const rows = new Set(group.rows);
  const part = trials.filter((trial) => rows.has(trial.row));
  return part.length < 3 ? [] : bandTraces(part, index, group.name, group.colour ?? token("muted"));
}
/* One trace per colour, gaps between the trials: a trace for each of a thousand trials takes
   seconds to draw. */
function curveTrace(trials, index, line, opacity) {
  const trace = { x: [], y: [], text: [], customdata: [] };
  for (const trial of trials) {
    const stage = trial.stage ? ` · ${inert(trial.stage)}` : "";
    const label = `<b>Trial ${inert(D.ids[trial.row])}</b>${stage}`;
    trial.values[index].forEach((value, epoch) => {
      if (value === null) return;
      trace.x.push(epoch);
      trace.y.push(value);
      trace.text.push(label);
      trace.customdata.push(trial.row);
    });
    for (const list of [trace.x, trace.y, trace.text, trace.customdata]) list.push(null);
  }
  const single = trials.every((t) => t.values[index].filter((v) => v !== null).length < 2);
  return {
    type: "scatter",
    mode: single ? "markers" : "lines",
    ...trace,
    line,
    opacity,
    connectgaps: false,
    marker: { color: line.color, size: 7 },
    hovertemplate: "%{text}<br>epoch %{x}: %{y}<extra></extra>",
  };
}
/* Of more curves than this, bands are drawn. */
const MOST_CURVES = 300;
/* The value below which a share of ascending numbers lies, interpolated. */
function quantile(sorted, share) {
  const at = share * (sorted.length - 1);
  const low = Math.floor(at);
  const high = Math.min(low + 1, sorted.length - 1);
  return sorted[low] + (at - low) * (sorted[high] - sorted[low]);
}
/* Of curves of unequal length, at each epoch that three have: lower, middle and upper value. */
function bandOf(curves) {
  const band = { x: [], low: [], middle: [], high: [] };
  const longest = Math.max(0, ...curves.map((values) => values.length));
  for (let epoch = 0; epoch < longest; epoch++) {
    const known = curves
      .map((values) => values[epoch])
      .filter((v) => v !== null && v !== undefined)
      .sort((a, b) => a - b);
    if (known.length < 3) continue;
    band.x.push(epoch);
    band.low.push(quantile(known, 0.1));
    band.middle.push(quantile(known, 0.5));
    band.high.push(quantile(known, 0.9));
  }
  return band;
}
/* The band of one group: eight of ten curves, and the middle one. */
function bandTraces(trials, index, name, color) {
  const band = bandOf(trials.map((t) => t.values[index]));
  const edge = { type: "scatter", mode: "lines", x: band.x, hoverinfo: "skip", line: { width: 0, color } };
  const fill = color.startsWith("#") ? color + "2e" : color.replace(")", ",0.18)").replace("rgb(", "rgba(");
  const title = inert(name === "" || name === MISSING ? "curves" : name);
  return [
    { ...edge, y: band.low },
    { ...edge, y: band.high, fill: "tonexty", fillcolor: fill },
    {
      ...edge,
      y: band.middle,
      line: { width: 2.2, color },
      hoverinfo: "all",
      hovertemplate: `<b>${title}</b>, middle of ${trials.length}<br>epoch %{x}: %{y}<extra></extra>`,
    },
  ];
}
function drawCurves() {
  const colours = colouring();
  const index = D.curves.metrics.findIndex((m) => m.name === curve.metric);
  const unit = D.curves.metrics[index].unit;
  const trials = D.curves.trials;
  const shown = new Set(visible(colours).flatMap((g) => g.rows));
  const all = trials.filter((trial) => shown.has(trial.row) && kept(trial.row));
  const isMany = all.length > MOST_CURVES;
  const bands = isMany ? visible(colours).flatMap((group) => bandsOf(group, all, index)) : [];
  const byColour = new Map();
  for (const trial of isMany ? all.filter((t) => onFront(t.row)) : all) {
    const key = colours.of(trial.row);
    byColour.set(key, [...(byColour.get(key) || []), trial]);
  }
  const opacity = isMany ? 1 : all.length > 200 ? 0.35 : all.length > 60 ? 0.5 : 0.7;
  const lines = [...byColour].map(([color, part]) =>
    curveTrace(part, index, { color, width: 1.4 }, opacity),
  );
  const traces = [...bands, ...lines];
  explainCurves(isMany);
  const chosen = trials.filter((t) => t.row === state.row);
  if (chosen.length)
    traces.push(curveTrace(chosen, index, { color: token("front"), width: 3.5 }, 1));
  const values = trials.flatMap((t) => t.values[index]).filter((v) => v !== null);
  const low = values.reduce((a, b) => Math.min(a, b), Infinity);
  const high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const log = unit !== "fraction" && low > 0 && high / low > 30;
  draw(
    $("curves-plot"),
    traces,
    layout({
      xaxis: countAxis("epoch of the stage", Math.max(...trials.map((t) => t.values[index].length))),
      yaxis: {
        ...(unit === "fraction" && low >= 0 && high <= 1
          ? { autorangeoptions: { clipmin: 0, clipmax: 1 } }
          : {}),
        title: { text: inert(D.curves.metrics[index].title) },
        type: log ? "log" : "linear",
        ...(unit === "fraction" ? { tickformat: ".3~p" } : {}),
      },
    }),
  );
}

function startProgress() {
  if (!D.progress.rows.length) return hide("progress");
  $("progress").hidden = false;
  $("progress-note").textContent =
    "Hypervolume of the front after each complete configuration, as a share of the box between" +
    ` the best values seen and the reference point (${D.progress.reference}). A flat end says` +
    " that more of the same would add little.";
  drawProgress();
  state.painters.set("progress", drawProgress);
  state.choosers.set("progress", drawProgress);
}
function drawProgress() {
  const { rows, share } = D.progress;
  const better = rows.map((_, i) => i).filter((i) => share[i] > (i ? share[i - 1] : 0));
  const text = (i) => `<b>Trial ${inert(D.ids[rows[i]])}</b><br>${percent(share[i])}`;
  const order = rows.map((_, i) => i);
  const line = { color: token("accent"), width: 2.2, shape: "hv" };
  const traces = [
    {
      type: "scatter",
      mode: "lines",
      x: order.map((i) => i + 1),
      y: share,
      line,
      text: order.map(text),
      customdata: rows,
      hovertemplate: hover,
      fill: "tozeroy",
      fillcolor: token("accent") + "14",
    },
    {
      type: "scatter",
      mode: "markers",
      x: better.map((i) => i + 1),
      y: better.map((i) => share[i]),
      text: better.map(text),
      customdata: better.map((i) => rows[i]),
      hovertemplate: hover,
      marker: {
        size: better.map((i) => (rows[i] === state.row ? 14 : 7)),
        color: token("accent"),
        line: { color: token("card"), width: 1.5 },
      },
    },
  ];
  draw(
    $("progress-plot"),
    traces,
    layout({
      xaxis: countAxis(innerWidth > 600 ? "complete configurations, in the order they ended" : "complete configurations", rows.length),
      yaxis: { title: { text: "hypervolume" }, tickformat: ".0%", rangemode: "tozero" },
    }),
  );
}

const effect = { objective: 0 };
inAddress(
  "effect",
  () => (effect.objective ? String(effect.objective) : null),
  (text) => {
    effect.objective = OBJECTIVES[Number(text)] ? Number(text) : 0;
  },
);
function startEffects() {
  if (!D.effects.length || !OBJECTIVES.length) return hide("effects");
  $("effects").hidden = false;
  $("effects-controls").replaceChildren();
  if (OBJECTIVES.length > 1) {
    $("effects-controls").append(
      chooser(
        "objective",
        OBJECTIVES.map((o, i) => [String(i), o.metric]),
        String(effect.objective),
        (value) => {
          effect.objective = Number(value);
          drawEffects();
        },
      ),
    );
  }
  $("effects-plots").replaceChildren(
    ...D.effects.map(({ parameter }) =>
      el("article", {}, el("h3", {}, parameter), el("div", { class: "plot" }), el("div", {})),
    ),
  );
  drawEffects();
  state.painters.set("effects", drawEffects);
}
function drawEffects() {
  D.effects.forEach((item, i) => drawEffect(item, $("effects-plots").children[i]));
}
function drawEffect({ key, levels }, article) {
  const objective = COLUMN.get(OBJECTIVES[effect.objective].key);
  const dark = isDark() ? "dark" : "light";
  const known = levels.map((l, i) => ({ ...l, i })).filter((l) => l.count);
  const same = key === colourKey();
  const traces = known.map((level, place) => {
    const rows = level.rows.filter(kept);
    const color = same ? colouring().of(level.rows[0] ?? 0) : PALETTE[dark][0];
    return {
      type: "box",
      x: rows.map(() => place),
      y: rows.map((row) => valueAt(objective, row)),
      text: rows.map((r) => describe(r, "<br>")),
      customdata: rows,
      hovertemplate: hover,
      boxpoints: "all",
      jitter: 0.6,
      pointpos: 0,
      boxmean: true,
      width: 0.6,
      hoveron: "points",
      marker: { color, size: 5, opacity: 0.65 },
      line: { color, width: 1.4 },
      fillcolor: color + (color.startsWith("#") ? "22" : ""),
    };
  });
  const room = Math.max(4, Math.floor((article.clientWidth - 60) / known.length / 7.6) - 1);
  const ticktext = known.map((l) => inert(clip(l.value === MISSING ? "not set" : l.value, room)));
  draw(
    article.children[1],
    traces,
    layout({
      xaxis: {
        tickvals: known.map((_, i) => i),
        ticktext,
        tickangle: 0,
        showgrid: false,
        range: [-0.6, known.length - 0.4],
        fixedrange: true,
      },
      yaxis: { ...axisOf(objective), title: { text: inert(objective.title) } },
      margin: { l: 50, r: 6, t: 8, b: 30 },
    }),
    { ...CONFIG, displayModeBar: false },
  );
  const body = known.map((l) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, clip(l.value === MISSING ? "not set" : l.value, 40)),
      el("td", { class: "n" }, String(l.count)),
      el("td", { class: "n" }, l.shown[effect.objective]),
    ),
  );
  article.children[2].replaceChildren(
    el(
      "table",
      { class: "plain" },
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          el("th", {}, "Value"),
          el("th", { class: "n" }, "Count"),
          el("th", { class: "n" }, "Mean ± sd"),
        ),
      ),
      el("tbody", {}, ...body),
    ),
  );
}
