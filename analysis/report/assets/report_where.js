/* Constraints as text, by the grammar of analysis/where.py: a test compares the two. The columns of
   the page are fewer than those of the tables. */
"use strict";
const WHERE_TOKEN =
  /\s*(?:(<=|>=|==|!=|<|>|=)|([()])|([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?%?(?![\w.]))|('[^']*'|"[^"]*")|([A-Za-z_][\w./*:-]*))/y;
const WHERE_KINDS = ["operator", "bracket", "number", "quoted", "word"];
const WHERE_OPERATORS = {
  ">=": (a, b) => a >= b,
  "<=": (a, b) => a <= b,
  ">": (a, b) => a > b,
  "<": (a, b) => a < b,
  "==": (a, b) => a === b,
  "=": (a, b) => a === b,
  "!=": (a, b) => a !== b,
};

/* Says of a row whether it passes. Throws an Error that says what is wrong. */
function where(text) {
  const tokens = whereTokens(text);
  const wrong = (message) => new Error(message);
  const next = (expected) => {
    if (!tokens.length) throw wrong(`ends where ${expected} should follow`);
    return tokens.shift();
  };
  const nextIs = (word) => {
    const first = tokens[0];
    if (!first || !["word", "bracket"].includes(first.kind)) return false;
    if (first.text.toLowerCase() !== word) return false;
    tokens.shift();
    return true;
  };
  const test = () => {
    if (nextIs("(")) {
      const inner = either();
      if (!nextIs(")")) throw wrong("a bracket is not closed");
      return inner;
    }
    const name = next("a name");
    if (!["word", "quoted"].includes(name.kind)) throw wrong(`expected a name, got ${name.text}`);
    const sign = next("an operator");
    if (sign.kind !== "operator") throw wrong(`expected an operator after ${name.text}`);
    const value = next("a value");
    if (!["number", "word", "quoted"].includes(value.kind))
      throw wrong(`expected a value after ${name.text} ${sign.text}`);
    return comparison(unquoted(name.text), sign.text, value);
  };
  const both = () => {
    const parts = [test()];
    while (nextIs("and")) parts.push(test());
    return (row) => parts.every((passes) => passes(row));
  };
  function either() {
    const parts = [both()];
    while (nextIs("or")) parts.push(both());
    return (row) => parts.some((passes) => passes(row));
  }
  const passes = either();
  if (tokens.length) throw wrong(`unexpected ${tokens[0].text}; join tests by and, or`);
  return passes;
}
function whereTokens(text) {
  const found = [];
  const end = text.trimEnd().length;
  WHERE_TOKEN.lastIndex = 0;
  while (WHERE_TOKEN.lastIndex < end) {
    const match = WHERE_TOKEN.exec(text);
    if (!match) throw new Error("write a test as name, operator and value: accuracy>=0.9");
    const kind = match.slice(1).findIndex((part) => part !== undefined);
    found.push({ kind: WHERE_KINDS[kind], text: match[kind + 1] });
  }
  return found;
}
const unquoted = (text) => (/^['"]/.test(text) ? text.slice(1, -1) : text);
function comparison(name, sign, value) {
  const compare = WHERE_OPERATORS[sign];
  if (name === "status" || name === "trial_id") {
    const texts = name === "status" ? D.status : D.ids;
    return (row) => compare(texts[row], unquoted(value.text));
  }
  const column = ["metric/", "config/", ""].map((p) => COLUMN.get(p + name)).find(Boolean);
  if (!column) throw new Error(`no column ${name}`);
  if (column.kind === "num") {
    if (value.kind !== "number") throw new Error(`${name} holds numbers`);
    const share = value.text.endsWith("%") ? 100 : 1;
    const limit = Number(value.text.replace("%", "")) / share;
    return (row) => column.values[row] !== null && compare(column.values[row], limit);
  }
  if (!["==", "=", "!="].includes(sign)) throw new Error(`${name} holds text: compare by ==`);
  const wanted = unquoted(value.text);
  return (row) => {
    const level = column.levels[column.values[row]];
    return level !== MISSING && compare(level, wanted);
  };
}
