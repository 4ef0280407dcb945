// SPDX-License-Identifier: Apache-2.0
// What enforcing the policy in force would refuse, judged by what was recorded, and what a candidate would.

import { arrive, candidate } from "./candidate.js";
import { make, note } from "./element.js";
import { RECORDED_BY, judged } from "./judged.js";
import { count } from "./name.js";

export const enforcing = {
  name: "enforcing",
  title: "Enforcing",
  isCheap: false,

  async load({ ask, range }) {
    return { answer: await ask("/v1/replay", range), replay: (documents) => ask("/v1/replay", range, documents) };
  },

  build({ answer, replay }) {
    return make(
      "div",
      {},
      note(
        `${count(answer.connections)} connections of this time, ${RECORDED_BY[answer.recorded_by] ?? answer.recorded_by}, ${count(answer.flows)} different, judged by revision ${answer.revision}, which is in force now.`,
      ),
      answer.stage ? note(`What enforcing would deny is judged as at the stage ${answer.stage} of the rollout, which is next.`) : null,
      candidate(replay),
      judged(answer, {
        denied: {
          title: "What enforcing would deny now",
          empty: "Nothing: all that went through is allowed by the policy in force.",
        },
        changes: {
          title: "Replay: of what the policy in force says something else than was said then",
          empty: "Nothing: the policy in force says what was said then.",
        },
      }),
    );
  },

  placed: arrive,
};
