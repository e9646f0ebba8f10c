// A scan to a finer grid: spline plus the network's detail, tile by tile, straight into the scan's own voxel type.

import { arrayOf } from "./nifti.js";
import { cellAverageMatrix, contractAll, reach, splineMatrix } from "./axes.js";
import { emptyVoxels, limitsOf, restorer } from "./intensity.js";
import { condition } from "./network.js";

const MOST_VOXELS = 500_000; // of a tile with its halo: 128 MB of coefficients, which is what a GPU buffer holds
const SPLINE_REACH = 8; // LR voxels around a tile whose noise is known: what lies beyond has weights below 1e-4 in the spline

/** Tiles per axis, so that one with its halo has at most `most` voxels and the least is computed twice. */
export function tiling(shape, halo, most = MOST_VOXELS) {
  const width = (n, parts) => Math.min(Math.ceil(n / parts) + (parts > 1 ? (parts > 2 ? 2 : 1) * halo : 0), n);
  const options = shape.map((n) => Array.from({ length: n }, (_, i) => ({ parts: i + 1, width: width(n, i + 1) })));
  let best = null;
  for (const a of options[0]) for (const b of options[1]) for (const c of options[2]) {
    const voxels = a.width * b.width * c.width, work = voxels * a.parts * b.parts * c.parts;
    if (voxels <= most && (!best || work < best.work)) best = { work, parts: [a.parts, b.parts, c.parts] };
    if (voxels <= most) break; // more cuts of the last axis compute more
  }
  return best?.parts ?? shape;
}

const cuts = (n, parts) => Array.from({ length: parts + 1 }, (_, i) => Math.floor((i * n) / parts));

/** A box of a volume whose first axis runs fastest, scaled to [0, 1], with the last axis fastest. */
function boxOf({ values, shape }, lows, highs, [black, white]) {
  const size = lows.map((low, i) => highs[i] - low), out = new Float32Array(size[0] * size[1] * size[2]), gain = 1 / (white - black);
  let to = 0;
  for (let x = lows[0]; x < highs[0]; x++)
    for (let y = lows[1]; y < highs[1]; y++)
      for (let z = lows[2]; z < highs[2]; z++) out[to++] = (values[x + shape[0] * (y + shape[1] * z)] - black) * gain;
  return [out, size];
}

/** Take a part of the noise, known in a box of its own from `from` on, away from an image `(X, Y, Z)` that begins at `lows`; in place. */
function takeAway(image, size, lows, noise, noiseSize, from, strength) {
  let to = 0;
  const place = (i, axis) => i + lows[axis] - from[axis], inside = (i, axis) => i >= 0 && i < noiseSize[axis];
  for (let x = place(0, 0), i = 0; i < size[0]; i++, x++)
    for (let y = place(0, 1), j = 0; j < size[1]; j++, y++)
      for (let z = place(0, 2), k = 0; k < size[2]; k++, z++, to++)
        if (inside(x, 0) && inside(y, 1) && inside(z, 2)) image[to] -= strength * noise[(x * noiseSize[1] + y) * noiseSize[2] + z];
}

/** Whether all LR voxels in which HR voxels of a tile lie are empty. */
function allEmpty(mask, shape, lows, highs) {
  for (let z = lows[2]; z < highs[2]; z++)
    for (let y = lows[1]; y < highs[1]; y++)
      for (let x = lows[0]; x < highs[0]; x++) if (!mask[x + shape[0] * (y + shape[1] * z)]) return false;
  return true;
}

/**
 * Voxels of `target` over the extent of `scan`, in its voxel type and with the first axis fastest.
 *
 * `widths`: of the slice profile in LR voxels per axis, null where not known; `strength`: part of the noise that is taken away, 0 to 1;
 * `progress(done, total)` is called after each tile.
 */
export async function sharpen(scan, target, network, { widths = [null, null, null], strength = 0, most, progress = () => {} } = {}) {
  const { shape } = scan, halo = (await network.halo()) + (strength ? SPLINE_REACH : 0), limits = limitsOf(scan), restore = restorer(scan, limits);
  const known = condition(shape, target, scan.spacing, widths), mask = emptyVoxels(scan);
  const result = arrayOf(scan.type, target[0] * target[1] * target[2]), splines = shape.map((n, i) => splineMatrix(n, target[i]));
  const nearest = shape.map((n, i) => Int32Array.from({ length: target[i] }, (_, j) => Math.min(Math.floor(((j + 0.5) * n) / target[i]), n - 1)));
  const averages = {}; // by degree, which the network's first answer tells
  const parts = tiling(shape, halo, most);
  const [xs, ys, zs] = target.map((m, i) => cuts(m, parts[i])), total = parts[0] * parts[1] * parts[2];
  for (let tile = 0; tile < total; tile++) {
    const at = [Math.floor(tile / (parts[1] * parts[2])), Math.floor(tile / parts[2]) % parts[1], tile % parts[2]];
    const starts = [xs, ys, zs].map((c, i) => c[at[i]]), ends = [xs, ys, zs].map((c, i) => c[at[i] + 1]);
    await one(starts, ends);
    progress(tile + 1, total);
  }
  return result;

  async function one(starts, ends) {
    const cells = starts.map((s, i) => [Math.floor((s * shape[i]) / target[i]), Math.ceil((ends[i] * shape[i]) / target[i])]);
    if (ends.some((e, i) => e === starts[i])) return;
    const empty = allEmpty(mask, shape, cells.map((c) => c[0]), cells.map((c) => c[1]));
    let base, detail;
    if (!empty) {
      const lows = cells.map(([low]) => Math.max(low - halo, 0)), highs = cells.map(([, high], i) => Math.min(high + halo, shape[i]));
      const [image, size] = boxOf(scan, lows, highs, limits), { data, count, noise } = await network.run(image, size, known, strength > 0), taps = Math.round(Math.cbrt(count));
      averages[taps] ??= shape.map((n, i) => cellAverageMatrix(n, target[i], taps - 1));
      const rows = (matrices) => matrices.map((m, i) => m.slice(starts[i], ends[i]));
      detail = contractAll(data, size, rows(averages[taps]), lows, taps);
      const reached = splines.map((m, i) => reach(m, starts[i], ends[i]));
      const [box, boxSize] = boxOf(scan, reached.map((r) => r[0]), reached.map((r) => r[1]), limits);
      if (strength) takeAway(box, boxSize, reached.map((r) => r[0]), noise, size, lows, strength);
      base = contractAll(box, boxSize, rows(splines), reached.map((r) => r[0]));
    }
    let from = 0;
    for (let x = starts[0]; x < ends[0]; x++)
      for (let y = starts[1]; y < ends[1]; y++)
        for (let z = starts[2]; z < ends[2]; z++, from++) {
          const voxel = nearest[0][x] + shape[0] * (nearest[1][y] + shape[1] * nearest[2][z]);
          const to = x + target[0] * (y + target[1] * z);
          result[to] = mask[voxel] ? scan.low : restore(base[from] + detail[from]);
        }
  }
}
