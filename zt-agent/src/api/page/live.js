// SPDX-License-Identifier: Apache-2.0
// Decisions as they fall. The page shows a sample where they come faster than anybody reads, and says of how many.

import { ask } from "./ask.js";
import { make, note, replace } from "./element.js";
import { clean, count, fits, party } from "./name.js";

// How often rows are added, and how many at a time; as many again where they are denials.
const EVERY = 200;
const ROOM = 40;
// Rows that are on the page.
const MOST = 300;
// How long until the next attempt at a stream that is not to be had.
const WAIT = 3000;

let source = null;
let timer = null;
let retry = null;
let parts = null;
let waiting = [];
let denials = [];
let held = false;
let deniedOnly = false;
let typed = "";
let totals = { shown: 0, all: 0, missed: 0, meanwhile: 0 };

function verdict(record) {
  if (record.type && record.type !== "decision") {
    return { text: "CHANGED", tone: "caution", isDenial: false };
  }
  if (record.decision !== "DENY") {
    return { text: "ALLOW", tone: "good", isDenial: false };
  }
  return record.enforced
    ? { text: "DENY", tone: "bad", isDenial: true }
    : { text: "WOULD DENY", tone: "caution", isDenial: true };
}

// What a row says.
function cells(record) {
  const said = verdict(record);
  const port = record.destination?.port;
  const isDecision = said.text !== "CHANGED";
  return {
    time: record.timestamp?.slice(11, 23) ?? "-",
    verdict: said,
    source: isDecision ? party(record.source) : (record.caller ?? "-"),
    destination: isDecision ? party(record.destination) : JSON.stringify(record.change ?? {}),
    port: isDecision ? `${port}/${record.protocol}` : "",
    because: isDecision ? (record.policy_matched ?? `(${record.reason})`) : record.type,
    weight: Math.max(1, record.count ?? 1),
  };
}

function textOf(row) {
  return [row.verdict.text, row.source, row.destination, row.port, row.because].join(" ");
}

function take(event) {
  let record;
  try {
    record = JSON.parse(event.data);
  } catch {
    return;
  }
  const row = cells(record);
  if ((deniedOnly && !row.verdict.isDenial) || !fits(textOf(row), typed)) {
    return;
  }
  totals.all += row.weight;
  if (held) {
    totals.meanwhile += row.weight;
    return;
  }
  const room = waiting.length < ROOM ? waiting : row.verdict.isDenial ? denials : null;
  if (room !== null && room.length < ROOM) {
    room.push({ row, data: event.data });
    totals.shown += row.weight;
  }
}

function add() {
  const rows = [...waiting, ...denials];
  waiting = [];
  denials = [];
  if (rows.length > 0) {
    parts.body.prepend(...rows.reverse().map(element));
    while (parts.body.children.length > MOST) {
      parts.body.lastElementChild.remove();
    }
    rove();
  }
  tell();
}

function tell() {
  const { shown, all, missed, meanwhile } = totals;
  const words = [`shown ${count(shown)} of ${count(all)}`];
  if (missed > 0) {
    words.push(`${count(missed)} not sent: they came faster than they were read`);
  }
  if (held) {
    words.push(`held, ${count(meanwhile)} came since`);
  } else if (shown < all) {
    words.push("a sample, the trail has all");
  }
  replace(parts.count, words.join(" \u00b7 "));
  parts.count.classList.toggle("caution", shown < all);
}

function element({ row, data }) {
  const line = make(
    "tr",
    { tabindex: "-1", click: () => open(line, data), focus: () => rove(line) },
    make("td", { class: "time faint" }, row.time),
    make("td", { class: row.verdict.tone }, row.verdict.text),
    make("td", { class: "name" }, row.source),
    make("td", { class: "name" }, row.destination),
    make("td", { class: "mono" }, row.port),
    make("td", { class: "name faint" }, row.because, row.weight > 1 ? ` \u00d7${row.weight}` : ""),
  );
  line.dataset.text = textOf(row);
  line.dataset.denial = String(row.verdict.isDenial);
  line.dataset.record = data;
  return line;
}

// One row can be reached with Tab, the others from there.
function rove(to) {
  const rows = [...parts.body.children];
  const current = to ?? rows.find((row) => row.tabIndex === 0) ?? rows[0];
  rows.forEach((row) => {
    row.tabIndex = row === current ? 0 : -1;
  });
}

// What is there is narrowed at once; what comes is counted anew.
function narrow() {
  for (const row of parts.body.children) {
    row.hidden = (deniedOnly && row.dataset.denial !== "true") || !fits(row.dataset.text, typed);
  }
  totals = { shown: 0, all: 0, missed: 0, meanwhile: 0 };
  tell();
}

function flatten(name, value, fields) {
  if (value === null || value === undefined) {
    return;
  }
  if (typeof value === "object" && !Array.isArray(value)) {
    for (const [key, inner] of Object.entries(value)) {
      flatten(name ? `${name}.${key}` : key, inner, fields);
    }
    return;
  }
  fields.push([name, Array.isArray(value) ? JSON.stringify(value) : String(value)]);
}

