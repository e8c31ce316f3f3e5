// The page "Images" in the navigation: the latest images of all Dags that the user may read, and their cost.
import { getResults, getTotals } from "./api.js";
import { TokensByDag, TokensByDay } from "./charts.js";
import { FilterBar, isFiltered, useFilters } from "./filters.js";
import { cost, count, number } from "./format.js";
import { useLightbox } from "./lightbox.js";
import { Button, CopyButton, Empty, Failure, Notice, Spinner } from "./parts.js";
import { h, useCallback, useEffect, useLayoutEffect, useRef, useState } from "./react.js";
import { Card, Cards, keyOf } from "./results.js";
import { t } from "./text.js";

const PAGE = 60;
const KEPT_FOR = 60_000;
const MOST_KEPT = 8;

const FIRST_DAG = `from airflow.sdk import DAG
from airflow_provider_jojokey.operators.jojokey import GenerateImageOperator

with DAG("first_image"):
    GenerateImageOperator(
        task_id="image",
        prompt="A quiet harbour at dawn",
        s3_key="s3://my-bucket/harbour.png",
    )
`;

// What was loaded for each filter: who looks at a task and comes back finds the page as it was.
const kept = new Map();

function keep(key, values) {
  const old = kept.get(key);
  kept.delete(key);
  kept.set(key, { at: Date.now(), ...old, ...values });
  if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
}

function fresh(key) {
  const found = kept.get(key);
  return found && Date.now() - found.at < KEPT_FOR ? found : null;
}

const NOTHING = {
  cards: [],
  next: null,
  totals: null,
  unread: 0,
  why: null,
  unsearched: 0,
  error: null,
  moreError: null,
};

function useImages(filters) {
  const key = JSON.stringify(filters);
  const [round, setRound] = useState(0);
  const [state, setState] = useState(() => ({ ...NOTHING, ...fresh(key), of: key, loading: !fresh(key) }));
  const controller = useRef(new AbortController());
  const busy = useRef(false);

  useEffect(() => {
    controller.current = new AbortController();
    const { signal } = controller.current;
    const found = fresh(key);
    busy.current = false;
    if (found) {
      setState({ ...NOTHING, ...found, of: key, loading: false });
    } else {
      // What is on the page stays, in grey, until there is something to put in its place.
      setState((old) => ({ ...old, loading: true, error: null, moreError: null }));
      Promise.all([getResults(filters, null, PAGE, signal), getTotals(filters, signal)]).then(
        ([page, totals]) => {
          const { results: cards, next, unread, unread_why: why, unsearched } = page;
          const values = { cards, next, totals, unread, why, unsearched };
          keep(key, { ...values, at: Date.now(), scroll: 0 });
          setState({ ...NOTHING, ...values, of: key, loading: false });
        },
        // Results of another filter would be read as those of this one.
        (error) =>
          signal.aborted || setState((old) => ({ ...(old.of === key ? old : NOTHING), of: key, loading: false, error })),
      );
    }
    return () => controller.current.abort();
  }, [key, round]);

  const loadMore = useCallback(async () => {
    if (busy.current || state.loading || state.next === null) return;
    busy.current = true;
    const { signal } = controller.current;
    setState((old) => ({ ...old, moreError: null, loadingMore: true }));
    try {
      const page = await getResults(filters, state.next, PAGE, signal);
      setState((old) => {
        const there = new Set(old.cards.map(keyOf));
        const cards = [...old.cards, ...page.results.filter((card) => !there.has(keyOf(card)))];
        const values = { cards, next: page.next, unread: old.unread + page.unread, why: page.unread_why ?? old.why };
        keep(key, values);
        return { ...old, ...values, loadingMore: false };
      });
    } catch (error) {
      if (!signal.aborted) setState((old) => ({ ...old, moreError: error, loadingMore: false }));
    } finally {
      if (!signal.aborted) busy.current = false;
    }
  }, [key, state.next, state.loading]);

  const reload = useCallback(() => {
    kept.delete(key);
    setRound((one) => one + 1);
  }, [key]);

  return { ...state, key, round, loadMore, reload };
}

