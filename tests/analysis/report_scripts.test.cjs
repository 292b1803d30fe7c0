/* The pure functions of the report's scripts, without a browser: `node --test`. The scripts come as
   one text in the file that SCRIPTS names. */
"use strict";
const assert = require("node:assert/strict");
const fs = require("node:fs");
const test = require("node:test");
const vm = require("node:vm");

const quiet = () => new Proxy(() => quiet(), { get: (_, name) => (name === Symbol.toPrimitive ? () => "" : quiet()), set: () => true });
const NAMES =
  "fixed significant number percent plain figure mix staircase quantile bandOf bandTraces where" +
  " whereTokens timeUnit roundTicks readConfiguration clip inert adopt state takeFront";
const context = vm.createContext({
  ...Object.fromEntries(["document", "Plotly", "matchMedia", "location", "getComputedStyle"].map((n) => [n, quiet()])),
  addEventListener: () => {},
  localStorage: { getItem: () => null, setItem: () => {} },
  console,
});
const text = fs.readFileSync(process.env.SCRIPTS, "utf8");
const page = vm.runInContext(`${text}\n({ ${NAMES.split(" ").join(", ")} })`, context);
const plainly = (value) => JSON.parse(JSON.stringify(value));

test("numbers", () => {
  assert.equal(page.significant(1234.5678), "1\u202f235");
  assert.equal(page.significant(0.000123456), "0.0001235");
  assert.equal(page.fixed(-0.0001, 2), "0.00");
  assert.equal(page.figure(0.98765, "fraction"), "98.77 %");
  assert.equal(page.number(null), "–");
  assert.equal(page.plain(123456), "123456");
});
test("quantiles are interpolated", () => {
  assert.equal(page.quantile([1, 2, 3, 4], 0.5), 2.5);
  assert.equal(page.quantile([7], 0.9), 7);
});
test("a band has the epochs that three curves have", () => {
  const curves = [[0, 1, 2], [0, 2, null], [0, 3, 4], [1, 4]];
  const band = plainly(page.bandOf(curves));
  assert.deepEqual(band.x, [0, 1]);
  assert.equal(band.middle[1], 2.5);
  assert.ok(band.low[1] < band.middle[1] && band.middle[1] < band.high[1]);
  assert.deepEqual(plainly(page.bandOf([])).x, []);
});
test("a band is filled in its group's colour, whatever form that has", () => {
  const trials = [1, 2, 3].map((row) => ({ row, values: [[row, row]] }));
  const fills = ["#0b6bb0", "rgb(1,2,3)"].map((c) => page.bandTraces(trials, 0, "<b>", c)[1].fillcolor);
  assert.deepEqual(plainly(fills), ["#0b6bb02e", "rgba(1,2,3,0.18)"]);
  assert.match(page.bandTraces(trials, 0, "<i>", "#000000")[2].hovertemplate, /&lt;i&gt;/);
});
test("colours between stops", () => {
  assert.equal(page.mix(["#000000", "#ffffff"], 0.5), "rgb(128,128,128)");
  assert.equal(page.mix(["#000000", "#ffffff"], 7), "rgb(255,255,255)");
});
test("what is no markup for Plotly", () => assert.equal(page.inert("<b>&"), "&lt;b&gt;&amp;"));
test("constraints that cannot be read say why", () => {
  assert.throws(() => page.where("("), /ends where a name should follow/);
  assert.throws(() => page.where("accuracy >"), /ends where a value should follow/);
  assert.throws(() => page.where("accuracy 3"), /expected an operator after accuracy/);
  assert.throws(() => page.whereTokens("!!"), /write a test/);
});
test("configurations to try", () => {
  const found = page.readConfiguration("# words\na.lr: 0.01\nb: some words\n\nc: [1, 2]");
  assert.deepEqual(plainly(found), { "a.lr": 0.01, b: "some words", c: [1, 2] });
  assert.throws(() => page.readConfiguration("nothing"), /expected parameter: value/);
});
