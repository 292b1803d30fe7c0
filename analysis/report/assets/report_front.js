/* The front, in two or three dimensions. Titles of axes come from analysis/report/columns.py, the
   axes themselves from axisOf in report_plots.js. */
"use strict";
/* Rows of the staircase of two objectives among some points, best first along x. */
function staircase(x, y, points) {
  const sign = (o) => (o.mode === "min" ? 1 : -1);
  const cost = (o, row) => sign(o) * valueAt(COLUMN.get(o.key), row);
  const rows = [...points].sort((a, b) => cost(x, a) - cost(x, b) || cost(y, a) - cost(y, b));
  let best = Infinity;
  return rows.filter((row) => cost(y, row) < best && ((best = cost(y, row)), true));
}

/* `set` is what the reader has chosen; what is not chosen is as `usual` says. */
const front = { set: {} };
function usual() {
  const [first, second, third] = OBJECTIVES.map((o) => o.key);
  const axes = { x: second || "seconds", y: first, z: third || null };
  const marks = { seeds: true, each: Boolean(D.compare), noise: D.noise !== null };
  return { ...axes, ...marks, three: false, surfaces: false };
}
for (const name of ["x", "y", "z", "three", "seeds", "each", "noise", "surfaces"])
  inAddress(
    name,
    () => {
      const value = front.set[name];
      return value === undefined || value === usual()[name] ? null : String(value);
    },
    (text) => {
      if (text === null || (name.length === 1 && !COLUMN.has(text))) delete front.set[name];
      else front.set[name] = name.length === 1 ? text : text === "true";
    },
  );
function startFront() {
  const numeric = D.columns.filter((c) => c.kind === "num" && c.values.some((v) => v !== null));
  if (!OBJECTIVES.length || !D.ids.length) return hide("front");
  Object.assign(front, usual(), front.set);
  takeFront(front.noise);
  const third = OBJECTIVES[2]?.key;
  const measured = (key) => numeric.some((c) => c.key === key);
  if (!measured(front.x) || !measured(front.y)) return hide("front");
  $("front").hidden = false;
  const axes = numeric.map((c) => [c.key, c.label]);
  const colours = D.columns.filter((c) => c.role === "parameter").map((c) => [c.key, c.label]);
  const set = (name) => (value) => {
    front[name] = front.set[name] = value;
    drawFront();
  };
  const z = chooser("z", axes, front.z, set("z"));
  z.hidden = !front.three;
  const mode = segments(["2-D", "3-D"], Number(front.three), (i) => {
    z.hidden = i === 0;
    set("three")(i === 1);
  });
  $("front-controls").replaceChildren(
    chooser("x", axes, front.x, set("x")),
    chooser("y", axes, front.y, set("y")),
    ...(third ? [z, mode] : []),
    chooser("colour", [...colours, ["status", "status"]], colourKey(), (value) => {
      state.colour = value;
      state.hidden.clear();
      repaint();
    }),
    ...(colours.length ? [tick("a front for each colour", front.each, set("each"))] : []),
    ...(SEEDS.size ? [tick("seeds", front.seeds, set("seeds"))] : []),
    ...(D.surfaces.length ? [tick("attainment over seeds", front.surfaces, set("surfaces"))] : []),
    ...(D.noise
      ? [
          tick(
            `ignore differences inside the noise of ${clip(D.noise.metric, 20)}`,
            front.noise,
            (on) => {
              front.noise = front.set.noise = on;
              takeFront(on);
              explainFront(third);
              forgetRows();
              repaint();
            },
          ),
        ]
      : []),
  );
  explainFront(third);
  drawFront();
  state.painters.set("front", drawFront);
  state.choosers.set("front", drawFront);
}
function explainFront(third) {
  const goals = OBJECTIVES.map((o) => {
    const [wanted, limit] = o.mode === "min" ? ["low", "at most"] : ["high", "at least"];
    return `${o.metric} ${wanted}${o.bound === null ? "" : `, ${limit} ${o.shown}`}`;
  });
  const line = third ? " of all objectives; the line is the front of the two shown" : "";
  const parts = [`Wanted: ${goals.join("; ")}. Ringed marks are on the front${line}.`];
  if (front.noise)
    parts.push(
      `Two configurations whose quartiles of ${D.noise.metric} overlap count as equal in it.`,
    );
  if (SEEDS.size)
    parts.push(
      "A configuration is shown at the mean over its seeds, with the standard deviation;" +
        " small dots are the seeds.",
    );
  if (D.ids.length > D.eligible.length + SEED_OF.size)
    parts.push("A thin cross is a trial that is not complete or out of bounds.");
  if (D.baseline) parts.push(`The star is the baseline, ${clip(D.baseline.name, 60)}.`);
  $("front-note").textContent =
    parts.join(" ") + " Click a mark to find its trial in every plot and in the table.";
}
function frontMarks(colours, at) {
  const traces = [];
  const kinds = [
    {
      has: (r) => !ELIGIBLE.has(r) && !SEED_OF.has(r),
      size: 8,
      opacity: 0.5,
      symbol: "x-thin",
      width: 1.6,
    },
    {
      has: (r) => front.seeds && SEED_OF.has(r),
      size: 4,
      opacity: 0.5,
      symbol: "circle",
      width: 0,
    },
    { has: (r) => ELIGIBLE.has(r) },
  ];
  for (const kind of kinds) {
    for (const group of visible(colours)) {
      const rows = group.rows.filter((row) => kind.has(row) && at(row));
      if (!rows.length) continue;
      const color = rows.map(colours.of);
      traces.push({
        rows,
        marker: kind.symbol
          ? {
              color,
              opacity: kind.opacity,
              size: kind.size,
              symbol: kind.symbol,
              line: { color, width: kind.width },
            }
          : {
              color,
              opacity: rows.map((r) => (!kept(r) ? 0.1 : FRONT.has(r) ? 1 : 0.75)),
              size: rows.map((r) => (FRONT.has(r) ? 12 : 9)),
              symbol: group.symbol,
              line: {
                color: rows.map((r) => token(FRONT.has(r) ? "front" : "card")),
                width: rows.map((r) => (FRONT.has(r) ? 1.8 : 0.6)),
              },
            },
      });
    }
  }
  return traces;
}
/* Standard deviations over seeds, or a latency's quartiles, as bars; null where there is
   neither. */
