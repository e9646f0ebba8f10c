// NIfTI-1 files, zipped or not: read onto one form, written back in the scan's own voxel type.

import { ScanError } from "./errors.js";
import { MM_CORNER, affineOfQuaternion, determinant, multiply, quaternionOf, spacingOf } from "./geometry.js";

// code -> [name, bytes per voxel, DataView method]
const TYPES = {
  2: ["uint8", 1, "getUint8"], 4: ["int16", 2, "getInt16"], 8: ["int32", 4, "getInt32"], 16: ["float32", 4, "getFloat32"],
  64: ["float64", 8, "getFloat64"], 256: ["int8", 1, "getInt8"], 512: ["uint16", 2, "getUint16"], 768: ["uint32", 4, "getUint32"],
};
const ARRAYS = {
  uint8: Uint8Array, int16: Int16Array, int32: Int32Array, float32: Float32Array,
  float64: Float64Array, int8: Int8Array, uint16: Uint16Array, uint32: Uint32Array,
};
const MM_PER_UNIT = { 1: 1000, 3: 1e-3 }; // metre, micrometre
const HEADER = 348, VOXELS = 352;
const LITTLE = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1; // this machine's order of bytes

/** Typed array of a voxel type by its name. */
export const arrayOf = (type, length) => new ARRAYS[type](length);

async function through(stream, ...parts) {
  return new Uint8Array(await new Response(new Blob(parts).stream().pipeThrough(stream)).arrayBuffer());
}

async function unzipped(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  try {
    return await through(new DecompressionStream("gzip"), bytes);
  } catch {
    throw new ScanError("expected a whole gzip file, got one that is cut short or damaged");
  }
}

/** The affine that counts: sform, else qform, else one of the voxel sizes about the centre of the grid, x to the left. */
function affineOf(view, end, shape, pixdim) {
  const float = (at) => view.getFloat32(at, end), code = { q: view.getInt16(252, end), s: view.getInt16(254, end) };
  if (code.s) return [code, [0, 1, 2].map((r) => [0, 1, 2, 3].map((c) => float(280 + 16 * r + 4 * c))).concat([[0, 0, 0, 1]])];
  const size = pixdim.slice(1, 4);
  if (code.q) {
    const [b, c, d, x, y, z] = [256, 260, 264, 268, 272, 276].map(float);
    return [code, affineOfQuaternion([b, c, d], [x, y, z], size, pixdim[0] < 0 ? -1 : 1)];
  }
  const steps = [-size[0], size[1], size[2]];
  return [code, steps.map((s, r) => [0, 1, 2].map((c) => (r === c ? s : 0)).concat(-s * (shape[r] - 1) / 2)).concat([[0, 0, 0, 1]])];
}

function gridOf(view, end) {
  const rank = view.getInt16(40, end);
  const size = Array.from({ length: rank }, (_, i) => view.getInt16(42 + 2 * i, end));
  while (size.length > 3 && size.at(-1) === 1) size.pop();
  if (size.length > 3) throw new ScanError(`expected one volume with 3 axes, got shape ${size.join(" x ")}`);
  const shape = [0, 1, 2].map((i) => size[i] ?? 1);
  if (Math.min(...shape) < 2) throw new ScanError(`expected at least 2 voxels along each of 3 axes, got shape ${shape.join(" x ")}`);
  const pixdim = [0, 1, 2, 3].map((i) => view.getFloat32(76 + 4 * i, end));
  if (!pixdim.slice(1).every((s) => s > 0 && s < Infinity))
    throw new ScanError(`expected voxel sizes above 0 mm, got ${pixdim.slice(1).join(" x ")}`);
  return [shape, pixdim];
}

function voxelsOf(bytes, view, end, count, [, size, read]) {
  const start = Math.max(view.getFloat32(108, end), VOXELS);
  if (bytes.length < start + count * size) throw new ScanError(`expected ${count} voxels, got a file that is cut short`);
  let slope = view.getFloat32(112, end), shift = view.getFloat32(116, end);
  if (!(Number.isFinite(slope) && slope) || !Number.isFinite(shift)) [slope, shift] = [1, 0];
  const values = new Float32Array(count), data = new DataView(bytes.buffer, bytes.byteOffset);
  for (let i = 0; i < count; i++) values[i] = slope * data[read](start + i * size, end) + shift;
  let [low, high] = [Infinity, -Infinity];
  for (const v of values) {
    if (!Number.isFinite(v)) throw new ScanError("expected finite values, got NaN or infinity in some voxels");
    if (v < low) low = v;
    if (v > high) high = v;
  }
  if (low === high) throw new ScanError(`expected an image with contrast, got the constant ${low}`);
  return { values, low, high, scaled: slope !== 1 || shift !== 0 };
}

