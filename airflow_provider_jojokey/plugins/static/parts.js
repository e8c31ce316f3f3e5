// Small components of the tab and the page, styled like Airflow's own.
import { exactTime, relativeTime } from "./format.js";
import { h, RouterLink, useEffect, useId, useLayoutEffect, useRef, useState } from "./react.js";
import { t } from "./text.js";

const SHAPES = {
  check: "M5 12.5l4.5 4.5L19 7.5",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  compare: "M4 5h7v14H4zM13 5h7v14h-7z",
  download: "M12 4v11M7.5 11l4.5 4.5 4.5-4.5M4 20h16",
  external: "M9 5H5v14h14v-4M13 5h6v6M19 5l-9 9",
  image: "M4 5h16v14H4zM4 16l4.5-4.5 4 4 3-3L20 17M15.5 9.2v.1",
  link: "M10 14l4-4M8.5 11.5L6 14a3 3 0 004.2 4.2l2.5-2.5M15.5 12.5L18 10a3 3 0 00-4.2-4.2l-2.5 2.5",
  left: "M15 5l-7 7 7 7",
  plus: "M12 5v14M5 12h14",
  reload: "M19.5 12a7.5 7.5 0 11-2.2-5.3M19.5 3.5v4.3h-4.3",
  right: "M9 5l7 7-7 7",
  search: "M11 5a6 6 0 100 12 6 6 0 000-12zM15.5 15.5L20 20",
  warning: "M12 4l9 16H3zM12 10v4.5M12 17.2v.1",
};

export function Icon({ name }) {
  return h(
    "svg",
    { className: "jojokey-icon", viewBox: "0 0 24 24", "aria-hidden": true, focusable: false },
    h("path", { d: SHAPES[name] }),
  );
}

// With the attribute disabled, a button would lose the focus: while it loads, or at the last image.
export function Button({ icon, children, status, variant = "outline", label, disabled = false, onClick, ...rest }) {
  const only = icon && !children;
  return h(
    "button",
    {
      type: "button",
      className: `jojokey-button jojokey-button-${variant}${only ? " jojokey-button-icon" : ""}`,
      "aria-label": label,
      "aria-disabled": disabled || undefined,
      title: label,
      onClick: disabled ? undefined : onClick,
      ...rest,
    },
    icon && h(Icon, { name: icon }),
    children,
    status,
  );
}

// Allow only http and https, because a URL such as "javascript:" would run code.
export function safeUrl(url) {
  try {
    const { href, protocol } = new URL(url, document.baseURI);
    return protocol === "https:" || protocol === "http:" ? href : undefined;
  } catch {
    return undefined;
  }
}

// A link within Airflow that doesn't reload the page.
export function AppLink({ to, children, ...rest }) {
  const href = safeUrl(to);
  if (!href) return h("span", rest, children);
  // The router accepts a full URL of its own origin. To mark the open tab, it compares URLs as text, and Airflow
  // leaves these two characters of a run ID unencoded.
  return h(RouterLink, { to: href.replace(/%3A/gi, ":").replace(/%2B/gi, "+"), ...rest }, children);
}

export function ButtonLink({ href, icon, children, label, variant = "outline", ...rest }) {
  const only = icon && !children;
  return h(
    "a",
    {
      className: `jojokey-button jojokey-button-${variant}${only ? " jojokey-button-icon" : ""}`,
      href: safeUrl(href),
      "aria-label": label,
      title: label,
      ...rest,
    },
    icon && h(Icon, { name: icon }),
    children,
  );
}

async function copyText(text, from) {
  // Browsers disable the clipboard API on plain HTTP, which many Airflow deployments use.
  if (navigator.clipboard && globalThis.isSecureContext) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // The browser may deny access. Fall back to execCommand.
    }
  }
  const area = document.createElement("textarea");
  area.value = text;
  area.setAttribute("aria-hidden", "true");
  area.className = "jojokey-hidden";
  // While a dialog is open, text outside of it is inert and cannot be selected.
  (from.closest("dialog") ?? document.body).append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  from.focus();
  return done;
}

