// What is known of the node or edge that was chosen.
import { KIND_WORDS, effectOf } from "./circuit.js";
import { button, element, interval, number, prompt, table } from "./dom.js";
import { patternPanel } from "./pattern.js";

const LISTED = 12;

export function nodePanel(circuit, node, state, actions) {
  const { facts } = node;
  const adds = facts && facts.adds !== null && facts.adds !== undefined;
  const what = circuit.known.has_wrong === false ? "the answers' logits" : "the logit difference";
  return [
    element("h3", {}, node.name, ...(facts?.roles ?? []).map((role) => element("span", { class: "ex-role" }, role.replace(/_/g, " ")))),
    actions.groups(node),
    adds ? element("p", {}, `Adds ${number(facts.adds)}${interval(facts.low, facts.high)} directly to ${what}.`) : null,
    facts?.promotes?.length ? element("p", {}, "Promotes: ", facts.promotes.map((token) => element("code", { class: "ex-word" }, token))) : null,
    need(node, circuit),
    patternPanel(circuit, node, state),
    edgeTable("Edges in", node.into, (edge) => edge.source, actions),
    edgeTable("Edges out", node.out, (edge) => edge.target, actions),
  ];
}

function need({ need }, circuit) {
  if (!need) return null;
  const [change, low, high, without] = need;
  const absent = without === "empty" ? "" : `, in the absence of a set of other parts (${without})`;
  return element("p", {}, `Taking it out of the circuit moves the mean ${circuit.metric || "metric"} by ${number(change)}${interval(low, high)}${absent} (exact).`);
}

function edgeTable(title, edges, other, actions) {
  const shown = edges.filter((edge) => !edge.hidden).sort((a, b) => weight(b) - weight(a));
  if (!shown.length) return element("p", { class: "soft" }, `${title}: none shown.`);
  const line = (edge) => [
    button(other(edge).name, () => actions.pick({ node: other(edge) }), { class: "ex-link" }),
    button(edge.kind, () => actions.pick({ edge }), { class: "ex-link", title: `the edge ${edge.name}` }),
    edge.score === null ? "" : number(edge.score),
    effectWords(edge),
  ];
  const rows = shown.slice(0, LISTED).map(line);
  const scored = shown[0].score !== null;
  const headers = ["node", "input", ...(scored ? ["score"] : []), shown[0].tint ? "change" : "effect"];
  const made = table(`${title}: ${shown.length}`, headers, scored ? rows : rows.map(([a, b, , d]) => [a, b, d]));
  if (shown.length <= LISTED) return made;
  const more = button(`${shown.length - LISTED} more`, () => {
    const cells = shown.slice(LISTED).map(line).map(([a, b, c, d]) => (scored ? [a, b, c, d] : [a, b, d]));
    made.tBodies[0].append(...table("", headers, cells).tBodies[0].rows);
    more.remove();
  });
  return element("div", {}, made, more);
}

const weight = (edge) => Math.abs(effectOf(edge)?.value ?? edge.score ?? 0);

function effectWords(edge) {
  if (edge.tint) return edge.tint;
  const effect = effectOf(edge);
  return effect ? `${number(effect.value)} ${effect.kind}` : "not known";
}

export function edgePanel(circuit, edge, others, actions) {
  const { known } = circuit;
  const metric = circuit.metric || "metric";
  const ends = [edge.source, edge.target].map((node) => button(node.name, () => actions.pick({ node }), { class: "ex-link" }));
  return [
    element("h3", {}, edge.name),
    element("p", {}, "From ", ends[0], " into ", KIND_WORDS[edge.kind], " of ", ends[1], "."),
    edge.score === null ? null : element("p", {}, `${circuit.score_words}: ${number(edge.score)} (number ${(edge.rank + 1).toLocaleString("en")} of ${circuit.edges.length.toLocaleString("en")}).`),
    edge.exact ? element("p", {}, `Exact: cut alone from the circuit, it changes the mean ${metric} by ${number(edge.exact[0])}${interval(edge.exact[1], edge.exact[2])}, on ${known.edges.examples} held-out examples.`) : null,
    edge.estimate === null ? null : element("p", {}, `Estimated: by its gradient in the full model, a cut changes the mean ${metric} by ${number(edge.estimate)}.`),
    need(edge, circuit),
    matters(circuit, edge),
    others.length > 1 ? element("p", { class: "soft" }, "Also here: ", others.slice(1, 9).map((other) => button(other.edge.name, () => actions.pick(other), { class: "ex-link" }))) : null,
  ];
}

/** The examples on which the edge matters most. */
function matters(circuit, { values, valued }) {
  if (!values) return null;
  const most = [...values.keys()].sort((a, b) => Math.abs(values[b]) - Math.abs(values[a])).slice(0, 5);
  const rows = most.map((at) => [prompt(circuit.known.examples[at]), number(values[at])]);
  return table(`Where it matters most (${valued}), of ${values.length} examples`, ["prompt", "change"], rows);
}

/** A named group, or an edge between groups. */
export function boxPanel(thing, actions) {
  const parts = thing.node?.members ?? [];
  if (thing.node) return [element("h3", {}, thing.node.id), element("p", {}, parts.map((node) => button(node.name, () => actions.pick({ node }), { class: "ex-link" })))];
  const rows = thing.edge.parts.slice(0, 40).map((edge) => [button(edge.name, () => actions.pick({ edge }), { class: "ex-link" }), effectWords(edge)]);
  return [element("h3", {}, thing.edge.name), table("The edges that it stands for", ["edge", "effect"], rows)];
}
