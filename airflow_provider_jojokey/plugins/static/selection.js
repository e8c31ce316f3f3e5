// Selected images, which the user can download as a zip file or compare side by side.
import { inZip, ZIP } from "./api.js";
import { Modal } from "./dialog.js";
import { count, fileSize, number, tokenCount } from "./format.js";
import { cost, decimalsOf, ofAll } from "./money.js";
import { Button, Icon, Notice, safeUrl, Time } from "./parts.js";
import { Broken, promptOf, useProblem } from "./pictures.js";
import { h, useCallback, useEffect, useMemo, useRef, useState } from "./react.js";
import { t } from "./text.js";

const MOST_COMPARED = 4;
// The limits of the route (archive.MAX_IMAGES, archive.MAX_BYTES). The browser doesn't show errors of downloads.
const MOST_IN_A_ZIP = 50;
const MOST_BYTES_IN_A_ZIP = 512 * 1024 * 1024;

// Entries are pairs of a result and one of its images. Images that the routes don't serve can't be selected.
export function useSelection() {
  const [chosen, setChosen] = useState(() => new Map());
  const select = useCallback((entries, on) => {
    setChosen((old) => {
      const now = new Map(old);
      for (const [result, image] of entries) {
        if (on) now.set(image.src, [result, image]);
        else now.delete(image.src);
      }
      return now;
    });
  }, []);
  const clear = useCallback(() => setChosen(new Map()), []);
  return useMemo(() => ({ chosen, select, clear }), [chosen]);
}

export function entriesOf(result) {
  return result.images.filter((image) => image.src).map((image) => [result, image]);
}

export function SelectBox({ selection, entries, label, name }) {
  const box = useRef(null);
  const on = entries.filter(([, image]) => selection.chosen.has(image.src)).length;
  useEffect(() => {
    box.current.indeterminate = on > 0 && on < entries.length;
  });
  return h(
    "label",
    { className: label ? "jojokey-button jojokey-button-outline" : "jojokey-select" },
    h("input", {
      ref: box,
      type: "checkbox",
      checked: on === entries.length,
      "aria-label": name,
      onChange: (event) => selection.select(entries, event.target.checked),
    }),
    label,
  );
}

export function SelectionBar({ selection }) {
  const [comparing, setComparing] = useState(false);
  const entries = [...selection.chosen.values()];
  if (!entries.length) return null;
  const bytes = entries.reduce((sum, [, image]) => sum + (image.bytes ?? 0), 0);
  const tooMany =
    entries.length > MOST_IN_A_ZIP
      ? t("One zip file holds at most {n} images.", { n: number(MOST_IN_A_ZIP) })
      : bytes > MOST_BYTES_IN_A_ZIP && t("One zip file holds at most {size}.", { size: fileSize(MOST_BYTES_IN_A_ZIP) });
  const comparable = entries.length > 1 && entries.length <= MOST_COMPARED;
  return h(
    "div",
    { className: "jojokey-row jojokey-between jojokey-panel jojokey-selection", role: "region", "aria-label": t("Selected images") },
    h(
      "span",
      { role: "status" },
      `${count(entries.length, "{n} image selected", "{n} images selected")} · ${fileSize(bytes)}`,
    ),
    h(
      "span",
      { className: "jojokey-row jojokey-tools" },
      h(
        Button,
        {
          icon: "compare",
          disabled: !comparable,
          title: comparable ? undefined : t("Select two to four images to compare them."),
          onClick: () => setComparing(true),
        },
        t("Compare"),
      ),
      tooMany
        ? h("span", null, tooMany)
        : h(Zip, { images: entries.map(([, image]) => image), key: entries.map(([, image]) => image.src) }),
      h(Button, { icon: "close", variant: "ghost", label: t("Clear the selection"), onClick: selection.clear }),
    ),
    comparing && h(Comparison, { entries, onClose: () => setComparing(false) }),
  );
}

// The frame that receives a zip file, which stays in the page: browsers cancel the request of a frame that is removed. The
// zip file is a download, which leaves the frame as it is: only an error is loaded into it.
let frame = null;

function zipFrame() {
  if (!frame) {
    frame = Object.assign(document.createElement("iframe"), { name: "jojokey-zip", hidden: true });
    document.body.append(frame);
  }
  return frame;
}

// A form, because proxies reject the long URL that many images need.
function Zip({ images }) {
  const sent = useRef(false);
  const [failed, setFailed] = useState(false);
  useEffect(() => {
    const target = zipFrame();
    const onLoad = () => setFailed(sent.current);
    target.addEventListener("load", onLoad);
    return () => target.removeEventListener("load", onLoad);
  }, []);
  return [
    failed && h(Notice, { key: "failed", kind: "error", title: t("The zip file could not be made. Refresh the page and try again.") }),
    h(
      "form",
      {
        key: "form",
        method: "post",
        action: ZIP,
        target: "jojokey-zip",
        onSubmit: () => {
          sent.current = true;
          setFailed(false);
        },
      },
      images.map((image) => h("input", { key: image.src, type: "hidden", name: "image", value: inZip(image) })),
      h(
        "button",
        { type: "submit", className: "jojokey-button jojokey-button-solid" },
        h(Icon, { name: "download" }),
        t("Download as zip"),
      ),
    ),
  ];
}

const FACTS = {
  Prompt: ([result]) => promptOf(result),
  Model: ([result]) => result.model,
  Size: ([, image]) => `${image.width} × ${image.height}`,
  Quality: ([result]) => result.quality,
  Tokens: ([result]) => ofAll(result, tokenCount(result.usage?.total_tokens, result.paid)),
  Cost: ([result], decimals) => ofAll(result, cost(result.cost, decimals)),
  Run: ([result]) => result.run_id,
};

function Compared({ image }) {
  const src = safeUrl(image.src);
  const problem = useProblem(src);
  if (problem.words !== null) return h(Broken, { problem, className: "jojokey-stage-broken" });
  const { width, height } = image;
  return h("img", { key: problem.round, src, alt: image.name, width, height, onError: problem.onError });
}

function Comparison({ entries, onClose }) {
  const decimals = decimalsOf(entries.map(([result]) => result.cost));
  const differs = (fact) => new Set(entries.map((entry) => fact(entry, decimals))).size > 1;
  return h(
    Modal,
    {
      label: t("Compare"),
      head: count(entries.length, "{n} image", "{n} images"),
      onClose,
    },
    h(
      "div",
      {
        className: "jojokey-compared",
        style: { "--count": entries.length },
        tabIndex: 0, // it scrolls
        role: "group",
        "aria-label": t("Compare"),
      },
      entries.map((entry) => {
        const [result, image] = entry;
        return h(
          "figure",
          { key: image.src, className: "jojokey-stack" },
          h(Compared, { image }),
          h(
            "figcaption",
            null,
            h("strong", null, image.name),
            result.made_at && h("span", { className: "jojokey-muted" }, h(Time, { iso: result.made_at })),
            h(
              "dl",
              null,
              Object.entries(FACTS).map(
                ([name, fact]) =>
                  fact(entry, decimals) && [
                    h("dt", { key: `${name} dt` }, t(name)),
                    h("dd", { key: name, dir: "auto" }, differs(fact) ? h("mark", null, fact(entry, decimals)) : fact(entry, decimals)),
                  ],
              ),
            ),
          ),
        );
      }),
    ),
  );
}
