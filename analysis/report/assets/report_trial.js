/* The page of a trial: what it is and what it gave, beside the pick and the baseline, or beside
   another trial. */
"use strict";
const beside = { id: null };
inAddress(
  "beside",
  () => beside.id,
  (id) => {
    beside.id = ROW.has(id) ? id : null;
  },
);

function startTrial() {
  state.choosers.set("trial", (scroll) => {
    showTrial();
    if (scroll && state.row !== null) $("trial").scrollIntoView();
  });
  state.painters.set("trial", showTrial);
  showTrial();
}
function showTrial() {
  const section = $("trial");
  const wasHidden = section.hidden;
  section.hidden = state.row === null;
  if (section.hidden !== wasHidden && state.isReady) startNav();
  if (state.row === null) return;
  const row = state.row;
  const other = otherRow(row);
  $("trial-title").textContent = `Trial ${D.ids[row]}`;
  const words = [D.status[row], onFront(row) ? "on the front" : null, PICKS.get(row)];
  const note = D.notes[row];
  const tags = note ? note.tags.map((tag) => `#${tag}`) : [];
  $("trial-note").textContent = [...words.filter(Boolean), ...tags].join(" · ");
  showBeside(row, other);
  $("trial-body").replaceChildren(
    ...[
      figuresOf(row, other),
      parametersOf(row, other),
      stagesOf(row),
      classesOf(row),
      ...predictionsOf(row),
      errorOf(row),
      commandsOf(row),
      notesOf(row),
    ].filter(Boolean),
  );
  startCommands();
}
/* The trial that stands beside: the one that the reader keeps, else the recommended pick. */
function otherRow(row) {
  const kept_ = beside.id === null ? undefined : ROW.get(beside.id);
  const found = kept_ ?? loss.row ?? [...PICKS.keys()][0];
  return found === undefined || found === row ? null : found;
}
function showBeside(row, other) {
  const keep = el(
    "button",
    {
      type: "button",
      class: "button",
      onclick: () => {
        beside.id = D.ids[row];
        showTrial();
        remember();
      },
    },
    "Keep beside the next one",
  );
  const drop = el(
    "button",
    {
      type: "button",
      class: "button",
      onclick: () => {
        beside.id = null;
        showTrial();
        remember();
      },
    },
    `Beside the pick again, not ${beside.id}`,
  );
  const close = el(
    "button",
    { type: "button", class: "button", onclick: () => select(row) },
    "Close",
  );
  $("trial-controls").replaceChildren(keep, ...(beside.id === null || other === null ? [] : [drop]), close);
}
/* A table in a part of its own. */
function partOf(title, heads, rows, note = null) {
  const head = heads.map((text, i) => el("th", { class: i ? "n" : null, scope: "col" }, text));
  return el(
    "article",
    {},
    el("h3", {}, title),
    note ? el("p", { class: "note" }, note) : null,
    el(
      "div",
      { class: "scroll", tabindex: "0", role: "group", "aria-label": title },
      el(
        "table",
        { class: "plain" },
        el("thead", {}, el("tr", {}, ...head)),
        el("tbody", {}, ...rows),
      ),
    ),
  );
}
function lineOf(name, cells, attributes = {}) {
  return el(
    "tr",
    attributes,
    el("th", { scope: "row" }, name),
    ...cells.map((text) => el("td", { class: text === MISSING ? "n none" : "n" }, text)),
  );
}
const besideName = (other) =>
  (beside.id === null && other !== loss.row && PICKS.get(other)) || `trial ${D.ids[other]}`;
