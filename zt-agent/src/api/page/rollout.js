// SPDX-License-Identifier: Apache-2.0
// How far this node is from observing to enforcing, and the nodes that follow it.

import { cards, make, note } from "./element.js";
import { count, short, time } from "./name.js";
import { table } from "./table.js";

const STATES = {
  in_force: ["in force", "good"],
  stopped: ["reached, and not in force here", "bad"],
  next: ["next", ""],
  later: ["later", "faint"],
};

// What a policy engine says of workloads is null.
const UNSEEN = "A policy engine does not see the workloads of nodes: ask their agents.";

function whom(one) {
  const part = one.percent === null ? "all" : `${one.percent} % by ${one.by}`;
  const seen = one.selected === null ? "" : `: ${count(one.taken)} of ${count(one.selected)} workloads of this node`;
  return `${one.mode}s ${part} of those that it selects${seen}${one.require_policy ? "; who is in no policy is refused" : ""}`;
}

function stage(one) {
  const [name, tone] = STATES[one.state] ?? [one.state, ""];
  return make(
    "li",
    { class: one.state },
    make("strong", {}, one.name),
    " ",
    make("span", { class: tone }, name),
    note(whom(one)),
    one.selected === null
      ? null
      : [
          make("progress", { max: String(Math.max(one.selected, 1)), value: String(one.taken), "aria-label": `Taken by ${one.name}` }),
          make("span", { class: "faint" }, ` with it ${count(one.enforced)} enforce`),
        ],
  );
}

function workloads(seen) {
  if (seen === null) {
    return note(UNSEEN);
  }
  const nameless = seen.enforced_without_name;
  return note(
    `${count(seen.enforced)} of ${count(seen.total)} workloads enforce, ${count(seen.newly_enforced)} of them newly`,
    nameless > 0 ? `; and ${count(nameless)} that have lost their name` : "",
    ".",
  );
}

// What there was too much of.
function tooMany(stopped) {
  return stopped.denials <= stopped.per_minute && stopped.attempts_per_minute !== null
    ? `for ${count(stopped.attempts)} refusals in a minute of connections of those newly enforced (${count(stopped.attempts_per_minute)} are borne)`
    : `for ${count(stopped.denials)} different connections of those newly enforced that were refused in a minute (${count(stopped.per_minute)} are borne)`;
}

// Why a node stopped.
function why(stopped) {
  return stopped.cause === "unreadable" ? "as it cannot be read where it had stopped before: see the log of its agent" : tooMany(stopped);
}

// Why this node stopped of its own accord, and what broke.
function stop(stopped) {
  const what = stopped.action === "hold" ? "stays at this stage" : "went back behind this stage";
  return [
    make("p", { class: "problem" }, `Stopped at ${stopped.stage}: this node ${what}, ${why(stopped)}, ${time(stopped.at)}.`),
    stopped.edges.length === 0
      ? null
      : table({
          title: "Refused most often before it stopped",
          rows: stopped.edges,
          columns: [
            { name: "Source", kind: "name", text: (row) => short(row.source) },
            { name: "Destination", kind: "name", text: (row) => short(row.destination) },
            { name: "Port", kind: "mono", text: (row) => `${row.port}/${row.protocol}` },
            { name: "Times", kind: "number", text: (row) => count(row.times), value: (row) => row.times },
          ],
        }),
    note("To try again: zt-agent rollout resume at this node; or rollback, then advance; or change what the stage says."),
  ];
}

// How far a node that follows is, in words.
function reach(node) {
  const words = { in_force: "in force", stopped: `stopped (${node.stopped?.action})`, behind: "behind", unknown: "does not say", silent: "silent" };
  const text = words[node.state] ?? node.state;
  return node.observe_all ? `${text}, break-glass` : text;
}

// The nodes that follow: how many are how far, and those that are not as the document says.
function followers(nodes) {
  if (nodes.length === 0) {
    return null;
  }
  const counts = new Map();
  for (const node of nodes) {
    counts.set(reach(node), (counts.get(reach(node)) ?? 0) + 1);
  }
  const odd = nodes.filter((node) => node.state !== "in_force" || node.observe_all);
  return [
    note(`Nodes that follow, ${count(nodes.length)}: `, [...counts].map(([words, number]) => `${count(number)} ${words}`).join(", "), "."),
    odd.length === 0
      ? null
      : table({
          title: "Nodes at which something else is in force, or less",
          rows: odd,
          columns: [
            { name: "Node", kind: "name", text: (row) => row.node },
            { name: "State", text: reach, tone: (row) => (row.stopped ? "bad" : "caution") },
            { name: "In force", text: (row) => (row.state === "unknown" || row.state === "silent" ? "-" : (row.in_force ?? "none")) },
            { name: "Stopped at", text: (row) => row.stopped?.stage ?? "-" },
            { name: "Why", text: (row) => (row.stopped ? why(row.stopped) : "-") },
            { name: "Heard", text: (row) => time(row.heard) },
            { name: "Said by", kind: "name", text: (row) => row.engine ?? "the node" },
          ],
        }),
  ];
}

function modes({ service, modes: of }) {
  if (service === "engine") {
    return null;
  }
  return cards([
    ["workloads of this node enforce", count(of.enforce), of.enforce > 0 ? "good" : "faint"],
    ["only observe", count(of.observe), of.observe > 0 ? "caution" : "faint"],
    ["is the default", of.default, ""],
  ]);
}

export const rollout = {
  name: "rollout",
  title: "Rollout",
  isCheap: true,

  async load({ ask }) {
    const [answer, status] = await Promise.all([ask("/v1/rollout"), ask("/v1/status")]);
    // Nothing else of the status is shown, nor when nodes were heard: that is another one each time.
    const nodes = answer.nodes.map(({ heard, ...node }) => node);
    return { answer: { ...answer, nodes }, status: { service: status.service, modes: status.modes } };
  },

  build({ answer, status }) {
    const { rollout: one } = answer;
    return make(
      "div",
      {},
      answer.observe_all ? make("p", { class: "problem" }, "Break-glass is on: nothing is refused on this node, whatever the rollout says.") : null,
      answer.errors.length > 0
        ? make("p", { class: "problem" }, "Policy documents have problems: what is in force is not all that they say. See Policies.")
        : null,
      modes(status),
      one === null
        ? note("There is no rollout: modes are those of workloads and of the configuration.")
        : [
            make("h2", {}, one.name),
            note(`The document has reached ${one.stage ?? "no stage yet"}; in force here is ${one.in_force ?? "none"}.`),
            one.stopped ? stop(one.stopped) : null,
            workloads(one.workloads),
            followers(answer.nodes),
            make("ol", { class: "stages" }, one.stages.map(stage)),
            note("zt-agent rollout advance and rollback change it."),
          ],
    );
  },
};
