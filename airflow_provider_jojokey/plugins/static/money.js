// Amounts of money: exact sums, and texts with the same number of decimals throughout a list.
import { count, decimal } from "./format.js";
import { t } from "./text.js";

// Amounts are decimal text with at most nine decimals. Add them up as whole billionths, because floats are inexact.
const DECIMALS = 9;

function toNanos(text) {
  const [whole, rest = ""] = text.split(".");
  return BigInt(whole + rest.padEnd(DECIMALS, "0").slice(0, DECIMALS));
}

function units(value, decimals) {
  return value * 10n ** BigInt(DECIMALS - decimals);
}

function rounded(nanos, decimals) {
  return (nanos + units(1n, decimals) / 2n) / units(1n, decimals);
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
    amounts: [...sums]
      .map(([currency, { nanos, approximate }]) => ({ currency, amount: toText(nanos), approximate }))
      .sort((one, other) => (one.currency < other.currency ? -1 : 1)),
    unknown: costs.reduce((all, one) => all + (one?.unknown ?? 0), 0),
  };
}

// Amounts below one unit have four decimals, because an image can cost less than a cent.
function decimalsOfAmount({ amount: text }) {
  const nanos = toNanos(text);
  if (nanos === 0n || nanos >= units(1n, 0)) return 2;
  const shown = rounded(nanos, 4);
  return shown === 0n || shown % 100n ? 4 : 2;
}

export function decimalsOf(costs) {
  return Math.max(2, ...costs.flatMap((one) => one?.amounts ?? []).map(decimalsOfAmount));
}

// The format of the log and the command line: "≈ USD 0.0059", with non-breaking spaces.
function amount({ amount: text, currency, approximate }, decimals) {
  const nanos = toNanos(text);
  const shown = nanos > 0n && !rounded(nanos, decimals) ? `<${decimal(10 ** -decimals, decimals)}` : decimal(text, decimals);
  return `${approximate ? "≈\u00a0" : ""}${currency}\u00a0${shown}`;
}

// Amounts in different currencies are never added up. Without decimals, each amount has as many as it needs.
export function cost(costs, decimals) {
  const known = costs.amounts.map((one) => amount(one, decimals ?? decimalsOfAmount(one))).join(" + ");
  if (!known) return costs.unknown ? t("Cost unknown") : t("No cost");
  return costs.unknown
    ? `${known} + ${count(costs.unknown, "{n} request of unknown cost", "{n} requests of unknown cost")}`
    : known;
}

// Costs and tokens are those of a request, which may return several images.
export function ofAll(result, text) {
  return result.count > 1
    ? t("{cost} for {images}", { cost: text, images: count(result.count, "{n} image", "{n} images") })
    : text;
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
