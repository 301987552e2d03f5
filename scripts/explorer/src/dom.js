// Elements are made of text alone: nothing here reads HTML, so that a prompt's markup stays text.

/** An element with attributes, listeners (`onclick`) and children (elements or text; null is left out). */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

export const button = (words, onclick, attributes = {}) => element("button", { type: "button", onclick, ...attributes }, words);

/** A number as the other figures of a page have it: three digits, a true minus. */
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "n/a";
  const size = Math.abs(value);
  const text = size === 0 ? "0" : size < 0.001 ? value.toExponential(1) : size >= 100 ? value.toFixed(0) : value.toPrecision(3);
  return text.replace(/-/g, "\u2212");
}

export const percent = (value) => `${(100 * value).toFixed(value > 0.1 ? 0 : 1).replace("-", "\u2212")}\u00a0%`;

export const interval = (low, high) => (low === null || low === undefined ? "" : ` [${number(low)}, ${number(high)}]`);

export const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

/** A prompt as a line; of tokenizers that split at spaces alone, with spaces between its tokens. */
export function prompt({ tokens }) {
  const spaced = tokens.some((token) => token.startsWith(" "));
  return tokens.join(spaced ? "" : " ").replace(/\s+/g, " ").trim();
}

/** A table with a caption and cells that are text or elements; the first column heads its row. */
export function table(caption, headers, rows) {
  return element(
    "table",
    {},
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, headers.map((name) => element("th", { scope: "col" }, name)))),
    element(
      "tbody",
      {},
      rows.map((cells) =>
        element("tr", {}, cells.map((cell, at) => (at ? element("td", {}, cell) : element("th", { scope: "row" }, cell)))),
      ),
    ),
  );
}
