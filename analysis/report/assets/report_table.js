/* The trials table: sorted by its heads, filtered by text, rows tied to the plots. */
"use strict";
const PAGE = 400;
const table = {
  nodes: new Map(),
  order: [],
  sort: null,
  down: false,
  limit: PAGE,
  filter: "",
  front: false,
  passes: () => true,
};
inAddress(
  "filter",
  () => table.filter || null,
  (text) => {
    table.filter = text ?? "";
  },
);
inAddress(
  "only",
  () => (table.front ? "front" : null),
  (text) => {
    table.front = text === "front";
  },
);
inAddress(
  "sort",
  () => (table.isSorted ? `${table.down ? "-" : ""}${table.sort}` : null),
  (text) => {
    table.isSorted = text !== null;
    if (text) Object.assign(table, { down: text.startsWith("-"), sort: text.replace(/^-/, "") });
  },
);

function tableColumns() {
  const of = (role) => D.columns.filter((c) => c.role === role);
  return [
    ...of("objective"),
    ...of("test"),
    ...of("parameter"),
    ...of("metric").slice(0, 6),
    ...of("time"),
  ];
}
function errorCell(row) {
  const text = D.error[row];
  if (!text) return el("td");
  const trace = D.trace[row] === undefined ? null : el("pre", {}, D.tracebacks[D.trace[row]]);
  const short = clip(text, 90);
  if (!trace && short === text) return el("td", { class: "err" }, text);
  return el(
    "td",
    { class: "err" },
    el(
      "details",
      {},
      el("summary", {}, short),
      short === text ? null : el("p", { class: "error" }, text),
      trace,
    ),
  );
}
function tableRow(row, columns, errors) {
  const star = onFront(row)
    ? el("span", { class: "star", title: "on the front", "aria-label": "on the front" }, "★")
    : null;
  const choose = el(
    "button",
    { type: "button", class: "id", onclick: () => select(row) },
    D.ids[row],
  );
  const cells = columns.map((column) => {
    const text = show(column, row);
    const kind = column.kind === "num" ? "n" : text.length < 25 ? "word" : "text";
    return el("td", { class: text === MISSING ? kind + " none" : kind }, text);
  });
  const state_ = el("td", {}, el("span", { class: "badge " + D.status[row] }, D.status[row]));
  const node = el(
    "tr",
    {},
    el("th", { scope: "row" }, choose, star),
    state_,
    ...cells,
    errors ? errorCell(row) : null,
  );
  node.dataset.row = row;
  return node;
}
/* The baseline stays above the trials, however they are sorted and filtered. */
function baselineRow(columns, errors) {
  if (!D.baseline) return null;
  const cells = columns.map((column) => {
    const value = D.baseline.values[column.key];
    const text = value === undefined || column.role === "parameter" ? MISSING : figure(value, column.unit);
    return el("td", { class: text === MISSING ? "n none" : "n" }, text);
  });
  return el(
    "tr",
    { class: "baseline" },
    el("th", { scope: "row", title: D.baseline.name }, "baseline"),
    el("td", { class: "word" }, clip(D.baseline.name, 30)),
    ...cells,
    errors ? el("td") : null,
  );
}
/* What a column sorts by; a missing value is null. */
function sortValue(key, row) {
  if (key === "id") return D.ids[row];
  if (key === "status") return D.status[row];
  if (key === "error") return D.error[row] || null;
  const column = COLUMN.get(key);
  const value = column.values[row];
  return column.kind === "cat" && column.levels[value] === MISSING ? null : value;
}
function sortTable(key) {
  table.down =
    table.sort === key ? !table.down : OBJECTIVES.some((o) => o.key === key && o.mode === "max");
  table.sort = key;
  table.isSorted = true;
  orderRows();
  showRows();
  remember();
}
/* The order of all rows by what the table is sorted by. */
function orderRows() {
  const key = table.sort;
  for (const [name, head] of table.heads) {
    if (name === key) head.setAttribute("aria-sort", table.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  table.order = D.ids.map((_, row) => row);
  if (key === null) return;
  const sign = table.down ? -1 : 1;
  table.order.sort((a, b) => {
    const [p, q] = [sortValue(key, a), sortValue(key, b)];
    /* What is missing comes last both ways. */
    if (p === null || q === null) return (p === null) - (q === null) || a - b;
    return (p < q ? -1 : p > q ? 1 : 0) * sign || a - b;
  });
}
const fitsFilter = (row) => kept(row);
/* What the table keeps, every other panel keeps too. */
function applyFilter() {
  const { filter, front: only } = table;
  let passes = null;
  table.problem.textContent = "";
  if (/[<>=]/.test(filter)) {
    try {
      passes = where(filter);
    } catch (error) {
      table.problem.textContent = error.message;
      passes = () => true;
    }
  } else {
    const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length) passes = (row) => words.every((word) => rowText(row).includes(word));
  }
  table.limit = PAGE;
  narrow(
    "trials",
    passes || only ? (row) => (!only || onFront(row)) && (!passes || passes(row)) : null,
  );
  showRows();
  remember();
}
/* What the words of a filter are looked for in. */
function rowText(row) {
  table.texts[row] ??= [
    D.ids[row],
    D.status[row],
    D.error[row] || "",
    D.notes[row] ? [D.notes[row].text, ...D.notes[row].tags].join(" ") : "",
    ...table.columns.map((c) => c.label + "=" + show(c, row)),
  ]
    .join(" ")
    .toLowerCase();
  return table.texts[row];
}
/* Rows are made when they are first shown: ten thousand would keep the page waiting. */
function rowNode(row) {
  if (!table.nodes.has(row)) table.nodes.set(row, tableRow(row, table.columns, table.errors));
  return table.nodes.get(row);
}
function showRows() {
  const fitting = table.order.filter(fitsFilter);
  const shown = fitting.slice(0, table.limit);
  $("table")
    .querySelector("tbody")
    .replaceChildren(...shown.map(rowNode));
  table.count.textContent = `${fitting.length} of ${D.ids.length} trials`;
  const left = fitting.length - shown.length;
  $("table-more").replaceChildren(
    ...(left > 0
      ? [
          el(
            "button",
            {
              type: "button",
              class: "link",
              onclick: () => {
                table.limit += 2 * PAGE;
                showRows();
              },
            },
            `Show more (${left} left)`,
          ),
        ]
      : []),
  );
  markRows();
}
function startTable() {
  if (!D.ids.length) return hide("trials");
  $("trials").hidden = false;
  const columns = tableColumns();
  const errors = Object.keys(D.error).length > 0;
  const keys = [
    ["id", "Trial"],
    ["status", "Status"],
    ...columns.map((c) => [c.key, c.title]),
    ...(errors ? [["error", "Error"]] : []),
  ];
  const heads = new Map(
    keys.map(([key, text]) => {
      const column = COLUMN.get(key);
      const sort = el("button", { type: "button", onclick: () => sortTable(key) }, text);
      const look = { class: column?.kind === "num" ? "n" : null, scope: "col" };
      return [key, el("th", { ...look, title: column?.description || null }, sort)];
    }),
  );
  Object.assign(table, { columns, errors, heads });
  table.count = el("span", { class: "count", "aria-live": "polite" });
  table.problem = el("span", { class: "problem", role: "status" });
  startFilter();
  const body = el("tbody", {});
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row && !event.target.closest("details, button, a") && !String(getSelection()))
      select(Number(row.dataset.row));
  });
  /* The page shows before a long table is laid out; until then it takes the room that it will
     need. */
  $("table").style.containIntrinsicHeight = `auto ${Math.min(618, 36 * (D.ids.length + 1))}px`;
  const head = el("thead", {}, el("tr", {}, ...heads.values()), baselineRow(columns, errors));
  $("table").replaceChildren(el("table", {}, head, body));
  if (!table.heads.has(table.sort)) {
    table.sort = OBJECTIVES.length ? OBJECTIVES[0].key : null;
    table.down = OBJECTIVES[0]?.mode === "max";
  }
  forgetRows();
  orderRows();
  applyFilter();
  state.painters.set("trials", drawTable);
  state.choosers.set("trials", markRow);
}
/* The field in which the reader filters, and the box beside it. */
function startFilter() {
  const search = el("input", {
    type: "search",
    placeholder: "Filter: sws failed, or accuracy>=90%",
    "aria-label": "Filter the trials, by words or by a constraint as in accuracy>=90%",
  });
  const only = el("input", { type: "checkbox", checked: table.front });
  search.value = table.filter;
  search.addEventListener("input", () => {
    table.filter = search.value;
    applyFilter();
  });
  only.addEventListener("change", () => {
    table.front = only.checked;
    applyFilter();
  });
  $("table-controls").replaceChildren(
    search,
    el("label", {}, only, "front only"),
    el("button", { type: "button", class: "button", onclick: saveCsv }, "CSV"),
    table.problem,
    table.count,
  );
  table.showAll = () => {
    search.value = table.filter = "";
    only.checked = table.front = false;
    par.brushes.clear();
    narrow("parallel", null);
    applyFilter();
  };
}
/* The rows that the filter keeps as CSV: values as the page has them, a name in the first line. */
function asCsv() {
  const quoted = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    /* a spreadsheet would take these for a formula */
    const safe = /^[=+@\t\r]|^-[^\d.]/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const value = (column, row) =>
    column.kind === "num"
      ? column.values[row]
      : show(column, row) === MISSING
        ? null
        : show(column, row);
  const lines = [["trial_id", "status", "on_front", ...D.columns.map((c) => c.key)]];
  for (const row of table.order.filter(fitsFilter))
    lines.push([D.ids[row], D.status[row], onFront(row), ...D.columns.map((c) => value(c, row))]);
  return lines.map((line) => line.map(quoted).join(",") + "\n").join("");
}
function saveCsv() {
  const url = URL.createObjectURL(new Blob([asCsv()], { type: "text/csv" }));
  el("a", { href: url, download: `${D.name}-trials.csv` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
/* Rows are made again, since what they show has changed. */
function forgetRows() {
  table.nodes.clear();
  table.texts = [];
}
function drawTable() {
  if (table.order.length !== D.ids.length) orderRows();
  showRows();
}
function markRows() {
  for (const [row, node] of table.nodes) node.classList.toggle("on", row === state.row);
}
function markRow(scroll) {
  markRows();
  if (state.row === null) return;
  if (!fitsFilter(state.row)) table.showAll();
  const place = table.order.filter(fitsFilter).indexOf(state.row);
  if (place >= table.limit) {
    table.limit = place + PAGE;
    showRows();
  }
  const node = rowNode(state.row);
  node.classList.add("on");
  const box = $("table");
  const head = box.querySelector("thead").offsetHeight;
  const top = node.offsetTop - head - (box.clientHeight - head) / 2;
  if (
    node.offsetTop - head < box.scrollTop ||
    node.offsetTop + node.offsetHeight > box.scrollTop + box.clientHeight
  )
    box.scrollTop = top;
}
