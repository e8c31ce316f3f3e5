// The gallery's filters, as removable chips like those of Airflow's own lists. They are stored in the page's URL,
// so that users can share a view and the back button works.
import { useCallback, useEffect, h, useId, useLayoutEffect, useLocation, useRef, useState } from "./react.js";
import { localDay, timezone } from "./format.js";
import { Button, Icon, Menu } from "./parts.js";
import { t } from "./text.js";

export const STATES = {
  failed: "Failed",
  failed_paid: "Failed, paid",
  failed_perhaps_paid: "Failed, perhaps paid",
  reused: "Reused",
};
const SORTS = { newest: "Newest first", cost: "Highest cost first", tokens: "Most tokens first" };
const SIZES = ["1024x1024", "1024x1536", "1536x1024"];
// Label and kind of each chip: a choice from a list, a text, a date, or a fixed value that only links set.
const CHIPS = {
  dag_id: ["Dag", "choice"],
  state: ["State", "choice"],
  model: ["Model", "choice"],
  size: ["Size", "choice"],
  run: ["Run ID", "text"],
  run_id: ["Run", "fixed"],
  task_id: ["Task", "fixed"],
  day_from: ["From", "date"],
  day_to: ["To", "date"],
};
const NAMES = ["q", ...Object.keys(CHIPS)];
export const NO_FILTERS = Object.fromEntries(NAMES.map((name) => [name, ""]));
const TYPED = new Set(["q", "run", "day_from", "day_to"]);
const WAIT_FOR_TYPING = 350;

// While a year is typed, a date input reports the years 0002, 0020 and 0202.
const isDay = (value) => /^[1-9]\d{3}-\d\d-\d\d$/.test(value) && isInCalendar(value);
// JavaScript reads February 31 as a day in March.
const isInCalendar = (value) => new Date(Date.parse(value) || 0).toISOString().startsWith(value);
const VALID = {
  day_from: isDay,
  day_to: isDay,
  state: (value) => Object.hasOwn(STATES, value),
  sort: (value) => Object.hasOwn(SORTS, value) && value !== "newest",
};

export function readFilters() {
  const query = new URLSearchParams(globalThis.location.search);
  return Object.fromEntries(
    [...NAMES, "sort"].map((name) => {
      const value = (query.get(name) ?? "").trim();
      return [name, VALID[name]?.(value) === false ? "" : value];
    }),
  );
}

export function isFiltered(filters) {
  return NAMES.some((name) => filters[name]);
}

// Write the URL without the router, which would otherwise render the page again while the user types. The router
// keeps its own data in the state of the history entry, so that data is copied.
function write(filters, replace) {
  const url = new URL(globalThis.location.href);
  for (const [name, value] of Object.entries(filters)) {
    if (value) url.searchParams.set(name, value);
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
  useEffect(read, [key]); // the user followed a link within Airflow to this page
  useEffect(() => {
    globalThis.addEventListener("popstate", read);
    return () => globalThis.removeEventListener("popstate", read);
  }, []);
  const change = useCallback((values) => {
    const name = Object.keys(values).join();
    const next = { ...readFilters(), ...values };
    // One step back removes the whole text, not a single letter.
    write(next, TYPED.has(name) && latest.current === name);
    latest.current = name;
    setFilters(next);
  }, []);
  return [filters, change];
}

export function Typed({ name, value, onChange, ...rest }) {
  const [text, setText] = useState(value);
  const timer = useRef(null);
  const sent = useRef(value);
  const wait = (run) => {
    clearTimeout(timer.current);
    timer.current = run && setTimeout(run, WAIT_FOR_TYPING);
  };
  // React renders a sent text when the user may have typed on, so only another value replaces what is typed: after the
  // user has gone back or removed the filter. It must be a layout effect, which runs before the next text is sent.
  useLayoutEffect(() => {
    if (value === sent.current) return;
    sent.current = value;
    wait(null);
    setText(value);
  }, [value]);
  useEffect(() => () => wait(null), []);
  const commit = (now) => {
    wait(null);
    const wanted = now.trim();
    if (wanted === sent.current || (wanted && VALID[name]?.(wanted) === false)) return;
    sent.current = wanted;
    onChange({ [name]: wanted });
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
      wait(event.nativeEvent.isComposing ? null : () => commit(now));
    },
    // An input method shows letters before the user chooses the characters, and uses Enter to do so.
    onCompositionEnd: ({ target: { value: now } }) => wait(() => commit(now)),
    onBlur: () => commit(text),
    onKeyDown: (event) => event.key === "Enter" && !event.nativeEvent.isComposing && commit(text),
  });
}

