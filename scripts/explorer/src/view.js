// The drawing: a canvas that is zoomed and panned. While it moves, the last drawing is moved as a picture; then it is drawn anew.
import { quadtree } from "d3-quadtree";
import { select } from "d3-selection";
import { zoom, zoomIdentity } from "d3-zoom";
import { curve, pointOf } from "./layout.js";

const SETTLED = 110; // milliseconds after the last movement
const REACH = 9; // pixels from the pointer within which an edge is meant

export class View {
  /** `on.pick(thing, all)` and `on.hover(thing)` get {node} or {edge} of the scene, or null. */
  constructor(canvas, on) {
    Object.assign(this, { canvas, on, context: canvas.getContext("2d"), picture: document.createElement("canvas") });
    Object.assign(this, { transform: zoomIdentity, scene: null, edges: [], chosen: null, styles: null, frame: 0, timer: 0 });
    this.zoom = zoom()
      .scaleExtent([0.3, 12])
      .filter((event) => (event.type === "wheel" ? event.ctrlKey || event.metaKey : event.touches ? event.touches.length > 1 : !event.button))
      .on("zoom", ({ transform }) => this.moved(transform));
    select(canvas).call(this.zoom).on("dblclick.zoom", null);
    canvas.addEventListener("click", (event) => {
      const all = this.under(event);
      on.pick(all[0] ?? null, all);
    });
    canvas.addEventListener("pointermove", (event) => event.buttons || on.hover(this.under(event)[0] ?? null, event));
    canvas.addEventListener("pointerleave", () => on.hover(null));
    canvas.addEventListener("wheel", (event) => event.ctrlKey || event.metaKey || on.wheel?.(), { passive: true });
  }

  /** Show a scene's nodes and these of its edges. */
  show(scene, edges, fit = false) {
    Object.assign(this, { scene, edges, tree: null, placed: new Map(scene.nodes.map((node) => [node.id, node])) });
    for (const edge of edges) {
      const [from, to] = [this.placed.get(edge.source.name ?? edge.source.id), this.placed.get(edge.target.name ?? edge.target.id)];
      edge.curve = curve(edge, from, to, scene.column);
    }
    this.resize();
    if (fit) this.fit();
    this.draw();
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    if (this.ratio === ratio && this.width === width && this.height === height) return;
    Object.assign(this, { ratio, width, height });
    for (const canvas of [this.canvas, this.picture]) Object.assign(canvas, { width: width * ratio, height: height * ratio });
  }

  fit() {
    if (!this.width || !this.height) return;
    const { width, height } = this.scene;
    const k = Math.min(this.width / width, this.height / height, 1.6);
    this.zoomTo(zoomIdentity.translate((this.width - k * width) / 2, (this.height - k * height) / 2).scale(k));
  }

  zoomTo = (transform) => select(this.canvas).call(this.zoom.transform, transform);
  zoomBy = (factor) => select(this.canvas).call(this.zoom.scaleBy, factor);
  panBy = (x, y) => select(this.canvas).call(this.zoom.translateBy, x / this.transform.k, y / this.transform.k);

  /** Bring a node into sight. */
  reveal(node) {
    const [x, y] = this.transform.apply([node.x, node.y]);
    if (x < 20 || y < 20 || x > this.width - 20 || y > this.height - 20) select(this.canvas).call(this.zoom.translateTo, node.x, node.y);
  }

