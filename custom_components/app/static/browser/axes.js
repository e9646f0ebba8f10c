// What happens along one axis is a small banded matrix; a volume takes three, one after the other.
//
// A matrix is an array of rows `{first, weights}`: of output voxel j the weights of the input cells from `first` on, `taps` to a cell.

const PAD = 12; // edge voxels added before the spline's prefilter
const NEGLIGIBLE = 1e-7;

/** Weights of a cubic B-spline at a distance in voxels. */
function bspline(t) {
  t = Math.abs(t);
  return t <= 1 ? 2 / 3 - t * t * (1 - t / 2) : t < 2 ? (2 - t) ** 3 / 6 : 0;
}

/** Solve T x = b for the symmetric tridiagonal [1/6, 4/6, 1/6] whose ends are mirrored at the outer voxel border. */
function prefiltered(b) {
  const n = b.length, off = 1 / 6, x = Float64Array.from(b), upper = new Float64Array(n);
  for (let i = 0; i < n; i++) {
    const diagonal = 4 / 6 + (i === 0 || i === n - 1 ? off : 0) - (i ? off * upper[i - 1] : 0);
    upper[i] = off / diagonal;
    x[i] = (x[i] - (i ? off * x[i - 1] : 0)) / diagonal;
  }
  for (let i = n - 2; i >= 0; i--) x[i] -= upper[i] * x[i + 1];
  return x;
}

function banded(weights) {
  let [first, last] = [0, weights.length - 1];
  while (Math.abs(weights[first]) < NEGLIGIBLE) first++;
  while (Math.abs(weights[last]) < NEGLIGIBLE) last--;
  return { first, weights: weights.slice(first, last + 1) };
}

/** Cubic B-spline interpolation of `n` voxels at `m` that cover the same extent; the edge voxel goes on beyond the border. */
export function splineMatrix(n, m) {
  return Array.from({ length: m }, (_, j) => {
    const x = (j + 0.5) * (n / m) - 0.5 + PAD, padded = new Float64Array(n + 2 * PAD), row = new Float64Array(n);
    for (let i = Math.floor(x) - 1; i <= Math.floor(x) + 2; i++) padded[i] = bspline(i - x);
    prefiltered(padded).forEach((w, i) => (row[Math.min(Math.max(i - PAD, 0), n - 1)] += w));
    return banded(row);
  });
}

/** Antiderivatives at x in [0, 1] of the Legendre polynomials that are orthonormal there. */
function antiderivatives(x, degree) {
  const t = 2 * x - 1, values = [1, t];
  for (let k = 1; k <= degree; k++) values.push(((2 * k + 1) * t * values[k] - k * values[k - 1]) / (k + 1));
  return values.slice(0, degree + 1).map((_, k) => (k ? (values[k + 1] - values[k - 1]) / (2 * Math.sqrt(2 * k + 1)) : x));
}

/** Averages over `m` voxels of a polynomial within each of `n` cells of the same extent, `degree + 1` taps to a cell. */
export function cellAverageMatrix(n, m, degree) {
  const clamp = (v) => Math.min(Math.max(v, 0), 1), step = n / m;
  return Array.from({ length: m }, (_, j) => {
    const first = Math.min(Math.floor(j * step), n - 1), last = Math.min(Math.ceil((j + 1) * step), n), weights = [];
    for (let cell = first; cell < last; cell++) {
      const from = antiderivatives(clamp(j * step - cell), degree), to = antiderivatives(clamp((j + 1) * step - cell), degree);
      to.forEach((v, k) => weights.push((v - from[k]) / step));
    }
    return { first, weights: Float64Array.from(weights) };
  });
}

/** Input cells [from, to) that rows `start` to `end` read. */
export function reach(matrix, start, end, taps = 1) {
  const rows = matrix.slice(start, end);
  return [Math.min(...rows.map((r) => r.first)), Math.max(...rows.map((r) => r.first + r.weights.length / taps))];
}

/**
 * Multiply rows into one axis: `(taps, outer, cells, inner)` to `(outer, rows, inner)`, all with the last axis fastest.
 *
 * `from` is the cell at which `input` begins.
 */
export function contract(input, rows, { taps, outer, cells, inner, from }) {
  const out = new Float32Array(outer * rows.length * inner);
  for (let o = 0; o < outer; o++) {
    rows.forEach(({ first, weights }, j) => {
      const to = (o * rows.length + j) * inner;
      for (let w = 0; w < weights.length; w++) {
        const weight = weights[w], tap = w % taps, cell = first - from + (w - tap) / taps;
        const at = ((tap * outer + o) * cells + cell) * inner;
        for (let i = 0; i < inner; i++) out[to + i] += weight * input[at + i];
      }
    });
  }
  return out;
}

/** Three matrices into `(taps^3, X, Y, Z)`: the coefficients' axes in the order of the voxels', results `(rows, rows, rows)`. */
export function contractAll(input, size, rows, from, taps = 1) {
  const [x, y, z] = size, [a, b, c] = rows;
  let data = contract(input, a, { taps, outer: taps * taps, cells: x, inner: y * z, from: from[0] });
  // coefficients of the next axis stand first, then those of the last, then what is done
  data = contract(data, b, { taps, outer: taps * a.length, cells: y, inner: z, from: from[1] });
  return contract(data, c, { taps, outer: a.length * b.length, cells: z, inner: 1, from: from[2] });
}
