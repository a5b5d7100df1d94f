// toy_pick: objects on a table and a gripper that picks them up. A port of vla_mini/envs/toy_pick: the same actions from the
// same scene lead to the same states, images and outcome. Lengths are in table units.

import { clip, drawGripper, drawObject, drawTable, PAINTS, toBytes } from "./drawing.js";

export const COLOURS = Object.keys(PAINTS);
export const SHAPES = ["cube", "ball", "cone", "star"];
export const MAX_STEPS = 48;
export const FPS = 10;
export const TABLE = 0.8; // objects lie within [-TABLE, TABLE] in x and y ...
export const CLEARANCE = 0.46; // ... no two centres closer than this

// In training these pairs are distractors only.
export const HELD_OUT_PAIRS = [["red", "ball"], ["green", "star"], ["blue", "cone"], ["yellow", "cube"]];
export const PHRASINGS = [
  "pick up the {colour} {shape}",
  "grab the {colour} {shape}",
  "lift the {colour} {shape}",
  "please pick up the {colour} {shape}",
  "take the {colour} {shape} from the table",
  "get me the {colour} {shape}",
  "could you lift the {colour} {shape} up",
  "find the {colour} {shape} and pick it up",
  "i want you to grab the {colour} {shape}",
  "pick up the {colour} {shape} that is on the table",
];

// How far one step moves x, y and height; and closedness.
const STEP = [0.12, 0.12, 0.2];
const CLOSING = 0.5;
const GRASP_RADIUS = 0.13; // the jaws must close this near to an object's centre ...
const GRASP_HEIGHT = 0.15; // ... and this low
const LIFTED = 0.5; // an object held this high counts as picked up
const SHARED_WORDS = 0.6; // the share of scenes whose distractors share the target's colour and its shape

export class Scene {
  /**
   * - objects: [{colour, shape, x, y, size, brightness}]
   * - gripper: [x, y, height] at the start
   * - instruction: a sentence that names one of the objects
   * - table: the empty table's image, Float32Array of 64 x 64 x 3
   */
  constructor({ objects, gripper, instruction, table }) {
    this.objects = objects.map((item) => ({ ...item })); // whose x and y change in an episode
    this.start = objects.map(({ x, y }) => ({ x, y }));
    this.gripper = gripper;
    this.instruction = instruction;
    this.table = table;
    this.reset();
  }

  /** Back to the start of the episode. */
  reset() {
    this.objects.forEach((item, i) => Object.assign(item, this.start[i]));
    this.position = [...this.gripper]; // x, y, height
    this.closedness = 0;
    this.steps = 0;
    this.hold(null);
  }

  /** Move an object that lies on the table; before the first step that changes the start, too. */
  place(index, x, y) {
    if (index === this.held) return;
    Object.assign(this.objects[index], { x, y });
    if (this.steps === 0) this.start[index] = { x, y };
    this.hold(this.held);
  }

  /** One action: dx, dy, dz and close, clipped to [-1, 1]. */
  step(action) {
    const [dx, dy, dz, close] = Array.from(action, (value) => clip(value, -1, 1));
    const lowest = [-1, -1, 0];
    this.position = [dx, dy, dz].map((move, axis) => clip(this.position[axis] + STEP[axis] * move, lowest[axis], 1));
    const wasOpen = this.closedness <= 0.75;
    this.closedness += clip((close + 1) / 2 - this.closedness, -CLOSING, CLOSING);
    this.steps += 1;
    const [x, y, height] = this.position;
    if (this.held !== null) {
      Object.assign(this.objects[this.held], { x, y });
      if (this.closedness < 0.5) this.hold(null);
    } else if (wasOpen && this.closedness > 0.75 && height <= GRASP_HEIGHT) {
      const offsets = this.objects.map((item) => [item.x - x, item.y - y]);
      const distances = offsets.map(([dx, dy]) => Math.sqrt(dx * dx + dy * dy));
      const nearest = distances.indexOf(Math.min(...distances));
      if (distances[nearest] <= GRASP_RADIUS) this.hold(nearest);
    }
  }

  /** The index of the object that is picked up, which ends the episode; null while there is none. */
  get lifted() {
    return this.held !== null && this.position[2] >= LIFTED ? this.held : null;
  }

  get over() {
    return this.lifted !== null || this.steps >= MAX_STEPS;
  }

