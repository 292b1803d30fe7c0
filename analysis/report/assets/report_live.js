/* The live page: what the server of sweeps/serve says of trials that run, and wishes of the reader.
   The server sends an event for what has changed; all data is fetched again only when a trial has
   begun or ended. */
"use strict";
const live = { version: null, isFetching: false, now: { running: [], requests: [] } };

/* The same columns and groups as before: every panel can draw new data in its place. */
function shapeOf(data) {
  const columns = data.columns.map((c) => [c.key, c.kind, c.levels]);
  const sizes = [data.effects, data.layers, data.importance, data.surfaces].map((a) => a.length);
  const metrics = data.curves.metrics.map((m) => m.name);
  const some = [data.progress.rows.length > 0, data.noise !== null, data.baseline !== null];
  return JSON.stringify([columns, sizes, metrics, some, Object.keys(data.error).length > 0]);
}
async function fetchContent() {
  if (live.isFetching) return;
  live.isFetching = true;
  try {
    const answer = await fetch("data", { cache: "no-cache" });
    if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    take(await answer.json());
  } catch (error) {
    sayLive(`No new data: ${error.message}`, false);
  } finally {
    live.isFetching = false;
  }
}
/* Put new data and words into the page; where the reader is and what is set there stays. */
function take({ version, parts, data }) {
  const chosen = state.row === null ? null : D.ids[state.row];
  const isSame = shapeOf(data) === shapeOf(D);
  live.version = version;
  adopt(data);
  takeFront(front.noise ?? D.noise !== null);
  state.row = ROW.get(chosen) ?? null;
  for (const node of document.querySelectorAll("[data-part]")) {
    const html = parts[node.dataset.part];
    if (html === undefined || node.dataset.shown === html) continue;
    node.dataset.shown = html;
    /* markup of ours, with the run's text escaped in it */
    node.innerHTML = html;
  }
  [startCommands, startLoss, startSorting].forEach((start) => guarded("summary", start));
  forgetRows();
  addRunning();
  if (!isSame) return startAll();
  guarded("trials", orderRows);
  repaint();
  startNav();
}
/* Curves of the trials that run, up to their last epoch. */
function addRunning() {
  const names = D.curves.metrics.map((m) => m.name);
  for (const { id, stage, epochs } of live.now.running) {
    const row = ROW.get(id);
    if (row === undefined || !epochs.length) continue;
    const values = names.map((name) => epochs.map((epoch) => epoch[name] ?? null));
    const known = D.curves.trials.find((t) => t.row === row);
    if (known) Object.assign(known, { stage, values });
    else D.curves.trials.push({ row, stage, values });
    D.status[row] = "running";
  }
}
function sayLive(text, isOn) {
  $("live-note").replaceChildren(el("span", { class: isOn ? "dot on" : "dot" }), text);
}
function showNow(now) {
  live.now = now;
  sayLive(now.line, now.driven);
  $("live-trials").replaceChildren(
    ...now.running.map((trial) =>
      el(
        "li",
        {},
        el("button", { type: "button", class: "link", "data-trial": trial.id }, trial.id),
        el("progress", { max: 1, value: trial.share, "aria-label": `done of ${trial.id}` }),
        trial.said,
      ),
    ),
  );
  const stop = now.stopping
    ? ["Go on after all", "resume"]
    : ["Stop when these trials have ended", "stop"];
  const button = el(
    "button",
    { type: "button", class: "button", onclick: () => wish(stop[1], {}) },
    stop[0],
  );
  $("live-controls").replaceChildren(...(now.driven && now.writable ? [button] : []));
  $("try-box").hidden = !(now.driven && now.writable);
  const told = (r) =>
    r.number !== null
      ? `became configuration ${r.number}`
      : r.refused !== null
        ? `refused: ${r.refused}`
        : "waits for its turn";
  $("live-requests").replaceChildren(
    ...now.requests.map((r) => el("li", {}, `${r.text}: ${told(r)}`)),
  );
  const isNew = now.running.some((trial) => !ROW.has(trial.id));
  if (now.version !== live.version || isNew) fetchContent();
  addRunning();
  if ($("curves").hidden && now.running.some((t) => t.epochs.length)) return fetchContent();
  const paint = state.painters.get("curves");
  if (paint) guarded("curves", paint);
}
/* Ask the server for something; what it refuses is told. */
async function wish(what, content) {
  try {
    const answer = await fetch(what, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Sweeps-Secret": $("live").dataset.secret },
      body: JSON.stringify(content),
    });
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.error);
    showNow(said);
    return true;
  } catch (error) {
    sayLive(error.message, false);
    return false;
  }
}
/* `parameter: value` lines as an object; values are JSON where they can be, else words. */
function readConfiguration(text) {
  if (text.trim().startsWith("{")) return JSON.parse(text);
  const found = {};
  for (const line of text.split("\n")) {
    if (!line.trim() || line.trim().startsWith("#")) continue;
    const at = line.indexOf(":");
    if (at < 0) throw new Error(`expected parameter: value, got ${line.trim()}`);
    const value = line.slice(at + 1).trim();
    try {
      found[line.slice(0, at).trim()] = JSON.parse(value);
    } catch {
      found[line.slice(0, at).trim()] = value;
    }
  }
  return found;
}
function startLive() {
  $("try").addEventListener("submit", (event) => {
    event.preventDefault();
    try {
      wish("try", readConfiguration($("try-text").value));
    } catch (error) {
      sayLive(error.message, false);
    }
  });
  state.choosers.set("live", offerChosen);
  const source = new EventSource("events");
  source.onmessage = (event) => showNow(JSON.parse(event.data));
  source.onerror = () => sayLive("The server does not answer; the page shows the last it said.", false);
}
/* The chosen trial's configuration is what to change and try. */
async function offerChosen() {
  if (state.row === null || $("try-box").hidden) return;
  const answer = await fetch(`configuration/${encodeURIComponent(D.ids[state.row])}`);
  if (answer.ok) $("try-text").value = (await answer.json()).text;
}
addEventListener("DOMContentLoaded", () => {
  live.version = $("live").dataset.version;
  const wait = setInterval(() => {
    if (!state.isReady) return;
    clearInterval(wait);
    startLive();
  }, 30);
});
/* What a trial's predictions show, asked for when its page is opened, and drawn when it comes. */
const asked = new Map();
function askPredictions(row) {
  const id = D.ids[row];
  if (D.status[row] !== "complete") return [];
  if (asked.has(id)) {
    const known = asked.get(id);
    return known?.trials[0] ? predictionsOf(row, { ...known, trials: { [row]: known.trials[0] } }) : [];
  }
  asked.set(id, null);
  fetch(`predictions/${encodeURIComponent(id)}`)
    .then((answer) => (answer.ok ? answer.json() : null))
    .then((found) => {
      asked.set(id, found);
      if (D.ids[state.row] === id) guarded("trial", showTrial);
    })
    .catch(() => asked.delete(id));
  return [];
}
/* A note about a trial, kept in the run folder. */
function noteForm(row, note) {
  if (!live.now.writable) return null;
  const text = el("textarea", { rows: "3", "aria-label": "Note" }, note?.text ?? "");
  const tags = el("input", { "aria-label": "Tags", placeholder: "tags, with commas between" });
  tags.value = note ? note.tags.join(", ") : "";
  const save = (event) => {
    event.preventDefault();
    const words = tags.value
      .split(",")
      .map((tag) => tag.trim())
      .filter(Boolean);
    wish("note", { trial: D.ids[row], note: text.value, tags: words });
  };
  return el(
    "form",
    { onsubmit: save },
    text,
    tags,
    el("button", { type: "submit", class: "button" }, "Keep"),
  );
}
