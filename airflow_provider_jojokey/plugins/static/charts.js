// Two small charts: what was spent by day, and by Dag. Bars for the eye, a table for a screen reader.
import { compact, cost, count, day, number } from "./format.js";
import { h, useId, useMemo, useState } from "./react.js";
import { t } from "./text.js";

const A_DAY = 86_400_000;
const FEWEST_DAYS = 14;
const MOST_BARS = 92;
const MOST_DAGS = 6;

const toDay = (time) => new Date(time).toISOString().slice(0, 10);
const toTime = (text) => Date.parse(`${text}T00:00:00Z`);

const STARTS = {
  day: (text) => text,
  week: (text) => toDay(toTime(text) - ((new Date(toTime(text)).getUTCDay() + 6) % 7) * A_DAY),
  month: (text) => `${text.slice(0, 7)}-01`,
};
const NEXT = {
  day: (text) => toDay(toTime(text) + A_DAY),
  week: (text) => toDay(toTime(text) + 7 * A_DAY),
  month: (text) => toDay(Date.UTC(Number(text.slice(0, 4)), Number(text.slice(5, 7)), 1)),
};

// Days without images are days too; and where there are too many for bars, weeks or months.
export function barsOf(byDay, until = "") {
  const days = byDay.map((one) => one.day).sort();
  const today = toDay(Date.now());
  const end = until && until < today ? until : today;
  const last = days.length && days.at(-1) > end ? days.at(-1) : end;
  const fewest = toDay(toTime(last) - (FEWEST_DAYS - 1) * A_DAY);
  const first = days.length && days[0] < fewest ? days[0] : fewest;
  const span = (toTime(last) - toTime(first)) / A_DAY + 1;
  const unit = span <= MOST_BARS ? "day" : span <= MOST_BARS * 7 ? "week" : "month";
  const bars = new Map();
  for (let start = STARTS[unit](first); start <= last; start = NEXT[unit](start)) {
    bars.set(start, { start, end: toDay(toTime(NEXT[unit](start)) - A_DAY), tokens: 0, images: 0 });
  }
  for (const one of byDay) {
    const bar = bars.get(STARTS[unit](one.day));
    if (!bar) continue;
    bar.tokens += one.tokens;
    bar.images += one.images;
  }
  return { unit, bars: [...bars.values()] };
}

const WITH_YEAR = { day: "numeric", month: "short", year: "numeric" };
const TITLES = { day: "Tokens per day", week: "Tokens per week", month: "Tokens per month" };

function nameOf(bar, unit) {
  if (unit === "month") return day(bar.start, { month: "long", year: "numeric" });
  return unit === "week" ? `${day(bar.start)} – ${day(bar.end, WITH_YEAR)}` : day(bar.start, WITH_YEAR);
}

function costOf(one) {
  return `${one.cost ? `${cost(one.cost)} · ` : ""}${count(one.tokens, "{n} token", "{n} tokens")} · ${count(one.images, "{n} image", "{n} images")}`;
}

function DataTable({ caption, first, rows }) {
  return h(
    "table",
    { className: "jojokey-hidden" },
    h("caption", null, caption),
    h(
      "thead",
      null,
      h("tr", null, [first, t("Tokens"), t("Images")].map((name) => h("th", { key: name, scope: "col" }, name))),
    ),
    h(
      "tbody",
      null,
      rows.map(([name, one]) =>
        h("tr", { key: name }, h("th", { scope: "row" }, name), h("td", null, one.tokens), h("td", null, one.images)),
      ),
    ),
  );
}

