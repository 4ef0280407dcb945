// SPDX-License-Identifier: Apache-2.0
// Elements are made here and nowhere else. Texts become text, never markup: whatever a workload calls itself is shown.

import { clean } from "./name.js";

const SVG = "http://www.w3.org/2000/svg";

// An element. `options` are attributes; functions among them are listeners, named by their event.
export function make(tag, options, ...children) {
  return fill(document.createElement(tag), options, children);
}

// The same for drawings.
export function draw(tag, options, ...children) {
  return fill(document.createElementNS(SVG, tag), options, children);
}

function fill(element, options, children) {
  for (const [name, value] of Object.entries(options ?? {})) {
    if (typeof value === "function") {
      element.addEventListener(name, value);
    } else if (value === true) {
      element.setAttribute(name, "");
    } else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, clean(String(value)));
    }
  }
  put(element, children);
  return element;
}

function put(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) {
      continue;
    }
    element.append(child instanceof Node ? child : clean(String(child)));
  }
}

// Puts these in place of what is in an element.
export function replace(element, ...children) {
  element.replaceChildren();
  put(element, children);
}

// Codes of answers which say that there is nothing to show: that is no fault.
const NOTHING = new Set(["nothing_recorded", "nothing_passed"]);

// What went wrong, for people.
export function problem(error) {
  return NOTHING.has(error.code) ? note(error.message) : make("p", { class: "problem", role: "alert" }, error.message);
}

export function note(...children) {
  return make("p", { class: "note" }, ...children);
}

// A list of numbers with what they are.
export function cards(entries) {
  return make(
    "ul",
    { class: "cards" },
    entries.map(([name, value, tone]) => make("li", {}, make("strong", { class: tone }, value), name)),
  );
}
