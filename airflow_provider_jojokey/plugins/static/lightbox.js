// A dialog that displays one image as large as possible, with navigation through all images.
import { Modal } from "./dialog.js";
import { fileSize } from "./format.js";
import { cost, ofAll } from "./money.js";
import { altOf, Broken, captionOf, isServed, promptOf, useProblem } from "./pictures.js";
import { SelectBox } from "./selection.js";
import { AppLink, Button, ButtonLink, CopyButton, safeUrl } from "./parts.js";
import { h, useCallback, useEffect, useMemo, useState } from "./react.js";
import { t } from "./text.js";

function slideOf(result, image, linked) {
  return { ...image, result, href: linked ? result.href : null };
}

// Return the URL of the task's tab that opens this image.
function linkTo(slide) {
  const url = new URL(safeUrl(slide.result.href ?? globalThis.location.pathname));
  url.searchParams.set("image", slide.key);
  return url.href;
}

// Give each button a unique label, even if several images have the same prompt.
export function enlarge(result, image, position, all) {
  const prompt = altOf(result, image);
  return all > 1
    ? t("Enlarge image {n} of {all}: {prompt}", { n: position + 1, all, prompt })
    : t("Enlarge: {prompt}", { prompt });
}

// The dialog navigates through the images of all cards, not only of the selected one.
export function useLightbox(cards, { linked = false, onNearEnd, selection } = {}) {
  const [open, setOpen] = useState(null);
  const slides = useMemo(
    () =>
      open === null
        ? []
        : cards.flatMap((card) => card.images.filter(isServed).map((image) => slideOf(card, image, linked))),
    [open === null, cards],
  );
  const show = useCallback((card, image) => setOpen(slideOf(card, image, linked)), [linked]);
  const close = useCallback(() => setOpen(null), []);
  const dialog = open !== null && h(Lightbox, { slides, open, onMove: setOpen, onClose: close, onNearEnd, selection });
  return [show, dialog];
}

// The open image stays open if other results arrive before it, or if its own result is replaced.
function Lightbox({ slides, open, onMove, onClose, onNearEnd, selection }) {
  const at = slides.findIndex((one) => one.src === open.src);
  const slide = slides[at] ?? open;
  const prompt = promptOf(slide.result);
  const last = slides.length - 1;
  const src = safeUrl(slide.src);
  const problem = useProblem(src);
  const [loaded, setLoaded] = useState(null);

  const onKeys = (event) => {
    const steps = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    if (at >= 0) onMove(slides[Math.min(last, Math.max(0, at + steps[event.key]))]);
  };

  useEffect(() => {
    if (at < 0) return;
    if (at >= last - 2) onNearEnd?.();
    // Preload the neighboring images.
    for (const neighbour of [slides[at + 1], slides[at - 1]]) {
      if (neighbour) new Image().src = safeUrl(neighbour.src);
    }
  }, [at, last]);

  const navigable = at >= 0 && slides.length > 1;
  const step = (icon, label, to) =>
    navigable && h(Button, { icon, label, variant: "ghost", disabled: !slides[to], onClick: () => onMove(slides[to]) });
  return h(
    Modal,
    {
      label: at < 0 ? t("Image") : t("Image {n} of {all}", { n: at + 1, all: slides.length }),
      head: navigable ? `${at + 1} / ${slides.length}` : "",
      onClose,
      onKeys,
    },
    h(
      "div",
      { className: "jojokey-stage" },
      step("left", t("Previous image"), at - 1),
      problem.words !== null
        ? h(Broken, { problem, className: "jojokey-stage-broken" })
        : h("img", {
            key: `${src} ${problem.round}`,
            src,
            alt: altOf(slide.result, slide),
            width: slide.width,
            height: slide.height,
            // Show the thumbnail until the image is loaded. Later it would show through transparent images.
            className: loaded === src ? undefined : "jojokey-loading",
            style: { "--thumbnail": `url("${safeUrl(slide.thumbnail)}")` },
            onLoad: () => setLoaded(src),
            onError: problem.onError,
          }),
      step("right", t("Next image"), at + 1),
    ),
    h(
      "div",
      { className: "jojokey-row jojokey-between jojokey-lightbox-foot" },
      h(
        "div",
        { className: "jojokey-small jojokey-lightbox-text" },
        h("p", { dir: "auto" }, captionOf(slide.result, slide)),
        h(
          "span",
          { className: "jojokey-muted" },
          [`${slide.width} × ${slide.height}`, fileSize(slide.bytes), ofAll(slide.result, cost(slide.result.cost))].join(" · "),
        ),
      ),
      h(
        "div",
        { className: "jojokey-row jojokey-tools" },
        selection && h(SelectBox, { selection, entries: [[slide.result, slide]], label: t("Select") }),
        slide.href &&
          h(
            AppLink,
            // Replaces the dialog's own history entry, and the page with the dialog.
            { to: slide.href, replace: true, className: "jojokey-button jojokey-button-outline" },
            t("Open task"),
          ),
        prompt && h(CopyButton, { text: prompt, label: t("Copy the prompt") }, t("Copy the prompt")),
        h(CopyButton, { text: linkTo(slide), icon: "link", label: t("Copy a link to this image") }),
        h(CopyButton, { text: slide.uri, label: t("Copy the S3 location") }),
        h(ButtonLink, { href: slide.download, download: slide.name, icon: "download", variant: "solid" }, t("Download")),
      ),
    ),
  );
}
