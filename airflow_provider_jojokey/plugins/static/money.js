// Amounts of money: exact sums, and texts with the same number of decimals throughout a list.
import { count, decimal } from "./format.js";
import { t } from "./text.js";

// Amounts are decimal text with at most nine decimals. Add them up as whole billionths, because floats are inexact.
const DECIMALS = 9;

function toNanos(text) {
  const [whole, rest = ""] = text.split(".");
  return BigInt(whole + rest.padEnd(DECIMALS, "0").slice(0, DECIMALS));
}

function toText(nanos) {
  const digits = String(nanos).padStart(DECIMALS + 1, "0");
  return `${digits.slice(0, -DECIMALS)}.${digits.slice(-DECIMALS)}`;
}

export function sumOf(costs) {
  const sums = new Map();
  for (const { currency, amount, approximate } of costs.flatMap((one) => one?.amounts ?? [])) {
    const old = sums.get(currency) ?? { nanos: 0n, approximate: false };
    sums.set(currency, { nanos: old.nanos + toNanos(amount), approximate: old.approximate || approximate });
  }
  return {
    amounts: [...sums].map(([currency, { nanos, approximate }]) => ({ currency, amount: toText(nanos), approximate })),
    unknown: costs.reduce((all, one) => all + (one?.unknown ?? 0), 0),
  };
}

// Amounts below one unit have four decimals, because an image can cost less than a cent.
export function decimalsOf(costs) {
  const values = costs.flatMap((one) => one?.amounts ?? []).map((one) => Number(one.amount));
  return values.some((value) => value > 0 && value < 1 && !/\d00$/.test(value.toFixed(4))) ? 4 : 2;
}

// The format of the log and the command line: "≈ USD 0.0059", with non-breaking spaces.
function amount({ amount: text, currency, approximate }, decimals) {
  const value = Number(text);
  const least = 10 ** -decimals;
  const shown = value > 0 && value < least ? `<${decimal(least, decimals)}` : decimal(value, decimals);
  return `${approximate ? "≈\u00a0" : ""}${currency}\u00a0${shown}`;
}

// Amounts in different currencies are never added up.
export function cost(costs, decimals = decimalsOf([costs])) {
  const known = costs.amounts.map((one) => amount(one, decimals)).join(" + ");
  if (!known) return costs.unknown ? t("Cost unknown") : t("No cost");
  return costs.unknown
    ? `${known} + ${count(costs.unknown, "{n} request of unknown cost", "{n} requests of unknown cost")}`
    : known;
}

// Return the single currency in which all costs are known; null if there is none.
export function currencyOf(costs) {
  const currencies = new Set(costs.flatMap((one) => one.amounts.map(({ currency }) => currency)));
  const known = costs.every((one) => one.amounts.length === 1 || (!one.amounts.length && !one.unknown));
  return known && currencies.size === 1 ? [...currencies][0] : null;
}

export function valueOf(costs) {
  return Number(costs.amounts[0]?.amount ?? 0);
}