  /** x, y, height and closedness, float32. */
  get state() {
    return Float32Array.of(...this.position, this.closedness);
  }

  /** The camera's image, 64 x 64 x 3 bytes. */
  render() {
    const image = this.background.slice();
    const [x, y, height] = this.position;
    drawGripper(image, this.position, this.closedness, true);
    if (this.held !== null) drawObject(image, this.objects[this.held], x, y, height);
    drawGripper(image, this.position, this.closedness);
    return toBytes(image);
  }

  /** Hold an object, or none. What lies on the table is drawn once, so that a step only adds the gripper and `held`. */
  hold(held) {
    this.held = held;
    this.background = this.table.slice();
    this.objects.forEach((item, i) => {
      if (i !== held) drawObject(this.background, item, item.x, item.y);
    });
  }
}

/** The indices of the objects that an instruction names: those of its colours and its shapes, as far as it has any. */
export function namedObjects(instruction, objects) {
  const words = new Set(instruction.toLowerCase().match(/[a-z]+/g));
  const [colours, shapes] = [COLOURS, SHAPES].map((known) => known.filter((word) => words.has(word)));
  if (colours.length + shapes.length === 0) return [];
  const fits = (word, wanted) => wanted.length === 0 || wanted.includes(word);
  return [...objects.keys()].filter((i) => fits(objects[i].colour, colours) && fits(objects[i].shape, shapes));
}

/** What training never has, in words: objects near the table's edge or close to one another. */
export function unlikeTraining({ objects, held }) {
  const lying = objects.filter((_, i) => i !== held);
  const name = ({ colour, shape }) => `the ${colour} ${shape}`;
  const outside = lying.filter(({ x, y }) => Math.max(Math.abs(x), Math.abs(y)) > TABLE);
  const pairs = lying.flatMap((one, i) => lying.slice(i + 1).map((other) => [one, other]));
  const close = pairs.filter(([one, other]) => Math.hypot(one.x - other.x, one.y - other.y) < CLEARANCE);
  return [
    ...outside.map((item) => `${name(item)} lies nearer to the edge`),
    ...close.map(([one, other]) => `${name(one)} and ${name(other)} lie closer together`),
  ];
}

/** A scene as scene.py draws those of training: two to four different objects, one of which the instruction names. */
export function sampleScene(random) {
  const same = ([colour, shape], [otherColour, otherShape]) => colour === otherColour && shape === otherShape;
  const isHeldOut = (pair) => HELD_OUT_PAIRS.some((other) => same(pair, other));
  const all = COLOURS.flatMap((colour) => SHAPES.map((shape) => [colour, shape]));
  const target = random.choose(all.filter((pair) => !isHeldOut(pair)));
  let pairs;
  do {
    pairs = [target];
    if (random.uniform() < SHARED_WORDS) {
      for (const word of [0, 1]) {
        pairs.push(random.choose(all.filter((pair) => pair[word] === target[word] && !same(pair, target))));
      }
    }
    const count = pairs.length > 1 ? 3 + random.integer(2) : 2 + random.integer(3);
    while (pairs.length < count) {
      const pair = random.choose(all);
      if (!pairs.some((other) => same(pair, other))) pairs.push(pair);
    }
  } while (pairs.slice(1).every(isHeldOut));
  const points = samplePoints(random, pairs.length);
  const objects = random.shuffle(pairs).map(([colour, shape], i) => {
    const [x, y] = points[i];
    return { colour, shape, x, y, size: random.uniform(0.17, 0.2), brightness: random.uniform(0.85, 1.1) };
  });
  const gripper = [random.uniform(-TABLE, TABLE), random.uniform(-TABLE, TABLE), random.uniform(0.6, 1)];
  const instruction = random.choose(PHRASINGS).replace("{colour}", target[0]).replace("{shape}", target[1]);
  return new Scene({ objects, gripper, instruction, table: drawTable(random) });
}

/** `count` points of the table, no two closer than CLEARANCE. */
function samplePoints(random, count) {
  for (;;) {
    const points = Array.from({ length: count }, () => [random.uniform(-TABLE, TABLE), random.uniform(-TABLE, TABLE)]);
    const distances = points.flatMap(([x, y], i) => points.slice(i + 1).map(([a, b]) => Math.hypot(x - a, y - b)));
    if (Math.min(...distances) >= CLEARANCE) return points;
  }
}