/** Read a file's bytes: `{shape, affine, spacing, values, low, high, type, codes, header, warnings}`; the first axis runs fastest. */
export async function readNifti(given) {
  const bytes = await unzipped(given);
  if (bytes.length < VOXELS) throw new ScanError("expected a NIfTI image (.nii, .nii.gz), got a file that does not read as one");
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const end = view.getInt32(0, true) === HEADER;
  const magic = String.fromCharCode(...bytes.subarray(344, 347));
  if (view.getInt32(0, end) !== HEADER || magic !== "n+1") {
    const two = [view.getInt32(0, true), view.getInt32(0, false)].includes(540);
    const what = two ? "NIfTI-2" : magic === "ni1" ? "the header of a pair of files" : "a file that does not read as one";
    throw new ScanError(`expected a NIfTI-1 image (.nii, .nii.gz), got ${what}`);
  }
  const [shape, pixdim] = gridOf(view, end);
  const kind = TYPES[view.getInt16(70, end)];
  if (!kind) throw new ScanError(`expected one real value of at most 64 bits per voxel, got NIfTI data type ${view.getInt16(70, end)}`);
  const [codes, affine] = affineOf(view, end, shape, pixdim), warnings = [];
  if (!codes.s && !codes.q) warnings.push("no sform or qform in the header: position and orientation are a guess from the voxel size");
  const unit = bytes[123] & 7;
  if (unit in MM_PER_UNIT) {
    for (const row of affine.slice(0, 3)) row.forEach((v, c) => (row[c] = v * MM_PER_UNIT[unit]));
    warnings.push(`the header gives lengths in ${unit === 1 ? "metres" : "micrometres"}: converted to mm`);
  }
  const spacing = spacingOf(affine), box = spacing.reduce((a, b) => a * b);
  if (!affine.flat().every(Number.isFinite) || !(Math.abs(determinant(affine)) >= 1e-4 * box) || !box)
    throw new ScanError(`expected an invertible affine from voxels to mm, got [${affine.slice(0, 3).map((r) => r.join(" ")).join("; ")}]`);
  const found = voxelsOf(bytes, view, end, shape[0] * shape[1] * shape[2], kind);
  const notes = { descrip: bytes.slice(148, 228), time: bytes[123] & 0x38 };
  return { shape, affine, spacing, ...found, type: found.scaled ? "float32" : kind[0], codes, notes, warnings };
}

/** Whether the qform puts the corners of a grid where the affine does, to 0.01 mm: a sheared one has none. */
function agrees(affine, other, shape) {
  for (let corner = 0; corner < 8; corner++) {
    const at = [0, 1, 2].map((i) => (corner >> i & 1 ? shape[i] - 1 : 0)).concat(1);
    const [a, b] = [multiply(affine, at), multiply(other, at)];
    if (a.some((v, i) => Math.abs(v - b[i]) > MM_CORNER)) return false;
  }
  return true;
}

/** Zipped bytes of a NIfTI-1 file of `values` (first axis fastest) on a grid; codes and description are those of `scan`. */
export async function writeNifti(scan, shape, affine, values) {
  const header = new DataView(new ArrayBuffer(VOXELS)), set = (at, ...floats) => floats.forEach((v, i) => header.setFloat32(at + 4 * i, v, LITTLE));
  const code = Number(Object.keys(TYPES).find((c) => TYPES[c][0] === scan.type)), size = spacingOf(affine);
  const { quaternion, sign } = quaternionOf(affine), offset = affine.slice(0, 3).map((row) => row[3]);
  const sform = scan.codes.s || scan.codes.q || 1;
  const qform = agrees(affine, affineOfQuaternion(quaternion, offset, size, sign), shape) ? scan.codes.q || sform : 0;
  header.setInt32(0, HEADER, LITTLE);
  [3, ...shape, 1, 1, 1, 1].forEach((n, i) => header.setInt16(40 + 2 * i, n, LITTLE));
  header.setInt16(70, code, LITTLE);
  header.setInt16(72, 8 * TYPES[code][1], LITTLE);
  set(76, sign, ...size, 1, 1, 1, 1);
  set(108, VOXELS, 1, 0);
  header.setUint8(123, 2 | scan.notes.time);
  new Uint8Array(header.buffer).set(scan.notes.descrip, 148);
  header.setInt16(252, qform, LITTLE);
  header.setInt16(254, sform, LITTLE);
  set(256, ...quaternion, ...offset);
  set(280, ...affine.slice(0, 3).flat());
  [0x6e, 0x2b, 0x31].forEach((byte, i) => header.setUint8(344 + i, byte)); // n+1
  return through(new CompressionStream("gzip"), header.buffer, values);
}
