// Builds what the pages embed: explorer.js, plotly's small bundle (compressed), and the licences of both.
import { build } from "esbuild";
import { readFileSync, writeFileSync } from "node:fs";
import { gzipSync } from "node:zlib";

const assets = new URL("../../circuitdisc/pages/assets/", import.meta.url);

await build({
  entryPoints: ["src/main.js"],
  bundle: true,
  minify: true,
  target: "es2021",
  format: "iife",
  charset: "ascii",
  legalComments: "none",
  outfile: new URL("explorer.js", assets).pathname,
});

const plotly = readFileSync("node_modules/plotly.js-cartesian-dist-min/plotly-cartesian.min.js");
writeFileSync(new URL("plotly.js.gz", assets), gzipSync(plotly, { level: 9 }));

const lock = JSON.parse(readFileSync("package-lock.json", "utf8")).packages;
const shipped = Object.keys(lock).filter((path) => path.startsWith("node_modules/") && !lock[path].dev);
const licences = shipped.map((path) => {
  const { name, version } = JSON.parse(readFileSync(`${path}/package.json`, "utf8"));
  return `${name} ${version}\n\n${readFileSync(`${path}/LICENSE`, "utf8").trim()}\n`;
});
writeFileSync(new URL("LICENSES.txt", assets), licences.join("\n" + "-".repeat(80) + "\n\n"));
