// Two of several circuits on one layout: what both have, what the second gained, what it lost.
import { element } from "./dom.js";

export const CHANGES = ["shared", "gained", "lost"];
const has = (edge, circuit) => Math.floor(edge.members / 2 ** circuit) % 2 === 1;

/** Sets `tint` of every edge; null where neither circuit has it. */
export function tint(edges, from, to) {
  for (const edge of edges) {
    const [before, after] = [has(edge, from), has(edge, to)];
    edge.tint = before && after ? "shared" : after ? "gained" : before ? "lost" : null;
  }
}

/** Choices of the two circuits, a slider along all of them, and what is shown; `changed` is called after each. */
export function compareBar(labels, state, changed) {
  const option = (at, chosen) => element("option", { value: at, selected: at === chosen }, labels[at]);
  const choice = (key, words) =>
    element("label", {}, `${words} `, element("select", { onchange: (event) => set(key, Number(event.target.value)) }, labels.map((_, at) => option(at, state[key]))));
  const [first, second] = [choice("from", "from"), choice("to", "to")];
  const slider = element("input", { type: "range", min: 0, max: labels.length - 1, value: state.to, "aria-label": "Step along the ladder", class: "ex-step" });
  const counts = element("output", { class: "ex-counts" });
  const set = (key, value) => {
    state[key] = value;
    slider.value = state.to;
    update();
  };
  slider.addEventListener("input", () => {
    state.to = Number(slider.value);
    state.from = Math.max(0, state.to - 1);
    update();
  });
  const boxes = CHANGES.map((change) =>
    element("label", { class: "ex-kind" }, element("input", { type: "checkbox", checked: true, onchange: (event) => set(change, event.target.checked) }), element("span", { class: `ex-swatch ${change}` }), change),
  );
  const update = () => {
    first.firstElementChild.value = state.from;
    second.firstElementChild.value = state.to;
    changed();
  };
  return { bar: element("div", { class: "ex-bar" }, first, second, labels.length > 2 ? element("label", {}, "step ", slider) : null, boxes, counts), counts };
}
