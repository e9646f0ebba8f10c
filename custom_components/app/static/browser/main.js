// The page: takes a scan and a wish, lets the worker do it, shows and saves what came.

import { PLANES, Plane, draw } from "./pictures.js";
import { spacingOf } from "./geometry.js";

const LONG_SIDE = 420; // pixels of the longest side of a picture
const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search); // for tests: backend, threads, most
const options = {
  model: new URL("tiny.onnx", location.href).href,
  backend: query.get("backend"), threads: Number(query.get("threads") ?? 0), most: query.has("most") ? Number(query.get("most")) : undefined,
};
let worker = null, file = null, address = null;

function say(text, kind = "plain") {
  Object.assign($("status"), { textContent: text, className: `note ${kind}` });
  $("status").setAttribute("role", kind === "error" ? "alert" : "status");
}

function busy(on) {
  $("run").disabled = on || !file;
  $("cancel").disabled = $("bar").hidden = !on;
  if (on) $("bar").removeAttribute("value");
}

/** `2`, `1 1 4` or `1, 1, 4`. */
function numbers(text, what, counts) {
  const values = text.replace(/[[\](),;]/g, " ").trim().split(/\s+/).filter(Boolean).map(Number);
  if (!counts.includes(values.length) || !values.every((v) => v >= 0 && v < Infinity)) throw new Error(`${what}, got '${text}'`);
  return values;
}

function wishes() {
  const unit = $("unit").value, values = numbers($("target").value, "target must be one number or three such as 1 1 4", [1, 3]);
  const [thickness = null] = numbers($("thickness").value, "slice thickness must be one number in mm or empty", [0, 1]);
  return { wish: { unit, values }, thickness, strength: Number($("strength").value) };
}

function take(given) {
  file = given;
  busy(false);
  say(file ? `${file.name} is here, ${(file.size / 2 ** 20).toFixed(1)} MiB.` : "Choose a scan.", file ? "good" : "plain");
}

function stop() {
  worker?.terminate();
  worker = null;
}

async function run() {
  let wished, bytes;
  busy(true);
  try {
    wished = wishes();
    bytes = await file.arrayBuffer();
  } catch (error) {
    busy(false);
    return say(error.message, "error");
  }
  $("result").hidden = true;
  if (!worker) {
    worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    worker.onerror = () => fail("expected a browser with module workers and WebAssembly, got one that refuses them");
  }
  worker.onmessage = ({ data }) => answers[data.kind](data);
  worker.postMessage({ bytes, ...wished, options }, [bytes]);
}

function fail(text) {
  busy(false);
  say(`${file.name}: ${text}`, "error");
}

const answers = {
  step: ({ text }) => say(`${text} \u2026`),
  progress({ done, total }) {
    Object.assign($("bar"), { value: done, max: total });
    say(`tile ${done} of ${total}`);
  },
  error: ({ text }) => fail(text),
  done(data) {
    busy(false);
    say(["Done.", ...data.warnings].join(" "), data.warnings.length ? "warning" : "good");
    show(data);
  },
};

function show({ file: bytes, before, after, window, backend, seconds }) {
  if (address) URL.revokeObjectURL(address);
  address = URL.createObjectURL(new Blob([bytes], { type: "application/gzip" }));
  Object.assign($("save"), { href: address, download: `${file.name.replace(/\.nii(\.gz)?$/i, "")}_sr.nii.gz` });
  const grids = [before, after], sizes = (grid) => spacingOf(grid.affine).map((v) => Number(v.toFixed(3))).join(" \u00d7 ");
  const rows = [["voxels", grids.map((g) => g.shape.join(" \u00d7 "))], ["voxel size (mm)", grids.map(sizes)], ["seconds", [`${seconds.toFixed(1)} on the ${backend}`]]];
  $("numbers").replaceChildren(...rows.map(([name, values]) => {
    const row = document.createElement("tr");
    for (const [tag, text] of [["th", name], ["td", values.join(" \u2192 ")]]) row.appendChild(Object.assign(document.createElement(tag), { textContent: text }));
    return row;
  }));
  $("result").hidden = false;
  const made = Object.keys(PLANES).map((name) => ({ name, before: new Plane(name, before), after: new Plane(name, after) }));
  const scale = LONG_SIDE / Math.max(...made.flatMap((planes) => planes.before.size));
  for (const planes of made) {
    const slice = $(`slice_${planes.name}`), paint = () => {
      draw($(planes.name), planes, (slice.value - 0.5) / planes.after.count, $("split").value / 100, window, scale);
    };
    Object.assign(slice, { max: planes.after.count, value: Math.ceil(planes.after.count / 2), oninput: paint });
    planes.paint = paint;
    paint();
  }
  $("split").oninput = () => made.forEach(({ paint }) => paint());
}

$("scan").onchange = ({ target }) => take(target.files[0] ?? null);
$("strength").oninput = ({ target }) => ($("strength_shown").value = target.value);
$("run").onclick = run;
$("cancel").onclick = () => {
  stop();
  busy(false);
  say("Stopped.");
};
$("drop").ondragover = (event) => event.preventDefault();
$("drop").ondrop = (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
};
take(null);
