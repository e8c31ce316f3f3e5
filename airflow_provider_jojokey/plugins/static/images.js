// The bundle for both apps of the plugin: the tab of a task and the page in the navigation. Airflow imports it as
// an ES module once per page load and stores the component under the app's name. Both apps have the same name, so
// one component serves both and distinguishes them by its props.
import { timezone } from "./format.js";
import { Gallery } from "./gallery.js";
import { h, useEffect, useLocation, useNavigate, useRef, useState } from "./react.js";
import { TaskImages } from "./task.js";
import { language } from "./text.js";

let settled = false;

// After Airflow has loaded a bundle, it first renders the component inside a lazy component, and directly from the
// next render on. That change would lose all state, such as an open dialog or typed text. So navigate to the
// current URL first, which makes Airflow render again before there is any state. Where Airflow keeps this component
// instead, the key of the location changes.
function useSettled() {
  const navigate = useNavigate();
  const { key, pathname, search, hash, state } = useLocation();
  const first = useRef(settled ? null : key);
  useEffect(() => {
    if (settled) return;
    settled = true;
    navigate({ pathname, search, hash }, { replace: true, state, preventScrollReset: true });
  }, []);
  return key !== first.current;
}

function selectedNow() {
  return JSON.stringify([language(), timezone()]);
}

// The selected language and time zone. Airflow sets the language when it has loaded its own translations, which can be
// after the first rendering.
function useSelected() {
  const [chosen, setChosen] = useState(selectedNow);
  useEffect(() => {
    const update = () => setChosen(selectedNow());
    const observer = new MutationObserver(update);
    observer.observe(document.documentElement, { attributes: true, attributeFilter: ["lang"] });
    globalThis.addEventListener("storage", update); // selected in another tab
    globalThis.addEventListener("local-storage", update); // Airflow's own event for its time zone, in this tab
    update();
    return () => {
      observer.disconnect();
      globalThis.removeEventListener("storage", update);
      globalThis.removeEventListener("local-storage", update);
    };
  }, []);
  return chosen;
}

function Images({ dagId, runId, taskId, mapIndex }) {
  const chosen = useSelected();
  if (!useSettled()) return null;
  if (dagId && runId && taskId) {
    const index = Number.parseInt(mapIndex ?? "-1", 10);
    const task = { dagId, runId, taskId, mapIndex: Number.isNaN(index) ? -1 : index };
    // The key makes React discard the state of the previous task, and the texts and days of another language and time zone.
    return h(TaskImages, { key: JSON.stringify([task, chosen]), ...task });
  }
  return h(Gallery, { key: chosen });
}

// Wait for the styles before rendering, so that the layout doesn't shift.
function addStyles() {
  const href = new URL("./images.css", import.meta.url).href;
  if (document.querySelector(`link[data-jojokey="${CSS.escape(href)}"]`)) return Promise.resolve();
  const link = document.createElement("link");
  Object.assign(link, { rel: "stylesheet", href });
  link.dataset.jojokey = href;
  return new Promise((resolve) => {
    link.onload = link.onerror = resolve;
    document.head.append(link);
  });
}

await addStyles();
globalThis.AirflowPlugin = Images;
