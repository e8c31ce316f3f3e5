// The page "Images" in the navigation: the latest images of all Dags that the user may read, and their costs.
import { getResults, getTotals } from "./api.js";
import { Charts } from "./charts.js";
import { CostTable } from "./costs.js";
import { choicesOf, FilterBar, isFiltered, NO_FILTERS, useFilters } from "./filters.js";
import { count, exactTime, number, said, timezone, tokens } from "./format.js";
import { useLightbox } from "./lightbox.js";
import { cost, decimalsOf } from "./money.js";
import { Button, CopyButton, Empty, Failure, Notice, Spinner, useTitle } from "./parts.js";
import { h, useCallback, useEffect, useLayoutEffect, useRef, useState } from "./react.js";
import { Card, Cards, keyOf } from "./results.js";
import { SelectionBar, useSelection } from "./selection.js";
import { t } from "./text.js";

const PAGE = 60;
const LOOK_FOR_NEW = 20_000;
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

// Loaded data by filter, so that the page looks the same when the user returns from a task.
const kept = new Map();

function keep(key, values) {
  const old = kept.get(key);
  kept.delete(key);
  kept.set(key, { at: Date.now(), ...old, ...values });
  if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
}

// The page can close after the images have arrived and before the totals, so either can be missing.
function fresh(key) {
  const found = kept.get(key);
  if (found && Date.now() - found.at < KEPT_FOR) return found;
  kept.delete(key);
  return {};
}

const NOTHING = {
  cards: [],
  next: null,
  totals: null,
  unread: 0,
  why: null,
  unsearched: 0,
  loading: true,
  loadingMore: false,
  error: null,
  moreError: null,
};

function useImages(filters) {
  const key = JSON.stringify([filters, timezone()]); // the same dates are other days in another time zone
  const [round, setRound] = useState(0);
  const [state, setState] = useState(() => ({ ...NOTHING, ...fresh(key), of: key }));
  const controller = useRef(new AbortController());
  const busy = useRef(false);

  useEffect(() => {
    controller.current = new AbortController();
    const { signal } = controller.current;
    const found = fresh(key);
    busy.current = false;
    // Load images and totals separately, because totals can take longer. Drop values of another filter, which would
    // look like values of this one.
    const show = (values) =>
      signal.aborted || setState((old) => ({ ...(old.of === key ? old : NOTHING), ...values, of: key }));
    const load = (asked, valuesOf, failed) =>
      asked.then(
        (answer) => {
          keep(key, { ...valuesOf(answer), at: Date.now() });
          show(kept.get(key));
        },
        (error) => show({ ...failed, error }),
      );
    if (found.cards) {
      show({ ...NOTHING, ...found, loading: false });
    } else {
      // Keep showing the old results, in gray, until the new ones have arrived.
      setState((old) => ({ ...old, loading: true, loadingMore: false, error: null, moreError: null }));
      load(
        getResults(filters, null, PAGE, signal),
        (page) => {
          const { results: cards, next, unread, unread_why: why, unsearched } = page;
          return { cards, next, unread, why, unsearched, place: null, loading: false };
        },
        { loading: false },
      );
    }
    if (!found.totals) load(getTotals(filters, signal), (totals) => ({ totals }));
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

// The IDs of all Dags that have images, regardless of the filter.
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
      () => {}, // without the list, the filter still accepts the Dag in the URL
    );
    return () => controller.abort();
  }, [needed, totals]);
  return dags;
}

const NONE_NEW = { n: 0, orMore: false, error: null };

