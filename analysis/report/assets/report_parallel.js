/* Parallel coordinates, drawn here because trials do not all have all parameters, which Plotly's
   own cannot show. */
"use strict";
const PAD = { top: 52, bottom: 44 };
const HEIGHT = 400;
const par = { brushes: new Map(), paths: new Map(), axes: [] };

/* Round numbers from low to high, about `count` of them; on a log axis powers of ten, with 2 and 5
   where few. */
function roundTicks(low, high, log, count = 5) {
  if (low === high) return [low];
  const found = [];
  if (log) {
    const decades = Math.log10(high / low);
    const steps = decades < 2.2 ? [1, 2, 5] : [1];
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) {
      for (const m of steps) found.push(Number((m * 10 ** e).toPrecision(1)));
    }
    return found.filter((v) => v >= low && v <= high);
  }
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((m) => m >= rough);
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step)
    found.push(Number(v.toPrecision(12)));
  return found;
}
/* An axis: where a row lies, and its ticks. Objectives get better upwards. What a trial lacks lies
   under the axis. */
function parallelAxis(column) {
  const at = (share) => PAD.top + (1 - share) * (HEIGHT - PAD.top - PAD.bottom);
  const lacking = column.kind === "cat" ? column.levels.indexOf(MISSING) : -1;
  const missing = (row) =>
    column.kind === "cat" ? column.values[row] === lacking : column.values[row] === null;
  const axis = { column, lack: HEIGHT - 14, some: D.eligible.some(missing) };
  const parts =
    column.kind === "cat" ? levelAxis(column, lacking, at) : numberAxis(column, missing, at);
  return { ...axis, ticks: parts.ticks, y: (row) => (missing(row) ? axis.lack : parts.place(row)) };
}
function levelAxis(column, lacking, at) {
  const known = column.levels.filter((_, i) => i !== lacking);
  const share = (code) => (known.length === 1 ? 0.5 : 1 - code / (known.length - 1));
  /* Spread a little, or the lines of equal choices would be one; the golden ratio keeps neighbours
     apart. */
  const spread = Math.min(18, 90 / known.length);
  const every = Math.ceil(known.length / 18);
  return {
    place: (row) => at(share(column.values[row])) + (((row * 0.618) % 1) - 0.5) * spread,
    ticks: known
      .map((name, code) => [at(share(code)), clip(name, 18)])
      .filter((_, i) => i % every === 0),
  };
}
function numberAxis(column, missing, at) {
  const known = D.eligible.filter((row) => !missing(row)).map((row) => valueAt(column, row));
  const low = known.reduce((a, b) => Math.min(a, b), Infinity),
    high = known.reduce((a, b) => Math.max(a, b), -Infinity);
  const f = column.log ? Math.log10 : (v) => v;
  const flip = OBJECTIVES.some((o) => o.key === column.key && o.mode === "min");
  const up = (v) => (high === low ? 0.5 : (f(v) - f(low)) / (f(high) - f(low)));
  const share = (v) => (flip ? 1 - up(v) : up(v));
  const distinct = [...new Set(known)];
  const values =
    distinct.length <= 6 && distinct.every(Number.isInteger)
      ? distinct
      : roundTicks(low, high, column.log);
  const text = (v) =>
    column.unit === "fraction"
      ? `${number(100 * v)} %`
      : column.role === "parameter"
        ? plain(v)
        : number(v);
  return {
    place: (row) => at(share(valueAt(column, row))),
    ticks: values.map((v) => [at(share(v)), text(v)]),
  };
}
function startParallel() {
  const wanted = D.columns.filter((c) => c.role === "parameter" || c.role === "objective");
  const axes = [
    ...wanted.filter((c) => c.role === "parameter"),
    ...wanted.filter((c) => c.role === "objective"),
  ].filter((c) =>
    D.eligible.some((row) =>
      c.kind === "cat" ? c.levels[c.values[row]] !== MISSING : c.values[row] !== null,
    ),
  );
  if (axes.length < 2 || !D.eligible.length) return hide("parallel");
  $("parallel").hidden = false;
  par.wanted = axes;
  if (!document.querySelector(".tip")) {
    document.body.append(el("div", { class: "tip", "aria-hidden": "true" }));
    let width = $("parallel-plot").clientWidth;
    new ResizeObserver(() => {
      if ($("parallel-plot").clientWidth !== width) {
        width = $("parallel-plot").clientWidth;
        guarded("parallel", drawParallel);
      }
    }).observe($("parallel-plot"));
  }
  drawParallel();
  state.painters.set("parallel", drawParallel);
  state.choosers.set("parallel", markLines);
}
function drawParallel() {
  const box = $("parallel-plot");
  par.axes = par.wanted.map((column) => parallelAxis(COLUMN.get(column.key)));
  const room = (axis) =>
    Math.max(
      58,
      10 + 3.9 * Math.min(17, axis.column.label.length),
      20 + 6.6 * Math.max(...axis.ticks.map(([, text]) => text.length), axis.some ? 7 : 0),
    );
  const [left, right] = [room(par.axes[0]), room(par.axes.at(-1))];
  const width = Math.max(box.clientWidth, 114 * (par.axes.length - 1) + left + right);
  const x = (i) => left + (i * (width - left - right)) / (par.axes.length - 1);
  const root = svg("svg", {
    class: "parallel",
    width,
    height: HEIGHT,
    viewBox: `0 0 ${width} ${HEIGHT}`,
    role: "img",
    "aria-label": "Parallel coordinates of the complete configurations",
  });
  const colours = colouring();
  const shown = new Set(visible(colours).flatMap((g) => g.rows));
  const faint = D.eligible.length > 300 ? 0.22 : D.eligible.length > 80 ? 0.4 : 0.6;
  const rows = D.eligible
    .filter((row) => shown.has(row))
    .sort((a, b) => FRONT.has(a) - FRONT.has(b));
  par.paths = new Map(rows.map((row) => [row, linePath(row, x, colours.of(row), faint)]));
  root.append(...par.paths.values());
  par.axes.forEach((axis, i) => drawAxis(root, axis, i, x(i)));
  box.replaceChildren(root);
  markLines();
}
function linePath(row, x, stroke, faint) {
  const points = par.axes.map((axis, i) => [x(i), axis.y(row)]);
  let d = `M${points[0][0].toFixed(1)} ${points[0][1].toFixed(1)}`;
  for (let i = 1; i < points.length; i++) {
    const [[x0, y0], [x1, y1]] = [points[i - 1], points[i]];
    const bend = (x1 - x0) * 0.35;
    const along = [x0 + bend, y0, x1 - bend, y1, x1, y1];
    d += `C${along.map((v) => v.toFixed(1)).join(" ")}`;
  }
  const far = FRONT.has(row);
  const path = svg("path", { d, stroke, class: far ? "far" : "", opacity: far ? 0.95 : faint });
  const tip = document.querySelector(".tip");
  path.addEventListener("pointermove", (event) => {
    tip.textContent = describe(row, "\n");
    tip.style.left =
      Math.max(8, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)) + "px";
    tip.style.top =
      Math.max(8, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)) + "px";
    path.classList.add("on");
  });
  path.addEventListener("pointerleave", () => {
    tip.textContent = "";
    path.classList.toggle("on", row === state.row);
  });
  path.addEventListener("click", () => select(row));
  return path;
}
function drawAxis(root, axis, i, x) {
  const last = i === par.axes.length - 1;
  const anchor = last ? "start" : "end";
  const aside = last ? 9 : -9;
  root.append(svg("line", { class: "axis", x1: x, x2: x, y1: PAD.top, y2: HEIGHT - PAD.bottom }));
  const objective = OBJECTIVES.find((o) => o.key === axis.column.key);
  const name = svg(
    "text",
    { class: "name", x, y: 18, "text-anchor": "middle" },
    clip(axis.column.label, 17),
  );
  name.append(svg("title", {}, axis.column.title));
  root.append(name);
  if (objective)
    root.append(
      svg(
        "text",
        { x, y: 33, "text-anchor": "middle" },
        objective.mode === "min" ? "top: lowest, best" : "top: highest, best",
      ),
    );
  for (const [y, text] of axis.ticks)
    root.append(
      svg("text", { class: "tick", x: x + aside, y: y + 4, "text-anchor": anchor }, text),
    );
  if (axis.some)
    root.append(
      svg(
        "text",
        { class: "tick", x: x + aside, y: axis.lack + 4, "text-anchor": anchor },
        "not set",
      ),
    );
  const grab = svg("rect", {
    class: "grab",
    x: x - 13,
    width: 26,
    y: PAD.top - 12,
    height: HEIGHT - PAD.top + 8,
  });
  const brush = svg("rect", { class: "brush", x: x - 6, width: 12, rx: 3 });
  root.append(brush, grab);
  const key = axis.column.key;
  placeBrush(brush, par.brushes.get(key));
  grab.addEventListener("pointerdown", (down) => {
    const y = (event) => event.clientY - root.getBoundingClientRect().top;
    const start = y(down);
    par.brushes.delete(key);
    grab.setPointerCapture(down.pointerId);
    const move = (event) => {
      const range = [Math.min(start, y(event)), Math.max(start, y(event))];
      if (range[1] - range[0] > 3) par.brushes.set(key, range);
      placeBrush(brush, par.brushes.get(key));
      markLines();
    };
    const up = () => {
      grab.removeEventListener("pointermove", move);
      placeBrush(brush, par.brushes.get(key));
      narrowByBrushes();
    };
    grab.addEventListener("pointermove", move);
    grab.addEventListener("pointerup", up, { once: true });
    grab.addEventListener("pointercancel", up, { once: true });
  });
}
function placeBrush(node, range) {
  node.setAttribute("y", range ? range[0] : 0);
  node.setAttribute("height", range ? range[1] - range[0] : 0);
}
/* Whether a row crosses all brushes. */
function isBrushed(row) {
  return par.axes.every((axis) => {
    const range = par.brushes.get(axis.column.key);
    return !range || (axis.y(row) >= range[0] && axis.y(row) <= range[1]);
  });
}
function narrowByBrushes() {
  const eligible = (row) => ELIGIBLE.has(row) && isBrushed(row);
  narrow("parallel", par.brushes.size ? (row) => eligible(SEED_OF.get(row) ?? row) : null);
}
inAddress(
  "brushes",
  () => (par.brushes.size ? JSON.stringify([...par.brushes]) : null),
  (text) => {
    par.brushes = new Map(text ? JSON.parse(text) : []);
    if (par.brushes.size) setTimeout(narrowByBrushes, 0);
  },
);
function markLines() {
  const point = SEED_OF.get(state.row) ?? state.row;
  for (const [row, path] of par.paths) {
    path.classList.toggle("off", !isBrushed(row) || !kept(row));
    path.classList.toggle("on", row === point);
  }
  const chosen = par.paths.get(point);
  if (chosen) chosen.parentNode.insertBefore(chosen, chosen.parentNode.querySelector(".axis"));
}
