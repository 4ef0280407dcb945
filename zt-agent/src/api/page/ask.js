// SPDX-License-Identifier: Apache-2.0
// Questions to the agent that served this page, and to nobody else.

// The answer to GET `path`; an error with what the agent says, where it refuses.
export async function ask(path, query) {
  const given = Object.entries(query ?? {}).filter(([, value]) => value);
  const text = given.length > 0 ? `?${new URLSearchParams(given)}` : "";
  let response;
  try {
    response = await fetch(path + text, { redirect: "error", cache: "no-store" });
  } catch {
    throw new Error("The agent does not answer: it is not running, or the way to it is broken.");
  }
  const body = await response.json().catch(() => null);
  if (!response.ok) {
    const lines = (body?.errors ?? []).map((error) => `${error.field} ${error.message}`.trim());
    const error = new Error([body?.detail ?? `The agent answered ${response.status}.`, ...lines].join("\n"));
    error.code = body?.code;
    throw error;
  }
  return body;
}
