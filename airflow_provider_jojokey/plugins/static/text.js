// The page's words. English is the key, so that what is not translated is still a sentence.
import { zh } from "./zh.js";

export function language() {
  // Airflow writes the language that a person has chosen onto the document.
  const chosen = document.documentElement.lang || "en";
  return chosen === "en" ? "en-GB" : chosen;
}

export function t(text, values = {}) {
  const translated = /^zh(-CN|-Hans)?$/i.test(language()) ? (zh[text] ?? text) : text;
  return translated.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}
