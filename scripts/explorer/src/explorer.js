// One explorer: its tools, its drawing and the panel beside it.
import { KINDS, KIND_WORDS, faithfulnessAt, readCircuit } from "./circuit.js";
import { CHANGES, compareBar, tint } from "./compare.js";
import { button, element, percent, plural } from "./dom.js";
import { download, groupForm, parseGroups } from "./groups.js";
import { grouped, layered } from "./layout.js";
import { boxPanel, edgePanel, nodePanel } from "./panel.js";
import { View } from "./view.js";

const count = (n) => n.toLocaleString("en");

export class Explorer {
  constructor(holder, data) {
    this.circuit = readCircuit(data);
    this.compares = (data.circuits?.length ?? 0) > 1;
    this.state = {
      size: this.circuit.edges.length, kinds: new Set(KINDS), grouped: false, example: 0, query: null,
      from: 0, to: this.compares ? 1 : 0, shared: true, gained: true, lost: true,
      pinned: new Set(data.pinned ?? []), groups: { ...data.groups },
    };
    this.canvas = element("canvas", { tabindex: 0, role: "application", "aria-label": `${data.label} Arrow keys go from node to node, Escape clears, plus and minus zoom, 0 shows all.` });
    this.panel = element("aside", { class: "ex-panel", "aria-label": "Details" });
    this.said = element("p", { class: "ex-said", role: "status" });
    this.tip = element("div", { class: "ex-tip", hidden: true });
    const stage = element("div", { class: "ex-stage" }, this.canvas, this.tip);
    holder.replaceChildren(this.tools(), this.said, element("div", { class: "ex-body" }, stage, this.panel));
    this.view = new View(this.canvas, {
      pick: (thing, all) => this.pick(thing, all),
      hover: (thing, event) => this.hover(thing, event),
      wheel: () => this.hint(),
    });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.layOut();
    this.clear();
    const again = () => {
      this.view.styles = null;
      this.layOut();
    };
    let width = this.canvas.clientWidth;
    new ResizeObserver(() => {
      if (this.canvas.clientWidth && this.canvas.clientWidth !== width) again();
      width = this.canvas.clientWidth;
    }).observe(this.canvas);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
    window.matchMedia("print").addEventListener("change", again);
  }

  // --- tools ---------------------------------------------------------------------------------------------------------

  tools() {
    const { circuit, state } = this;
    const names = `ex-names-${document.querySelectorAll("datalist").length}`;
    this.search = element("input", { type: "search", list: names, placeholder: "find a node", "aria-label": "Find a node", size: 12, onchange: () => this.find() });
    this.slider = element("input", { type: "range", min: 0, max: 1000, value: 1000, class: "ex-size", "aria-label": "Number of edges, the largest scores first", oninput: () => this.resize(Number(this.slider.value)) });
    this.size = element("output", { class: "ex-number" });
    const used = KINDS.filter((kind) => circuit.edges.some((edge) => edge.kind === kind));
    const kinds = used.map((kind) => {
      const toggle = (event) => {
        if (event.target.checked) state.kinds.add(kind);
        else state.kinds.delete(kind);
        this.refresh();
      };
      const swatch = this.compares ? null : element("span", { class: `ex-swatch ${kind}` });
      return element("label", { class: "ex-kind" }, element("input", { type: "checkbox", checked: true, value: kind, onchange: toggle }), swatch, KIND_WORDS[kind]);
    });
    const first = [
      this.search,
      element("datalist", { id: names }, circuit.nodes.map((node) => element("option", { value: node.name }))),
      element("label", {}, "edges ", this.slider),
      this.size,
    ];
    const second = [
      kinds,
      element("label", { class: "ex-kind" }, element("input", { type: "checkbox", class: "ex-grouped", onchange: (event) => this.group(event.target.checked) }), "groups"),
      button("+", () => this.view.zoomBy(1.4), { "aria-label": "Zoom in" }),
      button("\u2212", () => this.view.zoomBy(1 / 1.4), { "aria-label": "Zoom out" }),
      button("All", () => this.view.fit(), { title: "Show all" }),
      button("Save groups", () => download(state), { title: "Offers groups.json; put it beside the run" }),
      this.loader(),
    ];
    const rows = [element("div", { class: "ex-bar" }, first), element("div", { class: "ex-bar" }, second)];
    if (this.compares) {
      this.comparing = compareBar(circuit.circuits, state, () => this.refresh());
      rows.unshift(this.comparing.bar);
    }
    return element("div", { class: "ex-tools" }, rows);
  }

