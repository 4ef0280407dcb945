// SPDX-License-Identifier: Apache-2.0
// The policies in force beside what was recorded: what they are missing, and what of them nothing used.

import { cards, make, problem, replace } from "./element.js";
import { BETWEEN, RECORDED_BY, lacking } from "./judged.js";
import { count, time } from "./name.js";
import { table } from "./table.js";

const SEEN = [
  { name: "Connections", kind: "number", text: (row) => count(row.connections), value: (row) => row.connections },
  { name: "Last (UTC)", kind: "time", text: (row) => time(row.last_seen) },
];

// What an answer says.
function said(answer) {
  const { missing_count: missing, undecided_count: undecided, unused_count: unused } = answer;
  return [
    cards([
      ["missing", count(missing), missing > 0 ? "bad" : "faint"],
      ["unused", count(unused), unused > 0 ? "caution" : "faint"],
      ["cannot be judged", count(undecided), undecided > 0 ? "caution" : "faint"],
    ]),
    table({
      title: "Missing in the policies in force",
      empty: "Nothing: they allow all of it.",
      rows: answer.missing,
      columns: [...BETWEEN, ...SEEN],
    }),
    lacking(missing, answer.missing.length, "that are missing"),
    table({
      title: "Rules in force that nothing used",
      empty: "None: every rule was used, with each of its targets.",
      rows: answer.unused,
      columns: [
        { name: "Rule", kind: "name", text: (row) => row.rule },
        { name: "What of it", kind: "name", text: (row) => row.target ?? "all of it" },
      ],
    }),
    lacking(unused, answer.unused.length, "that nothing used"),
    undecided > 0
      ? table({
          title: "Cannot be judged",
          rows: answer.undecided,
          columns: [...BETWEEN, ...SEEN, { name: "Why", kind: "name", text: (row) => row.reason }],
        })
      : null,
    lacking(undecided, answer.undecided.length, "that cannot be judged"),
  ];
}

// What asks for it, and where it comes to stand.
export function comparison(compare) {
  const state = make("p", { class: "note", role: "status" });
  const result = make("div");
  let isAsked = false;
  const ask = async () => {
    if (isAsked) {
      return;
    }
    isAsked = true;
    replace(state, "Asking the agent \u2026");
    replace(result);
    try {
      const answer = await compare();
      replace(state, `By what was ${RECORDED_BY[answer.recorded_by] ?? answer.recorded_by}, and revision ${answer.revision}, which is in force now.`);
      replace(result, said(answer));
    } catch (error) {
      replace(state);
      replace(result, problem(error));
    } finally {
      isAsked = false;
    }
  };
  return make(
    "section",
    { "aria-label": "Comparison" },
    make("div", { class: "tools" }, make("button", { type: "button", "data-key": "compare", click: ask }, "Compare with the policies in force")),
    state,
    result,
  );
}
