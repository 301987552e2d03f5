// A head's attention on an example, drawn over its tokens.
import { button, element, percent, prompt } from "./dom.js";

/** Bytes of a T x T pattern; null if they are not as many. */
function decode(text, size) {
  try {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    return bytes.length === size * size ? bytes : null;
  } catch {
    return null;
  }
}

/**
 * The example's tokens, shaded by what one of them attends to. A click on a token makes it the one that attends.
 * `state` keeps the example and is shared by all heads, so that heads are compared on one prompt.
 */
export function patternPanel(circuit, node, state) {
  const { patterns, patterned, examples } = circuit.known;
  const own = patterns?.[node.name];
  if (!own?.length) return null;
  const holder = element("div", { class: "ex-pattern" });
  const show = () => {
    const example = examples[patterned[state.example]];
    const { tokens } = example;
    const bytes = decode(own[state.example], tokens.length);
    if (!bytes) return holder.replaceChildren(element("p", {}, "The pattern does not fit its prompt."));
    const query = Math.min(state.query ?? example.roles.end ?? tokens.length - 1, tokens.length - 1);
    const row = bytes.subarray(query * tokens.length, (query + 1) * tokens.length);
    const strip = tokens.map((token, at) => {
      const share = row[at] / 255;
      const label = `${token}: attended to with ${percent(share)}`;
      const style = `background: color-mix(in srgb, var(--accent) ${Math.round(100 * share)}%, transparent)`;
      const pick = () => {
        state.query = at;
        show();
        holder.querySelectorAll(".ex-token")[at].focus();
      };
      const strong = share > 0.55 ? " strong" : "";
      return button(token.replace(/\n/g, "\u21b5"), pick, { class: `ex-token${strong}`, style, title: label, "aria-label": label, "aria-pressed": at === query });
    });
    const best = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, 3).filter((at) => row[at] > 2);
    const words = best.map((at) => `\u201c${tokens[at].trim()}\u201d ${percent(row[at] / 255)}`).join(", ");
    holder.replaceChildren(
      element("div", { class: "ex-tokens", role: "group", "aria-label": "Tokens; the pressed one attends" }, strip),
      element("p", { class: "soft" }, `\u201c${tokens[query].trim()}\u201d attends to ${words}. Choose another token to see what it attends to.`),
    );
  };
  show();
  const choose = element(
    "select",
    {
      "aria-label": "Prompt",
      onchange: (event) => {
        Object.assign(state, { example: Number(event.target.value), query: null });
        show();
      },
    },
    patterned.map((at, index) => {
      const place = examples[at].rank < circuit.known.n / 2 ? "served well" : "served badly";
      const text = prompt(examples[at]);
      return element("option", { value: index, selected: index === state.example }, `${place}: ${text.slice(0, 60)}${text.length > 60 ? "\u2026" : ""}`);
    }),
  );
  return element("section", {}, element("h4", {}, "Attention"), choose, holder, positions(circuit, node));
}

/** Mean attention from each named position (rows) to each. */
function positions(circuit, node) {
  const shares = circuit.known.attends?.[node.name];
  const names = circuit.known.positions ?? [];
  if (!shares?.length) return null;
  const cell = (share) => element("td", { style: `background: color-mix(in srgb, var(--accent) ${Math.round(85 * share)}%, transparent)` }, percent(share));
  return element(
    "div",
    { class: "scroll" },
    element(
      "table",
      { class: "ex-positions" },
      element("caption", {}, `Mean attention over ${circuit.known.n} held-out examples, from the position of the row to that of the column`),
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "from \\ to"), names.map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, shares.map((row, at) => element("tr", {}, element("th", { scope: "row" }, names[at]), row.map(cell)))),
    ),
  );
}
