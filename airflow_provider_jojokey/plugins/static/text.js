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
  return selected() || document.documentElement.lang || "en";
}

function isChinese() {
  return /^zh(-CN|-Hans)?$/i.test(language());
}

// The locale of dates, numbers and units is that of the texts around them: "1.536 tokens" would be misread.
export function locale() {
  return isChinese() ? language() : "en-GB";
}

export function t(text, values = {}) {
  const translated = isChinese() ? (zh[text] ?? text) : text;
  return translated.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}
