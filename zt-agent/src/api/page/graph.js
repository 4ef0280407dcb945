// SPDX-License-Identifier: Apache-2.0
// Who talks to whom. Services stand in the boxes of their namespaces, where each keeps its place; lines are drawn for what
// is denied, for the service that is chosen, and for all others only where they are few. So three hundred can be read.

import { draw, make, note, replace } from "./element.js";
import { count, fits, place, short, time } from "./name.js";

// Lines between all services are drawn up to this many.
const ALL_LINES = 150;
// Lines of denials.
const MOST_LINES = 600;
// Services from which on a namespace has the whole width.
const WIDE = 16;

let data = null;
let parts = null;
let chosen = null;
let problemsOnly = false;
let typed = "";

// The worst of an edge, or of all edges of a service.
function worst(edges) {
  if (edges.some((edge) => edge.denied > 0)) {
    return "bad";
  }
  return edges.some((edge) => edge.would_deny > 0) ? "caution" : "good";
}

const SIGN = { bad: "\u2715 ", caution: "! ", good: "" };

// Edges of all ports between two services are one line.
function read(answer) {
  const services = new Map(
    answer.nodes.map((node) => [node.id, { id: node.id, kind: node.kind, ...place(node.id), out: [], in: [] }]),
  );
  const lines = new Map();
  for (const edge of answer.edges) {
    services.get(edge.source)?.out.push(edge);
    services.get(edge.destination)?.in.push(edge);
    const key = JSON.stringify([edge.source, edge.destination]);
    if (!lines.has(key)) {
      lines.set(key, { source: edge.source, destination: edge.destination, edges: [] });
    }
    lines.get(key).edges.push(edge);
  }
  for (const service of services.values()) {
    service.tone = worst([...service.out, ...service.in]);
  }
  for (const line of lines.values()) {
    line.tone = worst(line.edges);
  }
  return { services, lines: [...lines.values()] };
}

// By name, and by number where names have numbers.
function order(one, other) {
  return one.localeCompare(other, "en", { numeric: true });
}

function sum(edges, field) {
  return edges.reduce((all, edge) => all + edge[field], 0);
}

function describe(service) {
  const edges = [...service.out, ...service.in];
  const denied = sum(edges, "denied");
  const would = sum(edges, "would_deny");
  return [
    short(service.id),
    `calls ${new Set(service.out.map((edge) => edge.destination)).size}`,
    `is called by ${new Set(service.in.map((edge) => edge.source)).size}`,
    denied > 0 ? `${count(denied)} denied` : "",
    would > 0 ? `${count(would)} would be denied` : "",
  ]
    .filter(Boolean)
    .join(", ");
}

function build() {
  const groups = new Map();
  const sorted = [...data.services.values()].sort(
    (one, other) => order(one.group, other.group) || order(one.label, other.label),
  );
  const buttons = new Map();
  for (const service of sorted) {
    const button = make(
      "button",
      {
        type: "button",
        class: `service is-${service.tone}`,
        title: describe(service),
        "aria-label": describe(service),
        "aria-pressed": "false",
        "data-key": `service ${service.id}`,
        tabindex: "-1",
        click: () => choose(chosen === service.id ? null : service.id),
        focus: () => rove(button),
      },
      SIGN[service.tone] + service.label,
    );
    buttons.set(service.id, button);
    if (!groups.has(service.group)) {
      groups.set(service.group, []);
    }
    groups.get(service.group).push(make("li", {}, button));
  }
  const boxes = [...groups].map(([name, items]) =>
    make(
      "section",
      { class: items.length > WIDE ? "group wide" : "group" },
      make("h3", {}, name === "" ? "without a namespace" : name, ` (${items.length})`),
      make("ul", {}, items),
    ),
  );
  const lines = draw("svg", { "aria-hidden": "true" });
  const map = make("div", { class: "map" }, make("div", { class: "groups" }, boxes), lines);
  const side = make("aside", { class: "side", "aria-live": "polite", "aria-label": "The service that is chosen" });
  const search = make("input", {
    type: "search",
    value: typed,
    placeholder: "filter services",
    "aria-label": "Filter services",
    "data-filter": true,
    "data-key": "filter",
    input: () => {
      typed = search.value;
      narrow();
    },
  });
  const only = make("input", {
    type: "checkbox",
    checked: problemsOnly,
    "data-key": "only",
    change: () => {
      problemsOnly = only.checked;
      narrow();
    },
  });
  const { services } = data;
  const tools = make(
    "div",
    { class: "tools" },
    search,
    make("label", {}, only, " only with denials"),
    make("span", { class: "faint", id: "graph-size" }, `${count(services.size)} services, ${count(data.lines.length)} connections between them`),
  );
  const legend = note(
    make("span", { class: "bad" }, "\u2715 denied (dashed)"),
    "  \u00b7  ",
    make("span", { class: "caution" }, "! would be denied (dotted)"),
    "  \u00b7  ",
    make("span", { class: "good" }, "allowed"),
    data.lines.length > ALL_LINES ? ": its lines are drawn for the service that is chosen" : "",
  );
  parts = { buttons, map, lines, side, only, boxes };
  return make("div", {}, tools, legend, make("div", { class: "pair" }, map, side));
}

