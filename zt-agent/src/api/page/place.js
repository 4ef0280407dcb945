// SPDX-License-Identifier: Apache-2.0
// Where whoever reads is: what has the focus and how far it is scrolled, so that a view that is made anew leaves them there.

const SCROLLED = ".scroll, .side, pre, textarea";

// Elements are known again by their `data-key`.
export function remember(inside) {
  const active = document.activeElement;
  const keyed = inside.contains(active) ? active.closest("[data-key]") : null;
  return {
    key: keyed?.dataset.key ?? null,
    // Of what is no field, and of a box to tick, there is none.
    selection: typeof active?.selectionStart === "number" ? [active.selectionStart, active.selectionEnd] : null,
    offsets: [...inside.querySelectorAll(SCROLLED)].map((element) => [element.scrollLeft, element.scrollTop]),
  };
}

// The same in what is there now; nothing that is gone is missed. Whoever went elsewhere meanwhile stays there.
export function restore(inside, kept) {
  if (kept === null) {
    return;
  }
  [...inside.querySelectorAll(SCROLLED)].forEach((element, index) => {
    [element.scrollLeft, element.scrollTop] = kept.offsets[index] ?? [0, 0];
  });
  const isFree = document.activeElement === null || document.activeElement === document.body;
  const element = kept.key === null || !isFree ? null : inside.querySelector(`[data-key="${CSS.escape(kept.key)}"]`);
  element?.focus({ preventScroll: true });
  if (element !== null && kept.selection !== null) {
    element.setSelectionRange?.(...kept.selection);
  }
}
