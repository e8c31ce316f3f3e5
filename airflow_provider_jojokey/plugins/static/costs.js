// The cost by Dag, model and day, as a table and as a CSV file.
import { costsUrl, getCosts } from "./api.js";
import { day, number, tokens } from "./format.js";
import { cost, decimalsOf } from "./money.js";
import { ButtonLink, Failure, Spinner } from "./parts.js";
import { h, useEffect, useState } from "./react.js";
import { t } from "./text.js";

const SHOWN = 200;

// reloads is a number that changes when the totals are loaded again, which the table must agree with.
export function CostTable({ filters, reloads }) {
  const [open, setOpen] = useState(false);
  const [round, setRound] = useState(0);
  const [state, setState] = useState({});
  useEffect(() => {
    if (!open) return undefined;
    const controller = new AbortController();
    setState({});
    getCosts(filters, controller.signal).then(
      ({ rows, count }) => setState({ rows, count }),
      (error) => controller.signal.aborted || setState({ error }),
    );
    return () => controller.abort();
  }, [open, round, reloads, JSON.stringify(filters)]);
  return h(
    "details",
    { className: "jojokey-fold", onToggle: (event) => setOpen(event.target.open) },
    h("summary", null, t("Cost by Dag, model and day")),
    open && !state.rows && !state.error && h(Spinner, { label: t("Loading …") }),
    state.error && h(Failure, { error: state.error, onRetry: () => setRound((one) => one + 1) }),
    state.rows && h(Rows, { ...state, filters }),
  );
}

function Rows({ rows, count, filters }) {
  const shown = rows.slice(0, SHOWN);
  const decimals = decimalsOf(shown.map((row) => row.cost));
  return h(
    "div",
    { className: "jojokey-stack jojokey-costs" },
    h(
      ButtonLink,
      { href: costsUrl(filters), download: "costs.csv", icon: "download" },
      t("Download as CSV"),
    ),
    h(
      "div",
      { className: "jojokey-scroll", tabIndex: 0, role: "region", "aria-label": t("Cost by Dag, model and day") },
      h(
        "table",
        { className: "jojokey-table" },
        h(
          "thead",
          null,
          h("tr", null, ["Day", "Dag", "Model", "Images", "Tokens", "Cost"].map((name, at) =>
            h("th", { key: name, scope: "col", className: at > 2 ? "jojokey-number" : undefined }, t(name)),
          )),
        ),
        h(
          "tbody",
          null,
          shown.map((row) =>
            h(
              "tr",
              { key: [row.day, row.dag_id, row.model] },
              h("td", { className: "jojokey-nowrap" }, day(row.day, { day: "numeric", month: "short", year: "numeric" })),
              h("td", null, row.dag_id),
              h("td", null, row.model ?? "–"),
              h("td", { className: "jojokey-number" }, number(row.images)),
              h(
                "td",
                { className: "jojokey-number" },
                row.unknown_tokens ? tokens(row.total_tokens, row.unknown_tokens) : number(row.total_tokens),
              ),
              h("td", { className: "jojokey-number" }, cost(row.cost, decimals)),
            ),
          ),
        ),
      ),
    ),
    count > shown.length &&
      h("p", { className: "jojokey-muted" }, t("The CSV file has all {n} rows.", { n: number(count) })),
  );
}
