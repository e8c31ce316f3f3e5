// The bundle that Airflow loads for both destinations of the plugin: the tab of a task and the page in the
// navigation. Airflow imports it as an ES module, once a page, and keeps the component under the app's name;
// both apps have the same name, so one component serves both and tells them apart by its properties.
import { Gallery } from "./gallery.js";
import { h } from "./react.js";
import { TaskImages } from "./task.js";

function Images({ dagId, runId, taskId, mapIndex }) {
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