function rove(button) {
  for (const other of parts.buttons.values()) {
    other.tabIndex = -1;
  }
  button.tabIndex = 0;
}

function isWanted(service) {
  return (!problemsOnly || service.tone !== "good") && fits(`${service.id} ${service.kind}`, typed);
}

// Hides what is not wanted.
function narrow() {
  for (const [id, button] of parts.buttons) {
    button.parentElement.hidden = !isWanted(data.services.get(id));
  }
  for (const box of parts.boxes) {
    box.hidden = box.querySelector("li:not([hidden])") === null;
  }
  const visible = [...parts.buttons.values()].filter((button) => !button.parentElement.hidden);
  if (visible.length > 0 && !visible.some((button) => button.tabIndex === 0)) {
    rove(visible[0]);
  }
  connect();
}

function choose(id) {
  chosen = id;
  const service = data.services.get(id);
  const near = new Set(service ? [id] : []);
  for (const edge of service ? [...service.out, ...service.in] : []) {
    near.add(edge.source);
    near.add(edge.destination);
  }
  for (const [other, button] of parts.buttons) {
    button.setAttribute("aria-pressed", String(other === id));
    button.classList.toggle("is-far", near.size > 0 && !near.has(other));
  }
  replace(parts.side, service ? about(service) : overview());
  connect();
}

function overview() {
  const edges = data.lines.flatMap((line) => line.edges);
  const bad = edges.filter((edge) => edge.denied + edge.would_deny > 0);
  bad.sort((one, other) => other.denied + other.would_deny - one.denied - one.would_deny);
  return [
    make("h2", {}, "Denied most often"),
    bad.length === 0 ? note("Nothing was denied in this time.") : null,
    make(
      "ul",
      { class: "peers" },
      bad.slice(0, 30).map((edge) => make("li", {}, link(edge.source, keyOf("from", edge)), " \u2192 ", link(edge.destination, keyOf("to", edge)), " ", counts(edge))),
    ),
    note("Choose a service to see whom it calls and who calls it."),
  ];
}

function link(id, key) {
  return make(
    "button",
    {
      type: "button",
      "data-key": key,
      click: () => {
        choose(id);
        parts.buttons.get(id)?.focus();
      },
    },
    short(id),
  );
}

// What an end of an edge is known again by.
function keyOf(end, edge) {
  return JSON.stringify([end, edge.source, edge.destination, edge.protocol, edge.port]);
}

function counts(edge) {
  return [
    make("span", { class: "mono" }, `${edge.port}/${edge.protocol}`),
    edge.allowed > 0 ? make("span", { class: "good" }, ` ${count(edge.allowed)} allowed`) : null,
    edge.denied > 0 ? make("span", { class: "bad" }, ` ${count(edge.denied)} denied`) : null,
    edge.would_deny > 0 ? make("span", { class: "caution" }, ` ${count(edge.would_deny)} would be denied`) : null,
    make("span", { class: "faint" }, ` last ${time(edge.last_seen)}`),
  ];
}

