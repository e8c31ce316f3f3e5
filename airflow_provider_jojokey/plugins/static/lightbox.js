// One image as large as the window lets it be. A native dialog: it keeps the focus, and gives it back.
import { problemOf } from "./api.js";
import { cost, count, fileSize, shortened } from "./format.js";
import { AppLink, Button, ButtonLink, CopyButton, safeUrl } from "./parts.js";
import { createPortal, h, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./react.js";
import { t } from "./text.js";

// A batch knows more images than the routes serve: of those there is only the place in S3.
export function isServed(image) {
  return Boolean(image.src);
}

// The first images of a batch belong to different items. Their names are known, their prompts are not.
function captionOf(result, image) {
  return result.batch ? image.name : result.prompt;
}

// What is paid for is a request, which may give several images.
function costOf(result) {
  return result.count > 1
    ? t("{cost} for {images}", { cost: cost(result.cost), images: count(result.count, "{n} image", "{n} images") })
    : cost(result.cost);
}

function slidesOf(result, linked) {
  return result.images.filter(isServed).map((image) => ({
    ...image,
    prompt: captionOf(result, image),
    cost: costOf(result),
    made: linked ? { dagId: result.dag_id, href: result.href } : null,
  }));
}

export function altOf(result, image) {
  return shortened(captionOf(result, image), 150) || t("An image without a prompt");
}

// Each button has a name of its own, also where several images have one prompt.
export function enlarge(result, image, position, all) {
  const prompt = altOf(result, image);
  return all > 1
    ? t("Enlarge image {n} of {all}: {prompt}", { n: position + 1, all, prompt })
    : t("Enlarge: {prompt}", { prompt });
}

// A dialog that walks through the images of all cards, not only of the one it was opened from.
export function useLightbox(cards, { linked = false, onNearEnd } = {}) {
  const [open, setOpen] = useState(null);
  const slides = useMemo(
    () => (open === null ? [] : cards.flatMap((card) => slidesOf(card, linked))),
    [open === null, cards],
  );
  const show = useCallback(
    (card, position) => {
      const before = cards.slice(0, cards.indexOf(card)).flatMap((one) => one.images.filter(isServed));
      setOpen(before.length + position);
    },
    [cards],
  );
  const close = useCallback(() => setOpen(null), []);
  const dialog =
    open !== null && slides.length > 0 && h(Lightbox, { slides, start: open, onClose: close, onNearEnd });
  return [show, dialog];
}

// The words for an image that the browser could not show, and a way to try again.
export function useProblem(src) {
  const [problem, setProblem] = useState(null);
  const [round, setRound] = useState(0);
  useEffect(() => setProblem(null), [src]);
  const onError = useCallback(async () => {
    const words = await problemOf(safeUrl(src));
    setProblem({ src, words });
  }, [src]);
  const retry = useCallback(() => {
    setProblem(null);
    setRound((one) => one + 1);
  }, []);
  return { words: problem?.src === src ? problem.words : null, onError, retry, round };
}

function Lightbox({ slides, start, onClose, onNearEnd }) {
  const [at, setAt] = useState(start);
  const dialog = useRef(null);
  const slide = slides[at];
  const last = slides.length - 1;
  const src = slide && safeUrl(slide.src);
  const problem = useProblem(src);
  const [loaded, setLoaded] = useState(null);

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
        problem.words !== null
          ? h(
              "div",
              { className: "jojokey-stage-broken" },
              h("p", { role: "alert" }, problem.words),
              h(Button, { icon: "reload", onClick: problem.retry }, t("Try again")),
            )
          : h("img", {
              key: `${src} ${problem.round}`,
              src,
              alt: shortened(slide.prompt, 150) || t("An image without a prompt"),
              width: slide.width,
              height: slide.height,
              // The thumbnail is there at once. Behind a transparent image it would show through.
              style: loaded === src ? undefined : { backgroundImage: `url("${safeUrl(slide.thumbnail)}")` },
              onLoad: () => setLoaded(src),
              onError: problem.onError,
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
          h("span", { className: "jojokey-muted" }, [`${slide.width} × ${slide.height}`, fileSize(slide.bytes), slide.cost].join(" · ")),
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
          slide.prompt && h(CopyButton, { text: slide.prompt, label: t("Copy the prompt") }, t("Copy the prompt")),
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
