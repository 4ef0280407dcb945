// SPDX-License-Identifier: Apache-2.0
// The smallest policy that would allow what went through, and what the policies in force are beside that.

import { consider } from "./candidate.js";
import { comparison } from "./compared.js";
import { cards, make, note, problem, replace } from "./element.js";
import { count } from "./name.js";
import { table } from "./table.js";

// How it is wished for, also while another view is shown.
const wishes = { pattern: "", include_denied: false };

// Where that is said. `again` has the view asked for anew: when that is wanted, and not while somebody is still at it, for what is asked
// anew is not there to be clicked.
function form(again) {
  const pattern = make("input", {
    id: "pattern",
    size: 40,
    autocomplete: "off",
    spellcheck: "false",
    "data-key": "pattern",
    input: (event) => {
      wishes.pattern = event.target.value;
    },
  });
  pattern.value = wishes.pattern;
  const denied = make("input", {
    type: "checkbox",
    checked: wishes.include_denied,
    "data-key": "include denied",
    change: (event) => {
      wishes.include_denied = event.target.checked;
    },
  });
  return make(
    "form",
    {
      class: "tools",
      submit: (event) => {
        event.preventDefault();
        again();
      },
    },
    make("label", {}, "Patterns to write for whom they match, with commas between them ", pattern),
    make("label", {}, denied, " Allow also what was refused"),
    make("button", { "data-key": "recommend" }, "Recommend"),
  );
}

export const recommend = {
  name: "recommend",
  title: "Recommendation",
  isCheap: false,

  async load({ ask, range, again }) {
    const denied = { ...range, include_denied: wishes.include_denied };
    const asked = { again, compare: () => ask("/v1/recommend/diff", denied) };
    try {
      return { ...asked, answer: await ask("/v1/recommend", { ...denied, pattern: wishes.pattern.trim() }) };
    } catch (error) {
      if (error.code === "nothing_recorded") {
        throw error;
      }
      // It may be for what is wished, and that can be changed.
      return { ...asked, error };
    }
  },

  build({ answer, error, again, compare }) {
    if (error) {
      const isCompared = error.code === "nothing_passed";
      return make("div", {}, form(again), problem(error), isCompared ? comparison(compare) : null);
    }
    return make("div", {}, form(again), policy(answer), comparison(compare));
  },
};

// The policy, and what is not in it.
function policy(answer) {
  const left = Object.entries(answer.left_out).map(([reason, number]) => note(`${count(number)} left out, for policy did not decide: ${reason}`));
  const unsaid = table({
    title: "Not in it",
    empty: "Nothing: it allows all that went through.",
    rows: answer.unsaid,
    columns: [
      { name: "Connection", kind: "name", text: (row) => row.connection },
      { name: "Why", kind: "name", text: (row) => row.reason },
    ],
  });
  // One without rules would deny all the rest: that is nothing to be copied.
  if (answer.rules === 0) {
    const isAll = answer.unsaid.length === 0;
    const why = isAll ? "No policy is needed: zt allows all that went through by itself." : "No rule can be written for what went through.";
    return [note(why), isAll ? null : unsaid, left];
  }
  const text = make("pre", { tabindex: "0", "aria-label": "The policy" }, answer.policy);
  const copy = make(
    "button",
    {
      type: "button",
      click: async () => {
        try {
          await navigator.clipboard.writeText(answer.policy);
          replace(copy, "Copied");
        } catch {
          // Without leave to write there, it is ready to be copied by hand.
          getSelection().selectAllChildren(text);
          replace(copy, "Selected: press Ctrl+C");
        }
      },
    },
    "Copy",
  );
  return [
    note(
      wishes.include_denied
        ? "Read it before you put it in force: it allows what was tried, wanted or not, and what was refused."
        : "Read it before you put it in force: it allows what happened, wanted or not. What was refused is not in it.",
    ),
    cards([
      ["connections", count(answer.connections), ""],
      ["different", count(answer.flows), ""],
      ["rules", count(answer.rules), ""],
    ]),
    make(
      "div",
      { class: "tools" },
      copy,
      make("button", { type: "button", "data-key": "consider", click: () => consider(answer.policy) }, "Replay as a candidate"),
    ),
    text,
    unsaid,
    left,
  ];
}