export function CopyButton({ text, label, children, icon = "copy", variant = "outline" }) {
  const [copied, setCopied] = useState(null);
  useEffect(() => {
    if (copied === null) return undefined;
    const timer = setTimeout(() => setCopied(null), 2000);
    return () => clearTimeout(timer);
  }, [copied]);
  const state = copied?.text === text ? copied.state : null; // the button may be that of the next image now
  const said = state === "done" ? t("Copied") : state === "refused" ? t("Copying was refused") : "";
  return h(
    Button,
    {
      icon: state === "done" ? "check" : icon,
      label,
      variant,
      onClick: async (event) =>
        setCopied({ text, state: (await copyText(text, event.currentTarget)) ? "done" : "refused" }),
      status: h("span", { className: "jojokey-hidden", role: "status" }, said),
    },
    children && h("span", null, said || children),
  );
}

// A button with a menu. Arrow keys move through the menu, Escape closes it.
export function Menu({ label, icon, items, button }) {
  const [open, setOpen] = useState(false);
  const root = useRef(null);
  const id = useId();
  useEffect(() => {
    if (open) root.current.querySelector("[role=menuitem]")?.focus();
  }, [open]);
  const close = () => {
    setOpen(false);
    button.current?.focus();
  };
  const onKeyDown = (event) => {
    if (!open) return;
    const all = [...root.current.querySelectorAll("[role=menuitem]")];
    const at = all.indexOf(document.activeElement);
    const steps = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 };
    if (event.key === "Escape") close();
    else if (event.key in steps) all.at(steps[event.key] % all.length).focus();
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  return h(
    "div",
    {
      ref: root,
      className: "jojokey-menu",
      onKeyDown,
      onBlur: (event) => !event.currentTarget.contains(event.relatedTarget) && setOpen(false),
    },
    h(
      "button",
      {
        ref: button,
        type: "button",
        className: "jojokey-button jojokey-button-outline jojokey-pill",
        "aria-haspopup": "menu",
        "aria-expanded": open,
        "aria-controls": open ? id : undefined,
        onClick: () => setOpen(!open),
      },
      h(Icon, { name: icon }),
      label,
    ),
    open &&
      h(
        "div",
        { id, role: "menu", "aria-label": label, className: "jojokey-stack jojokey-panel jojokey-menu-items" },
        items.map(([name, onSelect]) =>
          h(
            "button",
            {
              key: name,
              type: "button",
              role: "menuitem",
              tabIndex: -1,
              onClick: () => {
                close();
                onSelect();
              },
            },
            name,
          ),
        ),
      ),
  );
}

// Set the document's title in the format of Airflow's own pages.
export function useTitle(...parts) {
  const title = [...parts, "Airflow"].join(" - ");
  useEffect(() => {
    const before = document.title;
    document.title = title;
    return () => {
      document.title = before;
    };
  }, [title]);
}

export function Badge({ kind, children, title }) {
  return h("span", { className: `jojokey-badge jojokey-badge-${kind}`, title }, children);
}

const FAILED = {
  yes: ["Failed, paid", "It failed, and it was charged."],
  unknown: ["Failed, perhaps paid", "It failed, and it is unknown whether it was charged."],
  no: ["Failed", "It failed, and nothing was charged."],
};

const PARTLY_FAILED = {
  yes: ["Partly failed, paid", "It failed, but has stored images, and it was charged."],
  unknown: ["Partly failed, perhaps paid", "It failed, but has stored images, and it is unknown whether it was charged."],
  no: ["Partly failed", "It failed, but has stored images, and nothing was charged."],
};

