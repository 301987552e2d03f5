// Every explorer on the page, from the JSON beside its place.
import { Explorer } from "./explorer.js";

for (const holder of document.querySelectorAll("[data-explorer]")) {
  const started = performance.now();
  const explorer = new Explorer(holder, JSON.parse(document.getElementById(holder.dataset.explorer).textContent));
  holder.dataset.ready = Math.round(performance.now() - started);
  holder.explorer = explorer;
}
