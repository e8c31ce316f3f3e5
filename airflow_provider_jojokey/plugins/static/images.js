// The bundle that Airflow loads for both destinations of the plugin: the tab of a task and the page in the
// navigation. Airflow imports it as an ES module, once a page, and keeps the component under the app's name;
// both apps have the same name, so one component serves both and tells them apart by its properties.
import { Gallery } from "./gallery.js";
import { h, useEffect, useLocation, useNavigate, useState } from "./react.js";
import { TaskImages } from "./task.js";

let settled = false;

// When Airflow has loaded a bundle it shows the component within a lazy one, and by itself from its next drawing
// on. In between all state is lost: a dialog that has just been opened, a word that is being typed. So the
// first thing to do is to have it draw again, by a step of the router to where it is.
function useSettled() {
  const [ready, setReady] = useState(settled);
  const navigate = useNavigate();
  const { pathname, search, hash, state } = useLocation();
  useEffect(() => {
    if (settled) return;
    settled = true;
    navigate({ pathname, search, hash }, { replace: true, state, preventScrollReset: true });
    setReady(true);
  }, []);
  return ready;
}

function Images({ dagId, runId, taskId, mapIndex }) {
  if (!useSettled()) return null;
  if (dagId && runId && taskId) {
    const index = Number.parseInt(mapIndex ?? "-1", 10);
    const task = { dagId, runId, taskId, mapIndex: Number.isNaN(index) ? -1 : index };
    // Another task is another tab: nothing of the last one's state may be seen in it.
    return h(TaskImages, { key: JSON.stringify(task), ...task });
  }
  return h(Gallery);
}

// Nothing is drawn before the styles are there: pages that jump are pages that nobody trusts.
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
