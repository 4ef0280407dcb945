// SPDX-License-Identifier: Apache-2.0
// Names and numbers, as people read them.

// Control characters, and those without a look of their own: joiners, marks of direction, tags.
const UNSEEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;

// What a workload chose to be called must not look like another name.
export function clean(text) {
  return text.replace(UNSEEN, "\ufffd");
}

// A party without what all names begin with.
export function short(name) {
  return name.startsWith("spiffe://") ? name.slice("spiffe://".length).split("/").slice(1).join("/") || name : name;
}

// The namespace of a party (the second segment of its path) and its name there.
export function place(name) {
  if (!name.startsWith("spiffe://")) {
    return { group: "outside", label: name };
  }
  const segments = name.slice("spiffe://".length).split("/");
  const group = segments[2] ?? "";
  return segments.length > 3 ? { group, label: segments.slice(3).join("/") } : { group: "", label: short(name) };
}

// The party of a record.
export function party(end) {
  if (end?.spiffe_id) {
    return short(end.spiffe_id);
  }
  const entity = end?.entity ?? "unknown";
  return end?.address ? `${entity} (${end.address})` : entity;
}

export function count(number) {
  return Number(number ?? 0).toLocaleString("en");
}

// A time to the second, in UTC, as the API has it.
export function time(text) {
  return text ? text.slice(0, 19).replace("T", " ") : "-";
}

// Whether a text has all of these words, and none of those with a minus before them.
export function fits(text, typed) {
  const lower = text.toLowerCase();
  return typed
    .toLowerCase()
    .split(/\s+/)
    .every((word) => {
      if (word === "" || word === "-") {
        return true;
      }
      return word.startsWith("-") ? !lower.includes(word.slice(1)) : lower.includes(word);
    });
}
