// The work of the page, beside it, so that the page answers while it goes on. What comes in and goes out stays in the browser.

import * as ort from "./ort/ort.webgpu.min.mjs";
import { ScanError } from "./errors.js";
import { rescaledAffine, sliceAxis, targetShape } from "./geometry.js";
import { limitsOf } from "./intensity.js";
import { openNetwork } from "./network.js";
import { readNifti, writeNifti } from "./nifti.js";
import { sharpen } from "./sharpen.js";

let network; // opened once, for all scans

async function fetched(address) {
  const response = await fetch(address);
  if (!response.ok) throw new ScanError(`expected the network ${address}, got ${response.status} ${response.statusText}`);
  return new Uint8Array(await response.arrayBuffer());
}

function widthsOf(scan, thickness) {
  const widths = [null, null, null], axis = sliceAxis(scan.affine);
  if (thickness === null) return widths;
  widths[axis] = thickness / scan.spacing[axis];
  if (!(widths[axis] > 0 && widths[axis] <= 3))
    throw new ScanError(`slice thickness must be in (0, ${(3 * scan.spacing[axis]).toPrecision(3)}] mm, got ${thickness}`);
  return widths;
}

async function work({ bytes, wish, thickness, strength, options }) {
  const start = performance.now(), say = (text) => postMessage({ kind: "step", text });
  say("reads the scan");
  const scan = await readNifti(new Uint8Array(bytes));
  const target = targetShape(scan.shape, scan.spacing, wish), widths = widthsOf(scan, thickness);
  say("loads the network");
  const folder = new URL("ort/", import.meta.url).href;
  network ??= await openNetwork(ort, await fetched(options.model), { folder, ...options });
  const progress = (done, total) => postMessage({ kind: "progress", done, total });
  const result = await sharpen(scan, target, network, { widths, strength, most: options.most, progress });
  say("writes the result");
  const affine = rescaledAffine(scan.affine, scan.shape, target), file = await writeNifti(scan, target, affine, result);
  const before = { shape: scan.shape, affine: scan.affine, values: scan.values }, after = { shape: target, affine, values: result };
  const about = { window: limitsOf(scan), warnings: scan.warnings, backend: network.name, seconds: (performance.now() - start) / 1000 };
  postMessage({ kind: "done", file, before, after, ...about }, [file.buffer, before.values.buffer, result.buffer]);
}

onmessage = async ({ data }) => {
  try {
    await work(data);
  } catch (error) {
    const memory = error instanceof RangeError || /out of memory|bad_alloc/i.test(error);
    const text = memory ? "expected a result that fits in the browser's memory, got one that does not" : String(error);
    postMessage({ kind: "error", text: error instanceof ScanError ? error.message : text });
  }
};