// Show whether a result was paid for. Successful, paid results are the normal case and have no badge.
export function BillBadge({ result, always = false }) {
  if (result.state === "failed") {
    const words = result.batch && result.count > 0 ? PARTLY_FAILED : FAILED;
    const [word, title] = words[result.paid] ?? words.unknown;
    return h(Badge, { kind: "failed", title: t(title) }, t(word));
  }
  if (result.reused) {
    return h(Badge, { kind: "muted", title: t("An earlier attempt had paid for it: nothing was billed again.") }, t("Reused"));
  }
  if (result.derived_from) {
    return h(Badge, { kind: "muted", title: t("It was made of a paid image, without another payment.") }, t("Derived"));
  }
  return always && h(Badge, { kind: "success", title: t("It was billed to this task.") }, t("Paid"));
}

const MINUTE = 60_000;

export function Time({ iso, relative = false }) {
  const [, render] = useState(0);
  useEffect(() => {
    if (!relative) return undefined;
    const timer = setInterval(() => render((one) => one + 1), MINUTE);
    return () => clearInterval(timer);
  }, [relative]);
  const exact = exactTime(iso);
  return h("time", { dateTime: iso, title: relative ? exact : undefined }, relative ? relativeTime(iso) : exact);
}

export function Spinner({ label }) {
  return h(
    "div",
    { className: "jojokey-row jojokey-waiting", role: "status" },
    h("span", { className: "jojokey-spinner", "aria-hidden": true }),
    label,
  );
}

// A share of a whole as text and, for the eye, as a bar.
export function Meter({ label, text, share }) {
  const percent = Math.min(100, Math.max(0, share * 100));
  return h(
    "div",
    { className: "jojokey-stack jojokey-meter" },
    h("span", { className: "jojokey-label" }, label),
    h("span", null, text),
    h(
      "span",
      { className: "jojokey-rail", "aria-hidden": true },
      h("span", { style: { inlineSize: `${percent}%` } }),
    ),
  );
}

export function Notice({ kind = "info", title, children, action }) {
  return h(
    "div",
    { className: `jojokey-row jojokey-notice jojokey-notice-${kind}`, role: kind === "error" ? "alert" : undefined },
    kind !== "info" && h(Icon, { name: "warning" }),
    h(
      "div",
      { className: "jojokey-notice-text" },
      title && h("strong", null, title),
      children && h("div", null, children),
    ),
    action,
  );
}

export function Failure({ error, onRetry }) {
  const signIn = error.status === 401;
  return h(
    Notice,
    {
      kind: "error",
      title: error.message,
      // After a reload, Airflow redirects to the login page.
      action: h(
        Button,
        { onClick: signIn ? () => globalThis.location.reload() : onRetry },
        signIn ? t("Sign in") : t("Try again"),
      ),
    },
    error.detail,
  );
}

export function Empty({ icon = "image", title, children }) {
  return h(
    "div",
    { className: "jojokey-stack jojokey-empty" },
    h("span", { className: "jojokey-empty-icon" }, h(Icon, { name: icon })),
    title && h("h3", { className: "jojokey-heading" }, title),
    children,
  );
}

// Show a prompt with its line breaks, collapsed if it is long.
export function Prompt({ text }) {
  const [open, setOpen] = useState(false);
  const [long, setLong] = useState(false);
  const element = useRef(null);
  const id = useId();
  useLayoutEffect(() => {
    const measured = element.current;
    if (open || !measured) return undefined;
    const measure = () => setLong(measured.scrollHeight > measured.clientHeight + 1);
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(measured);
    return () => observer.disconnect();
  }, [text, open]);
  return h(
    "div",
    null,
    h("p", { ref: element, id, className: `jojokey-prompt${open ? "" : " jojokey-clamped"}`, dir: "auto" }, text),
    (long || open) &&
      h(
        "button",
        {
          type: "button",
          className: "jojokey-link",
          "aria-expanded": open,
          "aria-controls": id,
          onClick: () => setOpen(!open),
        },
        open ? t("Show less") : t("Show all"),
      ),
  );
}

export function Fact({ label, children }) {
  return children === null || children === undefined || children === ""
    ? null
    : h("div", { className: "jojokey-fact" }, h("dt", null, label), h("dd", null, children));
}
