// SPDX-License-Identifier: Apache-2.0
// Services whose names cover each other on the page, or of which hardly anything can be read.
const boxes = [...document.querySelectorAll("button.service")].map((button) => ({
  name: button.textContent,
  box: button.getBoundingClientRect(),
}));
const found = [];
boxes.forEach(({ name, box }, index) => {
  if (box.width < 60 || box.height < 14) {
    found.push(name);
  }
  for (const other of boxes.slice(index + 1)) {
    const [a, b] = [box, other.box];
    if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1) {
      found.push(`${name} and ${other.name}`);
    }
  }
});
return found.slice(0, 5);
