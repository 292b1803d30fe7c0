/* The page's data, state and colours. The other scripts draw; all of them read D, which is what
   page_data of analysis/report/data.py gives. */
"use strict";
const $ = (id) => document.getElementById(id);
/* A configuration is known by the row of the trial that stands for it; SEEDS are its replicates,
   SEED_OF leads from them to it. PICKS are the names of the picks by row, the recommended one
   first. */
/* A trial as text for hovering, made once. */
const described = new Map();
let D, COLUMN, FRONT, ELIGIBLE, SEEDS, SEED_OF, ROW, OBJECTIVES, PICKS;
function adopt(data) {
  D = data;
  COLUMN = new Map(D.columns.map((column) => [column.key, column]));
  ELIGIBLE = new Set(D.eligible);
  SEEDS = new Map(Object.entries(D.replicates).map(([row, rows]) => [Number(row), rows]));
  SEED_OF = new Map(
    [...SEEDS].flatMap(([point, rows]) =>
      rows.filter((row) => row !== point).map((row) => [row, point]),
    ),
  );
  ROW = new Map(D.ids.map((id, row) => [id, row]));
  OBJECTIVES = D.objectives.map((o) => ({ ...o, key: "metric/" + o.metric }));
  PICKS = new Map();
  for (const [words, row] of D.picks)
    PICKS.set(row, PICKS.has(row) ? `${PICKS.get(row)}, ${words}` : words);
  described.clear();
  takeFront(D.noise !== null);
}
/* The front that ignores differences inside a measured noise, or the one that does not. */
function takeFront(noise) {
  FRONT = new Set(noise && D.noise ? D.noise.front : D.front);
  described.clear();
}
const onFront = (row) => FRONT.has(SEED_OF.get(row) ?? row);

/* Okabe and Ito's colours, which people with colour-blindness tell apart, lightened on dark and
   darkened on light. */
const PALETTE = {
  light: ["#0b6bb0", "#d2600a", "#07916a", "#b3569b", "#c98a00", "#3f9fd8", "#5b4bb5", "#6b6f75"],
  dark: ["#5fb2ee", "#f58f4a", "#3fcf9e", "#e59bd0", "#f0c04a", "#a5dbfa", "#a99cf5", "#b3b8be"],
};
const RAMP = {
  light: ["#23407c", "#56748c", "#959a6c", "#dfc23a"],
  dark: ["#4c74c9", "#7f9bb0", "#bfb981", "#fde05e"],
};
const SYMBOLS = [
  "circle",
  "square",
  "diamond",
  "triangle-up",
  "cross",
  "star",
  "triangle-down",
  "hexagon",
];
/* `painters` draw a panel anew, `choosers` mark the chosen trial in one, `filters` say which rows
   are kept; all by the panel's name. */
const state = {
  row: null,
  hidden: new Set(),
  colour: null,
  painters: new Map(),
  choosers: new Map(),
  filters: new Map(),
};
const colourKey = () => state.colour ?? D.colour;
const kept = (row) => [...state.filters.values()].every((keeps) => keeps(row));

/* Value of a configuration: the mean over its seeds; its spread is null of one seed. */
const valueAt = (column, row) =>
  column.means && row in column.means ? column.means[row] : column.values[row];
const spreadAt = (column, row) =>
  column.spreads && row in column.spreads ? column.spreads[row] : null;

const isDark = () => document.documentElement.dataset.theme === "dark";
const token = (name) =>
  getComputedStyle(document.documentElement)
    .getPropertyValue("--" + name)
    .trim();

/* Elements are made, never parsed, so that text from the run stays text. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false)
      node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
function svg(tag, attributes = {}, text = null) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== null) node.textContent = text;
  return node;
}

/* Plotly reads a few tags in text: nothing from the run may be one. */
const inert = (text) =>
  String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const clip = (text, n = 28) => (text.length > n ? text.slice(0, n - 1) + "…" : text);

/* A trial's value in a column as text. */
function show(column, row) {
  const value = column.values[row];
  if (column.kind === "cat") return column.levels[value];
  return column.role === "parameter" ? plain(value) : figure(value, column.unit);
}
/* A trial in lines, for hovering; as Plotly's text it is made once. */
function describe(row, breaks) {
  if (breaks === "\n") return describeAs(row, breaks);
  if (!described.has(row)) described.set(row, describeAs(row, breaks));
  return described.get(row);
}
function describeAs(row, breaks) {
  const seeds = SEEDS.get(row);
  const others = seeds ? seeds.length - 1 : 0;
  const more = others ? ` and ${others} more seed${others > 1 ? "s" : ""}` : ` · ${D.status[row]}`;
  const name = `Trial ${D.ids[row]}${more}`;
  const lines = [`${name}${onFront(row) ? " · on the front" : ""}`];
  for (const column of D.columns) {
    if (column.role === "time" || column.role === "metric") continue;
    const text =
      seeds && column.shown && row in column.shown ? column.shown[row] : show(column, row);
    if (text !== MISSING) lines.push(`${column.label}  ${clip(text, 40)}`);
  }
  return breaks === "\n"
    ? lines.join("\n")
    : lines
        .map(inert)
        .map((l, i) => (i ? l : `<b>${l}</b>`))
        .join(breaks);
}

