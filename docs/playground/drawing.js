// A scene and a gripper -> a 64x64 RGB image from above: vla_mini/envs/toy_pick/drawing.py, with equal pixels.
// NumPy computes in float64 here and keeps images in float32: where it rounds to float32, so does Math.fround.

export const SIZE = 64;
export const REACH = 1.1; // the camera shows [-REACH, REACH] in both directions
const SCALE = SIZE / (2 * REACH); // pixels for one table unit

const TABLE = [196, 186, 172];
const SHADOW = [60, 54, 48];
const STEEL = [245, 245, 250];
export const PAINTS = {
  red: [214, 40, 40],
  green: [46, 150, 70],
  blue: [44, 92, 214],
  yellow: [244, 208, 48],
  purple: [132, 52, 172],
  orange: [246, 132, 24],
};

/** An empty table with a faint grain, Float32Array of 64 x 64 x 3. */
export function drawTable(random) {
  const image = new Float32Array(SIZE * SIZE * 3);
  for (let pixel = 0; pixel < SIZE * SIZE; pixel++) {
    const grain = Math.fround(3 * random.normal());
    for (let c = 0; c < 3; c++) image[3 * pixel + c] = TABLE[c] + grain;
  }
  return image;
}

/** Paint `item` onto `image` (Float32Array, in place) at (x, y); the higher it is, the larger it looks. */
export function drawObject(image, item, x, y, height = 0) {
  const [column, row] = toPixels(x, y);
  const radius = item.size * SCALE * (1 + 0.3 * height);
  const brightness = Math.fround(item.brightness);
  const paint = PAINTS[item.colour].map((value) => Math.fround(value * brightness));
  forPixels(row, radius + 2, column, radius + 2, (i, j, pixel) => {
    const u = (j + 0.5 - column) / radius;
    const v = (i + 0.5 - row) / radius;
    const light = 1 - 0.18 * clip(u + v, -1, 1); // lit from the upper left
    const coverage = clip(0.5 - distance(item.shape, u, v) * radius, 0, 1);
    for (let c = 0; c < 3; c++) image[pixel + c] += coverage * (clip(light * paint[c], 0, 255) - image[pixel + c]);
  });
}

/** Paint the two jaws, larger when higher and nearer to each other when closed; or their shadow on the table. */
export function drawGripper(image, [x, y, height], closedness, shadow = false) {
  const offset = shadow ? 7 * height : 0; // the higher the gripper, the further away its shadow falls
  const [column, row] = toPixels(x, y).map((value) => value + offset);
  const scale = 1 + 0.5 * height;
  const [gap, long, thick] = [(7 - 3 * closedness) * scale, 4.5 * scale, 1.3 * scale];
  const [opacity, paint] = shadow ? [0.45, SHADOW] : [1, STEEL];
  forPixels(row, long + 2, column, gap + thick + 2, (i, j, pixel) => {
    const along = clip(long + 0.5 - Math.abs(i + 0.5 - row), 0, 1);
    const beside = clip(thick + 0.5 - Math.abs(Math.abs(j + 0.5 - column) - gap), 0, 1);
    const coverage = opacity * along * beside;
    for (let c = 0; c < 3; c++) image[pixel + c] += coverage * Math.fround(paint[c] - image[pixel + c]);
  });
}

/** Float32Array -> bytes. */
export const toBytes = (image) => Uint8Array.from(image, (value) => clip(value, 0, 255));

export const clip = (value, low, high) => Math.min(Math.max(value, low), high);

/** Table coordinates -> [column, row]; y points up on the table and rows go down. */
function toPixels(x, y) {
  return [(x + REACH) * SCALE, (REACH - y) * SCALE];
}

function forPixels(row, rowReach, column, columnReach, paint) {
  const [top, bottom] = bounds(row, rowReach);
  const [left, right] = bounds(column, columnReach);
  for (let i = top; i < bottom; i++) for (let j = left; j < right; j++) paint(i, j, 3 * (SIZE * i + j));
}

function bounds(centre, reach) {
  return [Math.max(0, Math.trunc(centre - reach)), Math.min(SIZE, Math.trunc(centre + reach) + 1)];
}

/** Signed distance to the outline of a shape of half-width 1, negative inside; u to the right, v down. */
function distance(shape, u, v) {
  if (shape === "cube") return Math.max(Math.abs(u), Math.abs(v)) - 0.86;
  if (shape === "ball") return Math.sqrt(u * u + v * v) - 1;
  if (shape === "cone") return Math.max(0.894 * Math.abs(u) - 0.447 * v - 0.447, v - 0.85);
  // A star: the plane is folded into one tenth of the circle, in which one straight edge remains, from a tip to a notch.
  const tenth = Math.PI / 5;
  const turned = (Math.atan2(u, -v) + tenth) % (2 * tenth);
  const angle = Math.abs((turned < 0 ? turned + 2 * tenth : turned) - tenth);
  const radius = Math.sqrt(u * u + v * v);
  const tip = 1.12;
  const [x, y] = [0.5 * Math.cos(tenth) - tip, 0.5 * Math.sin(tenth)];
  const normal = [y / Math.hypot(x, y), -x / Math.hypot(x, y)];
  return (radius * Math.cos(angle) - tip) * normal[0] + radius * Math.sin(angle) * normal[1];
}