function errorBars(column, rows, colour) {
  const look = { type: "data", color: colour, thickness: 1, width: 0 };
  if (D.noise && column.key === "metric/" + D.noise.metric && front.noise) {
    const array = rows.map((r) =>
      Math.max(0, (D.noise.high[r] ?? valueAt(column, r)) - valueAt(column, r)),
    );
    const arrayminus = rows.map((r) =>
      Math.max(0, valueAt(column, r) - (D.noise.low[r] ?? valueAt(column, r))),
    );
    return { ...look, symmetric: false, array, arrayminus };
  }
  const array = rows.map((r) => spreadAt(column, r) || 0);
  return array.some(Boolean) ? { ...look, array } : null;
}
function stairs(x, y, rows, color, width) {
  const [cx, cy] = [COLUMN.get(x.key), COLUMN.get(y.key)];
  const line = staircase(x, y, rows);
  return {
    type: "scatter",
    mode: "lines",
    x: line.map((r) => valueAt(cx, r)),
    y: line.map((r) => valueAt(cy, r)),
    hoverinfo: "skip",
    line: { shape: "hv", color, width },
    opacity: 0.75,
  };
}
function surfaceTraces(ox, oy) {
  const [i, j] = [ox, oy].map((o) => OBJECTIVES.indexOf(o));
  const dashes = { 0: "dot", 50: "solid", 100: "dash" };
  const names = { 0: "best seed", 50: "median", 100: "every seed" };
  return D.surfaces.map(({ level, points }) => {
    const order = points.slice().sort((a, b) => (ox.mode === "min" ? a[i] - b[i] : b[i] - a[i]));
    return {
      type: "scatter",
      mode: "lines",
      x: order.map((p) => p[i]),
      y: order.map((p) => p[j]),
      name: names[level],
      hovertemplate: `attained by ${names[level]}<extra></extra>`,
      line: { shape: "hv", color: token("accent"), width: 1.6, dash: dashes[level] },
    };
  });
}
/* The baseline as a star; nothing where it was not measured on both axes. */
function baselineTrace(x, y) {
  const [left, up] = [x, y].map((column) => D.baseline?.values[column.key]);
  if (left === undefined || up === undefined) return [];
  const lines = [x, y].map((column) => `${column.label}  ${figure(D.baseline.values[column.key], column.unit)}`);
  return [
    {
      type: "scatter",
      mode: "markers+text",
      cliponaxis: false,
      x: [left],
      y: [up],
      text: [inert("baseline")],
      textposition: isLeft(x, left) ? "bottom right" : "bottom left",
      textfont: { color: token("muted"), size: 12 },
      hovertext: [`<b>${inert(clip(D.baseline.name, 40))}</b><br>${lines.map(inert).join("<br>")}`],
      hovertemplate: "%{hovertext}<extra></extra>",
      marker: {
        symbol: "star",
        size: 17,
        color: token("warn"),
        line: { color: token("card"), width: 1 },
      },
    },
  ];
}
function drawFront() {
  const plot = $("front-plot");
  const colours = colouring();
  if (front.three) return drawFront3(plot, colours);
  const [x, y] = [COLUMN.get(front.x), COLUMN.get(front.y)];
  const at = (row) => valueAt(x, row) !== null && valueAt(y, row) !== null;
  const pick = (column, rows) => rows.map((row) => valueAt(column, row));
  const traces = frontMarks(colours, at).map(({ rows, marker }) => {
    const colour = Array.isArray(marker.color) ? marker.color[0] : marker.color;
    const bars = ELIGIBLE.has(rows[0])
      ? { error_x: errorBars(x, rows, colour), error_y: errorBars(y, rows, colour) }
      : {};
    return {
      type: "scatter",
      mode: "markers",
      x: pick(x, rows),
      y: pick(y, rows),
      text: rows.map((r) => describe(r, "<br>")),
      customdata: rows,
      marker,
      hovertemplate: hover,
      /* whole marks at the edge, where all is right; bars would leave the plot */
      cliponaxis: Object.values(bars).some((v) => v),
      ...Object.fromEntries(Object.entries(bars).filter(([, v]) => v)),
    };
  });
  const [ox, oy] = [front.x, front.y].map((key) => OBJECTIVES.find((o) => o.key === key));
  if (ox && oy && ox !== oy) {
    const groups =
      front.each && !colours.ends
        ? visible(colours).map((g) => [g.rows.filter((r) => ELIGIBLE.has(r)), g.colour])
        : [[D.eligible, token("front")]];
    traces.unshift(
      ...groups
        .filter(([rows]) => rows.length)
        .map(([rows, colour]) => stairs(ox, oy, rows, colour, groups.length > 1 ? 2 : 1.6)),
    );
    if (front.surfaces) traces.unshift(...surfaceTraces(ox, oy));
  }
  traces.push(...baselineTrace(x, y));
  if (state.row !== null && at(state.row)) {
    traces.push({
      type: "scatter",
      mode: "markers",
      cliponaxis: false,
      x: [valueAt(x, state.row)],
      y: [valueAt(y, state.row)],
      hoverinfo: "skip",
      marker: { size: 22, symbol: "circle-open", color: token("warn"), line: { width: 3 } },
    });
  }
  const shapes = [
    [ox, "x"],
    [oy, "y"],
  ]
    .filter(([o]) => o && o.bound !== null)
    .map(([o, side]) => ({
      type: "line",
      ...(side === "x"
        ? { x0: o.bound, x1: o.bound, y0: 0, y1: 1, yref: "paper" }
        : { y0: o.bound, y1: o.bound, x0: 0, x1: 1, xref: "paper" }),
      line: { color: token("bad"), width: 1.4, dash: "dot" },
    }));
  draw(
    plot,
    traces,
    layout({
      xaxis: axisOf(x),
      yaxis: axisOf(y),
      shapes,
      annotations: ox && oy && ox !== oy ? pickLabels(x, y, at, plot.clientWidth > 560) : [],
    }),
  );
}
/* Whether a value lies in the left part of an axis, so that words to its left would be cut. */
function isLeft(column, value) {
  const known = [...D.eligible.map((row) => valueAt(column, row)), D.baseline?.values[column.key]];
  const scale = column.log ? Math.log : (v) => v;
  const places = known.filter((v) => v !== null && v !== undefined).map(scale);
  const [low, high] = [Math.min(...places), Math.max(...places)];
  return scale(value) < low + 0.4 * (high - low);
}
/* The picks by name, the recommended trial first; where there is little room, that one alone. */
function labelled(hasRoom) {
  const found = new Map();
  if (loss.row !== null) found.set(loss.row, `trial ${D.ids[loss.row]}, ${loss.words}`);
  for (const [row, words] of PICKS)
    found.set(row, found.has(row) ? `${found.get(row)}, ${words}` : words);
  return hasRoom ? [...found] : [...found.keys()].slice(0, 1).map((row) => [row, `trial ${D.ids[row]}`]);
}
/* Their labels, on the side where the front does not run, or where there is room. */
function pickLabels(x, y, at, hasRoom) {
  const place = (column, value) => (column.log ? Math.log10(value) : value);
  const side = OBJECTIVES.find((o) => o.key === x.key).mode === "min" ? -1 : 1;
  const up = OBJECTIVES.find((o) => o.key === y.key).mode === "max" ? -1 : 1;
  return labelled(hasRoom)
    .filter(([row]) => at(row))
    .map(([row, words]) => [row, words, isLeft(x, valueAt(x, row)) ? 1 : -1])
    .map(([row, words, way]) => ({
      x: place(x, valueAt(x, row)),
      y: place(y, valueAt(y, row)),
      text: inert(clip(words, hasRoom ? 56 : 34)),
      ax: way * 26,
      ay: way === side ? up * 26 : -up * 26,
      xanchor: way < 0 ? "right" : "left",
      bgcolor: token("card") + "cc",
      arrowhead: 0,
      arrowwidth: 1,
      arrowcolor: token("muted"),
      standoff: 8,
      font: { color: token(row === loss.row ? "text" : "muted"), size: 12 },
    }));
}
function drawFront3(plot, colours) {
  const axes = ["x", "y", "z"].map((name) => COLUMN.get(front[name]));
  const at = (row) => axes.every((column) => valueAt(column, row) !== null);
  const flat = new Set(["circle", "square", "diamond", "cross"]);
  const traces = frontMarks(colours, at).map(({ rows, marker }) => ({
    type: "scatter3d",
    mode: "markers",
    text: rows.map((r) => describe(r, "<br>")),
    customdata: rows,
    hovertemplate: hover,
    ...Object.fromEntries(
      ["x", "y", "z"].map((name, i) => [name, rows.map((row) => valueAt(axes[i], row))]),
    ),
    marker: {
      color: marker.color,
      size: rows.map((r) => (FRONT.has(r) ? 7 : 4)),
      opacity: 0.9,
      symbol: flat.has(marker.symbol) ? marker.symbol : marker.symbol === "x-thin" ? "x" : "circle",
    },
  }));
  const style = {
    gridcolor: token("muted") + "55",
    color: token("muted"),
    backgroundcolor: token("card"),
    zeroline: false,
  };
  const scene = Object.fromEntries(
    ["xaxis", "yaxis", "zaxis"].map((name, i) => [name, { ...style, ...axisOf(axes[i]) }]),
  );
  draw(
    plot,
    traces,
    layout({
      scene: { ...scene, camera: { eye: { x: 1.7, y: 1.5, z: 0.9 } } },
      margin: { l: 0, r: 0, t: 0, b: 0 },
    }),
    CONFIG_3D,
  );
}
