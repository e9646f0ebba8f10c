// Grids in voxels and millimetres: the field of view is kept at its outer voxel borders. Affines are 4 rows of 4.

import { ScanError } from "./errors.js";

export const MM_CORNER = 0.01; // how far a corner of a grid may lie from where it should

/** Matrix times vector. */
export const multiply = (matrix, vector) => matrix.map((row) => row.reduce((sum, v, i) => sum + v * vector[i], 0));

const column = (affine, c) => affine.slice(0, 3).map((row) => row[c]);

/** Voxel size in mm per array axis. */
export const spacingOf = (affine) => [0, 1, 2].map((c) => Math.hypot(...column(affine, c)));

/** Determinant of the part without the offset. */
export function determinant(affine) {
  const [[a, b, c], [d, e, f], [g, h, i]] = affine;
  return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
}

/** To the nearest whole number, a half to the even one, as Python rounds. */
export function roundHalfEven(x) {
  const low = Math.floor(x), rest = x - low;
  return rest < 0.5 ? low : rest > 0.5 ? low + 1 : low + (low % 2);
}

/** Voxels of the HR grid: by a factor per axis, or by a voxel size in mm, of which 0 keeps an axis. */
export function targetShape(shape, spacing, { unit, values }) {
  const wished = values.length === 1 ? [values[0], values[0], values[0]] : values;
  return shape.map((n, axis) => {
    const factor = unit === "mm" ? (wished[axis] ? spacing[axis] / wished[axis] : 1) : wished[axis];
    const size = roundHalfEven(n * factor);
    if (unit !== "mm" && factor < 1) throw new ScanError(`factor must be >= 1, got ${factor} on axis ${axis}`);
    if (size < n) {
      const most = spacing[axis].toPrecision(4);
      throw new ScanError(`target voxel size must be at most the scan's ${most} mm on axis ${axis} (0 keeps an axis), got ${wished[axis]} mm`);
    }
    return size;
  });
}

/** Affine of `newShape` voxels over the extent of `shape` voxels: A [diag(s), (s - 1) / 2] with s = shape / newShape. */
export function rescaledAffine(affine, shape, newShape) {
  const step = shape.map((n, i) => n / newShape[i]);
  return affine.map((row) => [
    ...step.map((s, c) => row[c] * s),
    row[3] + step.reduce((sum, s, c) => sum + row[c] * (s - 1) / 2, 0),
  ]);
}

/** Array axis across the slices: that of clearly the largest voxels, else the one nearest to head-foot. */
export function sliceAxis(affine) {
  const spacing = spacingOf(affine), order = [0, 1, 2].sort((a, b) => spacing[a] - spacing[b]);
  if (spacing[order[2]] >= 1.1999 * spacing[order[1]]) return order[2];
  const upright = affine[2].slice(0, 3).map((v, c) => Math.abs(v / spacing[c]));
  return upright.indexOf(Math.max(...upright));
}

/** For each world axis (right, front, top) the array axis nearest to it, and whether its index grows that way. */
export function orientation(affine) {
  const spacing = spacingOf(affine), found = [], free = new Set([0, 1, 2]), worlds = new Set([0, 1, 2]);
  const cosine = (world, axis) => affine[world][axis] / spacing[axis];
  while (free.size) {
    const pairs = [...worlds].flatMap((world) => [...free].map((axis) => ({ world, axis, size: Math.abs(cosine(world, axis)) })));
    const { world, axis } = pairs.reduce((a, b) => (b.size > a.size ? b : a));
    found[world] = { axis, grows: cosine(world, axis) > 0 };
    free.delete(axis);
    worlds.delete(world);
  }
  return found;
}

/** Affine of a NIfTI qform: quaternion `[b, c, d]`, offset, voxel sizes, and -1 where the third axis is flipped. */
export function affineOfQuaternion([b, c, d], offset, size, sign) {
  const rest = 1 - b * b - c * c - d * d;
  // nearly no cosine of the half angle: a half turn, of which float32 gives the axis alone
  const scale = rest < 1e-7 ? 1 / Math.hypot(b, c, d) : 1, a = rest < 1e-7 ? 0 : Math.sqrt(rest);
  [b, c, d] = [b * scale, c * scale, d * scale];
  const rotation = [
    [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
    [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
    [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
  ];
  const steps = [size[0], size[1], sign * size[2]];
  return [...rotation.map((row, r) => [...row.map((v, k) => v * steps[k]), offset[r]]), [0, 0, 0, 1]];
}

/** Quaternion `[b, c, d]` and sign of the third axis for an affine; one without shears is given back by `affineOfQuaternion`. */
export function quaternionOf(affine) {
  const spacing = spacingOf(affine), sign = determinant(affine) < 0 ? -1 : 1;
  const m = affine.slice(0, 3).map((row) => row.slice(0, 3).map((v, c) => (v / spacing[c]) * (c === 2 ? sign : 1)));
  // the largest of the four squares 4a^2, 4b^2, 4c^2, 4d^2 is the one to divide by
  const [x, y, z] = [m[0][0], m[1][1], m[2][2]], squares = [1 + x + y + z, 1 + x - y - z, 1 - x + y - z, 1 - x - y + z];
  const first = squares.indexOf(Math.max(...squares)), s = 2 * Math.sqrt(squares[first]);
  const [p, q, r] = [m[2][1], m[0][2], m[1][0]], [u, v, w] = [m[1][2], m[2][0], m[0][1]];
  const sums = [
    [s / 4, (p - u) / s, (q - v) / s, (r - w) / s],
    [(p - u) / s, s / 4, (r + w) / s, (q + v) / s],
    [(q - v) / s, (r + w) / s, s / 4, (p + u) / s],
    [(r - w) / s, (q + v) / s, (p + u) / s, s / 4],
  ][first];
  const positive = sums[0] < 0 ? -1 : 1;
  return { quaternion: sums.slice(1).map((part) => part * positive), sign };
}
