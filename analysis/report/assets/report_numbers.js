/* Numbers as text, by the rules of analysis/numbers.py: a test compares the two. */
"use strict";
const MISSING = "–";
const THIN_SPACE = "\u202f";

/* `value` with this many decimals, its thousands set apart; a tie is rounded away from zero. */
function fixed(value, decimals) {
  const text = value.toFixed(decimals).replace(/^-(?=[0.]*$)/, "");
  const [whole, rest] = text.split(".");
  const grouped = whole.replace(/\B(?=(\d{3})+$)/g, THIN_SPACE);
  return rest === undefined ? grouped : `${grouped}.${rest}`;
}
/* `value` with at most this many significant digits, without trailing zeros; whole digits stay. */
function significant(value, digits = 4) {
  if (value === 0) return "0";
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  const short = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e15) return `${short(mantissa)}e${Number(exponent)}`;
  return short(fixed(value, Math.max(0, digits - 1 - Number(exponent))));
}
/* A measured value. */
function number(value) {
  if (value === null || !Number.isFinite(value)) return MISSING;
  return Number.isInteger(value) && Math.abs(value) < 1e15 ? fixed(value, 0) : significant(value);
}
/* A share of one as a percentage. */
function percent(share, decimals = 1) {
  return share === null ? MISSING : `${fixed(100 * share, decimals)} %`;
}
/* A value of a metric whose unit stands elsewhere; fractions are percentages. */
function figure(value, unit) {
  return unit === "fraction" ? percent(value, 2) : number(value);
}
/* A parameter's value: no thousands set apart. */
function plain(value) {
  return number(value).replaceAll(THIN_SPACE, "");
}
