// SPDX-License-Identifier: Apache-2.0
// The policies in force, with how often each of their rules decided.

import { make, note } from "./element.js";
import { count, fits, time } from "./name.js";
import { table } from "./table.js";

// Rules of one policy that are put on the page.
const MOST = 300;

function party(end) {
  return end.spiffe ?? end.cidr ?? end.entity ?? "any";
}

function target(to) {
  const ports = (to.ports ?? []).join(", ");
  const parts = [party(to), to.protocol ?? "TCP", ports === "" ? "any port" : ports];
  if (to.requireProof) {
    parts.push("with proof");
  }
  return parts.join(" ");
}

// Of rules between workloads, and of operators: whatever is there, in words.
function words(rule) {
  if (rule.from === undefined) {
    return JSON.stringify(rule);
  }
  const to = Array.isArray(rule.to) ? rule.to.map(target).join("; ") : "";
  return `${party(rule.from)} \u2192 ${to === "" ? "nobody" : to}`;
}

const isCounted = (hits) => hits.allowed + hits.denied + hits.would_deny > 0;

// Whether a rule decided anything since it is what it is, be it counted or not.
const isUsed = (hits) => hits !== undefined && (isCounted(hits) || (hits.since !== null && hits.last_seen !== null));

// A rule is known by its number: it is counted since its policy was changed, where that was later than the time that is shown.
function hitsOf(hits, begun) {
  if (hits === undefined) {
    return make("td", { class: "faint", colspan: "4" }, "not counted");
  }
  const since = hits.since === null ? "in this time" : `since ${time(hits.since)}`;
  if (!isUsed(hits)) {
    return make("td", { class: "caution", colspan: "4" }, `never ${since}`);
  }
  const last = make("td", { class: "time" }, time(hits.last_seen));
  if (!isCounted(hits)) {
    return [make("td", { class: "faint", colspan: "3" }, `used, and counted ${since}`), last];
  }
  if (hits.since !== begun) {
    last.append(make("span", { class: "faint" }, `, counted ${since}`));
  }
  const number = (value, tone) => make("td", { class: `number ${value > 0 ? tone : "faint"}` }, count(value));
  return [number(hits.allowed, "good"), number(hits.denied, "bad"), number(hits.would_deny, "caution"), last];
}

// Since when rules are counted, where that is later than the time that is shown.
function begin(policy, hits) {
  const all = (policy.document.spec.rules ?? []).map((_, index) => hits.get(`${policy.name}/rule-${index + 1}`)?.since ?? null);
  return all.reduce((first, since) => (first !== null && (since === null || first < since) ? first : since), null);
}

function rules(policy, hits) {
  const all = policy.document.spec.rules ?? [];
  const since = begin(policy, hits);
  const rows = all.slice(0, MOST).map((rule, index) => {
    const name = `${policy.name}/rule-${index + 1}`;
    return make(
      "tr",
      {},
      make("td", { class: "number" }, String(index + 1)),
      make("td", { class: rule.action === "DENY" ? "bad" : "" }, rule.action ?? "ALLOW"),
      make("td", { class: "name" }, words(rule), rule.description ? make("span", { class: "faint" }, ` \u2014 ${rule.description}`) : null),
      hitsOf(hits.get(name), since),
    );
  });
  const names = ["Rule", "Action", "Who may reach whom", "Allowed", "Denied", "Would deny", "Last (UTC)"];
  const kinds = ["number", "", "", "number", "number", "number", ""];
  return [
    since === null ? null : note(`Counted since ${time(since)} (UTC): the policy was changed then, or may have been, and before that its rules may have had other numbers.`),
    make(
      "div",
      { class: "scroll" },
      make(
        "table",
        {},
        make("thead", {}, make("tr", {}, names.map((name, index) => make("th", { scope: "col", class: kinds[index] }, name)))),
        make("tbody", {}, rows),
      ),
    ),
    all.length > MOST ? note(`The first ${MOST} of ${count(all.length)} rules.`) : null,
  ];
}

function block(policy, hits) {
  const inside = make("div");
  const all = policy.document.spec.rules ?? [];
  const used = all.filter((_, index) => isUsed(hits.get(`${policy.name}/rule-${index + 1}`)));
  const since = begin(policy, hits);
  const usedSince = since === null ? "" : ` since ${time(since)}`;
  const fill = () => {
    if (inside.childElementCount === 0) {
      const isOfRules = policy.kind !== "EnforcementRollout";
      inside.append(
        ...(isOfRules ? rules(policy, hits) : [make("pre", { tabindex: "0" }, JSON.stringify(policy.document.spec, null, 2))]).filter(Boolean),
      );
    }
  };
  const box = make(
    "details",
    { toggle: fill },
    make(
      "summary",
      { "data-key": `policy ${policy.name}` },
      make("strong", {}, policy.name),
      make("span", { class: "faint" }, policy.kind),
      policy.kind === "ServiceAccessPolicy" ? make("span", { class: "faint" }, `${count(used.length)} of ${count(all.length)} rules used${usedSince}`) : null,
    ),
    policy.document.spec.description ? note(policy.document.spec.description) : null,
    inside,
  );
  box.dataset.text = JSON.stringify([policy.name, policy.kind, policy.document]);
  return box;
}

export const policies = {
  name: "policies",
  title: "Policies",
  isCheap: false,

  load({ ask, range }) {
    return Promise.all([ask("/v1/policies"), ask("/v1/rules", { since: range.since })]);
  },

  build([listed, counted]) {
    const hits = new Map(counted.rules.filter((rule) => rule.in_force).map((rule) => [rule.rule, rule]));
    const boxes = listed.policies.map((policy) => block(policy, hits));
    if (boxes.length > 0 && boxes.length <= 5) {
      boxes.forEach((box) => {
        box.open = true;
      });
    }
    const search = make("input", {
      type: "search",
      placeholder: "filter policies",
      "aria-label": "Filter policies",
      "data-filter": true,
      "data-key": "filter",
      input: () => {
        for (const box of boxes) {
          box.hidden = !fits(box.dataset.text, search.value);
        }
      },
    });
    const known = new Set(listed.policies.map((policy) => policy.name));
    const others = counted.rules.filter((rule) => !rule.in_force || !known.has(rule.rule.split("/")[0]));
    return make(
      "div",
      {},
      listed.errors.length > 0
        ? make(
            "div",
            { class: "problem", role: "alert" },
            "Policy documents have problems, and what is in force is not all that they say:",
            listed.errors.map((error) => make("div", {}, `${error.file}:${error.line}:${error.column}: ${error.field} ${error.message}`)),
          )
        : null,
      note(`Revision ${listed.revision}, digest ${listed.digest.slice(0, 16)}\u2026`),
      make("div", { class: "tools" }, search),
      boxes.length === 0 ? note("There are no policies: by default nobody may reach anybody.") : boxes,
      table({
        title: "Decided by no rule, or by one that is in no document in force",
        empty: "Nothing in this time.",
        rows: others,
        columns: [
          { name: "Rule", kind: "name", text: (row) => row.rule ?? "no rule" },
          { name: "Allowed", kind: "number", text: (row) => count(row.allowed), value: (row) => row.allowed },
          { name: "Denied", kind: "number", text: (row) => count(row.denied), value: (row) => row.denied, tone: (row) => (row.denied > 0 ? "bad" : "") },
          { name: "Would deny", kind: "number", text: (row) => count(row.would_deny), value: (row) => row.would_deny, tone: (row) => (row.would_deny > 0 ? "caution" : "") },
          { name: "Last (UTC)", kind: "time", text: (row) => time(row.last_seen) },
        ],
      }),
    );
  },
};
