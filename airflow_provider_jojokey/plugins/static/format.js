// Format numbers, sizes and times for display. Times are in the time zone that the user has selected in Airflow.
import { locale, t } from "./text.js";

const KILO = 1000;

export function number(value) {
  return new Intl.NumberFormat(locale()).format(value ?? 0);
}

// Translate a message of the server. Its values may be messages as well.
export function said(message) {
  if (!message?.text) return "";
  const shown = (value) => (typeof value === "object" ? said(value) : typeof value === "number" ? number(value) : value);
  const values = Object.entries(message.values ?? {}).map(([name, value]) => [name, shown(value)]);
  return t(message.text, Object.fromEntries(values));
}

export function compact(value) {
  return new Intl.NumberFormat(locale(), { notation: "compact", maximumSignificantDigits: 3 }).format(value ?? 0);
}

export function count(value, one, many) {
  return t(value === 1 ? one : many, { n: number(value) });
}

// Like costs, tokens that are unknown are not 0. unknown is the number of results whose tokens are unknown.
export function tokens(known, unknown = 0) {
  if (!known && unknown) return t("Tokens unknown");
  const text = count(known ?? 0, "{n} token", "{n} tokens");
  return unknown
    ? `${text} + ${count(unknown, "{n} result of unknown tokens", "{n} results of unknown tokens")}`
    : text;
}

// The same for one result or attempt.
export function tokensOf(total, paid) {
  return tokens(total, total || paid === "no" ? 0 : 1);
}

// Without the unit, where a title names it.
export function tokenCount(total, paid) {
  return total || paid === "no" ? number(total) : t("Unknown");
}

// Text is formatted exactly; a float with more than 15 digits is not.
export function decimal(value, decimals) {
  const digits = { minimumFractionDigits: decimals, maximumFractionDigits: decimals };
  return new Intl.NumberFormat(locale(), digits).format(value);
}

export function fileSize(bytes) {
  if (!Number.isFinite(bytes)) return "";
  const units = ["byte", "kilobyte", "megabyte", "gigabyte"];
  const power = Math.min(units.length - 1, bytes < KILO ? 0 : Math.floor(Math.log(bytes) / Math.log(KILO)));
  return new Intl.NumberFormat(locale(), {
    style: "unit",
    unit: units[power],
    unitDisplay: power ? "short" : "long",
    maximumFractionDigits: power > 1 ? 1 : 0,
  }).format(bytes / KILO ** power);
}

export function seconds(value) {
  return new Intl.NumberFormat(locale(), {
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
  const format = new Intl.RelativeTimeFormat(locale(), { numeric: "auto" });
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
  return new Intl.DateTimeFormat(locale(), { ...options, timeZone: "UTC" }).format(new Date(`${text}T00:00:00Z`));
}

export function shortened(text, length = 120) {
  const line = String(text ?? "").replace(/\s+/g, " ").trim();
  return line.length <= length ? line : `${line.slice(0, length - 1).trimEnd()}…`;
}
