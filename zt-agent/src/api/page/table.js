// SPDX-License-Identifier: Apache-2.0
// A table that can be sorted and filtered, and says what it leaves out.

import { make, note, replace } from "./element.js";
import { count, fits } from "./name.js";

// Rows of an answer that are put on the page.
const MOST = 500;

// `columns`: name, `text` of a row, and `kind`: name, number or time; `tone` colours, `value` sorts.
export function table({ title, columns, rows, empty, label }) {
  const body = make("tbody");
  const left = note();
  const headings = columns.map((column, index) =>
    make(
      "th",
      { scope: "col", class: column.kind === "number" ? "number" : null },
      make("button", { type: "button", "data-key": `th ${title} ${column.name}`, click: () => sort(index) }, column.name),
    ),
  );
  const search = make("input", {
    type: "search",
    placeholder: "filter",
    "aria-label": `Filter ${title}`,
    "data-filter": true,
    "data-key": `filter ${title}`,
    input: () => fill(),
  });
  let by = null;
  let down = false;

  function sort(index) {
    down = by === index ? !down : columns[index].kind === "number";
    by = index;
    headings.forEach((heading, at) => {
      if (at === by) {
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      } else {
        heading.removeAttribute("aria-sort");
      }
    });
    fill();
  }

  const value = (column, row) => (column.value ? column.value(row) : column.text(row));

  function fill() {
    const wanted = rows.filter((row) => fits(columns.map((column) => column.text(row)).join(" "), search.value));
    if (by !== null) {
      const column = columns[by];
      wanted.sort((one, other) => {
        const [a, b] = [value(column, one), value(column, other)];
        const order = typeof a === "number" ? a - b : String(a).localeCompare(String(b));
        return down ? -order : order;
      });
    }
    const cell = (column, row) =>
      make("td", { class: [column.kind, column.tone?.(row)].filter(Boolean).join(" ") }, column.text(row));
    replace(
      body,
      wanted.slice(0, MOST).map((row) => make("tr", {}, columns.map((column) => cell(column, row)))),
    );
    const all = wanted.length;
    replace(left, all > MOST ? `The first ${MOST} of ${count(all)} rows: filter, or sort, for the others.` : "");
  }

  fill();
  if (rows.length === 0) {
    return make("section", { "aria-label": label ?? title }, make("h2", {}, title), note(empty));
  }
  return make(
    "section",
    { "aria-label": label ?? title },
    make("h2", {}, title),
    rows.length > 8 ? make("div", { class: "tools" }, search) : null,
    make("div", { class: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, headings)), body)),
    left,
  );
}
