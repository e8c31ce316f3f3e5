// What the tab, the gallery and the dialogs have in common to display images.
import { problemOf } from "./api.js";
import { shortened } from "./format.js";
import { Button, Icon, safeUrl } from "./parts.js";
import { h, useCallback, useEffect, useState } from "./react.js";
import { t } from "./text.js";

// The routes serve only the first images of a batch; others have only an S3 URI.
export function isServed(image) {
  return Boolean(image.src);
}

// The prompt of an image. The images of a batch belong to different items, whose prompts are not in the result.
export function promptOf(result) {
  return result.batch ? "" : result.prompt;
}

// An image of a batch is named by its file.
export function captionOf(result, image) {
  return result.batch ? image.name : result.prompt;
}

export function altOf(result, image) {
  return shortened(captionOf(result, image), 150) || t("An image without a prompt");
}

// Return the error message for an image that the browser could not display, and a function to retry.
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

// Replaces an image that the browser could not display.
export function Broken({ problem, className }) {
  return h(
    "div",
    { className: `jojokey-stack ${className}`, role: "alert" },
    h(Icon, { name: "warning" }),
    problem.words,
    h(Button, { icon: "reload", onClick: problem.retry }, t("Try again")),
  );
}
