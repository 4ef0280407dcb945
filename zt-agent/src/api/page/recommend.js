// SPDX-License-Identifier: Apache-2.0
// The smallest policy that would allow what went through.

import { consider } from "./candidate.js";
import { cards, make, note, replace } from "./element.js";
import { count } from "./name.js";
import { table } from "./table.js";

export const recommend = {
  name: "recommend",
  title: "Recommendation",
  isCheap: false,

  load({ ask, range }) {
    return ask("/v1/recommend", range);
  },

  build(answer) {
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
      return make("div", {}, note(why), isAll ? null : unsaid, left);
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
    return make(
      "div",
      {},
      note("Read it before you put it in force: it allows what happened, wanted or not. What was refused is not in it."),
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
    );
  },
};
