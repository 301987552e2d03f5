// Where nodes stand: layers are rows from below upwards, heads are columns, MLPs a column at the right.

const LONGEST = 760;

/** A scene of all nodes: {nodes: [{id, label, x, y, w, h, kind}], edges, dots (heads outside the circuit), rows, width, height}. */
export function layered(circuit, width) {
  const { n_layers: layers, n_heads: heads } = circuit;
  const columns = heads + (circuit.has_mlp ? 2.1 : 0.4);
  const margin = 42;
  const column = Math.max(20, Math.min(96, (width - margin - 8) / columns));
  const row = Math.max(19, Math.min(64, LONGEST / (layers + 2.2)));
  const x = (head) => margin + (head + 0.5) * column;
  const y = (layer) => (layers - layer + 0.8) * row;
  const [w, h] = [Math.min(column - 4, 54), Math.min(row - 6, 20)];
  const place = (node) => {
    const middle = x((heads - 1) / 2);
    if (node.kind === "head") return [x(node.head), y(node.layer)];
    if (node.kind === "mlp") return [x(heads + 0.4), y(node.layer + 0.32)];
    if (node.kind === "logits") return [middle, y(layers + 0.2)];
    return [middle + { tok_embed: -0.75, pos_embed: 0.75 }[node.kind] * column || middle, y(-1)];
  };
  const nodes = circuit.nodes.map((node) => {
    const [cx, cy] = place(node);
    const label = node.kind === "head" && w < 38 ? `${node.head}` : node.name;
    const wide = node.kind === "head" || node.kind === "mlp" ? w : Math.max(w, 54);
    return { id: node.name, label, node, kind: node.kind, x: cx, y: cy, w: wide, h };
  });
  const kept = new Set(circuit.nodes.map((node) => node.name));
  const dots = [];
  for (let layer = 0; layer < layers; layer++) {
    for (let head = 0; head < heads; head++) if (!kept.has(`a${layer}.h${head}`)) dots.push([x(head), y(layer)]);
    if (circuit.has_mlp && !kept.has(`m${layer}`)) dots.push([x(heads + 0.4), y(layer + 0.32)]);
  }
  const rows = Array.from({ length: layers }, (_, layer) => ({ y: y(layer), label: `L${layer}` }));
  return { nodes, dots, rows, column, width: margin + columns * column + 8, height: (layers + 2.4) * row };
}

/** A scene of named groups, other heads, MLPs and the two ends; its edges are those between them, with how many each stands for. */
export function grouped(circuit, groups, visible, width) {
  const boxOf = new Map();
  for (const [name, members] of Object.entries(groups)) for (const member of members) boxOf.set(member, name);
  const key = (node) => boxOf.get(node.name) ?? { head: "other heads", mlp: "MLPs" }[node.kind] ?? node.name;
  const boxes = new Map();
  for (const node of circuit.nodes) {
    const id = key(node);
    if (!boxes.has(id)) boxes.set(id, { id, members: [], kind: node.kind });
    boxes.get(id).members.push(node);
  }
  const layerOf = ({ layer, kind }) => (kind === "logits" ? 1e3 : layer);
  const depth = (box) => box.members.reduce((sum, node) => sum + layerOf(node), 0) / box.members.length;
  const order = [...boxes.values()].sort((a, b) => depth(a) - depth(b));
  const row = 74;
  const height = (order.length + 0.6) * row;
  const apart = Math.min(width * 0.24, 190);
  const nodes = order.map((box, at) => {
    const ends = at === 0 || at === order.length - 1;
    const count = box.members.length > 1 ? ` (${box.members.length})` : "";
    const x = width / 2 + (ends ? 0 : (at % 2 ? 1 : -1) * apart * (box.id === "MLPs" ? 1.35 : 1));
    const w = Math.max(70, 7.2 * (box.id.length + count.length) + 18);
    return { ...box, label: box.id + count, x, y: height - (at + 0.7) * row, w, h: 32 };
  });
  const placed = new Map(nodes.map((node) => [node.id, node]));
  const between = new Map();
  for (const edge of visible) {
    const [a, b] = [key(edge.source), key(edge.target)];
    if (a === b) continue;
    const id = `${a}\n${b}\n${edge.kind}`;
    const item = between.get(id) ?? { source: placed.get(a), target: placed.get(b), kind: edge.kind, parts: [], members: edge.members };
    item.parts.push(edge);
    between.set(id, item);
  }
  const edges = [...between.values()].map((edge) => ({
    ...edge,
    name: `${edge.source.id} to ${edge.target.id}, ${edge.kind}: ${edge.parts.length} edges`,
    size: Math.min(1, 0.3 + Math.log10(edge.parts.length) / 2.5),
  }));
  return { nodes, edges, dots: [], rows: [], column: 60, width, height };
}

/** The four corners of an edge's curve: from the sender's top to the receiver's underside, q left, k middle, v right. */
export function curve(edge, from, to, column) {
  const port = { q: -0.28, k: 0, v: 0.28 }[edge.kind] ?? 0;
  const spread = ((edge.at ?? 0) * 0.618) % 1;
  if (from.kind === "mlp" && to.kind === "mlp") {
    const bulge = column * (0.25 + 0.5 * spread) + 6;
    const [x1, x2] = [from.x + from.w / 2, to.x + to.w / 2];
    return [x1, from.y, x1 + bulge, from.y, x2 + bulge, to.y, x2, to.y];
  }
  if (to.kind === "mlp" && from.kind === "head") {
    const [x1, y1, x2] = [from.x, from.y - from.h / 2, to.x - to.w / 2];
    const reach = Math.min(column * (0.6 + spread), 0.6 * (x2 - x1));
    return [x1, y1, x1, y1 - 0.5 * Math.abs(y1 - to.y) - 5 * spread, x2 - reach, to.y, x2, to.y];
  }
  if (from.kind === "mlp" && to.kind === "head") {
    const [x1, x2, y2] = [from.x - from.w / 2, to.x + port * to.w, to.y + to.h / 2];
    return [x1, from.y, x1 - column * (0.4 + spread), from.y - 0.2 * (from.y - y2), x2, y2 + 0.55 * (from.y - y2), x2, y2];
  }
  const [x1, y1, x2] = [from.x, from.y - from.h / 2, to.x + port * to.w];
  const y2 = to.y + to.h / 2;
  const rise = 0.42 * (y1 - y2);
  const bend = (spread - 0.5) * column * (Math.abs(x1 - x2) < column / 2 && y1 - y2 > 3 * from.h ? 2.2 : 0.9);
  return [x1, y1, x1 + bend, y1 - rise, x2 + bend, y2 + rise, x2, y2];
}

/** The point of a curve at t. */
export function pointOf([x1, y1, x2, y2, x3, y3, x4, y4], t) {
  const u = 1 - t;
  const [a, b, c, d] = [u * u * u, 3 * u * u * t, 3 * u * t * t, t * t * t];
  return [a * x1 + b * x2 + c * x3 + d * x4, a * y1 + b * y2 + c * y3 + d * y4];
}