  loader() {
    const read = async (event) => {
      try {
        const { pinned, groups } = parseGroups(await event.target.files[0].text(), this.circuit);
        Object.assign(this.state, { pinned: new Set(pinned), groups });
        this.changed();
        this.say(`${plural(Object.keys(groups).length, "group")} read.`);
      } catch (error) {
        this.say(`The file cannot be used: ${error.message}.`);
      }
    };
    const input = element("input", { type: "file", accept: ".json,application/json", hidden: true, onchange: read });
    return element("span", {}, input, button("Load groups", () => input.click()));
  }

  /** The slider runs over sizes on a logarithmic scale. */
  resize(value) {
    const all = this.circuit.edges.length;
    this.state.size = value >= 1000 ? all : Math.max(Math.min(all, 1), Math.round(all ** (value / 1000)));
    this.refresh();
  }

  // --- what is shown -------------------------------------------------------------------------------------------------

  visible() {
    const { circuit, state } = this;
    if (this.compares) tint(circuit.edges, state.from, state.to);
    for (const edge of circuit.edges) {
      edge.hidden = edge.rank >= state.size || !state.kinds.has(edge.kind) || (this.compares && !(edge.tint && state[edge.tint]));
    }
    const shown = circuit.edges.filter((edge) => !edge.hidden);
    for (const node of circuit.nodes) node.hidden = true;
    for (const edge of shown) edge.source.hidden = edge.target.hidden = false;
    return shown;
  }

  layOut() {
    const width = this.canvas.clientWidth || 700;
    this.scene = this.state.grouped ? grouped(this.circuit, this.state.groups, this.visible(), width) : layered(this.circuit, width);
    this.canvas.style.height = `${Math.max(300, Math.min(780, this.scene.height))}px`;
    this.refresh(true);
  }

  refresh(fit = false) {
    const shown = this.visible();
    if (this.state.grouped && !fit) this.scene = grouped(this.circuit, this.state.groups, shown, this.canvas.clientWidth || 700);
    for (const node of this.scene.nodes) node.pinned = this.state.pinned.has(node.id);
    this.view.show(this.scene, this.state.grouped ? this.scene.edges : shown, fit);
    this.count(shown);
    if (this.last) this.pick(this.last, this.lastAll);
  }

  count(shown) {
    const { circuit, state } = this;
    const point = this.compares ? null : faithfulnessAt(circuit, state.size);
    const at = point && point[0] !== state.size ? ` at ${count(point[0])} edges, the nearest size measured` : "";
    const words = point ? `; faithfulness ${percent(point[1])}${point[2] === null ? "" : ` [${percent(point[2])}, ${percent(point[3])}]`}${at}` : "";
    const left = circuit.left_out ? `, ${count(circuit.left_out)} are left out` : "";
    this.size.textContent = `${count(shown.length)} of ${plural(circuit.edges.length, "edge")} shown${left}${words}`;
    const among = circuit.left_out ? ` of the ${plural(circuit.edges.length, "edge")} drawn` : "";
    if (this.comparing) this.comparing.counts.textContent = CHANGES.map((change) => `${count(circuit.edges.filter((edge) => edge.tint === change).length)} ${change}`).join(", ") + among;
  }

  group(on) {
    this.state.grouped = on;
    this.clear();
    this.layOut();
  }

  changed() {
    if (this.state.grouped) this.layOut();
    else this.refresh();
  }

  // --- choosing ------------------------------------------------------------------------------------------------------

