// One image as large as the window lets it be. A native dialog: it keeps the focus, and gives it back.
import { fileSize, shortened } from "./format.js";
import { AppLink, Button, ButtonLink, CopyButton, safeUrl } from "./parts.js";
import { createPortal, h, useEffect, useLayoutEffect, useRef, useState } from "./react.js";
import { t } from "./text.js";

// A batch knows more images than the routes serve: of those there is only the place in S3.
export function isServed(image) {
  return Boolean(image.src);
}

// What the dialog shows of an image: of a result, the image with this number.
export function slidesOf(result, linked = false) {
  return result.images.filter(isServed).map((image) => ({
    ...image,
    prompt: result.prompt,
    made: linked ? { dagId: result.dag_id, href: result.href } : null,
  }));
}

export function alt(prompt) {
  return shortened(prompt, 150) || t("An image without a prompt");
}

export function Lightbox({ slides, start, onClose, onNearEnd }) {
  const [at, setAt] = useState(start);
  const [broken, setBroken] = useState(null);
  const dialog = useRef(null);
  const slide = slides[at];
  const last = slides.length - 1;

  // A layout effect: its end comes before the dialog is taken out of the page, when it can still be closed.
  useLayoutEffect(() => {
    const element = dialog.current;
    element.showModal();
    const page = document.documentElement;
    const { overflow } = page.style;
    page.style.overflow = "hidden";
    return () => {
      page.style.overflow = overflow;
      element.close(); // gives the focus back to what had opened it
    };
  }, []);

  useEffect(() => {
    const element = dialog.current;
    const steps = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -Infinity, End: Infinity };
    const onKeyDown = (event) => {
      // Airflow listens on the document, where arrows walk through its grid.
      event.stopPropagation();
      if (event.altKey || event.ctrlKey || event.metaKey || !(event.key in steps)) return;
      event.preventDefault();
      setAt((now) => Math.min(last, Math.max(0, now + steps[event.key])));
    };
    element.addEventListener("keydown", onKeyDown);
    return () => element.removeEventListener("keydown", onKeyDown);
  }, [last]);

  useEffect(() => {
    if (at >= last - 2) onNearEnd?.();
    // The neighbours are there before they are asked for.
    for (const neighbour of [slides[at + 1], slides[at - 1]]) {
      if (neighbour) new Image().src = safeUrl(neighbour.src);
    }
  }, [at, last]);

  if (!slide) return null;
  const src = safeUrl(slide.src);
  return createPortal(
    h(
      "dialog",
      {
        ref: dialog,
        className: "jojokey-lightbox",
        "aria-modal": true,
        "aria-label": t("Image {n} of {all}", { n: at + 1, all: slides.length }),
        onCancel: (event) => {
          event.preventDefault();
          onClose();
        },
        onClick: (event) => event.target.classList.contains("jojokey-stage") && onClose(),
      },
      h(
        "div",
        { className: "jojokey-lightbox-head" },
        h("span", { "aria-live": "polite" }, slides.length > 1 ? `${at + 1} / ${slides.length}` : ""),
        h(Button, { icon: "close", label: t("Close"), variant: "ghost", onClick: onClose, autoFocus: true }),
      ),
      h(
        "div",
        { className: "jojokey-stage" },
        slides.length > 1 &&
          h(Button, {
            icon: "left",
            label: t("Previous image"),
            variant: "ghost",
            disabled: at === 0,
            onClick: () => setAt(at - 1),
          }),
        broken === src
          ? h("p", { className: "jojokey-stage-broken" }, t("This image cannot be read from S3 any more."))
          : h("img", {
              key: src,
              src,
              alt: alt(slide.prompt),
              width: slide.width,
              height: slide.height,
              // The thumbnail is there at once, and gives way to the image.
              style: { backgroundImage: `url("${safeUrl(slide.thumbnail)}")` },
              onError: () => setBroken(src),
            }),
        slides.length > 1 &&
          h(Button, {
            icon: "right",
            label: t("Next image"),
            variant: "ghost",
            disabled: at === last,
            onClick: () => setAt(at + 1),
          }),
      ),
      h(
        "div",
        { className: "jojokey-lightbox-foot" },
        h(
          "div",
          { className: "jojokey-lightbox-text" },
          h("p", { dir: "auto" }, slide.prompt),
          h("span", { className: "jojokey-muted" }, `${slide.width} × ${slide.height} · ${fileSize(slide.bytes)}`),
        ),
        h(
          "div",
          { className: "jojokey-tools" },
          slide.made &&
            h(
              AppLink,
              { to: slide.made.href, className: "jojokey-button jojokey-button-outline", onClick: onClose },
              t("Open task"),
            ),
          h(CopyButton, { text: slide.uri, label: t("Copy the S3 location") }),
          h(
            ButtonLink,
            { href: slide.download, download: slide.name, icon: "download", variant: "solid" },
            t("Download"),
          ),
        ),
      ),
    ),
    document.body,
  );
}