// Days are in the time zone that the user has selected in Airflow.
const PERIODS = { "Today": 0, "Last 7 days": 6, "Last 30 days": 29 };

// Count days, not hours: a day on which the clocks change has 23 or 25.
export function ago(days, now = Date.now()) {
  const today = Date.parse(`${localDay(now)}T00:00:00Z`);
  return new Date(today - days * 86_400_000).toISOString().slice(0, 10);
}

function Choice({ id, name, value, values, onChange, ...rest }) {
  const known = values.some(([one]) => one === value) || !value ? values : [[value, value], ...values];
  return h(
    "select",
    { ...rest, id, name, value, onChange: (event) => onChange({ [name]: event.target.value }) },
    !value && h("option", { value: "" }, t("Choose …")),
    known.map(([one, text]) => h("option", { key: one, value: one }, text)),
  );
}

function Chip({ name, filters, choices, isNew, onChange, onRemove }) {
  const id = useId();
  const [label, kind] = CHIPS[name];
  const value = filters[name];
  const common = { id, name, value, onChange, autoFocus: isNew };
  const controls = {
    choice: () => h(Choice, { ...common, values: choices[name] }),
    text: () => h(Typed, { ...common, type: "text" }),
    date: () =>
      h(Typed, {
        ...common,
        type: "date",
        min: name === "day_to" ? filters.day_from || undefined : undefined,
        max: name === "day_from" ? filters.day_to || undefined : undefined,
        title: t("A day in the time zone {zone}", { zone: timezone() }),
      }),
    fixed: () => h("output", { id, title: value }, value),
  };
  return h(
    "div",
    { className: "jojokey-row jojokey-chip" },
    h("label", { htmlFor: id }, t(label)),
    controls[kind](),
    h(Button, {
      icon: "close",
      variant: "ghost",
      label: t("Remove the filter {name}", { name: t(label) }),
      onClick: onRemove,
    }),
  );
}

export function FilterBar({ filters, choices, onChange }) {
  const [added, setAdded] = useState([]);
  const menu = useRef(null);
  const shown = Object.keys(CHIPS).filter((name) => filters[name] || added.includes(name));
  const keep = (name) => setAdded((names) => (names.includes(name) ? names : [...names, name]));
  const remove = (name) => {
    setAdded((names) => names.filter((one) => one !== name));
    onChange({ [name]: "" });
    menu.current?.focus();
  };
  const clear = () => {
    setAdded([]);
    onChange(NO_FILTERS);
    menu.current?.focus();
  };
  const items = [
    ...Object.entries(CHIPS)
      .filter(([name, [, kind]]) => kind !== "fixed" && !shown.includes(name))
      .map(([name, [label]]) => [t(label), () => keep(name)]),
    ...Object.entries(PERIODS).map(([name, days]) => [t(name), () => onChange({ day_from: ago(days), day_to: "" })]),
  ];
  const sorts = Object.entries(SORTS).map(([name, text]) => [name, t(text)]);
  return h(
    "search",
    { className: "jojokey-row jojokey-filters" },
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
    shown.map((name) =>
      h(Chip, {
        key: name,
        name,
        filters,
        choices,
        isNew: added.includes(name),
        onChange: (values) => {
          keep(name); // it stays while it is edited, even if it is empty in between
          onChange(values);
        },
        onRemove: () => remove(name),
      }),
    ),
    h(Menu, { label: t("Filter"), icon: "plus", items, button: menu }),
    (isFiltered(filters) || added.length > 0) &&
      h(Button, { icon: "close", variant: "ghost", onClick: clear }, t("Clear filters")),
    h(
      "div",
      { className: "jojokey-row jojokey-chip jojokey-sort" },
      h(Choice, {
        "aria-label": t("Order"),
        name: "sort",
        value: filters.sort || "newest",
        values: sorts,
        onChange: ({ sort }) => onChange({ sort: sort === "newest" ? "" : sort }),
      }),
    ),
  );
}

export function choicesOf(dags, cards) {
  const of = (name, known = []) => [...new Set([...known, ...cards.map((card) => card[name]).filter(Boolean)])].sort();
  const same = (values) => values.map((one) => [one, one]);
  return {
    dag_id: same(dags),
    state: Object.entries(STATES).map(([state, text]) => [state, t(text)]),
    model: same(of("model")),
    size: of("size", SIZES).map((size) => [size, size.replace("x", " × ")]),
  };
}