// The names of all Dags that have images, whatever the filter.
function useDags(filters, totals) {
  const [dags, setDags] = useState([]);
  const needed = isFiltered(filters);
  useEffect(() => {
    if (!needed) {
      if (totals) setDags(totals.by_dag.map((one) => one.dag_id).sort());
      return undefined;
    }
    if (dags.length) return undefined;
    const controller = new AbortController();
    getTotals({}, controller.signal).then(
      (all) => setDags(all.by_dag.map((one) => one.dag_id).sort()),
      () => {}, // without them the filter still takes what is in the address
    );
    return () => controller.abort();
  }, [needed, totals]);
  return dags;
}

function scrollerOf(element) {
  for (let one = element?.parentElement; one; one = one.parentElement) {
    if (/auto|scroll/.test(getComputedStyle(one).overflowY)) return one;
  }
  return document.scrollingElement;
}

function useScrollPosition(root, key) {
  useLayoutEffect(() => {
    const scroller = scrollerOf(root.current);
    const top = fresh(key)?.scroll;
    if (top) scroller.scrollTop = top;
    const onScroll = () => kept.has(key) && keep(key, { scroll: scroller.scrollTop });
    scroller.addEventListener("scroll", onScroll, { passive: true });
    return () => scroller.removeEventListener("scroll", onScroll);
  }, [key]);
}

function useTitle() {
  useEffect(() => {
    const { title } = document;
    document.title = `${t("Images")} - Airflow`;
    return () => {
      document.title = title;
    };
  }, []);
}

export function Gallery() {
  const [filters, change] = useFilters();
  const images = useImages(filters);
  const { cards, next, totals, loading, loadingMore, error, moreError, loadMore } = images;
  const missing = images.unread + images.unsearched + (totals?.unread ?? 0) > 0;
  const dags = useDags(filters, totals);
  const root = useRef(null);
  useScrollPosition(root, images.key);
  useTitle();
  const [show, dialog] = useLightbox(cards, { linked: true, onNearEnd: loadMore });

  const nothing = !loading && !error && cards.length === 0;
  const first = nothing && !missing && !isFiltered(filters);
  return h(
    "section",
    { ref: root, className: "jojokey-root jojokey-gallery", "aria-label": t("Images"), "aria-busy": loading },
    !first && h(FilterBar, { filters, dags, onChange: change }),
    !first && totals && h(Totals, { totals, onReload: images.reload, loading, onChange: change }),
    error && h(Failure, { error, onRetry: images.reload }),
    !nothing && totals && totals.results > 0 && h(Charts, { totals, filters, onChange: change }),
    missing && !loading && h(Missing, images),
    loading && !cards.length && h(Spinner, { label: t("Looking for images …") }),
    h(
      "div",
      { className: `jojokey-results${loading ? " jojokey-stale" : ""}` },
      cards.length > 0 &&
        h(
          Cards,
          null,
          cards.map((card) =>
            h(Card, {
              key: `${keyOf(card)} ${images.round}`,
              card,
              title: card.dag_id,
              subtitle: h(Subtitle, { card, onChange: change }),
              onOpen: show,
            }),
          ),
        ),
      next !== null && !loading && !error && !moreError && h(Sentinel, { onSeen: loadMore, key: cards.length }),
    ),
    moreError && h(Failure, { error: moreError, onRetry: loadMore }),
    next !== null &&
      !error &&
      !moreError &&
      (cards.length > 0 || missing) &&
      h(
        "div",
        { className: "jojokey-show-more" },
        h(Button, { onClick: loadMore, disabled: loadingMore }, loadingMore ? t("Loading …") : t("Load more")),
      ),
    first && h(First),
    nothing && isFiltered(filters) && h(NoMatch, { onClear: change }),
    dialog,
  );
}

// The run's ID leads to all images of that run.
function Subtitle({ card, onChange }) {
  const label = card.map_index >= 0 ? ` · ${card.label ?? `[${card.map_index}]`}` : "";
  const only = { dag_id: card.dag_id, run_id: card.run_id };
  return [
    h("span", { key: "task" }, `${card.task_id}${label}`),
    h(
      "button",
      {
        key: "run",
        type: "button",
        className: "jojokey-link",
        title: t("All images of this run"),
        onClick: () => onChange(only),
      },
      card.run_id,
    ),
  ];
}

