// Two small charts: the cost by day and by Dag, or the tokens if a cost is unknown or there are several currencies.
import { compact, count, day, localDay, tokens } from "./format.js";
import { cost, currencyOf, decimalsOf, sumOf, valueOf } from "./money.js";
import { h, useMemo } from "./react.js";
import { t } from "./text.js";

const A_DAY = 86_400_000;
const FEWEST_DAYS = 14;
const MOST_BARS = 92;
const MOST_DAGS = 6;
const NARROW = 640;

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

// Days without images get a bar as well. If there are too many days, bars stand for weeks or months.
export function barsOf(byDay, until = "") {
  const days = byDay.map((one) => one.day).sort();
  const today = localDay(Date.now());
  const end = until && until < today ? until : today;
  const last = days.length && days.at(-1) > end ? days.at(-1) : end;
  const fewest = toDay(toTime(last) - (FEWEST_DAYS - 1) * A_DAY);
  const first = days.length && days[0] < fewest ? days[0] : fewest;
  const span = (toTime(last) - toTime(first)) / A_DAY + 1;
  const unit = span <= MOST_BARS ? "day" : span <= MOST_BARS * 7 ? "week" : "month";
  const bars = new Map();
  for (let start = STARTS[unit](first); start <= last; start = NEXT[unit](start)) {
    bars.set(start, { start, end: toDay(toTime(NEXT[unit](start)) - A_DAY), tokens: 0, unknown_tokens: 0, images: 0, costs: [] });
  }
  for (const one of byDay) {
    const bar = bars.get(STARTS[unit](one.day));
    if (!bar) continue;
    bar.tokens += one.tokens;
    bar.unknown_tokens += one.unknown_tokens;
    bar.images += one.images;
    bar.costs.push(one.cost);
  }
  return { unit, bars: [...bars.values()].map(({ costs, ...bar }) => ({ ...bar, hasResults: costs.length > 0, cost: sumOf(costs) })) };
}

const WITH_YEAR = { day: "numeric", month: "short", year: "numeric" };
const TITLES = {
  day: { cost: "Cost per day in {currency}", tokens: "Tokens per day" },
  week: { cost: "Cost per week in {currency}", tokens: "Tokens per week" },
  month: { cost: "Cost per month in {currency}", tokens: "Tokens per month" },
  dag: { cost: "Cost per Dag in {currency}", tokens: "Tokens per Dag" },
};

// What a chart of these rows displays: its title and, for each row, the length of its bar and the texts.
function measureOf(rows, unit) {
  const currency = currencyOf(rows.map((one) => one.cost));
  const decimals = decimalsOf(rows.map((one) => one.cost));
  const used = (one) => tokens(one.tokens, one.unknown_tokens);
  const money = (one) => cost(one.cost, decimals);
  const images = (one) => count(one.images, "{n} image", "{n} images");
  return {
    title: t(currency ? TITLES[unit].cost : TITLES[unit].tokens, { currency }),
    value: currency ? (one) => valueOf(one.cost) : (one) => one.tokens,
    text: currency ? money : used,
    details: (one) => [money(one), used(one), images(one)].join(" · "),
  };
}

function nameOf(bar, unit) {
  if (unit === "month") return day(bar.start, { month: "long", year: "numeric" });
  return unit === "week" ? `${day(bar.start)} – ${day(bar.end, WITH_YEAR)}` : day(bar.start, WITH_YEAR);
}

// A chart of a single day or Dag would only repeat the totals.
export function Charts({ totals, filters, isStale, onChange }) {
  const byDay = totals.by_day.length > 1;
  const byDag = totals.by_dag.length > 1;
  if (!byDay && !byDag) return null;
  return h(
    "details",
    { className: `jojokey-fold${isStale ? " jojokey-stale" : ""}`, open: globalThis.innerWidth > NARROW },
    h("summary", null, t("Charts")),
    h(
      "div",
      { className: "jojokey-charts" },
      byDay && h(ByDay, { byDay: totals.by_day, filters, onChange }),
      byDag && h(ByDag, { byDag: totals.by_dag, onChange }),
    ),
  );
}

// The filter for a bar. A week or a month may start before the current filter, and end after it.
export function daysOf({ start, end }, { day_from: from, day_to: to }) {
  return { day_from: from > start ? from : start, day_to: to && to < end ? to : end };
}

function ByDay({ byDay, filters, onChange }) {
  const { unit, bars } = useMemo(() => barsOf(byDay, filters.day_to), [byDay, filters.day_to]);
  const { title, value, details } = measureOf(bars, unit);
  const most = Math.max(...bars.map(value)) || 1;
  return h(
    "section",
    { className: "jojokey-stack jojokey-panel jojokey-chart" },
    h("h3", { className: "jojokey-label" }, title),
    h(
      "div",
      { className: "jojokey-plot" },
      h("span", { className: "jojokey-small jojokey-axis", "aria-hidden": true, style: { bottom: "100%" } }, compact(most)),
      h("span", { className: "jojokey-small jojokey-axis", "aria-hidden": true, style: { bottom: "50%" } }, compact(most / 2)),
      bars.map((bar) => {
        const text = h("span", null, h("strong", null, nameOf(bar, unit)), details(bar));
        const height = { "--height": `${value(bar) ? Math.max(1.5, (value(bar) / most) * 100) : 0}%` };
        return bar.hasResults // failed ones have no images
          ? h(
              "button",
              {
                key: bar.start,
                type: "button",
                className: "jojokey-bar",
                style: height,
                onClick: () => onChange(daysOf(bar, filters)),
              },
              text,
            )
          : h("div", { key: bar.start, className: "jojokey-bar", style: height }, text);
      }),
    ),
    h(
      "div",
      { className: "jojokey-row jojokey-between jojokey-small jojokey-days", "aria-hidden": true },
      h("span", null, day(bars[0].start)),
      h("span", null, day(bars.at(-1).end)),
    ),
  );
}

function ByDag({ byDag, onChange }) {
  const { title, value, text, details } = measureOf(byDag, "dag");
  const sorted = [...byDag].sort((one, other) => value(other) - value(one));
  const shown = sorted.length > MOST_DAGS ? sorted.slice(0, MOST_DAGS - 1) : sorted;
  const rest = sorted.slice(shown.length);
  const sum = (name) => rest.reduce((all, one) => all + one[name], 0);
  const others = {
    tokens: sum("tokens"),
    unknown_tokens: sum("unknown_tokens"),
    images: sum("images"),
    cost: sumOf(rest.map((one) => one.cost)),
  };
  const most = Math.max(value(others), ...shown.map(value)) || 1;
  const row = (key, name, one) =>
    h(
      "li",
      { key, title: details(one) },
      h("span", { className: "jojokey-dag-name" }, name),
      h(
        "span",
        { className: "jojokey-rail", "aria-hidden": true },
        h("span", { style: { inlineSize: `${value(one) ? Math.max(1, (value(one) / most) * 100) : 0}%` } }),
      ),
      h("span", { className: "jojokey-number" }, text(one)),
    );
  return h(
    "section",
    { className: "jojokey-stack jojokey-panel jojokey-chart" },
    h("h3", { className: "jojokey-label" }, title),
    h(
      "ul",
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
  );
}