function about(service) {
  const list = (title, edges, end) => [
    make("h3", {}, `${title} (${edges.length})`),
    make(
      "ul",
      { class: "peers" },
      edges.map((edge) => make("li", {}, link(edge[end], keyOf(end, edge)), " ", counts(edge))),
    ),
  ];
  return [
    make("h2", {}, short(service.id)),
    note(make("span", { class: "mono" }, service.id)),
    list("Calls", service.out, "destination"),
    list("Is called by", service.in, "source"),
  ];
}

// Draws the lines between what is on the page.
function connect() {
  const origin = parts.map.getBoundingClientRect();
  const at = (id) => {
    const button = parts.buttons.get(id);
    if (!button || button.parentElement.hidden) {
      return null;
    }
    const box = button.getBoundingClientRect();
    return { x: box.left - origin.left, y: box.top - origin.top + box.height / 2, width: box.width };
  };
  const isChosen = (line) => chosen !== null && (line.source === chosen || line.destination === chosen);
  const drawAll = data.lines.length <= ALL_LINES;
  const wanted = data.lines.filter((line) =>
    chosen === null ? drawAll || line.tone !== "good" : isChosen(line),
  );
  const paths = [];
  for (const line of wanted.slice(0, MOST_LINES)) {
    const [from, to] = [at(line.source), at(line.destination)];
    if (from === null || to === null || line.source === line.destination) {
      continue;
    }
    const isRight = to.x >= from.x;
    const start = { x: from.x + (isRight ? from.width : 0), y: from.y };
    const end = { x: to.x + (isRight ? 0 : to.width), y: to.y };
    // Within a column the line goes round it.
    if (Math.abs(to.x - from.x) < 4) {
      end.x = to.x + to.width;
    }
    const bend = Math.max(24, Math.abs(end.x - start.x) / 2);
    const [first, second] = [start.x + (isRight ? bend : -bend), end.x + (Math.abs(to.x - from.x) < 4 ? bend : isRight ? -bend : bend)];
    paths.push(
      draw("path", {
        class: `edge ${line.tone}${isChosen(line) ? " chosen" : ""}`,
        d: `M${start.x} ${start.y}C${first} ${start.y} ${second} ${end.y} ${end.x} ${end.y}`,
      }),
    );
  }
  replace(parts.lines, paths);
}

// The nearest service in a direction.
function step(key) {
  const from = document.activeElement;
  const visible = [...parts.buttons.values()].filter((button) => !button.parentElement.hidden);
  if (!visible.includes(from)) {
    visible.find((button) => button.tabIndex === 0)?.focus();
    return;
  }
  const here = from.getBoundingClientRect();
  let best = null;
  for (const button of visible) {
    const there = button.getBoundingClientRect();
    const across = there.left - here.left;
    const along = there.top - here.top;
    const [ahead, aside] =
      key === "ArrowUp" || key === "ArrowDown"
        ? [key === "ArrowDown" ? along : -along, Math.abs(across)]
        : [key === "ArrowRight" ? across : -across, Math.abs(along)];
    if (ahead > 2) {
      const distance = ahead + aside * 3;
      if (best === null || distance < best.distance) {
        best = { button, distance };
      }
    }
  }
  best?.button.focus();
}

export const graph = {
  name: "graph",
  title: "Graph",
  isCheap: true,

  load({ ask, range }) {
    return ask("/v1/graph", range);
  },

  build(answer) {
    if (answer.edges.length === 0) {
      data = null;
      return note("Nobody has talked to anybody in this time.");
    }
    data = read(answer);
    if (chosen !== null && !data.services.has(chosen)) {
      chosen = null;
    }
    return build();
  },

  placed() {
    if (data !== null) {
      narrow();
      choose(chosen);
      observe();
    }
  },

  leave() {
    watching?.disconnect();
    watching = null;
    data = null;
  },

  press(event) {
    if (data === null) {
      return false;
    }
    if (event.key.startsWith("Arrow")) {
      step(event.key);
    } else if (event.key === "Escape") {
      choose(null);
    } else if (event.key === "d") {
      parts.only.click();
    } else {
      return false;
    }
    return true;
  },
};

let watching = null;

// Lines follow what they connect when the window changes.
function observe() {
  watching?.disconnect();
  watching = new ResizeObserver(() => {
    if (data !== null) {
      connect();
    }
  });
  watching.observe(parts.map);
}
