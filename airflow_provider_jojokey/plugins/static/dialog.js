// A native, full-window dialog. It traps the focus and restores it, and the back button closes it.
import { Button } from "./parts.js";
import { createPortal, h, useCallback, useEffect, useLayoutEffect, useRef } from "./react.js";
import { t } from "./text.js";

// Add a history entry for the open dialog. Its URL is the same, so Airflow's router doesn't render again.
function useHistoryEntry(onClose) {
  const closed = useRef(false);
  useEffect(() => {
    const { state } = globalThis.history;
    globalThis.history.pushState({ ...state, idx: (state?.idx ?? 0) + 1, jojokey: true }, "");
    const onPop = () => {
      closed.current = true;
      onClose();
    };
    globalThis.addEventListener("popstate", onPop);
    return () => {
      globalThis.removeEventListener("popstate", onPop);
      // The page discards an open dialog if the language or the time zone changes, or if its task is cleared.
      if (!closed.current && globalThis.history.state?.jojokey) globalThis.history.back();
    };
  }, []);
  return useCallback(() => {
    if (closed.current) return;
    closed.current = true;
    if (globalThis.history.state?.jojokey) globalThis.history.back();
    else onClose();
  }, [onClose]);
}

// onKeys receives keyboard events without Alt, Ctrl or Meta.
export function Modal({ label, head, onClose, onKeys, children }) {
  const dialog = useRef(null);
  const keys = useRef(onKeys);
  keys.current = onKeys;
  const close = useHistoryEntry(onClose);

  // The cleanup of a layout effect runs before React removes the dialog, which must be in the page to be closed.
  useLayoutEffect(() => {
    const element = dialog.current;
    element.showModal(); // remembers the focused element: no element of the dialog may have React's autoFocus
    const page = document.documentElement;
    const { overflow } = page.style;
    page.style.overflow = "hidden";
    const onKeyDown = (event) => {
      // Without it, Airflow's listener on the document would use the arrow keys to move in its grid.
      event.stopPropagation();
      if (!event.altKey && !event.ctrlKey && !event.metaKey) keys.current?.(event);
    };
    // The focused element may be gone, such as a button that tries an image again.
    document.addEventListener("keydown", onKeyDown, true);
    return () => {
      document.removeEventListener("keydown", onKeyDown, true);
      page.style.overflow = overflow;
      element.close(); // also returns the focus to the element that opened the dialog
    };
  }, []);

  return createPortal(
    h(
      "dialog",
      {
        ref: dialog,
        className: "jojokey-stack jojokey-lightbox",
        "aria-modal": true,
        "aria-label": label,
        onCancel: (event) => {
          event.preventDefault();
          close();
        },
        // The second click of a double click on a thumbnail is already a click on the dialog.
        onClick: ({ target, detail }) => target.classList.contains("jojokey-stage") && detail < 2 && close(),
      },
      h(
        "div",
        { className: "jojokey-row jojokey-between jojokey-lightbox-head" },
        h("span", { "aria-live": "polite" }, head),
        h(Button, { icon: "close", label: t("Close"), variant: "ghost", onClick: close }),
      ),
      children,
    ),
    document.body,
  );
}