/* What colours the trials: groups of a column with few values, or a ramp over a numeric one. */
function colouring() {
  const dark = isDark() ? "dark" : "light";
  const column = COLUMN.get(colourKey());
  const distinct =
    column && column.kind === "num" ? [...new Set(column.values.filter((v) => v !== null))] : [];
  if (column && column.kind === "num" && distinct.length > 6) {
    const ends = [Math.min(...distinct), Math.max(...distinct)];
    const place = (v) =>
      column.log
        ? Math.log(v / ends[0]) / Math.log(ends[1] / ends[0])
        : (v - ends[0]) / (ends[1] - ends[0] || 1);
    const of = (row) =>
      column.values[row] === null ? token("muted") : mix(RAMP[dark], place(column.values[row]));
    return {
      column,
      ends,
      groups: [{ name: "", rows: D.ids.map((_, row) => row), symbol: "circle" }],
      of,
    };
  }
  let names, codes;
  if (!column) {
    names = [...new Set(D.status)];
    codes = D.status.map((s) => names.indexOf(s));
  } else if (column.kind === "cat") {
    names = column.levels;
    codes = column.values;
  } else {
    const order = distinct.sort((a, b) => a - b);
    names = [...order.map(plain), MISSING];
    codes = column.values.map((v) => (v === null ? order.length : order.indexOf(v)));
  }
  const colour = (code) => (names[code] === MISSING ? token("muted") : PALETTE[dark][code % 8]);
  const groups = names.map((name, code) => ({
    name,
    colour: colour(code),
    symbol: SYMBOLS[(code + (code >> 3)) % 8],
    rows: [],
  }));
  codes.forEach((code, row) => groups[code].rows.push(row));
  return { column, groups: groups.filter((g) => g.rows.length), of: (row) => colour(codes[row]) };
}
function mix(stops, share) {
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  const parts = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const [a, b] = [parts(stops[low]), parts(stops[low + 1])];
  return `rgb(${a.map((v, i) => Math.round(v + (b[i] - v) * (at - low))).join(",")})`;
}
const visible = (colours) => colours.groups.filter((group) => !state.hidden.has(group.name));

const SHAPES = {
  circle: "M7 2a5 5 0 1 0 .01 0z",
  square: "M2.5 2.5h9v9h-9z",
  diamond: "M7 1l6 6-6 6-6-6z",
  "triangle-up": "M7 1.5l6 10.5H1z",
  cross: "M5 1.5h4V5h3.5v4H9v3.5H5V9H1.5V5H5z",
  star: "M7 1l1.8 4 4.2.5-3.1 2.9.9 4.2L7 10.5l-3.8 2.1.9-4.2L1 5.500 5.200 5z",
  "triangle-down": "M7 12.500L1 2h12z",
  hexagon: "M7 1l5.200 3v6L7 13l-5.200-3V4z",
};
function drawLegends() {
  const colours = colouring();
  for (const node of document.querySelectorAll(".legend")) {
    node.replaceChildren(
      el("span", { class: "by" }, colours.column ? colours.column.label : "status"),
    );
    if (colours.ends) {
      const ramp = el("span", { class: "ramp" });
      const stops = RAMP[isDark() ? "dark" : "light"].join(",");
      ramp.style.background = `linear-gradient(90deg, ${stops})`;
      node.append(
        el("span", {}, number(colours.ends[0])),
        ramp,
        el("span", {}, number(colours.ends[1])),
      );
      continue;
    }
    for (const group of colours.groups) {
      const mark = svg("svg", { width: 14, height: 14, "aria-hidden": "true" });
      mark.append(svg("path", { d: SHAPES[group.symbol], fill: group.colour }));
      const pressed = String(!state.hidden.has(group.name));
      const flip = () => {
        state.hidden.has(group.name)
          ? state.hidden.delete(group.name)
          : state.hidden.add(group.name);
        repaint();
      };
      node.append(
        el(
          "button",
          { type: "button", "aria-pressed": pressed, title: "Show or hide", onclick: flip },
          mark,
          clip(group.name === MISSING ? "not set" : group.name, 40),
        ),
      );
    }
  }
}

