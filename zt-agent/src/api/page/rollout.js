// SPDX-License-Identifier: Apache-2.0
// How far this node is from observing to enforcing.

import { cards, make, note } from "./element.js";
import { count, time } from "./name.js";

const STATES = {
  in_force: ["in force", "good"],
  stopped: ["reached, and not in force here", "bad"],
  next: ["next", ""],
  later: ["later", "faint"],
};

// What there was too much of.
function stoppedFor(stop) {
  return stop.denials <= stop.per_minute && stop.attempts_per_minute !== null
    ? `${count(stop.attempts)} refusals in a minute, ${count(stop.attempts_per_minute)} would have been borne`
    : `${count(stop.denials)} denials in a minute, ${count(stop.per_minute)} would have been borne`;
}

function stage(one) {
  const [name, tone] = STATES[one.state] ?? [one.state, ""];
  const whom = one.percent === null ? "all" : `${one.percent} % by ${one.by}`;
  return make(
    "li",
    { class: one.state },
    make("strong", {}, one.name),
    " ",
    make("span", { class: tone }, name),
    note(
      `${one.mode}s ${whom} of those that it selects: ${count(one.taken)} of ${count(one.selected)} workloads of this node`,
      one.require_policy ? "; who is in no policy is refused" : "",
    ),
    make("progress", { max: String(Math.max(one.selected, 1)), value: String(one.taken), "aria-label": `Taken by ${one.name}` }),
    make("span", { class: "faint" }, ` with it ${count(one.enforced)} enforce`),
  );
}

export const rollout = {
  name: "rollout",
  title: "Rollout",
  isCheap: true,

  async load({ ask }) {
    const [answer, status] = await Promise.all([ask("/v1/rollout"), ask("/v1/status")]);
    const { modes } = status;
    const { rollout: one } = answer;
    return make(
      "div",
      {},
      answer.observe_all ? make("p", { class: "problem" }, "Break-glass is on: nothing is refused on this node, whatever the rollout says.") : null,
      answer.errors.length > 0 ? make("p", { class: "problem" }, "What is on disk is not in force: see Policies.") : null,
      cards([
        ["workloads of this node enforce", count(modes.enforce), modes.enforce > 0 ? "good" : "faint"],
        ["only observe", count(modes.observe), modes.observe > 0 ? "caution" : "faint"],
        ["is the default", modes.default, ""],
      ]),
      one === null
        ? note("There is no rollout: modes are those of workloads and of the configuration.")
        : [
            make("h2", {}, one.name),
            note(`The document has reached ${one.stage ?? "no stage yet"}; in force here is ${one.in_force ?? "none"}.`),
            one.stopped
              ? make(
                  "p",
                  { class: "problem" },
                  `This node stopped (${one.stopped.action}) at ${one.stopped.stage}, ${time(one.stopped.at)}: ${stoppedFor(one.stopped)}.`,
                )
              : null,
            note(
              `${count(one.workloads.enforced)} of ${count(one.workloads.total)} workloads enforce, ${count(one.workloads.newly_enforced)} of them newly.`,
            ),
            make("ol", { class: "stages" }, one.stages.map(stage)),
            note("zt-agent rollout advance and rollback change it."),
          ],
    );
  },
};
