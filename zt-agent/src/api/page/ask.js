// SPDX-License-Identifier: Apache-2.0
// Questions to the agent that served this page, and to nobody else.

// Where something is wrong, and what.
function fault({ line, field, message }) {
  return [line > 0 ? `line ${line}:` : "", field, message].filter(Boolean).join(" ");
}

// The answer to GET `path`, or to POST with policy documents to be judged; an error with what the agent says, where it refuses.
export async function ask(path, query, documents) {
  const given = Object.entries(query ?? {}).filter(([, value]) => value);
  const text = given.length > 0 ? `?${new URLSearchParams(given)}` : "";
  const sent = documents === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/yaml" }, body: documents };
  let response;
  try {
    response = await fetch(path + text, { redirect: "error", cache: "no-store", ...sent });
  } catch {
    throw new Error("The agent does not answer: it is not running, or the way to it is broken.");
  }
  const body = await response.json().catch(() => null);
  if (!response.ok) {
    const lines = (body?.errors ?? []).map(fault);
    const error = new Error([body?.detail ?? `The agent answered ${response.status}.`, ...lines].join("\n"));
    error.code = body?.code;
    throw error;
  }
  return body;
}
