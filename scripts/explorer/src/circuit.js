// A page's data as objects: nodes and edges with what is known of each.

export const KINDS = ["q", "k", "v", "mlp", "logits"];
export const KIND_WORDS = { q: "queries (q)", k: "keys (k)", v: "values (v)", mlp: "MLPs", logits: "logits" };

/**
 * nodes: {name, kind, layer, head, into: edges, out: edges}
 * edges: {at, name, source, target, kind, score, size (0..1, by rank), rank (0 is the largest), members (of circuits)}
 */
export function readCircuit(data) {
  const nodes = data.nodes.map(([name, kind, layer, head]) => ({ name, kind, layer, head, into: [], out: [] }));
  const edges = data.edges.map(([source, target, kind, score, members], at) => {
    const [from, to, input] = [nodes[source], nodes[target], KINDS[kind]];
    const suffix = "qkv".includes(input) ? `<${input}>` : "";
    return { at, name: `${from.name}->${to.name}${suffix}`, source: from, target: to, kind: input, score, members: members ?? 1 };
  });
  for (const edge of edges) {
    edge.source.out.push(edge);
    edge.target.into.push(edge);
  }
  const ranked = [...edges].sort((a, b) => Math.abs(b.score ?? 0) - Math.abs(a.score ?? 0));
  const most = Math.abs(ranked[0]?.score ?? 0) || 1;
  ranked.forEach((edge, rank) => {
    edge.rank = rank;
    edge.size = edge.score === null ? 0.4 : Math.sqrt(Math.abs(edge.score) / most);
  });
  const known = data.explored ?? {};
  for (const node of nodes) Object.assign(node, { facts: known.nodes?.[node.name], need: data.needs?.[node.name] });
  for (const edge of edges) Object.assign(edge, effects(known.edges, edge.name), { need: data.needs?.[edge.name] });
  return { ...data, nodes, edges, ranked, byName: new Map(nodes.map((node) => [node.name, node])), known };
}

/** Exact mean [mean, low, high], estimated mean, and values example by example with the word for what they are. */
function effects(known, name) {
  const exact = known?.means?.[name] ?? null;
  const estimate = known?.estimated?.[name] ?? null;
  const values = known?.exact?.[name] ?? known?.estimates?.[name] ?? null;
  return { exact, estimate, values, valued: known?.exact?.[name] ? "exact" : "estimated" };
}

/** The edge's effect: exact where it was measured, else estimated; and which. */
export function effectOf(edge) {
  if (edge.exact) return { value: edge.exact[0], low: edge.exact[1], high: edge.exact[2], kind: "exact" };
  if (edge.estimate !== null) return { value: edge.estimate, kind: "estimated" };
  return null;
}

/** Faithfulness at the measured size nearest to a number of edges. */
export function faithfulnessAt(circuit, size) {
  const points = circuit.faithfulness ?? [];
  return points.reduce((best, point) => (best && Math.abs(best[0] - size) <= Math.abs(point[0] - size) ? best : point), null);
}