// The number of results that are newer than those on the page; with orMore, there can be more. The error says that the
// user is no longer allowed to see them. Polls only while the page is visible.
function useNew(filters, { cards, loading, key, round }) {
  const [found, setFound] = useState(NONE_NEW);
  const known = useRef(cards);
  known.current = cards;
  const wanted = !loading && !filters.sort;
  useEffect(() => {
    setFound(NONE_NEW);
    if (!wanted) return undefined;
    const controller = new AbortController();
    const look = async () => {
      if (document.visibilityState !== "visible") return;
      try {
        const { results, next } = await getResults(filters, null, PAGE, controller.signal);
        const there = new Set(known.current.map((card) => keyOf(card) + card.made_at));
        // Older results that the page has not loaded yet move up if others are deleted.
        const oldest = known.current.at(-1)?.made_at ?? "";
        const n = results.filter((card) => !there.has(keyOf(card) + card.made_at) && card.made_at > oldest).length;
        setFound({ n, orMore: n === results.length && next !== null, error: null });
      } catch (error) {
        // Ignore an error that may pass: the next request may succeed.
        if (!controller.signal.aborted && !error.mayPass) setFound({ ...NONE_NEW, error });
      }
    };
    const timer = setInterval(look, LOOK_FOR_NEW);
    return () => {
      controller.abort();
      clearInterval(timer);
    };
  }, [key, round, wanted]);
  return found;
}

function showNew({ n, orMore }) {
  if (orMore) return t("Show {n} or more new results", { n: number(n) });
  return count(n, "Show {n} new result", "Show {n} new results");
}

function scrollerOf(element) {
  for (let one = element?.parentElement; one; one = one.parentElement) {
    if (/auto|scroll/.test(getComputedStyle(one).overflowY)) return one;
  }
  return document.scrollingElement;
}

// Find the first card that ends below a position, by a binary search.
function firstVisible(cards, top) {
  let [first, end] = [0, cards.length];
  while (first < end) {
    const middle = (first + end) >> 1;
    if (cards[middle].getBoundingClientRect().bottom > top) end = middle;
    else first = middle + 1;
  }
  return first;
}

// Keep the first visible card and its distance from the top. The scroller's position would be another place in the list
// later, because cards that were never visible have an estimated height. ready is false while the page has the images of
// another filter.
function useScrollPosition(root, key, ready) {
  useLayoutEffect(() => {
    if (!ready) return undefined;
    const scroller = scrollerOf(root.current);
    const cards = root.current.getElementsByClassName("jojokey-card");
    const distanceOf = (card) => card.getBoundingClientRect().top - scroller.getBoundingClientRect().top;
    const { place } = fresh(key);
    const away = () => (cards[place?.first] ? distanceOf(cards[place.first]) - place.distance : 0);
    let position = 0;
    const restore = () => {
      const by = away();
      if (Math.abs(by) > 1) scroller.scrollTop += by; // any assignment would end a smooth scroll
      position = scroller.scrollTop; // less than wanted while the page is too short
    };
    restore();
    // The cards around the place get their heights when they are drawn, and charts appear above them. So restore again
    // whenever the page changes its size, until the user scrolls. Firefox reports only that of a dragged scrollbar.
    const observer = new ResizeObserver(restore);
    if (place) observer.observe(root.current);
    const onScroll = () => {
      if (Math.abs(away()) > 2 && Math.abs(scroller.scrollTop - position) > 2) observer.disconnect();
      const first = firstVisible(cards, scroller.getBoundingClientRect().top);
      if (kept.has(key)) keep(key, { place: cards[first] && { first, distance: distanceOf(cards[first]) } });
    };
    scroller.addEventListener("scroll", onScroll, { passive: true });
    return () => {
      observer.disconnect();
      scroller.removeEventListener("scroll", onScroll);
    };
  }, [key, ready]);
}

