// Cards for results, used in the gallery, for mapped tasks and for batches.
import { count, tokensOf } from "./format.js";
import { cost } from "./money.js";
import { enlarge } from "./lightbox.js";
import { AppLink, BillBadge, CopyButton, Icon, safeUrl, Time } from "./parts.js";
import { altOf, isServed, useProblem } from "./pictures.js";
import { h, useState } from "./react.js";
import { entriesOf, SelectBox } from "./selection.js";
import { t } from "./text.js";

const IN_A_MOSAIC = 4;
// Widths of thumbnails that the server creates: for a card, and for a high-density screen.
const WIDTHS = [320, 640];

export function keyOf(card) {
  return JSON.stringify([card.dag_id, card.run_id, card.task_id, card.map_index, card.index ?? null]);
}

function sized(thumbnail, width) {
  const url = new URL(safeUrl(thumbnail));
  url.searchParams.set("width", width);
  return url.href;
}

function Thumbnail({ image, alt }) {
  const problem = useProblem(sized(image.thumbnail, WIDTHS[0]));
  const [loaded, setLoaded] = useState(false);
  const ratio = image.height && image.width / image.height; // results of other tasks may have no size
  if (problem.words !== null) {
    return h(
      "span",
      { className: "jojokey-row jojokey-broken", role: "img", "aria-label": problem.words, title: problem.words },
      h(Icon, { name: "warning" }),
    );
  }
  return h("img", {
    src: sized(image.thumbnail, WIDTHS[0]),
    srcSet: WIDTHS.map((width) => `${sized(image.thumbnail, width)} ${width}w`).join(", "),
    sizes: "(max-width: 520px) 100vw, 280px",
    alt,
    width: image.width,
    height: image.height,
    className: loaded ? "jojokey-loaded" : undefined,
    style: ratio > 0 ? { "--ratio": ratio, objectFit: "fill" } : undefined,
    loading: "lazy",
    decoding: "async",
    onLoad: () => setLoaded(true),
    onError: problem.onError,
  });
}

// The images of a result, in a square whose size is fixed before they load, so that the layout doesn't shift.
function Pictures({ card, onOpen }) {
  const shown = card.images.filter(isServed).slice(0, card.count > 1 ? IN_A_MOSAIC : 1);
  if (!shown.length) {
    const failed = card.state === "failed";
    // An image that was, or may have been, charged may have been generated.
    const none = card.paid === "no" ? t("No image was generated") : t("No image is stored");
    return h(
      "div",
      { className: "jojokey-pictures jojokey-stack jojokey-pictures-none" },
      h(Icon, { name: failed ? "warning" : "image" }),
      h("span", null, failed ? none : card.images.length ? t("Stored in S3") : t("No image")),
      card.images.length > 0 && h(CopyButton, { text: card.images[0].uri, label: t("Copy the S3 location") }),
    );
  }
  const more = card.count - shown.length;
  const last = shown.length - 1;
  // Place two portrait images side by side and two landscape images on top of each other.
  const lying = shown[0].width > shown[0].height ? " jojokey-mosaic-lying" : "";
  const mosaic = shown.length > 1 ? ` jojokey-mosaic jojokey-mosaic-${shown.length}${lying}` : "";
  return h(
    "div",
    { className: `jojokey-pictures${mosaic}` },
    shown.map((image, position) => {
      const thumbnail = h(Thumbnail, { image, alt: altOf(card, image) });
      if (more > 0 && position === last && card.href) {
        // The card contains only the first images of a batch. The task's tab shows all of them.
        const label = `+${more} – ${count(card.count, "{n} image", "{n} images")}`;
        return h(
          AppLink,
          { key: image.number, to: card.href, className: "jojokey-picture", "aria-label": label },
          thumbnail,
          h("span", { className: "jojokey-row jojokey-more" }, `+${more}`),
        );
      }
      return h(
        "button",
        {
          key: image.number,
          type: "button",
          className: "jojokey-picture",
          "aria-label": enlarge(card, image, position, shown.length),
          onClick: () => onOpen(card, image),
        },
        thumbnail,
        more > 0 && position === last && h("span", { className: "jojokey-row jojokey-more", "aria-hidden": true }, `+${more}`),
      );
    }),
  );
}

// title distinguishes the card from its neighbors: the Dag in the gallery, the label for mapped tasks.
export function Card({ card, title, subtitle, decimals, onOpen, selection }) {
  const failed = card.state === "failed" && !card.images.length;
  const entries = selection ? entriesOf(card) : [];
  return h(
    "li",
    { className: `jojokey-stack jojokey-panel jojokey-card${failed ? " jojokey-card-failed" : ""}` },
    h(Pictures, { card, onOpen }),
    entries.length > 0 &&
      h(SelectBox, { selection, entries, name: t("Select {name}", { name: `${title}, ${altOf(card, card.images[0])}` }) }),
    h(
      "div",
      { className: "jojokey-stack jojokey-card-body" },
      h(
        "div",
        { className: "jojokey-card-head" },
        card.href
          ? h(AppLink, { to: card.href, className: "jojokey-card-title", title }, title)
          : h("span", { className: "jojokey-card-title", title }, title),
        h(BillBadge, { result: card }),
      ),
      subtitle && h("div", { className: "jojokey-small jojokey-card-sub" }, subtitle),
      failed && h("p", { className: "jojokey-card-text", dir: "auto", title: card.message }, card.message),
      h("p", { className: "jojokey-card-text", dir: "auto", title: card.prompt }, card.prompt),
      h(
        "div",
        { className: "jojokey-small jojokey-card-foot" },
        card.made_at && h(Time, { iso: card.made_at, relative: true }),
        h("span", { title: tokensOf(card.usage?.total_tokens, card.paid) }, cost(card.cost, decimals)),
      ),
    ),
  );
}

export function Cards({ children }) {
  return h("ul", { className: "jojokey-cards" }, children);
}