async function open(line, data) {
  parts.body.querySelectorAll(".chosen").forEach((row) => row.classList.remove("chosen"));
  line.classList.add("chosen");
  const record = JSON.parse(data);
  const fields = [];
  flatten("", record, fields);
  const rule = make("div", {}, note(record.policy_matched ? "Asking for the rule \u2026" : "No rule decided: see the reason."));
  replace(
    parts.side,
    make("h2", {}, "Decision"),
    make(
      "dl",
      { class: "fields" },
      fields.map(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]),
    ),
    make("h2", {}, "Rule"),
    rule,
  );
  const matched = /^([a-z0-9-]+)\/rule-(\d+)$/.exec(record.policy_matched ?? "");
  if (matched === null) {
    if (record.policy_matched) {
      replace(rule, note(`${record.policy_matched} is built in: it is in no document.`));
    }
    return;
  }
  try {
    const policy = await ask(`/v1/policies/${matched[1]}`);
    const text = policy.document.spec.rules?.[Number(matched[2]) - 1];
    replace(
      rule,
      note(`${record.policy_matched}, as it is now`),
      text ? make("pre", { tabindex: "0" }, JSON.stringify(text, null, 2)) : note("Its policy has no such rule any more."),
    );
  } catch (error) {
    replace(rule, note(error.message));
  }
}

function connect() {
  source = new EventSource("/v1/decisions/stream");
  source.addEventListener("open", () => say("connected", "good"));
  source.addEventListener("message", take);
  source.addEventListener("lagged", (event) => {
    const missed = Number(/\d+/.exec(event.data)?.[0] ?? 0);
    totals.missed += missed;
    totals.all += missed;
  });
  source.addEventListener("error", () => {
    say("no agent, trying again", "bad");
    // After an answer that is no stream the browser does not try by itself.
    if (source?.readyState === EventSource.CLOSED) {
      clearTimeout(retry);
      retry = setTimeout(connect, WAIT);
    }
  });
}

function say(text, tone) {
  replace(parts.link, make("span", { class: tone }, text));
}

function hold() {
  held = !held;
  totals.meanwhile = 0;
  parts.hold.setAttribute("aria-pressed", String(held));
  replace(parts.hold, held ? "Go on" : "Hold");
  tell();
}

export const live = {
  name: "live",
  title: "Live",
  isCheap: false,

  // There is nothing to wait for: the stream is opened with the view.
  async load() {
    return null;
  },

  build() {
    const search = make("input", {
      type: "search",
      value: typed,
      placeholder: "filter decisions",
      "aria-label": "Filter decisions",
      "data-filter": true,
      "data-key": "filter",
      input: () => {
        typed = clean(search.value);
        narrow();
      },
    });
    const only = make("input", {
      type: "checkbox",
      checked: deniedOnly,
      change: () => {
        deniedOnly = only.checked;
        narrow();
      },
    });
    parts = {
      only,
      hold: make("button", { type: "button", "aria-pressed": "false", click: hold }, "Hold"),
      link: make("span", { role: "status" }, "connecting \u2026"),
      count: make("span", { id: "live-count" }),
      body: make("tbody"),
      side: make("aside", { class: "side", "aria-live": "polite", "aria-label": "The decision that is chosen" }, note("Choose a decision to see all that its record says, and its rule.")),
    };
    held = false;
    totals = { shown: 0, all: 0, missed: 0, meanwhile: 0 };
    const names = ["Time (UTC)", "Verdict", "Source", "Destination", "Port", "Rule or reason"];
    const heading = make("tr", {}, names.map((name) => make("th", { scope: "col" }, name)));
    connect();
    timer = setInterval(add, EVERY);
    return make(
      "div",
      {},
      make("div", { class: "tools" }, search, make("label", {}, only, " only denials"), parts.hold, parts.link, parts.count),
      make(
        "div",
        { class: "pair" },
        make("div", { class: "scroll" }, make("table", {}, make("thead", {}, heading), parts.body)),
        parts.side,
      ),
    );
  },

  leave() {
    source?.close();
    source = null;
    clearInterval(timer);
    clearTimeout(retry);
    waiting = [];
    denials = [];
  },

  press(event) {
    if (event.key === "p") {
      hold();
    } else if (event.key === "d") {
      parts.only.click();
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const rows = [...parts.body.children].filter((row) => !row.hidden);
      const at = rows.indexOf(document.activeElement);
      const to = event.key === "ArrowDown" ? Math.min(at + 1, rows.length - 1) : Math.max(at - 1, 0);
      rows[to]?.focus();
    } else if (event.key === "Enter" && parts.body.contains(document.activeElement)) {
      open(document.activeElement, document.activeElement.dataset.record);
    } else {
      return false;
    }
    return true;
  },
};
