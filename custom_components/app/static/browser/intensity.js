// Intensities to [0, 1] by robust percentiles and back, and the background that is exactly empty.

const MOST = 2 ** 24; // voxels that are sorted; larger scans are read with a stride

/** Values at percentiles, linear between two of the sorted voxels. */
export function percentiles(values, wanted) {
  const stride = Math.ceil(values.length / MOST);
  const sorted = stride === 1 ? values.slice() : values.filter((_, i) => i % stride === 0);
  sorted.sort();
  return wanted.map((q) => {
    const at = (q / 100) * (sorted.length - 1), low = Math.floor(at), high = Math.min(low + 1, sorted.length - 1);
    return sorted[low] + (at - low) * (sorted[high] - sorted[low]);
  });
}

/** The scan's values that become 0 and 1. */
export function limitsOf(scan) {
  const [low, high] = percentiles(scan.values, [0.1, 99.9]);
  return high > low ? [low, high] : [scan.low, scan.high]; // a few bright voxels on an empty background
}

/** 1 for each voxel that has, with all 26 around it, the scan's lowest value: the zeros around a brain, not noisy air. */
export function emptyVoxels({ values, shape, low }) {
  let mask = Uint8Array.from(values, (v) => (v !== low ? 1 : 0));
  let step = 1;
  for (const n of shape) { // widen by one voxel along each axis in turn
    const wide = mask.slice();
    for (let i = 0; i < mask.length; i++) {
      if (!mask[i]) continue;
      const at = Math.floor(i / step) % n;
      if (at > 0) wide[i - step] = 1;
      if (at < n - 1) wide[i + step] = 1;
    }
    mask = wide;
    step *= n;
  }
  return mask.map((v) => 1 - v);
}

const RANGES = {
  uint8: [0, 255], int8: [-128, 127], int16: [-32768, 32767], uint16: [0, 65535], int32: [-(2 ** 31), 2 ** 31 - 1], uint32: [0, 2 ** 32 - 1],
};

/** A function from [0, 1] to the scan's own unit and voxel type: rounded, within its range, not negative where the scan is not. */
export function restorer(scan, [low, high]) {
  const range = RANGES[scan.type] ?? [-Infinity, Infinity];
  const least = Math.max(range[0], scan.low >= 0 ? 0 : -Infinity), round = scan.type in RANGES ? Math.round : (v) => v;
  return (value) => round(Math.min(Math.max(value * (high - low) + low, least), range[1]));
}