/* Choose a trial everywhere. */
function select(row, scroll = false) {
  state.row = state.row === row && !scroll ? null : row;
  for (const [name, mark] of state.choosers) guarded(name, () => mark(scroll));
  remember();
}
function repaint() {
  drawLegends();
  for (const [name, paint] of state.painters) guarded(name, paint);
  remember();
}
/* Let a panel keep only some rows (null: all); the others draw what is kept. */
function narrow(name, keeps) {
  if (keeps === null && !state.filters.has(name)) return;
  if (keeps === null) state.filters.delete(name);
  else state.filters.set(name, keeps);
  cancelAnimationFrame(state.frame);
  state.frame = requestAnimationFrame(repaint);
}
/* What a panel throws is told there, and the others go on. */
function guarded(name, work) {
  try {
    work();
  } catch (error) {
    console.error(name, error);
    const section = $(name);
    if (!section || section.querySelector(".broken")) return;
    section.append(el("p", { class: "broken", role: "alert" }, `This part of the page failed: ${error.message}`));
  }
}

/* What the reader has set stands in the address, so that a link shows the same. `get` gives a text,
   or null where it is as at first; `set` takes such a text. */
const ADDRESS = new Map();
function inAddress(name, get, set) {
  ADDRESS.set(name, { get, set });
}
inAddress(
  "trial",
  () => (state.row === null ? null : D.ids[state.row]),
  (id) => {
    state.row = ROW.get(id) ?? null;
  },
);
inAddress(
  "colour",
  () => state.colour,
  (key) => {
    state.colour = key === "status" || COLUMN.has(key) ? key : null;
  },
);
inAddress(
  "hidden",
  () => (state.hidden.size ? JSON.stringify([...state.hidden]) : null),
  (text) => {
    state.hidden = new Set(text ? JSON.parse(text) : []);
  },
);
function remember() {
  if (!state.isReady) return;
  const given = new URLSearchParams();
  for (const [name, { get }] of ADDRESS) {
    const text = get();
    if (text !== null) given.set(name, text);
  }
  state.address = "#" + given;
  if (location.hash !== state.address && (String(given) || location.hash.includes("=")))
    history.replaceState(null, "", state.address);
}
function recall() {
  const given = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  for (const [name, { set }] of ADDRESS) guarded("summary", () => set(given.get(name)));
}
function chooser(label, keys, value, change) {
  const options = keys.map(([key, text]) =>
    el("option", { value: key, selected: key === value }, clip(text, 40)),
  );
  return el(
    "label",
    {},
    label,
    el(
      "select",
      {
        onchange: (event) => {
          change(event.target.value);
          remember();
        },
      },
      ...options,
    ),
  );
}
/* A panel that has nothing to show. */
function hide(id) {
  $(id).hidden = true;
  state.painters.delete(id);
  state.choosers.delete(id);
}
function segments(names, current, change) {
  const buttons = names.map((name, i) =>
    el(
      "button",
      {
        type: "button",
        "aria-pressed": String(i === current),
        onclick: () => {
          buttons.forEach((button, j) => button.setAttribute("aria-pressed", String(i === j)));
          change(i);
          remember();
        },
      },
      name,
    ),
  );
  return el("span", { class: "segments" }, ...buttons);
}
function tick(label, checked, change) {
  return el(
    "label",
    {},
    el("input", {
      type: "checkbox",
      checked,
      onchange: (event) => {
        change(event.target.checked);
        remember();
      },
    }),
    label,
  );
}
/* Commands get a button that copies them; where the browser refuses, they are selected. */
function startCommands() {
  for (const node of document.querySelectorAll(".commands code, pre.command")) {
    if (node.nextElementSibling?.className === "copy") continue;
    const copy = async () => {
      getSelection().selectAllChildren(node);
      try {
        await navigator.clipboard.writeText(node.textContent);
      } catch {
        return;
      }
      button.textContent = "copied";
      setTimeout(() => {
        button.textContent = "copy";
      }, 1500);
    };
    const button = el("button", { type: "button", class: "copy", onclick: copy }, "copy");
    node.after(button);
  }
}
/* Plain tables sort by their heads; a cell says by data-v what it sorts by, or its text does. */
function startSorting() {
  for (const tableNode of document.querySelectorAll("table.sortable")) {
    const heads = [...tableNode.tHead.rows[0].cells];
    heads.forEach((head, index) => {
      if (head.tagName !== "TH" || head.querySelector("button")) return;
      const button = el(
        "button",
        { type: "button", onclick: () => sortPlain(tableNode, heads, index) },
        head.textContent,
      );
      head.replaceChildren(button);
    });
  }
}
function sortPlain(tableNode, heads, index) {
  const down = heads[index].getAttribute("aria-sort") === "descending" ? 1 : -1;
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[index].setAttribute("aria-sort", down < 0 ? "descending" : "ascending");
  const key = (row) => {
    const cell = row.cells[index];
    return cell.dataset.v !== undefined
      ? Number(cell.dataset.v)
      : cell.classList.contains("n")
        ? null
        : cell.textContent;
  };
  const rows = [...tableNode.tBodies[0].rows].sort((a, b) => {
    const [p, q] = [key(a), key(b)];
    if (p === null || q === null) return (p === null) - (q === null);
    return (p < q ? -1 : p > q ? 1 : 0) * down;
  });
  tableNode.tBodies[0].append(...rows);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
}
function startTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try {
    chosen = localStorage.getItem("sweep-report-theme");
  } catch {
    /* a browser may refuse storage to files */
  }
  const wanted = () => chosen || (system.matches ? "dark" : "light");
  setTheme(wanted());
  system.addEventListener("change", () => {
    setTheme(wanted());
    repaint();
  });
  $("theme").addEventListener("click", () => {
    chosen = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("sweep-report-theme", chosen);
    } catch {
      /* as above */
    }
    setTheme(chosen);
    repaint();
  });
  /* On paper plots are drawn anew in the width of the page: drawn for a screen they would be cut
     off. */
  const printing = (on) => {
    document.documentElement.classList.toggle("print", on);
    setTheme(on ? "light" : wanted());
    /* paper cannot be asked for more: all rows, and the commands */
    table.limit = on ? Infinity : PAGE;
    for (const box of document.querySelectorAll("details.get")) box.open = on || box.closest(".first") !== null;
    repaint();
    if (!on)
      document.querySelectorAll(".js-plotly-plot").forEach((plot) => Plotly.Plots.resize(plot));
  };
  addEventListener("beforeprint", () => printing(true));
  addEventListener("afterprint", () => printing(false));
}
const nav = { links: new Map() };
function startNav() {
  nav.links = new Map();
  for (const section of document.querySelectorAll("main section[id]:not([hidden])")) {
    const text = section.dataset.nav || section.querySelector("h2").textContent;
    const go = (event) => {
      /* the address keeps what the reader has set */
      event.preventDefault();
      section.scrollIntoView();
      section.tabIndex = -1;
      section.focus({ preventScroll: true });
    };
    nav.links.set(section, el("a", { href: "#" + section.id, onclick: go }, text));
  }
  $("nav").replaceChildren(...nav.links.values());
  watchNav();
}
function watchNav() {
  let here = null;
  for (const section of nav.links.keys())
    if (here === null || section.getBoundingClientRect().top < 140) here = section;
  if (here === nav.here && nav.links.get(here)?.classList.contains("here")) return;
  nav.here = here;
  for (const [section, link] of nav.links) link.classList.toggle("here", section === here);
  /* where not all names fit, the one that is read is in sight */
  const [bar, link] = [$("nav"), nav.links.get(here)];
  if (link) bar.scrollLeft = link.offsetLeft - bar.offsetLeft - (bar.clientWidth - link.offsetWidth) / 2;
}
addEventListener("scroll", watchNav, { passive: true });
/* Buttons that name a trial, wherever they stand. */
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-trial]");
  if (button) select(ROW.get(button.dataset.trial), true);
});
/* Draw everything, one panel a frame: the front shows while the rest is drawn. */
function startAll() {
  const steps = [
    ["summary", startCommands],
    ["summary", startLoss],
    ["summary", startSorting],
    ["compare", startCompare],
    ["front", startFront],
    ["front", drawLegends],
    ["trials", startTable],
    ["trial", startTrial],
    ["parallel", startParallel],
    ["importance", startImportance],
    ["effects", startEffects],
    ["layers", startLayers],
    ["curves", startCurves],
    ["progress", startProgress],
    ["summary", startNav],
  ];
  state.isReady = false;
  recall();
  const next = () => {
    const step = steps.shift();
    if (step) {
      guarded(...step);
      setTimeout(next, 0);
      return;
    }
    state.isReady = true;
    if (state.row !== null) for (const [name, mark] of state.choosers) guarded(name, mark);
    remember();
    document.documentElement.dataset.ready = String(Math.round(performance.now()));
  };
  next();
}
startTheme();
/* After the other scripts have been read. */
addEventListener("DOMContentLoaded", () => {
  adopt(JSON.parse($("data").textContent));
  startAll();
});
addEventListener("hashchange", () => {
  if (location.hash.includes("=") && location.hash !== state.address) startAll();
});
