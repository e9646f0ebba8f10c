// Three planes of the scan and the result on canvas: left of a handle the scan's own voxels, right of it the result.

import { orientation, spacingOf } from "./geometry.js";

// world axes (0 right, 1 front, 2 top) of columns and rows, of which right, front and top come first, and the one across
export const PLANES = {
  sagittal: { columns: 1, rows: 2, across: 0 },
  coronal: { columns: 0, rows: 2, across: 1 },
  axial: { columns: 0, rows: 1, across: 2 },
};

/** Slices of a plane: how many, and one of them as an image with its size in mm. `grid` is `{shape, affine, values}`. */
export class Plane {
  constructor(name, grid) {
    const world = orientation(grid.affine), { columns, rows, across } = PLANES[name], spacing = spacingOf(grid.affine);
    this.grid = grid;
    this.axes = [world[columns], world[rows], world[across]];
    this.count = grid.shape[this.axes[2].axis];
    this.size = this.axes.slice(0, 2).map(({ axis }) => grid.shape[axis] * spacing[axis]);
  }

  /** The slice at a part of the extent in [0, 1), counted to the right, front or top; grey between `window`'s ends. */
  image(part, [low, high]) {
    const { shape, values } = this.grid, steps = [1, shape[0], shape[0] * shape[1]], [c, r, n] = this.axes;
    const [width, height] = [shape[c.axis], shape[r.axis]], image = new ImageData(width, height);
    const slice = Math.min(Math.floor(part * this.count), this.count - 1);
    const start = (n.grows ? slice : this.count - 1 - slice) * steps[n.axis];
    const along = ({ axis, grows }, i) => (grows ? shape[axis] - 1 - i : i) * steps[axis];
    for (let y = 0, to = 0; y < height; y++) {
      const row = start + along(r, y);
      for (let x = 0; x < width; x++, to += 4) {
        const grey = 255 * (values[row + along(c, x)] - low) / (high - low);
        image.data[to] = image.data[to + 1] = image.data[to + 2] = grey; // clamped and rounded by its type
        image.data[to + 3] = 255;
      }
    }
    return image;
  }
}

function asCanvas(image) {
  const canvas = new OffscreenCanvas(image.width, image.height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** Draw the scan left of `split` (a part of the width) and the result right of it. */
export function draw(canvas, planes, part, split, window, scale) {
  const context = canvas.getContext("2d"), [width, height] = planes.before.size.map((mm) => Math.max(Math.round(mm * scale), 1));
  Object.assign(canvas, { width, height });
  context.imageSmoothingEnabled = false; // voxels as they are
  context.drawImage(asCanvas(planes.after.image(part, window)), 0, 0, width, height);
  context.save();
  context.beginPath();
  context.rect(0, 0, split * width, height);
  context.clip();
  context.drawImage(asCanvas(planes.before.image(part, window)), 0, 0, width, height);
  context.restore();
  context.fillStyle = "#f5a623";
  if (split > 0 && split < 1) context.fillRect(Math.round(split * width), 0, 1, height);
}