export function Gallery() {
  const [filters, change] = useFilters();
  const images = useImages(filters);
  const { cards, next, totals, loading, loadingMore, error, moreError, loadMore, reload } = images;
  const missing = images.unread + images.unsearched + (totals?.unread ?? 0) > 0;
  const dags = useDags(filters, totals);
  const fresher = useNew(filters, images);
  const problem = error ?? fresher.error;
  const root = useRef(null);
  useScrollPosition(root, images.key, images.of === images.key && !loading);
  useTitle(t("Images"));
  const selection = useSelection();
  const [show, dialog] = useLightbox(cards, { linked: true, onNearEnd: loadMore, selection });

  const decimals = decimalsOf(cards.map((card) => card.cost));
  const nothing = !loading && !error && cards.length === 0;
  const isStale = images.of !== images.key; // what is shown is that of another filter, until the answers arrive
  const first = nothing && !missing && !isFiltered(filters);
  return h(
    "section",
    { ref: root, className: "jojokey-root jojokey-stack jojokey-gallery", "aria-label": t("Images"), "aria-busy": loading },
    !first && h(FilterBar, { filters, choices: choicesOf(dags, cards), onChange: change }),
    !first && h(Totals, { totals, onReload: reload, loading, isStale, error, onChange: change }),
    problem && h(Failure, { error: problem, onRetry: reload }),
    !nothing && totals && totals.results > 0 && h(Charts, { totals, filters, isStale, onChange: change }),
    !nothing && totals && totals.results > 0 && h(CostTable, { filters, reloads: images.round, key: images.key }),
    missing && !loading && h(Missing, images),
    fresher.n > 0 &&
      h(
        "div",
        { className: "jojokey-show-more", role: "status" },
        h(Button, { icon: "reload", onClick: reload }, showNew(fresher)),
      ),
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
              decimals,
              subtitle: h(Subtitle, { card, onChange: change }),
              onOpen: show,
              selection,
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
    h(SelectionBar, { selection }),
    dialog,
  );
}

// Link to the run by its time, because run IDs are long and start alike.
function Subtitle({ card, onChange }) {
  const label = card.map_index >= 0 ? ` · ${card.label ?? `[${card.map_index}]`}` : "";
  return [
    h("span", { key: "task", title: card.task_id }, `${card.task_id}${label}`),
    h(
      "button",
      {
        key: "run",
        type: "button",
        className: "jojokey-link",
        title: `${t("All images of this run")}: ${card.run_id}`,
        onClick: () => onChange({ ...NO_FILTERS, dag_id: card.dag_id, run_id: card.run_id }),
      },
      exactTime(card.made_at).slice(0, 16),
    ),
  ];
}

function Totals({ totals, onReload, loading, isStale, error, onChange }) {
  const { usage = {} } = totals ?? {};
  return h(
    "div",
    { className: `jojokey-row jojokey-between jojokey-totals${isStale ? " jojokey-stale" : ""}`, role: "status" },
    !totals && h("span", { className: "jojokey-muted" }, error ? "" : t("Loading …")),
    totals && h(
      "div",
      null,
      h("h2", { className: "jojokey-heading" }, count(totals.images, "{n} Image", "{n} Images")),
      h(
        "span",
        { className: "jojokey-muted" },
        [
          cost(totals.cost),
          tokens(usage.total_tokens, totals.unknown_tokens),
          usage.total_tokens > 0 && t("{in} in, {out} out", { in: number(usage.input_tokens), out: number(usage.output_tokens) }),
        ].filter(Boolean).join(" · "),
        h(Failures, { totals, onChange }),
      ),
    ),
    h(Button, { icon: "reload", label: t("Refresh"), variant: "ghost", onClick: onReload, disabled: loading }),
  );
}

// Report results that are missing because a custom XCom backend stores them outside of Airflow's database.
function Missing({ unread, why, unsearched, totals }) {
  const lines = [
    unread > 0 && `${count(unread, "{n} result can't be shown.", "{n} results can't be shown.")} ${said(why)}`,
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

// Each number is a link to the results that it counts.
function Failures({ totals, onChange }) {
  const numbers = [
    ["failed", t("{n} failed", { n: number(totals.failed) })],
    ["failed_paid", t("{n} of them paid", { n: number(totals.failed_paid) })],
    ["failed_perhaps_paid", t("{n} of them perhaps paid", { n: number(totals.failed_perhaps_paid) })],
  ].filter(([state]) => totals[state] > 0);
  return numbers.map(([state, text]) => [
    " · ",
    h("button", { key: state, type: "button", className: "jojokey-link", onClick: () => onChange({ state }) }, text),
  ]);
}

// It is positioned above the end of the list, so that loading starts before the user reaches the end.
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
  return h(
    Empty,
    { icon: "search", title: t("No images match these filters") },
    h("p", null, t("Try fewer words, another Dag or more days.")),
    h(Button, { onClick: () => onClear(NO_FILTERS) }, t("Clear filters")),
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
      { className: "jojokey-panel jojokey-code" },
      h(
        "div",
        { className: "jojokey-row jojokey-between jojokey-code-head" },
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
