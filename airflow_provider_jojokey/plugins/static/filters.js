// The gallery's filters live in the page's address, so that a view can be shared and the back button works.
import { useCallback, useEffect, h, useId, useLocation, useRef, useState } from "./react.js";
import { Button, Icon } from "./parts.js";
import { t } from "./text.js";

const NAMES = ["q", "dag_id", "run_id", "day_from", "day_to", "state"];
export const STATES = {
  failed: "Failed",
  failed_paid: "Failed, paid",
  failed_perhaps_paid: "Failed, perhaps paid",
  reused: "Reused",
};
const TYPED = new Set(["q", "run_id"]);
const DAYS = new Set(["day_from", "day_to"]);
const WAIT_FOR_TYPING = 350;

export function readFilters() {
  const query = new URLSearchParams(globalThis.location.search);
  return Object.fromEntries(
    NAMES.map((name) => {
      const value = (query.get(name) ?? "").trim();
      const wrong = (DAYS.has(name) && !/^\d{4}-\d\d-\d\d$/.test(value)) || (name === "state" && !STATES[value]);
      return [name, wrong ? "" : value];
    }),
  );
}

export function isFiltered(filters) {
  return NAMES.some((name) => filters[name]);
}

// The address is written past the router, which would otherwise draw the page anew under the typing hand;
// its own notes in the history's state are kept, and it is told nothing that it would not find there itself.
function write(filters, replace) {
  const url = new URL(globalThis.location.href);
  for (const name of NAMES) {
    if (filters[name]) url.searchParams.set(name, filters[name]);
    else url.searchParams.delete(name);
  }
  if (url.href === globalThis.location.href) return;
  const { state } = globalThis.history;
  if (replace) globalThis.history.replaceState(state, "", url);
  else globalThis.history.pushState({ ...state, idx: (state?.idx ?? 0) + 1, key: crypto.randomUUID?.() }, "", url);
}

export function useFilters() {
  const [filters, setFilters] = useState(readFilters);
  const latest = useRef(null);
  const { key } = useLocation();
  const read = useCallback(() => {
    latest.current = null;
    setFilters((old) => {
      const now = readFilters();
      return JSON.stringify(now) === JSON.stringify(old) ? old : now;
    });
  }, []);
  useEffect(read, [key]); // a link of Airflow's to this page
  useEffect(() => {
    globalThis.addEventListener("popstate", read);
    return () => globalThis.removeEventListener("popstate", read);
  }, []);
  const change = useCallback((values) => {
    const name = Object.keys(values).join();
    const next = { ...readFilters(), ...values };
    // One step back undoes the words, not a letter of them.
    write(next, TYPED.has(name) && latest.current === name);
    latest.current = name;
    setFilters(next);
  }, []);
  return [filters, change];
}

export function Typed({ name, value, onChange, ...rest }) {
  const [text, setText] = useState(value);
  const timer = useRef(0);
  useEffect(() => setText(value), [value]);
  useEffect(() => () => clearTimeout(timer.current), []);
  const commit = (now) => {
    clearTimeout(timer.current);
    if (now.trim() !== value) onChange({ [name]: now.trim() });
  };
  return h("input", {
    ...rest,
    name,
    value: text,
    autoComplete: "off",
    spellCheck: false,
    onChange: (event) => {
      const now = event.target.value;
      setText(now);
      clearTimeout(timer.current);
      timer.current = setTimeout(() => commit(now), WAIT_FOR_TYPING);
    },
    onBlur: () => commit(text),
    onKeyDown: (event) => event.key === "Enter" && commit(text),
  });
}

function Field({ label, half = false, children }) {
  const id = useId();
  return h(
    "div",
    { className: `jojokey-field${half ? " jojokey-field-half" : ""}` },
    h("label", { htmlFor: id }, label),
    children(id),
  );
}

const PERIODS = { "Today": 0, "Last 7 days": 6, "Last 30 days": 29 };

// The days are days in UTC, as the results are counted.
function Periods({ filters, onChange }) {
  const ago = (days) => new Date(Date.now() - days * 86_400_000).toISOString().slice(0, 10);
  return Object.entries(PERIODS).map(([name, days]) =>
    h(
      Button,
      {
        key: name,
        variant: "ghost",
        "aria-pressed": filters.day_from === ago(days) && !filters.day_to,
        onClick: () => onChange({ day_from: ago(days), day_to: "" }),
      },
      t(name),
    ),
  );
}

export function FilterBar({ filters, dags, onChange }) {
  const known = dags.includes(filters.dag_id) || !filters.dag_id ? dags : [filters.dag_id, ...dags];
  return h(
    "search",
    { className: "jojokey-filters" },
    h(
      "div",
      { className: "jojokey-search" },
      h(Icon, { name: "search" }),
      h(Typed, {
        name: "q",
        type: "search",
        value: filters.q,
        placeholder: t("Search prompts, errors, request IDs and tasks"),
        "aria-label": t("Words of the prompt, error, request ID or task"),
        maxLength: 200,
        onChange,
      }),
    ),
    h(Field, {
      label: t("Dag"),
      children: (id) =>
        h(
          "select",
          {
            id,
            name: "dag_id",
            value: filters.dag_id,
            onChange: (event) => onChange({ dag_id: event.target.value }),
          },
          h("option", { value: "" }, t("All")),
          known.map((dag) => h("option", { key: dag, value: dag }, dag)),
        ),
    }),
    h(Field, {
      label: t("State"),
      children: (id) =>
        h(
          "select",
          { id, name: "state", value: filters.state, onChange: (event) => onChange({ state: event.target.value }) },
          h("option", { value: "" }, t("All")),
          Object.entries(STATES).map(([state, name]) => h("option", { key: state, value: state }, t(name))),
        ),
    }),
    h(Field, {
      label: t("Run"),
      children: (id) =>
        h(Typed, { id, name: "run_id", type: "text", value: filters.run_id, placeholder: t("Run ID"), onChange }),
    }),
    ["day_from", "day_to"].map((name) =>
      h(Field, {
        key: name,
        half: true,
        label: name === "day_from" ? t("From") : t("To"),
        children: (id) =>
          h("input", {
            id,
            name,
            type: "date",
            value: filters[name],
            min: name === "day_to" ? filters.day_from || undefined : undefined,
            max: name === "day_from" ? filters.day_to || undefined : undefined,
            title: t("A day in UTC"),
            onChange: (event) => onChange({ [name]: event.target.value }),
          }),
      }),
    ),
    h(Periods, { filters, onChange }),
    isFiltered(filters) &&
      h(
        Button,
        {
          icon: "close",
          variant: "ghost",
          onClick: () => onChange(Object.fromEntries(NAMES.map((name) => [name, ""]))),
        },
        t("Clear filters"),
      ),
  );
}
