// SPDX-License-Identifier: Apache-2.0
// The frame around the views: which is shown, of what time, and what the keys do.

import { ask } from "./ask.js";
import { make, problem, replace } from "./element.js";
import { remember, restore } from "./place.js";
import { enforcing } from "./enforcing.js";
import { graph } from "./graph.js";
import { live } from "./live.js";
import { policies } from "./policies.js";
import { recommend } from "./recommend.js";
import { rollout } from "./rollout.js";

const VIEWS = [graph, live, policies, enforcing, rollout, recommend];
// How often a view that costs little is asked anew.
const REFRESH = 15000;
// How long after a key nothing moves under whoever types.
const PAUSE = 5000;

const main = document.getElementById("main");
const state = document.getElementById("state");
const since = document.getElementById("since");
const namespace = document.getElementById("namespace");
const help = document.getElementById("help");

let shown = null;
// Answers to questions of a view that has been left are dropped.
let turn = 0;
// The turn whose answer is waited for.
let awaited = 0;
// What is on the page: the view, and the answer as text where it is asked anew.
let placed = null;
// When somebody last typed into the view.
let typedAt = 0;

const links = VIEWS.map((view, index) =>
  make("a", { href: `#${view.name}` }, view.title, make("kbd", { "aria-hidden": "true" }, String(index + 1))),
);
replace(document.getElementById("views"), links);

// What the API is asked for: whole hours, so that two questions within one have one answer.
function range() {
  const hours = Number(since.value);
  return {
    since: hours > 0 ? new Date(Date.now() - hours * 3600000).toISOString() : "",
    namespace: namespace.value.trim(),
  };
}

async function load(isAgain) {
  const mine = ++turn;
  const view = shown;
  const context = { ask, range: range(), again: () => load(false) };
  const isCurrent = () => mine === turn;
  // Asked for by hand, the page is empty meanwhile.
  let kept = !isAgain && placed?.view === view ? remember(main) : null;
  awaited = mine;
  if (!isAgain) {
    view.leave?.();
    placed = null;
    replace(main, make("p", { class: "note" }, "Asking the agent \u2026"));
  }
  try {
    const answer = await view.load(context);
    if (!isCurrent()) {
      return;
    }
    say("");
    const text = view.isCheap ? JSON.stringify(answer) : null;
    if (isAgain) {
      // Nothing moves under whoever reads, without a reason or while the hands are on it.
      if (text === placed?.text || isInUse()) {
        return;
      }
      kept = remember(main);
    }
    replace(main, view.build(answer));
    placed = { view, text };
    view.placed?.();
    restore(main, kept);
  } catch (error) {
    if (!isCurrent()) {
      return;
    }
    // What is on the page stays, with what is wrong above.
    if (isAgain) {
      say(error.message);
    } else {
      replace(main, problem(error));
    }
  } finally {
    if (awaited === mine) {
      awaited = 0;
    }
  }
}

// Whether somebody types into the view, or has marked some of it.
function isInUse() {
  const selection = document.getSelection();
  const isMarked = selection !== null && !selection.isCollapsed && main.contains(selection.anchorNode);
  return isMarked || Date.now() - typedAt < PAUSE;
}

function say(text) {
  replace(state, text);
  state.classList.toggle("bad", text !== "");
}

function route() {
  const name = location.hash.slice(1);
  if (name === "main") {
    return;
  }
  const view = VIEWS.find((candidate) => candidate.name === name) ?? graph;
  shown?.leave?.();
  shown = view;
  document.title = `${view.title} \u00b7 zt`;
  links.forEach((link, index) => {
    if (VIEWS[index] === view) {
      link.setAttribute("aria-current", "page");
    } else {
      link.removeAttribute("aria-current");
    }
  });
  load(false);
}

async function identify() {
  try {
    const status = await ask("/v1/status");
    const { revision, errors } = status.policy;
    const parts = [status.node, `zt-agent ${status.version}`, `revision ${revision}`];
    if (status.modes.observe_all) {
      parts.push("break-glass: nothing is refused");
    }
    if (errors.length > 0) {
      parts.push("policy documents have problems");
    }
    replace(document.getElementById("agent"), parts.join(" \u00b7 "));
  } catch (error) {
    say(error.message);
  }
}

function isTyping(target) {
  return Boolean(target.closest?.("input, select, textarea, dialog"));
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) {
    return;
  }
  if (event.key === "Escape" && event.target.matches?.("input[data-filter]")) {
    event.target.value = "";
    event.target.dispatchEvent(new Event("input"));
    main.focus();
    return;
  }
  if (isTyping(event.target)) {
    return;
  }
  const number = Number(event.key);
  if (Number.isInteger(number) && number >= 1 && number <= VIEWS.length) {
    location.hash = VIEWS[number - 1].name;
  } else if (event.key === "/") {
    main.querySelector("[data-filter]")?.focus();
  } else if (event.key === "?") {
    help.showModal();
  } else if (event.key === "r") {
    load(false);
  } else if (!shown?.press?.(event)) {
    return;
  }
  event.preventDefault();
}

document.addEventListener("keydown", press);
main.addEventListener("input", () => {
  typedAt = Date.now();
});
document.getElementById("keys").addEventListener("click", () => help.showModal());
document.getElementById("again").addEventListener("click", () => load(false));
document.getElementById("range").addEventListener("submit", (event) => event.preventDefault());
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
since.addEventListener("change", () => load(false));
namespace.addEventListener("change", () => load(false));
window.addEventListener("hashchange", route);
setInterval(() => {
  // An answer that takes longer than that is not asked for once more.
  if (awaited === 0 && shown?.isCheap && document.visibilityState === "visible") {
    load(true);
    identify();
  }
}, REFRESH);
identify();
route();