  moved(transform) {
    this.transform = transform;
    if (!this.frame) this.frame = requestAnimationFrame(() => this.blit());
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.draw(), SETTLED);
  }

  /** The last picture under the present transform, and what is chosen. */
  blit() {
    this.frame = 0;
    if (!this.picture.width || !this.picture.height) return; // not laid out yet, as in a frame that is still hidden
    const { context, ratio, drawn, transform } = this;
    const k = transform.k / drawn.k;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.setTransform(k, 0, 0, k, ratio * (transform.x - k * drawn.x), ratio * (transform.y - k * drawn.y));
    context.drawImage(this.picture, 0, 0);
    this.overlay();
  }

  draw() {
    const context = this.picture.getContext("2d");
    this.drawn = this.transform;
    this.styles ??= readStyles(this.canvas);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.picture.width, this.picture.height);
    this.place(context);
    this.background(context);
    const crowd = Math.min(1, (90 / Math.max(this.edges.length, 1)) ** 0.3);
    const dim = this.chosen ? 0.25 : 1;
    for (const edge of this.edges) stroke(context, edge, this.styles[edge.tint ?? edge.kind], dim * crowd * (0.25 + 0.7 * edge.size), (0.7 + 2.6 * edge.size) * (0.4 + 0.6 * crowd));
    context.globalAlpha = 1;
    for (const node of this.scene.nodes) this.box(context, node);
    this.blit();
  }

  place(context) {
    const { ratio, transform } = this;
    context.setTransform(ratio * transform.k, 0, 0, ratio * transform.k, ratio * transform.x, ratio * transform.y);
  }

  background(context) {
    context.fillStyle = this.styles.faint;
    for (const [x, y] of this.scene.dots) {
      context.beginPath();
      context.arc(x, y, 2, 0, 7);
      context.fill();
    }
    context.font = "10px system-ui, sans-serif";
    context.textAlign = "left";
    context.textBaseline = "middle";
    context.fillStyle = this.styles.soft;
    for (const { y, label } of this.scene.rows) context.fillText(label, 6, y);
  }

  box(context, node, lit = false) {
    const { x, y, w, h, label } = node;
    const hidden = node.node?.hidden;
    context.globalAlpha = hidden ? 0.3 : 1;
    context.fillStyle = lit ? this.styles.accent : node.pinned ? this.styles.pin : this.styles.panel;
    context.strokeStyle = this.styles.ink;
    context.lineWidth = lit ? 2 : 1;
    context.beginPath();
    context.roundRect(x - w / 2, y - h / 2, w, h, node.kind === "head" ? h / 2 : 3);
    context.fill();
    context.stroke();
    context.fillStyle = lit ? this.styles.paper : node.pinned ? "#1d2128" : this.styles.ink;
    context.font = `${Math.min(11, h - 3, (1.75 * w) / label.length)}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(label, x, y + 0.5);
    context.globalAlpha = 1;
  }

  overlay() {
    if (!this.chosen) return;
    const { context } = this;
    this.place(context);
    const { node, edge } = this.chosen;
    const lit = edge ? [edge] : this.edges.filter((item) => sameNode(item.source, node) || sameNode(item.target, node));
    for (const one of lit) if (one.curve) stroke(context, one, this.styles[one.tint ?? one.kind], 1, 1.2 + 2.4 * one.size);
    context.globalAlpha = 1;
    const ends = new Set(lit.flatMap((item) => [item.source.name ?? item.source.id, item.target.name ?? item.target.id]));
    for (const id of ends) this.placed.has(id) && this.box(context, this.placed.get(id));
    if (node && this.placed.has(node.id)) this.box(context, this.placed.get(node.id), true);
  }

  choose(thing) {
    this.chosen = thing;
    this.draw();
  }

  /** What lies under the pointer, the nearest first: a node, else edges. */
  under(event) {
    if (!this.scene) return [];
    const bounds = this.canvas.getBoundingClientRect();
    const [x, y] = this.transform.invert([event.clientX - bounds.left, event.clientY - bounds.top]);
    const inside = (node) => Math.abs(node.x - x) <= node.w / 2 + 1 && Math.abs(node.y - y) <= node.h / 2 + 1;
    const node = this.scene.nodes.find(inside);
    if (node) return [{ node }];
    this.tree ??= quadtree(this.edges.flatMap((edge) => samples(edge)), (p) => p[0], (p) => p[1]);
    const reach = REACH / this.transform.k;
    const near = new Map();
    this.tree.visit((quad, x0, y0, x1, y1) => {
      for (let leaf = quad.length ? null : quad; leaf; leaf = leaf.next) {
        const [px, py, edge] = leaf.data;
        const distance = Math.hypot(px - x, py - y);
        if (distance <= reach && distance < (near.get(edge) ?? Infinity)) near.set(edge, distance);
      }
      return x0 > x + reach || x1 < x - reach || y0 > y + reach || y1 < y - reach;
    });
    return [...near].sort((a, b) => a[1] - b[1]).map(([edge]) => ({ edge }));
  }
}

const sameNode = (end, node) => (end.name ?? end.id) === node.id;

function samples(edge) {
  const [x1, y1, , , , , x4, y4] = edge.curve;
  const n = Math.max(6, Math.min(60, Math.ceil(Math.hypot(x4 - x1, y4 - y1) / 8)));
  return Array.from({ length: n + 1 }, (_, i) => [...pointOf(edge.curve, i / n), edge]);
}

function stroke(context, edge, colour, alpha, width) {
  const [x1, y1, x2, y2, x3, y3, x4, y4] = edge.curve;
  context.globalAlpha = alpha;
  context.strokeStyle = colour;
  context.lineWidth = width;
  if (edge.tint === "lost") context.setLineDash([5, 4]);
  context.beginPath();
  context.moveTo(x1, y1);
  context.bezierCurveTo(x2, y2, x3, y3, x4, y4);
  context.stroke();
  if (edge.tint === "lost") context.setLineDash([]);
}

/** The page's colours, of the light or the dark scheme. */
function readStyles(element) {
  const style = getComputedStyle(element);
  const names = ["ink", "soft", "faint", "paper", "panel", "accent", "pin", "q", "k", "v", "mlp", "logits", "shared", "gained", "lost"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim() || "#888"]));
}
