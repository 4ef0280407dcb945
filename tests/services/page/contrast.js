// SPDX-License-Identifier: Apache-2.0
// Texts whose contrast with what is behind them is below 4.5, the least that WCAG asks for.
const channel = (value) => {
  const part = value / 255;
  return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
};
const numbers = (colour) => colour.match(/[\d.]+/g).map(Number);
const light = ([red, green, blue]) => 0.2126 * channel(red) + 0.7152 * channel(green) + 0.0722 * channel(blue);
const behind = (element) => {
  for (let at = element; at !== null; at = at.parentElement) {
    const colour = numbers(getComputedStyle(at).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) {
      return colour;
    }
  }
  return [255, 255, 255];
};
const found = [];
for (const element of document.querySelectorAll("body *")) {
  const hasText = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim() !== "");
  if (!hasText || element.closest("dialog:not([open]), noscript") !== null) {
    continue;
  }
  const [one, other] = [light(numbers(getComputedStyle(element).color)), light(behind(element))];
  const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  if (contrast < 4.5) {
    found.push(`${element.tagName} ${element.className} ${element.textContent.slice(0, 30)}: ${contrast.toFixed(2)}`);
  }
}
return found.slice(0, 5);
