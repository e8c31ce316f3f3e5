// The tab "Images" of a task instance: its images, their cost and all attempts.
import { getTask, isUnderWay } from "./api.js";
import { count, fileSize, number, said, seconds, tokenCount, tokens } from "./format.js";
import { enlarge, useLightbox } from "./lightbox.js";
import { cost, decimalsOf } from "./money.js";
import {
  AppLink,
  Badge,
  BillBadge,
  Button,
  ButtonLink,
  CopyButton,
  Empty,
  Fact,
  Failure,
  Icon,
  Meter,
  Notice,
  Prompt,
  safeUrl,
  Spinner,
  Time,
  useTitle,
} from "./parts.js";
import { altOf, Broken, useProblem } from "./pictures.js";
import { h, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./react.js";
import { Typed } from "./filters.js";
import { Card, Cards, keyOf } from "./results.js";
import { entriesOf, SelectBox, SelectionBar, useSelection } from "./selection.js";
import { t } from "./text.js";

const FIRST_WAIT = 2500;
const LONGEST_WAIT = 15000;
// Maximum characters of a search for items.
const MOST_SEARCHED = 200;
// Maximum characters of a prompt in a result.
const MOST_OF_A_PROMPT = 2000;

// Poll at increasing intervals, and only while the page is visible. A task that has ended can be cleared, and a receipt
// can be resolved by hand, so polling never ends.
function useTask(task) {
  const [answer, setAnswer] = useState(null);
  const [error, setError] = useState(null);
  const [round, setRound] = useState(0);
  const retry = useCallback(() => {
    setError(null);
    setRound((one) => one + 1);
  }, []);

  useEffect(() => {
    const controller = new AbortController();
    let timer = 0;
    let wait = FIRST_WAIT;
    let seen = "";
    const ask = async () => {
      try {
        // Request the state before the result. In the opposite order, a result written in between would be missed.
        const underWay = await isUnderWay(task, controller.signal);
        const found = { ...(await getTask(task, {}, controller.signal)), underWay };
        const now = JSON.stringify(found);
        wait = !underWay ? LONGEST_WAIT : now === seen ? Math.min(LONGEST_WAIT, wait * 1.25) : FIRST_WAIT;
        // A new object would discard the pages that the user has loaded.
        if (now !== seen) setAnswer(found);
        seen = now;
        setError(null);
        later();
      } catch (failure) {
        if (controller.signal.aborted) return;
        setError(failure);
        wait = LONGEST_WAIT; // it may pass, such as when the user signs in again in another tab
        later();
      }
    };
    const later = () => {
      timer = setTimeout(() => (document.visibilityState === "visible" ? ask() : later()), wait);
    };
    ask();
    return () => {
      controller.abort();
      clearTimeout(timer);
    };
  }, [round]);

  return { answer, error, retry };
}

export function TaskImages({ dagId, runId, taskId, mapIndex }) {
  const task = { dagId, runId, taskId, mapIndex };
  const { answer, error, retry } = useTask(task);
  const root = useRef(null);
  useTitle(taskId, t("Images"));

  // Airflow's task page is at least 1,280 pixels wide, so scroll the tab into view in narrow windows.
  useLayoutEffect(() => {
    const { left, width } = root.current.getBoundingClientRect();
    if (left + Math.min(width, 200) > globalThis.innerWidth) root.current.scrollIntoView({ block: "nearest" });
  }, []);

  let content;
  if (error && !answer) content = h(Failure, { error, onRetry: retry });
  else if (!answer) content = h(Spinner, { label: t("Looking for images …") });
  else if (answer.results?.length || answer.unread > 0) content = h(Mapped, { task, answer });
  else if (answer.result) content = h(One, { task, answer });
  else if (answer.underWay) content = h(Working, { progress: answer.progress });
  else content = answer.progress ? h(Ended, { progress: answer.progress }) : h(Nothing);

  return h(
    "section",
    { ref: root, className: "jojokey-root jojokey-tab", "aria-label": t("Images") },
    error && answer && h(Failure, { error, onRetry: retry }),
    content,
  );
}

function Working({ progress }) {
  return h(
    "div",
    { className: "jojokey-stack jojokey-empty", role: "status" },
    h("span", { className: "jojokey-spinner jojokey-spinner-large", "aria-hidden": true }),
    h("h3", { className: "jojokey-heading" }, progress ? t("The batch is running") : t("No images yet")),
    progress && h(Progress, { progress }),
    h("p", null, t("The task has not ended. Its images appear here automatically.")),
  );
}

// A batch whose process was killed leaves its last progress, but no result.
function Ended({ progress }) {
  return h(
    Empty,
    { icon: "warning", title: t("The batch ended without a report") },
    h(Progress, { progress }),
    h(
      "p",
      null,
      t("This is what it had reported until then. Clear the task to get the rest: images that are in S3 are not paid for again."),
    ),
  );
}

// What a batch has reported while it ran.
function Progress({ progress }) {
  const { total, done, failed, images } = progress;
  const facts = [
    t("{done} of {total} items", { done: number(done), total: number(total) }),
    images > 0 && count(images, "{n} image", "{n} images"),
    failed > 0 && t("{n} failed", { n: number(failed) }),
    cost(progress.cost),
  ];
  return h(Meter, {
    label: [t("Progress"), " · ", h(Time, { key: "at", iso: progress.at, relative: true })],
    text: facts.filter(Boolean).join(" · "),
    share: total ? done / total : 0,
  });
}

function Nothing() {
  return h(
    Empty,
    { title: t("No images") },
    h(
      "p",
      null,
      t(
        "This tab shows the images that a task makes with JojoKey, and what they cost. This task has reported none in this Dag run.",
      ),
    ),
  );
}

function One({ task, answer }) {
  const { result, attempts, attempts_error: attemptsError, s3_console: console } = answer;
  const single = result.images.length === 1 && !result.batch;
  const cards = useMemo(() => [result], [result]);
  const selection = useSelection();
  const [show, dialog] = useLightbox(cards, { selection });
  useLinked(result.batch ? NO_ROWS : cards, show);
  return h(
    "div",
    { className: `jojokey-stack jojokey-one${single ? " jojokey-one-single" : ""}` },
    result.state === "failed" && h(Failed, { result, underWay: answer.underWay }),
    result.batch
      ? null
      : result.images.length > 0 &&
          h(
            "div",
            { className: "jojokey-figures" },
            result.images.map((image, position) =>
              h(Figure, { key: image.number, image, position, result, selection, onOpen: () => show(result, image) }),
            ),
          ),
    h(Facts, { result, console }),
    result.batch && h(Items, { task, answer }),
    h(Attempts, { attempts, error: attemptsError }),
    !result.batch && h(SelectionBar, { selection }),
    dialog,
  );
}

// A link to an image has the image's key in its URL. The dialog opens when the image is loaded.
function linkedImage() {
  return new URLSearchParams(globalThis.location.search).get("image") ?? "";
}

function useLinked(cards, show) {
  const done = useRef(false);
  useEffect(() => {
    const key = linkedImage();
    const entries = key && !done.current ? cards.flatMap(entriesOf) : [];
    // Links of earlier versions have only the name.
    const entry = entries.find(([, image]) => image.key === key) ?? entries.find(([, image]) => image.name === key);
    if (!entry) return;
    done.current = true;
    show(...entry);
  }, [cards]);
}

function failedTitle(result) {
  if (result.batch && result.count > 0) {
    return count(result.count, "The task failed. One image is stored.", "The task failed. {n} images are stored.");
  }
  if (result.paid === "no") return t("The task failed. Nothing was charged.");
  if (result.paid === "unknown") return t("The task failed. It is unknown whether it was charged.");
  if (result.billed === "yes") return t("The task failed, and it was charged.");
  return result.billed === "unknown"
    ? t("The task failed. Earlier attempts of it were charged; it is unknown whether the last one was.")
    : t("The task failed. Earlier attempts of it were charged.");
}

function Failed({ result, underWay }) {
  const total = result.usage?.total_tokens ?? 0;
  // A fee has a cost, but no tokens.
  const charged = total > 0 || result.cost.amounts.some((one) => Number(one.amount) > 0)
    ? [total > 0 && tokens(total), cost(result.cost)].filter(Boolean)
    : [];
  const kept = result.batch ? 0 : result.images.length;
  const next = [
    charged.length > 0 && t("Charged in this Dag run: {tokens}.", { tokens: charged.join(" · ") }),
    kept > 0 && count(kept, "One image had arrived and is kept.", "{n} images had arrived and are kept."),
    underWay && t("The task will try again."),
  ].filter(Boolean);
  return h(
    Notice,
    { kind: "error", title: failedTitle(result) },
    h("p", { dir: "auto" }, result.message ?? result.error),
    next.length > 0 && h("p", null, next.join(" ")),
  );
}

function Figure({ image, position, result, selection, onOpen }) {
  const problem = useProblem(safeUrl(image.src));
  return h(
    "figure",
    { className: "jojokey-stack jojokey-figure" },
    problem.words !== null
      ? h(Broken, { problem, className: "jojokey-figure-broken" })
      : h(
          "button",
          {
            type: "button",
            className: "jojokey-figure-button",
            "aria-label": enlarge(result, image, position, result.images.length),
            onClick: onOpen,
          },
          h("img", {
            key: problem.round,
            src: safeUrl(image.src),
            alt: altOf(result, image),
            width: image.width,
            height: image.height,
            style: { aspectRatio: `${image.width} / ${image.height}` },
            decoding: "async",
            onError: problem.onError,
          }),
        ),
    h(
      "figcaption",
      { className: "jojokey-row jojokey-between" },
      h(
        "span",
        { className: "jojokey-stack jojokey-small jojokey-file" },
        h("span", { className: "jojokey-file-name", title: image.uri }, image.name),
        h("span", { className: "jojokey-muted" }, `${image.width} × ${image.height} · ${fileSize(image.bytes)}`),
      ),
      h(
        "span",
        { className: "jojokey-row jojokey-tools" },
        result.images.length > 1 &&
          h(SelectBox, {
            selection,
            entries: [[result, image]],
            name: t("Select {name}", { name: image.name }),
          }),
        h(CopyButton, { text: image.uri, label: t("Copy the S3 location") }),
        h(ButtonLink, { href: image.download, download: image.name, icon: "download", label: t("Download") }),
      ),
    ),
  );
}

function Facts({ result, console }) {
  const { usage = {} } = result;
  return h(
    "div",
    { className: "jojokey-stack jojokey-facts" },
    h(
      "div",
      { className: "jojokey-facts-prompt" },
      h(
        "div",
        { className: "jojokey-row jojokey-label-row" },
        h("h3", { className: "jojokey-label" }, t(result.batch ? "Prompt of the first item" : "Prompt")),
        result.prompt && h(CopyButton, { text: result.prompt, label: t("Copy the prompt"), variant: "ghost" }),
      ),
      result.prompt ? h(Prompt, { text: result.prompt }) : h("p", { className: "jojokey-muted" }, "–"),
      result.prompt?.length >= MOST_OF_A_PROMPT &&
        h("p", { className: "jojokey-muted" }, t("This is the beginning of a longer prompt. The receipt in S3 has all of it.")),
    ),
    h(
      "dl",
      { className: "jojokey-dl" },
      h(Fact, { label: t("Bill") }, h(BillBadge, { result, always: true })),
      h(
        Fact,
        { label: t("Tokens") },
        tokenCount(usage.total_tokens, result.paid),
        usage.total_tokens > 0 &&
          h(
            "span",
            { className: "jojokey-muted" },
            ` = ${t("{in} in + {out} out", { in: number(usage.input_tokens), out: number(usage.output_tokens) })}`,
          ),
      ),
      h(Fact, { label: t("Cost") }, cost(result.cost)),
      h(Fact, { label: t("Generated in") }, result.seconds === null ? null : seconds(result.seconds)),
      h(Fact, { label: t("Images") }, result.count > 1 ? number(result.count) : null),
      h(Fact, { label: t("Model") }, result.model),
      h(Fact, { label: t("Size") }, result.size?.replace("x", " × ")),
      h(Fact, { label: t("Quality") }, result.quality),
      h(
        Fact,
        { label: t("Derived from") },
        result.derived_from &&
          h(
            AppLink,
            { to: galleryOf({ dagId: result.dag_id, runId: result.run_id }), className: "jojokey-link", title: result.derived_from },
            result.derived_from.split("/").pop(),
          ),
      ),
      h(Fact, { label: t("Made") }, result.made_at && h(Time, { iso: result.made_at })),
      h(
        Fact,
        { label: t("Request ID") },
        result.request_id &&
          h(
            "span",
            { className: "jojokey-row jojokey-copyable" },
            h("code", { title: result.request_id }, result.request_id),
            h(CopyButton, { text: result.request_id, label: t("Copy the request ID"), variant: "ghost" }),
          ),
      ),
    ),
    h(Budget, { uses: result.budget }),
    h(
      "div",
      { className: "jojokey-row jojokey-tools" },
      // Airflow has no address that fills in the trigger form, but the run's page has a button that does.
      h(
        AppLink,
        {
          to: runOf(result),
          className: "jojokey-button jojokey-button-outline",
          title: t("Trigger on the page of the run offers: Trigger again with this config"),
        },
        h(Icon, { name: "reload" }),
        t("Make again from the run"),
      ),
      console &&
        h(
          ButtonLink,
          { href: console, icon: "external", target: "_blank", rel: "noreferrer" },
          t("Open in the S3 console"),
        ),
    ),
  );
}

const LIMITS = { task: "Budget of this task", run: "Budget of the Dag run" };

// What was used of each limit when the task ended.
function Budget({ uses }) {
  if (!uses?.length) return null;
  const texts = {
    tokens: (value) => count(value, "{n} token", "{n} tokens"),
    images: (value) => count(value, "{n} image", "{n} images"),
    cost: (value, decimals) => cost(value, decimals),
  };
  return h(
    "div",
    { className: "jojokey-budget" },
    uses.map(({ scope, unit, used, limit }) => {
      const valueOf = (one) => (unit === "cost" ? Number(one.amounts[0].amount) : one);
      const decimals = unit === "cost" ? decimalsOf([used, limit]) : undefined;
      return h(Meter, {
        key: scope + unit,
        label: t(LIMITS[scope]),
        text: t("{used} of {limit}", { used: texts[unit](used, decimals), limit: texts[unit](limit, decimals) }),
        share: valueOf(limit) ? valueOf(used) / valueOf(limit) : 1,
      });
    }),
  );
}

const OUTCOMES = {
  open: ["muted", "Under way"],
  complete: ["success", "Complete"],
  not_billed: ["failed", "Failed"],
  billed: ["failed", "Failed, paid"],
  unknown: ["failed", "Failed, perhaps paid"],
};
const BILLED = { yes: "Yes", no: "No", unknown: "Unknown" };

function Attempts({ attempts, error }) {
  if (error) return h(Notice, { title: t("The attempts can't be shown") }, said(error));
  if (!attempts?.length) return null;
  const decimals = decimalsOf(attempts.map((one) => one.cost));
  return h(
    "div",
    { className: "jojokey-stack jojokey-attempts" },
    h("h3", { className: "jojokey-heading" }, count(attempts.length, "{n} Attempt", "{n} Attempts")),
    h(
      "div",
      { className: "jojokey-scroll", tabIndex: 0, role: "region", "aria-label": t("Attempts") },
      h(
        "table",
        { className: "jojokey-table" },
        h(
          "thead",
          null,
          h(
            "tr",
            null,
            ["Started", "Try", "Outcome", "Billed", "Cost", "Tokens", "Took", "Request ID", "Note"].map((name) =>
              h("th", { key: name, scope: "col" }, t(name)),
            ),
          ),
        ),
        h(
          "tbody",
          null,
          attempts.map((one, position) => {
            const [kind, word] = OUTCOMES[one.outcome] ?? ["muted", String(one.outcome)];
            return h(
              "tr",
              { key: position },
              h("td", { className: "jojokey-nowrap" }, one.started_at && h(Time, { iso: one.started_at })),
              h("td", null, one.try_number),
              h("td", null, h(Badge, { kind }, t(word))),
              h("td", null, t(BILLED[one.billed] ?? "Unknown")),
              h("td", { className: "jojokey-nowrap" }, cost(one.cost, decimals)),
              h("td", null, tokenCount(one.usage?.total_tokens, one.billed)),
              h("td", null, Number.isFinite(one.seconds) ? seconds(one.seconds) : "–"),
              h("td", null, one.request_id || one.cf_ray ? h("code", null, one.request_id ?? one.cf_ray) : "–"),
              h("td", { className: "jojokey-note" }, [one.error, one.note].filter(Boolean).join(": ") || "–"),
            );
          }),
        ),
      ),
    ),
  );
}

// Load pages of results on demand and append them. query is the server-side filter.
function usePages(task, answer, name, query) {
  const asked = JSON.stringify(query);
  const first = useMemo(() => {
    const none = { rows: null, next: 0, pages: 0 };
    const inAnswer = { rows: answer[name] ?? [], next: answer.next_page ?? null, pages: 1 };
    return { answer, asked, ...(query ? none : inAnswer), loading: false };
  }, [answer, asked]);
  const [state, setState] = useState(first);
  const alive = useRef(new AbortController());
  // Pages, errors and requests of another filter say nothing about this one. The pages of an earlier answer stay until
  // they are loaded again.
  const isOutdated = state.answer !== answer;
  const hasPages = first.next !== null && state.pages > first.pages;
  const current = state.asked === asked && (!isOutdated || hasPages) ? state : first;
  const ask = async (before, wanted) => {
    const { signal } = alive.current;
    const show = (values) => signal.aborted || setState({ ...current, loading: false, error: null, ...values });
    show({ loading: true });
    let { rows, next, pages, problem } = before;
    try {
      do {
        const body = await getTask(task, { ...query, page: next }, signal);
        rows = [...(rows ?? []), ...(body[name] ?? [])];
        next = body.next_page ?? null;
        problem = body.items_error;
        pages += 1;
      } while (next !== null && pages < wanted);
      show({ answer, rows, next, pages, problem });
    } catch (error) {
      show({ error });
    }
  };
  useEffect(() => {
    alive.current = new AbortController();
    if (query || current !== first) ask(first, current.pages);
    return () => alive.current.abort();
  }, [answer, asked]);
  const load = () => {
    if (current.loading) return undefined;
    if (current.answer !== answer) return ask(first, current.pages);
    return current.next !== null && ask(current, current.pages + 1);
  };
  return {
    rows: current.rows ?? NO_ROWS,
    known: current.rows !== null,
    problem: query ? current.problem : answer.items_error,
    hasMore: current.next !== null && current.rows !== null,
    load,
    loading: current.loading,
    error: current.error,
  };
}

const NO_ROWS = [];

function ShowMore({ pages }) {
  if (pages.error) return h(Failure, { error: pages.error, onRetry: pages.load });
  if (!pages.hasMore) return null;
  return h(
    "div",
    { className: "jojokey-show-more" },
    h(Button, { onClick: pages.load, disabled: pages.loading }, pages.loading ? t("Loading …") : t("Show more")),
  );
}

function Mapped({ task, answer }) {
  const pages = usePages(task, answer, "results");
  const decimals = decimalsOf(pages.rows.map((card) => card.cost));
  const selection = useSelection();
  const [show, dialog] = useLightbox(pages.rows, { onNearEnd: pages.load, selection });
  return h(
    "div",
    { className: "jojokey-stack jojokey-items" },
    h(
      "div",
      { className: "jojokey-row jojokey-between jojokey-items-head" },
      h("h3", { className: "jojokey-heading" }, t("Mapped tasks")),
      h(
        AppLink,
        { to: galleryOf(task), className: "jojokey-button jojokey-button-outline" },
        h(Icon, { name: "search" }),
        t("Search and sort in Images"),
      ),
    ),
    answer.unread > 0 &&
      h(Notice, { title: count(answer.unread, "{n} result can't be shown.", "{n} results can't be shown.") }, said(answer.unread_why)),
    h(
      Cards,
      null,
      pages.rows.map((card) =>
        h(Card, { key: keyOf(card), card, title: card.label ?? `[${card.map_index}]`, decimals, onOpen: show, selection }),
      ),
    ),
    h(ShowMore, { pages }),
    h(SelectionBar, { selection }),
    dialog,
  );
}

function runOf({ dag_id: dagId, run_id: runId }) {
  const [dag, run] = [dagId, runId].map(encodeURIComponent);
  return new URL(`../../dags/${dag}/runs/${run}`, import.meta.url).href;
}

function galleryOf({ dagId, runId, taskId }) {
  const query = new URLSearchParams({ dag_id: dagId, run_id: runId, ...(taskId && { task_id: taskId }) });
  return new URL(`../../plugin/jojokey-gallery?${query}`, import.meta.url).href;
}

// The manifest in S3 lists all items. The task's result has URLs only for the first images.
function Items({ task, answer }) {
  const { result } = answer;
  const [failed, setFailed] = useState(false);
  const [words, setWords] = useState(() => linkedImage().slice(-MOST_SEARCHED));
  // Without a list, there are only the result's own images.
  const query = !answer.items_error && (failed || words) ? { failed: failed || "", q: words } : undefined;
  const pages = usePages(task, answer, "items", query);
  const served = useMemo(() => new Map(result.images.map((image) => [image.uri, image])), [result]);
  const cards = useMemo(() => {
    const rows = pages.rows.length || query ? pages.rows : [{ ...result, made_at: null }];
    return rows.map((item) => {
      const images = item.images.map((image) => ({ ...image, ...served.get(image.uri) }));
      return { ...item, href: null, images, count: Math.max(item.count ?? 0, images.length) };
    });
  }, [pages.rows, served]);
  const selection = useSelection();
  const [show, dialog] = useLightbox(cards, { onNearEnd: pages.load, selection });
  useLinked(pages.known ? cards : NO_ROWS, show);
  const decimals = decimalsOf(cards.map((card) => card.cost));
  return h(
    "div",
    { className: "jojokey-stack jojokey-items" },
    h(
      "div",
      { className: "jojokey-row jojokey-between jojokey-items-head" },
      h("h3", { className: "jojokey-heading" }, t("Items of the batch")),
      !answer.items_error &&
        h(
          "search",
          { className: "jojokey-row jojokey-items-filter" },
          h(Typed, {
            name: "item",
            type: "search",
            value: words,
            placeholder: t("Search items"),
            "aria-label": t("Words of an item's prompt, key, request ID or error"),
            maxLength: MOST_SEARCHED,
            onChange: (change) => setWords(change.item),
          }),
          h(
            "label",
            { className: "jojokey-row" },
            h("input", {
              type: "checkbox",
              checked: failed,
              onChange: (event) => setFailed(event.target.checked),
            }),
            t("Failed only"),
          ),
        ),
    ),
    pages.problem && h(Notice, { kind: "error", title: said(pages.problem) }),
    query && pages.known && !cards.length && !pages.hasMore && h("p", { role: "status" }, t("No items match.")),
    h(
      Cards,
      null,
      cards.map((card, position) => {
        // Errors and the manifest number the items from 0 as well.
        return h(Card, {
          key: card.index ?? position,
          card,
          title: card.images[0]?.name ?? t("Item {n}", { n: number(card.index ?? position) }),
          decimals,
          onOpen: show,
          selection,
        });
      }),
    ),
    pages.loading && !pages.known && h(Spinner, { label: t("Loading …") }),
    h(ShowMore, { pages }),
    h(SelectionBar, { selection }),
    dialog,
  );
}
