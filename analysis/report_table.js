/* The trials table: sorted by its heads, filtered by text, rows tied to the plots. */
"use strict";
const table = { rows: [], order: [], sort: null, down: false };

function tableColumns() {
  const objectives = D.columns.filter((c) => c.role === "objective");
  const metrics = D.columns.filter((c) => c.role === "metric").slice(0, 6);
  const params = D.columns.filter((c) => c.role === "param");
  const time = D.columns.filter((c) => c.role === "time");
  return [...objectives, ...metrics.filter((c) => c.label === "test_accuracy"), ...params, ...metrics.filter((c) => c.label !== "test_accuracy"), ...time];
}
function errorCell(row) {
  const text = D.error[row];
  if (!text) return el("td");
  const trace = D.trace[row] === undefined ? null : el("pre", {}, D.tracebacks[D.trace[row]]);
  const short = clip(text, 90);
  if (!trace && short === text) return el("td", { class: "err" }, text);
  return el("td", { class: "err" }, el("details", {}, el("summary", {}, short), short === text ? null : el("p", { class: "error" }, text), trace));
}
function tableRow(row, columns, errors) {
  const star = FRONT.has(row) ? el("span", { class: "star", title: "on the front", "aria-label": "on the front" }, "★") : null;
  const cells = columns.map((column) => {
    const text = show(column, row);
    const kind = column.kind === "num" ? "n" : text.length < 25 ? "word" : "text";
    return el("td", { class: text === "–" ? kind + " none" : kind }, text);
  });
  const state_ = el("td", {}, el("span", { class: "badge " + D.status[row] }, D.status[row]));
  const node = el("tr", {}, el("th", { scope: "row" }, D.ids[row], star), state_, ...cells, errors ? errorCell(row) : null);
  node.dataset.row = row;
  return node;
}
/* What a column sorts by; a missing value is null. */
function sortValue(key, row) {
  if (key === "id") return D.ids[row];
  if (key === "status") return D.status[row];
  if (key === "error") return D.error[row] || null;
  const column = COLUMN.get(key);
  const value = column.values[row];
  return column.kind === "cat" && column.levels[value] === "–" ? null : value;
}
function sortTable(key, heads) {
  table.down = table.sort === key ? !table.down : OBJECTIVES.some((o) => o.key === key && o.mode === "max");
  table.sort = key;
  for (const [name, head] of heads) {
    if (name === key) head.setAttribute("aria-sort", table.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  const sign = table.down ? -1 : 1;
  table.order.sort((a, b) => {
    const [p, q] = [sortValue(key, a), sortValue(key, b)];
    /* What is missing comes last both ways. */
    if (p === null || q === null) return (p === null) - (q === null) || a - b;
    return (p < q ? -1 : p > q ? 1 : 0) * sign || a - b;
  });
  $("table").querySelector("tbody").append(...table.order.map((row) => table.rows[row]));
}
function filterTable(text, front, count) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  table.rows.forEach((node, row) => {
    const fits = (!front || FRONT.has(row)) && words.every((word) => table.text[row].includes(word));
    node.hidden = !fits;
    shown += fits;
  });
  count.textContent = `${shown} of ${table.rows.length} trials`;
}
function startTable() {
  if (!D.ids.length) return hide("trials");
  const columns = tableColumns();
  const errors = Object.keys(D.error).length > 0;
  const keys = [["id", "Trial"], ["status", "Status"], ...columns.map((c) => [c.key, title(c)]), ...(errors ? [["error", "Error"]] : [])];
  const heads = new Map(keys.map(([key, text]) => {
    const numeric = COLUMN.has(key) && COLUMN.get(key).kind === "num";
    return [key, el("th", { class: numeric ? "n" : null, scope: "col" }, el("button", { type: "button", onclick: () => sortTable(key, heads) }, text))];
  }));
  table.rows = D.ids.map((_, row) => tableRow(row, columns, errors));
  table.order = D.ids.map((_, row) => row);
  table.text = D.ids.map((id, row) => [id, D.status[row], D.error[row] || "",
    ...columns.map((c) => c.label + "=" + show(c, row))].join(" ").toLowerCase());
  const count = el("span", { class: "count", "aria-live": "polite" });
  const search = el("input", { type: "search", placeholder: "Filter, as in sws failed", "aria-label": "Filter the trials" });
  const only = el("input", { type: "checkbox" });
  const apply = () => filterTable(search.value, only.checked, count);
  search.addEventListener("input", apply);
  only.addEventListener("change", apply);
  $("table-controls").append(search, el("label", {}, only, "front only"), count);
  const body = el("tbody", {}, ...table.rows);
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row && !event.target.closest("details") && !String(getSelection())) select(Number(row.dataset.row));
  });
  /* The page shows before a long table is laid out; until then it takes the room that it will need. */
  $("table").style.containIntrinsicHeight = `auto ${Math.min(618, 36 * (D.ids.length + 1))}px`;
  $("table").append(el("table", {}, el("thead", {}, el("tr", {}, ...heads.values())), body));
  if (OBJECTIVES.length) sortTable(OBJECTIVES[0].key, heads);
  apply();
  document.addEventListener("chosen", (event) => markRow(event.detail.scroll, () => { search.value = ""; only.checked = false; apply(); }));
}
function markRow(scroll, showAll) {
  table.rows.forEach((node, row) => node.classList.toggle("on", row === state.row));
  if (state.row === null) return;
  const node = table.rows[state.row];
  if (node.hidden) showAll();
  const box = $("table");
  const head = box.querySelector("thead").offsetHeight;
  const top = node.offsetTop - head - (box.clientHeight - head) / 2;
  if (node.offsetTop - head < box.scrollTop || node.offsetTop + node.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top;
  if (scroll) $("trials").scrollIntoView();
}
