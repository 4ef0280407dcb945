// SPDX-License-Identifier: Apache-2.0
// What policies make of recorded connections: how many, which ones, and when they were.

import { cards, note } from "./element.js";
import { count, short, time } from "./name.js";
import { table } from "./table.js";

// Whose records are judged: one node's say little of what happens on others.
export const RECORDED_BY = { this_node: "recorded by this node", all_nodes: "recorded by all nodes" };

// The first addresses of an end that has no name of its own, and how many more there are.
function where({ addresses = [], address_count: all = addresses.length }) {
  const first = addresses.slice(0, 3);
  const more = all - first.length;
  return first.length > 0 ? ` (${first.join(", ")}${more > 0 ? `, ${count(more)} more` : ""})` : "";
}

// The columns that say between whom.
export const BETWEEN = [
  { name: "Source", kind: "name", text: (row) => short(row.source) },
  { name: "Destination", kind: "name", text: (row) => short(row.destination) + where(row) },
  { name: "Port", kind: "mono", text: (row) => `${row.port}/${row.protocol}` },
];

const WHEN = [
  { name: "Connections", kind: "number", text: (row) => count(row.connections), value: (row) => row.connections },
  { name: "First (UTC)", kind: "time", text: (row) => time(row.first_seen) },
  { name: "Last (UTC)", kind: "time", text: (row) => time(row.last_seen) },
  { name: "Rule or reason", kind: "name", text: (row) => row.rule ?? `(${row.reason})` },
];

const CHANGES = {
  newly_denied: ["newly denied", "bad"],
  needs_proof: ["needs proof", "caution"],
  newly_allowed: ["newly allowed", "good"],
  undecided: ["cannot be judged", "caution"],
};

// Says that not all rows are there.
export function lacking(sum, rows, what) {
  return sum > rows ? note(`The first ${count(rows)} of ${count(sum)} ${what}: narrow them by time or namespace.`) : null;
}

// What is shown of an answer. `denied` and `changes` are the titles of the two tables, and what stands there if they are empty.
export function judged(answer, { denied, changes }) {
  const sums = [
    ["would be denied", answer.would_deny, "bad"],
    ["newly denied", answer.newly_denied, "bad"],
    ["need proof", answer.needs_proof, "caution"],
    ["newly allowed", answer.newly_allowed, "good"],
    ["cannot be judged", answer.undecided, "caution"],
  ];
  const changed = sums.slice(1).reduce((all, [, sum]) => all + sum.flows, 0);
  return [
    cards(sums.map(([name, sum, tone]) => [`${name} (${count(sum.connections)} connections)`, count(sum.flows), sum.flows > 0 ? tone : "faint"])),
    table({ ...denied, rows: answer.denied, columns: [...BETWEEN, ...WHEN] }),
    lacking(answer.would_deny.flows, answer.denied.length, "that would be denied"),
    table({
      ...changes,
      rows: answer.changes,
      columns: [
        { name: "Change", text: (row) => CHANGES[row.change]?.[0] ?? row.change, tone: (row) => CHANGES[row.change]?.[1] },
        ...BETWEEN,
        ...WHEN,
      ],
    }),
    lacking(changed, answer.changes.length, "that changed"),
    Object.entries(answer.left_out).map(([reason, number]) => note(`${count(number)} left out, for policy did not decide: ${reason}`)),
  ];
}