function Totals({ totals, onReload, loading, onChange }) {
  const { usage = {} } = totals;
  return h(
    "div",
    { className: "jojokey-totals", role: "status" },
    h(
      "div",
      null,
      h("h2", { className: "jojokey-heading" }, count(totals.images, "{n} Image", "{n} Images")),
      h(
        "span",
        { className: "jojokey-muted" },
        [
          cost(totals.cost),
          count(usage.total_tokens ?? 0, "{n} token", "{n} tokens"),
          t("{in} in, {out} out", { in: count(usage.input_tokens ?? 0, "{n}", "{n}"), out: count(usage.output_tokens ?? 0, "{n}", "{n}") }),
        ].join(" · "),
        h(Failures, { totals, onChange }),
      ),
    ),
    h(Button, { icon: "reload", label: t("Refresh"), variant: "ghost", onClick: onReload, disabled: loading }),
  );
}

// What a custom XCom backend keeps outside of Airflow's database: never silently left out.
function Missing({ unread, why, unsearched, totals }) {
  const lines = [
    unread > 0 && `${count(unread, "{n} result can't be shown.", "{n} results can't be shown.")} ${why ?? ""}`,
    unsearched > 0 &&
      count(
        unsearched,
        "The search leaves out {n} result, which the XCom backend keeps outside of Airflow's database.",
        "The search leaves out {n} results, which the XCom backend keeps outside of Airflow's database.",
      ),
    totals?.unread > 0 &&
      count(
        totals.unread,
        "The totals leave out {n} result, which the XCom backend keeps outside of Airflow's database.",
        "The totals leave out {n} results, which the XCom backend keeps outside of Airflow's database.",
      ),
  ].filter(Boolean);
  return h(
    Notice,
    { title: t("Some results are missing here") },
    lines.map((line) => h("p", { key: line }, line)),
  );
}

// Each number leads to the results that it counts.
function Failures({ totals, onChange }) {
  const numbers = [
    ["failed", t("{n} failed", { n: number(totals.failed) })],
    ["failed_paid", t("{n} paid", { n: number(totals.failed_paid) })],
    ["failed_perhaps_paid", t("{n} perhaps paid", { n: number(totals.failed_perhaps_paid) })],
  ].filter(([state]) => totals[state] > 0);
  return numbers.map(([state, text]) => [
    " · ",
    h("button", { key: state, type: "button", className: "jojokey-link", onClick: () => onChange({ state }) }, text),
  ]);
}

function Charts({ totals, filters, onChange }) {
  return h(
    "div",
    { className: "jojokey-charts" },
    h(TokensByDay, { byDay: totals.by_day, filters, onChange }),
    h(TokensByDag, { byDag: totals.by_dag, onChange }),
  );
}

// It lies above the end of the list, and is seen before the end is.
function Sentinel({ onSeen }) {
  const element = useRef(null);
  const seen = useRef(onSeen);
  seen.current = onSeen;
  useEffect(() => {
    const observer = new IntersectionObserver(([entry]) => entry.isIntersecting && seen.current());
    observer.observe(element.current);
    return () => observer.disconnect();
  }, []);
  return h("div", { ref: element, className: "jojokey-sentinel", "aria-hidden": true });
}

function NoMatch({ onClear }) {
  const nothing = { q: "", dag_id: "", run_id: "", day_from: "", day_to: "", state: "" };
  return h(
    Empty,
    { icon: "search", title: t("No images match these filters") },
    h("p", null, t("Try fewer words, another Dag or more days.")),
    h(Button, { onClick: () => onClear(nothing) }, t("Clear filters")),
  );
}

function First() {
  return h(
    Empty,
    { title: t("No images yet") },
    h(
      "p",
      null,
      t("Images that your Dags make with JojoKey appear here, with what they cost. This Dag makes the first one:"),
    ),
    h(
      "div",
      { className: "jojokey-code" },
      h(
        "div",
        { className: "jojokey-code-head" },
        "first_image.py",
        h(CopyButton, { text: FIRST_DAG, label: t("Copy the Dag"), variant: "ghost" }, t("Copy")),
      ),
      h("pre", { tabIndex: 0 }, h("code", null, FIRST_DAG)),
    ),
    h(
      "p",
      { className: "jojokey-muted" },
      t("It needs a connection jojokey_default with your token, and aws_default for S3."),
    ),
  );
}
