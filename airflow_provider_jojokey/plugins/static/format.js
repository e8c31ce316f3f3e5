// Format numbers, sizes and times for display. Times are in the time zone that the user has selected in Airflow.
import { language, t } from "./text.js";

const KILO = 1000;

export function number(value) {
  return new Intl.NumberFormat(language()).format(value ?? 0);
}

export function compact(value) {
  return new Intl.NumberFormat(language(), { notation: "compact", maximumFractionDigits: 1 }).format(value ?? 0);
}

export function count(value, one, many) {
  return t(value === 1 ? one : many, { n: number(value) });
}

// The format of the log and the command line: "≈ USD 0.0059", with non-breaking spaces.
function amount(one) {
  const value = Number(one.amount);
  const digits = value >= 1 || value === 0 ? 2 : 4;
  const format = new Intl.NumberFormat(language(), { minimumFractionDigits: 2, maximumFractionDigits: digits });
  const text = value > 0 && value < 0.0001 ? `<${format.format(0.0001)}` : format.format(value);
  return `${one.approximate ? "≈\u00a0" : ""}${one.currency}\u00a0${text}`;
}

// Amounts in different currencies are never added up.
export function cost(costs) {
  const known = costs.amounts.map(amount).join(" + ");
  if (!known) return costs.unknown ? t("Cost unknown") : t("No cost");
  return costs.unknown
    ? `${known} + ${count(costs.unknown, "{n} request of unknown cost", "{n} requests of unknown cost")}`
    : known;
}

export function fileSize(bytes) {
  if (!Number.isFinite(bytes)) return "";
  const units = ["byte", "kilobyte", "megabyte", "gigabyte"];
  const power = Math.min(units.length - 1, bytes < KILO ? 0 : Math.floor(Math.log(bytes) / Math.log(KILO)));
  return new Intl.NumberFormat(language(), {
    style: "unit",
    unit: units[power],
    unitDisplay: power ? "short" : "long",
    maximumFractionDigits: power > 1 ? 1 : 0,
  }).format(bytes / KILO ** power);
}

export function seconds(value) {
  return new Intl.NumberFormat(language(), {
    style: "unit",
    unit: "second",
    unitDisplay: "narrow",
    maximumFractionDigits: value < 10 ? 1 : 0,
  }).format(value);
}

// Return the time zone that the user has selected in Airflow.
export function timezone() {
  try {
    const zone = JSON.parse(globalThis.localStorage.getItem("timezone")) || "UTC";
    return new Intl.DateTimeFormat("en", { timeZone: zone }).resolvedOptions().timeZone;
  } catch {
    return "UTC";
  }
}

// Return the date in that time zone, such as 2026-11-23.
export function localDay(time) {
  return new Intl.DateTimeFormat("sv-SE", { dateStyle: "short", timeZone: timezone() }).format(new Date(time));
}

// Airflow's own format: 2026-11-23 06:15:14.
export function exactTime(iso) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return "";
  const options = { dateStyle: "short", timeStyle: "medium", timeZone: timezone() };
  return new Intl.DateTimeFormat("sv-SE", options).format(date);
}

const STEPS = [
  ["second", 60],
  ["minute", 60],
  ["hour", 24],
  ["day", 7],
  ["week", 4.345],
  ["month", 12],
  ["year", Number.POSITIVE_INFINITY],
];

export function relativeTime(iso, now = Date.now()) {
  let value = (new Date(iso).getTime() - now) / 1000;
  if (Number.isNaN(value)) return "";
  const format = new Intl.RelativeTimeFormat(language(), { numeric: "auto" });
  for (const [unit, size] of STEPS) {
    // A number of seconds would be outdated immediately.
    if (unit === "second" && Math.abs(value) < 45) return t("just now");
    if (Math.abs(value) < size - 0.5) return format.format(Math.round(value), unit);
    value /= size;
  }
  return "";
}

// Format a date such as 2026-11-23. Use UTC for both steps, because another time zone could shift the date.
export function day(text, options = { day: "numeric", month: "short" }) {
  return new Intl.DateTimeFormat(language(), { ...options, timeZone: "UTC" }).format(new Date(`${text}T00:00:00Z`));
}

export function shortened(text, length = 120) {
  const line = String(text ?? "").replace(/\s+/g, " ").trim();
  return line.length <= length ? line : `${line.slice(0, length - 1).trimEnd()}…`;
}