function figuresOf(row, other) {
  const columns = D.columns.filter((c) => c.kind === "num" && c.role !== "parameter");
  const base = D.baseline;
  const heads = ["Figure", D.ids[row]];
  if (base) heads.push("baseline");
  if (other !== null) heads.push(besideName(other));
  const rows = columns
    .filter((c) => c.values[row] !== null)
    .map((c) => {
      const cells = [show(c, row)];
      if (base) cells.push(c.key in base.values ? figure(base.values[c.key], c.unit) : MISSING);
      if (other !== null) cells.push(show(c, other));
      return lineOf(c.title, cells, { title: c.description || null });
    });
  return rows.length ? partOf("Figures", heads, rows) : null;
}
function parametersOf(row, other) {
  const columns = D.columns.filter((c) => c.role === "parameter");
  const lines = columns.map((c) => {
    const cells = [show(c, row), ...(other === null ? [] : [show(c, other)])];
    const differs = cells.length > 1 && cells[0] !== cells[1];
    return { differs, node: lineOf(c.label, cells, { class: differs ? "differs" : null }) };
  });
  if (!lines.length) return null;
  lines.sort((a, b) => b.differs - a.differs);
  const count = lines.filter((line) => line.differs).length;
  const note =
    other === null ? null : `${count} of ${lines.length} differ from ${besideName(other)}.`;
  const heads = ["Parameter", D.ids[row], ...(other === null ? [] : [besideName(other)])];
  return partOf("Configuration", heads, lines.map((line) => line.node), note);
}
function stagesOf(row) {
  const stages = D.details.stages[row];
  if (!stages) return null;
  const { measured, unit } = D.details;
  const write = (value) => (value === null || value === undefined ? MISSING : figure(value, unit));
  let before = null;
  const rows = stages.map(([name, phase, cached, spent, full, after]) => {
    const cells = [phase ?? MISSING, cached ? "from the cache" : spent, full];
    if (measured) cells.push(write(before), write(after));
    before = after; /* what a stage made is measured by its own epochs alone */
    return lineOf(name ?? MISSING, cells);
  });
  const heads = ["Stage", "Phase", "Took", "Would take"];
  if (measured) heads.push("Before", "After");
  const note = measured
    ? `${measured} of the model that came in and of the one that went out, where epochs measured it;` +
      " a stage that trains nothing, as one that starts a fresh model, measures none."
    : null;
  return partOf("Stages", heads, rows, note);
}
function classesOf(row) {
  const classes = D.details.classes[row];
  if (!classes || !classes.length) return null;
  const write = (share) => (share === null ? MISSING : percent(share));
  const rows = classes
    .slice(0, 12)
    .map(([name, images, val, test]) =>
      lineOf(clip(name, 30), [images === null ? MISSING : number(images), write(val), write(test)]),
    );
  const note = classes.length > 12 ? `The 12 of ${classes.length} that are recognised worst.` : null;
  return partOf("Classes", ["Class", "Images", "Validation", "Test"], rows, note);
}
function errorOf(row) {
  if (!D.error[row]) return null;
  return el("article", {}, el("h3", {}, "Error"), el("p", { class: "error" }, D.error[row]));
}
function commandsOf(row) {
  if (D.status[row] !== "complete") return null;
  const { commands, sizes, needed } = D.details;
  const label = Object.keys(commands).find((start) => D.ids[row].startsWith(start));
  if (label === undefined) return null;
  const id = D.ids[row].slice(label.length);
  const entries = commands[label].flatMap(([name, text], i) => [
    el("dt", {}, name, sizes[row]?.[i] ? el("small", {}, ` ${sizes[row][i]}`) : null),
    el("dd", {}, el("code", {}, text.replaceAll("TRIAL", id))),
  ]);
  const words = needed
    .join(" ")
    .split("`")
    .map((part, i) => (i % 2 ? el("code", {}, part) : part));
  return el(
    "article",
    {},
    el("h3", {}, "Get this model"),
    el("dl", { class: "commands" }, ...entries),
    el("p", { class: "note" }, ...words),
  );
}
/* What was noted; the live page lets it be changed. */
function notesOf(row) {
  const note = D.notes[row];
  const write = typeof noteForm === "function" ? noteForm(row, note) : null;
  if (!write && !(note && note.text)) return null;
  return el(
    "article",
    { class: "noted" },
    el("h3", {}, "Note"),
    write ?? el("p", {}, note.text),
  );
}
