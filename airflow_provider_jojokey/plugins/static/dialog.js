// A native dialog as large as the window: it keeps the focus and gives it back, and the back button closes it.
import { Button } from "./parts.js";
import { createPortal, h, useCallback, useEffect, useLayoutEffect, useRef } from "./react.js";
import { t } from "./text.js";

// An entry of the history for the open dialog. Airflow's router sees the same address and draws nothing anew.
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
    return () => globalThis.removeEventListener("popstate", onPop);
  }, []);
  return useCallback(() => {
    if (closed.current) return;
    closed.current = true;
    if (globalThis.history.state?.jojokey) globalThis.history.back();
    else onClose();
  }, [onClose]);
}

// :onKeys gets keys that no control has used. :children gets the function that closes the dialog.
export function Modal({ label, head, className = "", onClose, onKeys, children }) {
  const dialog = useRef(null);
  const keys = useRef(onKeys);
  keys.current = onKeys;
  const close = useHistoryEntry(onClose);

  // A layout effect: its end comes before the dialog is taken out of the page, when it can still be closed.
  useLayoutEffect(() => {
    const element = dialog.current;
    element.showModal();
    const page = document.documentElement;
    const { overflow } = page.style;
    page.style.overflow = "hidden";
    const onKeyDown = (event) => {
      // Airflow listens on the document, where arrows walk through its grid.
      event.stopPropagation();
      if (!event.altKey && !event.ctrlKey && !event.metaKey) keys.current?.(event);
    };
    element.addEventListener("keydown", onKeyDown);
    return () => {
      element.removeEventListener("keydown", onKeyDown);
      page.style.overflow = overflow;
      element.close(); // gives the focus back to what had opened it
    };
  }, []);

  return createPortal(
    h(
      "dialog",
      {
        ref: dialog,
        className: `jojokey-lightbox ${className}`,
        "aria-modal": true,
        "aria-label": label,
        onCancel: (event) => {
          event.preventDefault();
          close();
        },
        onClick: (event) => event.target.classList.contains("jojokey-stage") && close(),
      },
      h(
        "div",
        { className: "jojokey-lightbox-head" },
        h("span", { "aria-live": "polite" }, head),
        h(Button, { icon: "close", label: t("Close"), variant: "ghost", onClick: close, autoFocus: true }),
      ),
      children,
    ),
    document.body,
  );
}