export function TokensByDay({ byDay, filters, onChange }) {
  const { unit, bars } = useMemo(() => barsOf(byDay, filters.day_to), [byDay, filters.day_to]);
  const [at, setAt] = useState(null);
  const [titleId, textId] = [useId(), useId()];
  const most = Math.max(1, ...bars.map((one) => one.tokens));
  const step = 100 / bars.length;
  const hovered = at === null ? null : bars[at];
  const title = t(TITLES[unit]);
  return h(
    "section",
    { className: "jojokey-chart" },
    h("h3", { className: "jojokey-label" }, title),
    h(
      "div",
      { className: "jojokey-plot", onPointerLeave: () => setAt(null) },
      h("span", { className: "jojokey-axis-top" }, compact(most)),
      h(
        "svg",
        { role: "img", "aria-labelledby": `${titleId} ${textId}`, width: "100%", height: "100%" },
        h("title", { id: titleId }, title),
        h(
          "desc",
          { id: textId },
          t("{first} to {last}; at most {most} tokens.", {
            first: nameOf(bars[0], unit),
            last: nameOf(bars.at(-1), unit),
            most: number(most),
          }),
        ),
        bars.map((one, position) => {
          const height = one.tokens ? Math.max(1.5, (one.tokens / most) * 100) : 0;
          return h(
            "g",
            {
              key: one.start,
              className: `jojokey-bar${position === at ? " jojokey-bar-on" : ""}`,
              onPointerEnter: () => setAt(position),
              onClick: () => one.images && onChange({ day_from: one.start, day_to: one.end }),
            },
            h("rect", {
              className: "jojokey-bar-column",
              x: `${position * step}%`,
              y: 0,
              width: `${step}%`,
              height: "100%",
            }),
            h("rect", {
              x: `${(position + 0.12) * step}%`,
              y: `${100 - height}%`,
              width: `${step * 0.76}%`,
              height: `${height}%`,
              rx: 1.5,
            }),
          );
        }),
      ),
      hovered &&
        h(
          "div",
          {
            className: "jojokey-tooltip",
            style: { insetInlineStart: `${Math.min(85, Math.max(15, (at + 0.5) * step))}%` },
          },
          h("strong", null, nameOf(hovered, unit)),
          h("span", null, costOf(hovered)),
        ),
    ),
    h(
      "div",
      { className: "jojokey-axis", "aria-hidden": true },
      h("span", null, day(bars[0].start)),
      h("span", null, day(bars.at(-1).end)),
    ),
    h(DataTable, { caption: title, first: t("Day"), rows: bars.map((one) => [nameOf(one, unit), one]) }),
  );
}

export function TokensByDag({ byDag, onChange }) {
  const sorted = [...byDag].sort((one, other) => other.tokens - one.tokens);
  const shown = sorted.length > MOST_DAGS ? sorted.slice(0, MOST_DAGS - 1) : sorted;
  const rest = sorted.slice(shown.length);
  const others = rest.reduce(
    (sum, one) => ({ tokens: sum.tokens + one.tokens, images: sum.images + one.images }),
    { tokens: 0, images: 0 },
  );
  const most = Math.max(1, others.tokens, ...shown.map((one) => one.tokens));
  const [titleId, textId] = [useId(), useId()];
  const title = t("Tokens per Dag");
  const row = (key, name, one) =>
    h(
      "div",
      { className: "jojokey-dag", key, title: costOf(one) },
      h("span", { className: "jojokey-dag-name" }, name),
      h(
        "svg",
        { "aria-hidden": true, width: "100%", height: 10 },
        h("rect", { className: "jojokey-bar-rail", width: "100%", height: "100%", rx: 2 }),
        h("rect", {
          className: "jojokey-bar-fill",
          width: `${one.tokens ? Math.max(1, (one.tokens / most) * 100) : 0}%`,
          height: "100%",
          rx: 2,
        }),
      ),
      h("span", { className: "jojokey-dag-tokens" }, compact(one.tokens)),
    );
  return h(
    "section",
    { className: "jojokey-chart", "aria-labelledby": titleId, "aria-describedby": textId },
    h("h3", { className: "jojokey-label", id: titleId }, title),
    h(
      "p",
      { className: "jojokey-hidden", id: textId },
      count(byDag.length, "{n} Dag, the dearest first.", "{n} Dags, the dearest first."),
    ),
    h(
      "div",
      { className: "jojokey-dags" },
      shown.map((one) =>
        row(
          one.dag_id,
          h(
            "button",
            { type: "button", className: "jojokey-link", onClick: () => onChange({ dag_id: one.dag_id }) },
            one.dag_id,
          ),
          one,
        ),
      ),
      rest.length > 0 && row("", count(rest.length, "{n} other", "{n} others"), others),
    ),
    h(DataTable, { caption: title, first: t("Dag"), rows: sorted.map((one) => [one.dag_id, one]) }),
  );
}
