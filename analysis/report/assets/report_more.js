/* Groups compared, and parameter importance. */
"use strict";
/* What the slider says, and the row that is cheapest for it, null where all lose more. */
const loss = { points: null, row: null };
inAddress(
  "loss",
  () => loss.points,
  (text) => {
    loss.points = text;
  },
);
/* The first card: what is cheapest for the loss that the reader sets. */
function startLoss() {
  const input = $("loss");
  if (!input) return;
  const box = input.closest(".within");
  const members = [...box.querySelectorAll(".member")];
  const choose = () => {
    const points = Number(input.value);
    const fitting = members.filter((m) => 100 * Number(m.dataset.loss) <= points + 1e-7);
    const chosen = fitting.at(-1) || members[0];
    for (const member of members) member.hidden = member !== chosen;
    const words = `${points} ${points === 1 ? "point" : "points"}`;
    $("loss-shown").textContent = words;
    loss.row = fitting.length ? (ROW.get(chosen.querySelector("[data-trial]").dataset.trial) ?? null) : null;
    loss.words = `within ${words}`;
    for (const note of chosen.querySelectorAll("[data-chances]")) {
      note.querySelector(".limit").textContent = words;
      const place = Math.round(points / Number(input.step));
      note.querySelector(".chance").textContent = note.dataset.chances.split(",")[place];
    }
    chosen.querySelector("h3").textContent = fitting.length
      ? `Lowest ${box.dataset.cost} within ${words}`
      : `Nearest: more than ${words} of ${box.dataset.metric} is lost`;
  };
  input.closest("label").hidden = false;
  input.oninput = () => {
    loss.points = input.value;
    choose();
    guarded("front", drawFront);
    remember();
  };
  if (loss.points !== null) input.value = loss.points;
  choose();
}
const versus = { axis: "configurations" };
const AXES = {
  configurations: "complete configurations",
  compute: "time of trials",
  wall: "wall time since the first start",
};

function startCompare() {
  if (!D.compare) return;
  const kinds = Object.keys(AXES).filter((axis) => D.compare.groups.every((g) => g.curves[axis]));
  $("compare-controls").replaceChildren(
    chooser(
      "budget",
      kinds.map((k) => [k, AXES[k]]),
      versus.axis,
      (value) => {
        versus.axis = value;
        drawCompare();
      },
    ),
  );
  drawCompare();
  state.painters.set("compare", drawCompare);
}
/* Seconds in the largest unit that keeps the numbers readable. */
function timeUnit(longest) {
  return (
    [
      [172800, 86400, "days"],
      [7200, 3600, "hours"],
      [120, 60, "minutes"],
    ].find(([from]) => longest >= from) || [0, 1, "seconds"]
  );
}
function groupColour(name) {
  const colours = colouring();
  const group = colours.groups.find(
    (g) => g.name === name || (g.name === MISSING && name === "not set"),
  );
  return D.compare && colourKey() === "config/" + D.compare.by && group
    ? group.colour
    : token("muted");
}
function drawCompare() {
  const time = versus.axis !== "configurations";
  const longest = Math.max(...D.compare.groups.map((g) => g.curves[versus.axis][0].at(-1) || 0));
  const [, size, unit] = time ? timeUnit(longest) : [0, 1, ""];
  const traces = D.compare.groups
    .filter((g) => !state.hidden.has(g.name))
    .map((g) => {
      const [x, y] = g.curves[versus.axis];
      return {
        type: "scatter",
        mode: "lines",
        x: [0, ...x].map((v) => v / size),
        y: [0, ...y],
        line: { shape: "hv", width: 2.4, color: groupColour(g.name) },
        text: [0, ...y].map((v) => `<b>${inert(g.name)}</b><br>${percent(v)}`),
        hovertemplate: hover,
      };
    });
  const common =
    versus.axis === "configurations"
      ? D.compare.budget
      : versus.axis === "compute"
        ? D.compare.time / size
        : null;
  const shapes =
    common === null
      ? []
      : [
          {
            type: "line",
            x0: common,
            x1: common,
            y0: 0,
            y1: 1,
            yref: "paper",
            line: { color: token("muted"), width: 1.2, dash: "dot" },
          },
        ];
  draw(
    $("compare-plot"),
    traces,
    layout({
      xaxis: {
        title: { text: AXES[versus.axis] + (unit ? ` (${unit})` : "") },
        rangemode: "tozero",
      },
      yaxis: { title: { text: "hypervolume" }, tickformat: ".0%", rangemode: "tozero" },
      shapes,
      annotations:
        common === null
          ? []
          : [
              {
                x: common,
                y: 1,
                yref: "paper",
                yanchor: "bottom",
                text: "same budget",
                showarrow: false,
                font: { color: token("muted"), size: 11.5 },
              },
            ],
    }),
  );
}

function startImportance() {
  if (!D.importance.length) return hide("importance");
  $("importance").hidden = false;
  const some = D.importance.some((i) => i.conditional);
  $("importance-note").textContent =
    "Share of the variation of each objective that a parameter explains out of sample (functional" +
    " ANOVA over a random forest, as in Optuna, scaled by what is explained of configurations left" +
    " out), from " +
    `${Math.max(...D.importance.map((i) => i.count))} configurations.` +
    " What chance explains as well is left out." +
    (some
      ? " A parameter with a star belongs to one alternative only and is compared where it is" +
        " present."
      : "");
  const shown = D.importance.slice(0, 20);
  $("importance-plot").style.height = `${70 + shown.length * (12 + 16 * OBJECTIVES.length)}px`;
  drawImportance();
  state.painters.set("importance", drawImportance);
}
function drawImportance() {
  const shown = D.importance.slice(0, 20).reverse();
  const palette = PALETTE[isDark() ? "dark" : "light"];
  const names = shown.map((i) => inert(clip(i.parameter, 30)) + (i.conditional ? " *" : ""));
  const traces = OBJECTIVES.map((o, k) => ({
    type: "bar",
    orientation: "h",
    name: inert(o.metric),
    y: shown.map((_, i) => i),
    x: shown.map((i) => i.shares[k]),
    marker: { color: palette[k % 8], cornerradius: 3 },
    text: shown.map((i) => (i.shares[k] === null ? "" : percent(i.shares[k], 0))),
    textposition: "outside",
    cliponaxis: false,
    customdata: shown.map((i) => i.count),
    hovertemplate:
      "%{x:.1%} of " + inert(o.metric) + ", %{customdata} configurations<extra></extra>",
  })).reverse();
  draw(
    $("importance-plot"),
    traces,
    layout({
      barmode: "group",
      bargap: 0.3,
      bargroupgap: 0.08,
      showlegend: OBJECTIVES.length > 1,
      hovermode: "closest",
      margin: { l: 20, r: 40, t: 34, b: 40 },
      legend: {
        orientation: "h",
        x: 0,
        y: 1,
        yanchor: "bottom",
        traceorder: "reversed",
        font: { color: token("text"), size: 12.5 },
      },
      xaxis: {
        tickformat: ".0%",
        range: [
          0,
          Math.min(
            1.08,
            1.12 * Math.max(...shown.flatMap((i) => i.shares.map((v) => v || 0)), 0.1),
          ),
        ],
        fixedrange: true,
      },
      yaxis: {
        tickvals: shown.map((_, i) => i),
        ticktext: names,
        showgrid: false,
        fixedrange: true,
        tickfont: { color: token("text"), size: 12.5 },
      },
    }),
    { ...CONFIG, displayModeBar: false },
  );
}
