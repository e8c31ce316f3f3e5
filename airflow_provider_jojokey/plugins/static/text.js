// Translation of the UI's texts. The English text is the key and the fallback for a missing translation.
import { zh } from "./zh.js";

export function language() {
  // Airflow stores the language that the user has selected in the document's lang attribute.
  const chosen = document.documentElement.lang || "en";
  return chosen === "en" ? "en-GB" : chosen;
}

export function t(text, values = {}) {
  const translated = /^zh(-CN|-Hans)?$/i.test(language()) ? (zh[text] ?? text) : text;
  return translated.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}