  /** Show a node or an edge: of the scene, or of the circuit. */
  pick(thing, all = []) {
    if (!thing) return this.clear();
    this.last = thing;
    this.lastAll = all;
    const actions = { pick: (other) => this.pick(other), groups: (node) => groupForm(node, this.state, () => this.changed()) };
    const node = thing.node?.node ?? (thing.node?.into ? thing.node : this.circuit.byName.get(thing.node?.id));
    const placed = node ? this.view.placed.get(node.name) : thing.node;
    this.view.choose(thing.edge ? (thing.edge.curve ? thing : null) : placed ? { node: placed } : null);
    let parts;
    if (node) parts = nodePanel(this.circuit, node, this.state, actions);
    else if (thing.edge && !thing.edge.parts) parts = edgePanel(this.circuit, thing.edge, all.filter(({ edge }) => edge), actions);
    else parts = boxPanel(thing, actions);
    this.panel.replaceChildren(...parts.filter(Boolean));
    this.say(node ? `${node.name}: ${plural(node.into.length, "edge")} in, ${node.out.length} out` : (thing.edge?.name ?? thing.node.id));
  }

  clear() {
    this.last = null;
    this.view.choose(null);
    this.say("");
    const known = this.circuit.known.notes ?? [];
    this.panel.replaceChildren(
      element("p", { class: "soft" }, "Choose a node to see its edges, its role, what it promotes and what it attends to; choose an edge to see what cutting it changes. Drag to move; Ctrl and the wheel, or two fingers, zoom."),
      ...known.map((note) => element("p", { class: "soft" }, `Not known: ${note}`)),
    );
  }

  find() {
    const text = this.search.value.trim();
    if (!text) return;
    const node = this.circuit.byName.get(text) ?? this.circuit.nodes.find(({ name }) => name.startsWith(text));
    if (!node) return this.say(`The circuit has no node ${text}.`);
    this.pick({ node });
    const placed = this.view.placed.get(node.name);
    if (placed) this.view.reveal(placed);
  }

  key(event) {
    const keys = {
      Escape: () => this.clear(),
      "+": () => this.view.zoomBy(1.4),
      "=": () => this.view.zoomBy(1.4),
      "-": () => this.view.zoomBy(1 / 1.4),
      0: () => this.view.fit(),
      ArrowLeft: () => this.step(-1, 0),
      ArrowRight: () => this.step(1, 0),
      ArrowUp: () => this.step(0, -1),
      ArrowDown: () => this.step(0, 1),
    };
    if (event.ctrlKey || event.metaKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  }

  /** Go to the nearest node in a direction. */
  step(dx, dy) {
    const now = this.view.chosen?.node ?? null;
    const nodes = this.scene.nodes.filter((node) => node !== now && !node.node?.hidden);
    if (!nodes.length) return;
    const [x, y] = now ? [now.x, now.y] : [this.scene.width / 2, this.scene.height * 1.01];
    const far = (node) => {
      const [along, across] = [(node.x - x) * dx + (node.y - y) * dy, Math.abs((node.x - x) * dy) + Math.abs((node.y - y) * dx)];
      return along > 1 ? along + 3 * across : Infinity;
    };
    const next = now ? nodes.reduce((a, b) => (far(b) < far(a) ? b : a)) : nodes.reduce((a, b) => (b.y > a.y ? b : a));
    if (now && far(next) === Infinity) return;
    this.pick({ node: next });
    this.view.reveal(next);
  }

  // --- words ---------------------------------------------------------------------------------------------------------

  hover(thing, event) {
    this.tip.hidden = !thing;
    if (!thing) return;
    this.tip.textContent = thing.node ? thing.node.id : thing.edge.name;
    const bounds = this.canvas.getBoundingClientRect();
    this.tip.style.left = `${Math.min(event.clientX - bounds.left + 12, bounds.width - 150)}px`;
    this.tip.style.top = `${event.clientY - bounds.top + 12}px`;
  }

  hint() {
    if (this.hinted) return;
    this.hinted = true;
    this.say("Hold Ctrl and turn the wheel to zoom.");
  }

  say(words) {
    this.said.textContent = words;
  }
}
