// Pinned nodes and named groups: kept by the page while it is open, and in groups.json beside the run.
import { button, element } from "./dom.js";

export const FORMAT = "circuitdisc.groups";

/** {pinned: names, groups: name -> heads} of a file's text, or an error that says what is wrong. */
export function parseGroups(text, circuit) {
  const data = JSON.parse(text);
  if (data?.format !== FORMAT || data.version !== 1) throw new Error("this is not a groups.json of version 1");
  const names = (list) => {
    if (!Array.isArray(list) || !list.every((name) => typeof name === "string")) throw new Error("groups and pins are lists of names");
    return list.filter((name) => circuit.byName.has(name));
  };
  const groups = Object.entries(data.groups ?? {}).map(([name, members]) => [name.slice(0, 60), names(members)]);
  return { pinned: names(data.pinned ?? []), groups: Object.fromEntries(groups) };
}

/** Offer the file for download: a page cannot write beside itself. */
export function download({ pinned, groups }) {
  const text = JSON.stringify({ format: FORMAT, version: 1, groups, pinned: [...pinned] }, null, 1);
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: "groups.json" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Pin a node, and put it into a named group. */
export function groupForm(node, state, changed) {
  const pinned = state.pinned.has(node.name);
  const pin = button(pinned ? "Unpin" : "Pin", () => {
    if (pinned) state.pinned.delete(node.name);
    else state.pinned.add(node.name);
    changed();
  });
  const current = Object.entries(state.groups).find(([, members]) => members.includes(node.name))?.[0] ?? "";
  const list = element("datalist", { id: "ex-group-names" }, Object.keys(state.groups).map((name) => element("option", { value: name })));
  const input = element("input", { type: "text", list: "ex-group-names", value: current, placeholder: "group", "aria-label": `Group of ${node.name}`, maxlength: 60, size: 14 });
  const put = (event) => {
    event.preventDefault();
    for (const [name, members] of Object.entries(state.groups)) {
      state.groups[name] = members.filter((member) => member !== node.name);
      if (!state.groups[name].length) delete state.groups[name];
    }
    const name = input.value.trim();
    if (name) state.groups = { ...state.groups, [name]: [...(state.groups[name] ?? []), node.name] };
    changed();
  };
  return element("form", { class: "ex-bar", onsubmit: put }, pin, input, list, element("button", {}, "Name group"));
}
