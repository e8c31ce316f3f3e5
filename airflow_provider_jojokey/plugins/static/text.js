// Translation of the UI's texts. The English text is the key and the fallback for a missing translation.
import { zh } from "./zh.js";

// Airflow stores the selected language before it announces it. It also sets the document's lang attribute, but not if
// its translations are loaded before it listens for them.
function selected() {
  try {
    return localStorage.getItem("i18nextLng");
  } catch {
    return null; // the browser blocks the storage
  }
}

export function language() {
  const chosen = selected() || document.documentElement.lang || "en";
  return chosen === "en" ? "en-GB" : chosen;
}

export function t(text, values = {}) {
  const translated = /^zh(-CN|-Hans)?$/i.test(language()) ? (zh[text] ?? text) : text;
  return translated.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}
