// SPDX-License-Identifier: Apache-2.0
// What enforcing the policy in force would refuse, judged by what was recorded.

import { cards, make, note } from "./element.js";
import { count, short, time } from "./name.js";
import { table } from "./table.js";

const BETWEEN = [
  { name: "Source", kind: "name", text: (row) => short(row.source) },
  { name: "Destination", kind: "name", text: (row) => short(row.destination) + ((row.addresses ?? []).length > 0 ? ` (${row.addresses.slice(0, 3).join(", ")})` : "") },
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

function lacking(sum, rows, what) {
  return sum > rows ? note(`The first ${count(rows)} of ${count(sum)} ${what}: narrow them by time or namespace.`) : null;
}

export const enforcing = {
  name: "enforcing",
  title: "Enforcing",
  isCheap: false,

  load({ ask, range }) {
    return ask("/v1/replay", range);
  },

  build(answer) {
    const sums = [
      ["would be denied now", answer.would_deny, "bad"],
      ["newly denied", answer.newly_denied, "bad"],
      ["need proof", answer.needs_proof, "caution"],
      ["newly allowed", answer.newly_allowed, "good"],
      ["cannot be judged", answer.undecided, "caution"],
    ];
    const changed = sums.slice(1).reduce((all, [, sum]) => all + sum.flows, 0);
    return make(
      "div",
      {},
      note(
        `${count(answer.connections)} connections of this time, ${count(answer.flows)} different, judged by revision ${answer.revision}, which is in force now. `,
        "Policies that are not in force yet are judged by zt-agent policy replay DIRECTORY.",
      ),
      cards(sums.map(([name, sum, tone]) => [`${name} (${count(sum.connections)} connections)`, count(sum.flows), sum.flows > 0 ? tone : "faint"])),
      table({
        title: "What enforcing would deny now",
        empty: "Nothing: all that went through is allowed by the policy in force.",
        rows: answer.denied,
        columns: [...BETWEEN, ...WHEN],
      }),
      lacking(answer.would_deny.flows, answer.denied.length, "that would be denied"),
      table({
        title: "Replay: of what the policy in force says something else than was said then",
        empty: "Nothing: the policy in force says what was said then.",
        rows: answer.changes,
        columns: [
          { name: "Change", text: (row) => CHANGES[row.change]?.[0] ?? row.change, tone: (row) => CHANGES[row.change]?.[1] },
          ...BETWEEN,
          ...WHEN,
        ],
      }),
      lacking(changed, answer.changes.length, "that changed"),
      Object.entries(answer.left_out).map(([reason, number]) => note(`${count(number)} left out, for policy did not decide: ${reason}`)),
    );
  },
};
