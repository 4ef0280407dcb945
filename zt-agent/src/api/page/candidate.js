// SPDX-License-Identifier: Apache-2.0
// Policies that are not in force, judged by what was recorded. They are sent to be judged, and kept nowhere but here.

import { make, problem, replace } from "./element.js";
import { judged } from "./judged.js";
import { clean, count } from "./name.js";

// Bytes of files that are read: the agent takes no more at a time.
const MOST = 1 << 20;

// What is written there, also while another view is shown.
let text = "";
// It was typed, or changed: it is nowhere else.
let isTyped = false;
let isOpen = false;
// Something was brought there that nobody has seen yet.
let isNew = false;
let field = null;

// Puts something else there; false where whoever typed what is there keeps it.
function put(other) {
  const isLost = isTyped && text.trim() !== "" && text !== other;
  if (isLost && !confirm("What you have typed as a candidate is lost: it is kept nowhere else. Go on?")) {
    return false;
  }
  text = other;
  isTyped = false;
  return true;
}

// Takes a policy to where it can be judged, as it is shown.
export function consider(policy) {
  if (!put(clean(policy))) {
    return;
  }
  isOpen = true;
  isNew = true;
  location.hash = "enforcing";
}

// Has whoever brought something begin there.
export function arrive() {
  if (isNew) {
    isNew = false;
    field.focus();
  }
}

// The text of files, each of which is one document or several.
async function read(files) {
  if (files.reduce((all, file) => all + file.size, 0) > MOST) {
    throw new Error(`These files have more than ${count(MOST)} bytes: use zt-agent policy replay DIRECTORY.`);
  }
  const texts = await Promise.all(files.map((file) => file.text()));
  return texts.join("\n---\n");
}

// Where a candidate is written, and what `replay` says of it.
export function candidate(replay) {
  const said = make("p", { class: "note", role: "status" });
  const result = make("div");
  let isAsked = false;

  // What is brought while an answer is awaited would be dropped.
  function hold(isHeld) {
    isAsked = isHeld;
    chooser.disabled = isHeld;
    button.disabled = isHeld;
  }

  // What `work` finds takes the place of what was there.
  async function show(waiting, work) {
    if (isAsked) {
      return;
    }
    const focused = document.activeElement;
    hold(true);
    replace(said, waiting);
    replace(result);
    try {
      replace(said, await work());
    } catch (error) {
      replace(said);
      replace(result, problem(error));
    } finally {
      hold(false);
      // What is disabled loses the focus.
      if (document.activeElement === document.body) {
        focused?.focus();
      }
    }
  }

  field = make("textarea", {
    id: "candidate",
    rows: 14,
    wrap: "off",
    spellcheck: "false",
    autocomplete: "off",
    "data-key": "candidate",
    input: (event) => {
      text = event.target.value;
      isTyped = true;
    },
  });
  field.value = text;
  const own = field;

  const judge = async () => {
    const answer = await replay(own.value);
    replace(
      result,
      judged(answer, {
        denied: {
          title: "What the candidate would deny",
          empty: "Nothing: the candidate allows all that went through.",
        },
        changes: {
          title: "Of what the candidate says something else than was said then",
          empty: "Nothing: the candidate says what was said then.",
        },
      }),
    );
    return `${count(answer.connections)} connections of this time, ${count(answer.flows)} different, judged by the candidate in place of revision ${answer.revision}. Nothing was changed.`;
  };

  const take = async (chosen) => {
    const files = [...chosen.files];
    const documents = await read(files).finally(() => {
      // The same file may be chosen again when it was mended.
      chosen.value = "";
    });
    const names = files.map((file) => file.name).join(", ");
    if (!put(documents)) {
      return `Nothing was taken from ${names}: what is written stays.`;
    }
    own.value = documents;
    return `Read ${names}.`;
  };

  const chooser = make("input", {
    type: "file",
    multiple: true,
    accept: ".yaml,.yml,.json",
    "data-key": "candidate files",
    change: (event) => {
      if (event.target.files.length > 0) {
        show("Reading \u2026", () => take(event.target));
      }
    },
  });
  const button = make("button", { type: "button", "data-key": "candidate replay", click: () => show("Asking the agent \u2026", judge) }, "Replay");

  return make(
    "details",
    {
      class: "candidate",
      open: isOpen,
      toggle: (event) => {
        isOpen = event.target.open;
      },
    },
    make("summary", { "data-key": "candidate summary" }, "Replay policies that are not in force"),
    make("label", { for: "candidate" }, "Policies, in place of all that are in force: YAML or JSON, with a line of --- between documents"),
    field,
    make(
      "div",
      { class: "tools" },
      make("label", {}, "or files ", chooser),
      button,
    ),
    said,
    result,
  );
}
