// Requests to the provider's routes, and to Airflow's own API for the state of a task.
import { said, timezone } from "./format.js";
import { t } from "./text.js";

// Relative to this file, so that they work under any URL prefix of Airflow.
const ROUTES = new URL("../api/", import.meta.url);
const AIRFLOW = new URL("../../api/v2/", import.meta.url);

const STATES_WITH_A_FUTURE = new Set([
  null,
  "deferred",
  "none",
  "queued",
  "restarting",
  "running",
  "scheduled",
  "up_for_reschedule",
  "up_for_retry",
]);

export class ApiError extends Error {
  constructor(status, detail = "") {
    super(inPlainWords(status));
    this.status = status;
    this.detail = detail;
    this.mayPass = [0, 408, 429].includes(status) || status >= 500; // a later request can succeed
  }
}

function inPlainWords(status) {
  if (status === 0) return t("Airflow cannot be reached. Is the network up?");
  if (status === 401) return t("Your session has ended. Sign in again to see the images.");
  if (status === 403) return t("You may not see the images of this Dag.");
  if (status === 404) return t("There is no such task any more.");
  if (status === 422) return t("Airflow does not understand these filters.");
  if (status >= 500) return t("Airflow could not look up the images.");
  return t("Airflow did not answer as expected.");
}

// Airflow's own pages treat both as the end of the session: a token that has expired, and one that was revoked or that
// was signed before the API server got another key.
function statusOf(response, body) {
  return response.status === 403 && body?.detail === "Invalid JWT token" ? 401 : response.status;
}

async function get(url, signal) {
  let response;
  try {
    response = await fetch(url, { credentials: "same-origin", headers: { Accept: "application/json" }, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0);
  }
  let body = null;
  try {
    body = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (!response.ok || body === null) {
    throw new ApiError(response.ok ? 502 : statusOf(response, body), said(body));
  }
  return body;
}

function withQuery(url, query) {
  for (const [name, value] of Object.entries(query)) {
    if (value !== "" && value !== null && value !== undefined) url.searchParams.set(name, value);
  }
  return url;
}

export const ZIP = new URL("../zip", ROUTES).href;

// The route identifies each image, in the version that the user has seen, by the image's URL after /images/.
export function inZip({ src }) {
  const image = new URL(src, document.baseURI);
  return image.pathname.split("/jojokey/images/").pop() + image.search;
}

export function getResults(filters, cursor, limit, signal) {
  return get(withQuery(new URL("results", ROUTES), { ...filters, cursor, limit, tz: timezone() }), signal);
}

export function getTotals(filters, signal) {
  return get(withQuery(new URL("totals", ROUTES), { ...filters, tz: timezone() }), signal);
}

export function getCosts(filters, signal) {
  return get(withQuery(new URL("costs", ROUTES), { ...filters, tz: timezone() }), signal);
}

export function costsUrl(filters) {
  return withQuery(new URL("costs.csv", ROUTES), { ...filters, tz: timezone() }).href;
}

const PROBLEMS = {
  missing: "This image is no longer in S3: it was moved or deleted.",
  replaced: "This image was overwritten: another object is at its key in S3 now.",
  s3: "S3 does not answer as expected now. Try again later.",
};

// Ask the server why the browser could not display an image.
export async function problemOf(src) {
  const controller = new AbortController();
  try {
    const response = await fetch(src, { credentials: "same-origin", cache: "no-store", signal: controller.signal });
    if (response.ok) return t("The browser cannot show this image.");
    const body = await response.json().catch(() => null);
    const known = PROBLEMS[body?.reason];
    if (known) return t(known);
    return body?.reason === "not_served" ? said(body) : inPlainWords(statusOf(response, body));
  } catch {
    return inPlainWords(0);
  } finally {
    controller.abort(); // only the status is needed, not the image
  }
}

export function getTask({ dagId, runId, taskId, mapIndex }, query, signal) {
  const [dag, run, task] = [dagId, runId, taskId].map(encodeURIComponent);
  const path = `dags/${dag}/runs/${run}/tasks/${task}/${mapIndex}`;
  return get(withQuery(new URL(path, ROUTES), query), signal);
}

// Return whether the task may still generate images; false if the user may not know.
export async function isUnderWay({ dagId, runId, taskId, mapIndex }, signal) {
  const [dag, run, task] = [dagId, runId, taskId].map(encodeURIComponent);
  const mapped = mapIndex >= 0 ? `/${mapIndex}` : "";
  try {
    const url = new URL(`dags/${dag}/dagRuns/${run}/taskInstances/${task}${mapped}`, AIRFLOW);
    const { state } = await get(url, signal);
    return STATES_WITH_A_FUTURE.has(state);
  } catch (error) {
    if (error.name === "AbortError" || error.mayPass) throw error;
    // A mapped task as a whole has no task instance, so check all its mapped instances.
    return mapIndex < 0 && error.status === 404 ? anyUnderWay(dag, run, taskId, signal) : false;
  }
}

async function anyUnderWay(dag, run, taskId, signal) {
  try {
    const url = new URL(`dags/${dag}/dagRuns/${run}/taskInstances/${encodeURIComponent(taskId)}/listMapped`, AIRFLOW);
    url.searchParams.set("limit", "1");
    for (const state of STATES_WITH_A_FUTURE) if (state) url.searchParams.append("state", state);
    return (await get(url, signal)).total_entries > 0;
  } catch (error) {
    if (error.name === "AbortError" || error.mayPass) throw error;
    return false;
  }
}
