// The page: one scene, one policy, and what the visitor does with them.

import { clip, REACH } from "./drawing.js";
import { Controller, Policy } from "./policy.js";
import { Random } from "./random.js";
import { FPS, MAX_STEPS, namedObjects, sampleScene, unlikeTraining } from "./scene.js";

const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const MOVE = 0.04; // table units that an arrow key moves an object
const SHOWN = 5; // unknown words that are listed

const element = Object.fromEntries([...document.querySelectorAll("[id]")].map((each) => [each.id, each]));
let sceneNumber = 21; // two stars and two blue objects, one of which is both: each word counts
let scene;
let policy = null;
let controller = null;
let playing = false;
let plays = 0; // how often Play was pressed
let queue = Promise.resolve(); // of predictions, which are made one after the other
let lookQueued = false;

const nameOf = ({ colour, shape }) => `${colour} ${shape}`;

// ---- the scene

function openScene() {
  playing = false;
  scene = sampleScene(new Random(sceneNumber));
  element.instruction.value = scene.instruction;
  element.objects.replaceChildren(...scene.objects.map(makeHandle));
  element.suggestions.replaceChildren(...scene.objects.map(makeSuggestion));
  restart();
}

/** Back to the start of this scene. */
function restart() {
  scene.reset();
  controller = policy && new Controller(policy, new Random(sceneNumber));
  look();
}

/** A transparent button over an object, by which pointer and keyboard move it. */
function makeHandle(item, index) {
  const handle = document.createElement("button");
  handle.setAttribute("aria-roledescription", "movable object");
  handle.addEventListener("pointerdown", (event) => {
    const [x, y] = toTable(event);
    handle.setPointerCapture(event.pointerId);
    handle.grip = [item.x - x, item.y - y];
  });
  handle.addEventListener("pointermove", (event) => {
    if (!handle.hasPointerCapture(event.pointerId)) return;
    const [x, y] = toTable(event);
    moveObject(index, handle.grip[0] + x, handle.grip[1] + y);
  });
  handle.addEventListener("keydown", (event) => {
    if (!(event.key in KEYS)) return;
    event.preventDefault();
    const [right, up] = KEYS[event.key];
    moveObject(index, scene.objects[index].x + MOVE * right, scene.objects[index].y + MOVE * up);
  });
  return handle;
}

function makeSuggestion(item) {
  const suggestion = document.createElement("button");
  suggestion.type = "button";
  suggestion.textContent = nameOf(item);
  suggestion.addEventListener("click", () => {
    element.instruction.value = `pick up the ${nameOf(item)}`;
    look();
  });
  return suggestion;
}

function toTable({ clientX, clientY }) {
  const { left, top, width, height } = element.stage.getBoundingClientRect();
  return [REACH * ((2 * (clientX - left)) / width - 1), REACH * (1 - (2 * (clientY - top)) / height)];
}

function moveObject(index, x, y) {
  if (scene.over) restart();
  scene.place(index, clip(x, -1, 1), clip(y, -1, 1));
  look();
}

// ---- playing

const observe = () => ({ image: scene.render(), state: scene.state, instruction: element.instruction.value });

/** Ask the policy for one action and carry it out, unless the scene was started anew meanwhile. */
function advance() {
  return enqueue(async () => {
    if (scene.over) return;
    const [asked, observation] = [controller, observe()];
    const action = await asked.step(observation);
    if (asked !== controller) return;
    scene.instruction = observation.instruction;
    scene.step(action);
    if (scene.over) playing = false;
  });
}

/** Show where the policy would look now: the words or the objects have changed. While it plays, the next step shows that. */
function look() {
  show();
  if (!policy || playing || lookQueued) return;
  lookQueued = true;
  enqueue(async () => {
    lookQueued = false;
    await controller.look(observe());
  });
}

function enqueue(task) {
  queue = queue.then(task).then(show, (error) => {
    playing = false;
    complain(`The policy could not be run: ${error.message}`);
    show();
  });
  return queue;
}

async function play() {
  if (scene.over) restart();
  playing = true;
  const mine = ++plays;
  show();
  while (playing && mine === plays) {
    const next = performance.now() + 1000 / FPS;
    await advance();
    await new Promise((resolve) => setTimeout(resolve, next - performance.now()));
  }
}

// ---- what one sees

function show() {
  const image = scene.render();
  const pixels = new ImageData(64, 64);
  for (let i = 0; i < 64 * 64; i++) pixels.data.set([image[3 * i], image[3 * i + 1], image[3 * i + 2], 255], 4 * i);
  element.image.getContext("2d").putImageData(pixels, 0, 0);
  showAttention();
  [...element.objects.children].forEach((handle, i) => {
    const { x, y, size } = scene.objects[i];
    handle.hidden = scene.held === i;
    handle.style.left = `${(50 * (x + REACH)) / REACH}%`;
    handle.style.top = `${(50 * (REACH - y)) / REACH}%`;
    handle.style.width = handle.style.height = `${(100 * size) / REACH}%`;
    handle.setAttribute("aria-label", `${nameOf(scene.objects[i])}, ${placeOf(scene.objects[i])}`);
  });
  const [outcome, kind] = describe();
  write(element.outcome, outcome);
  element.outcome.className = kind;
  write(element.words, describeWords());
  const unlike = unlikeTraining(scene);
  write(element.unlike, unlike.length ? `Unlike in training, ${unlike.join("; ")}.` : "");
  write(element.progress, scene.steps ? `Step ${scene.steps} of at most ${MAX_STEPS}` : "");
  element.play.textContent = playing ? "Pause" : scene.over ? "Play again" : "Play";
  element.play.disabled = !policy;
  element.step.disabled = !policy || playing || scene.over;
  element.back.disabled = scene.steps === 0;
}

/** A glow over what the policy attends to; the browser interpolates between the places. */
function showAttention() {
  const attention = controller?.attention;
  element.look.hidden = element.looking.hidden = !attention;
  element.attention.hidden = !attention || !element.show.checked;
  if (!attention) return;
  const size = Math.sqrt(attention.length);
  const most = Math.max(...attention);
  const glow = new ImageData(size, size);
  attention.forEach((value, i) => glow.data.set([0, 255, 255, (230 * value) / most], 4 * i));
  element.attention.width = element.attention.height = size;
  element.attention.getContext("2d").putImageData(glow, 0, 0);
  const shares = scene.objects.map((item) => [Math.round(100 * attentionOn(item, attention, size)), nameOf(item)]);
  const listed = shares.filter(([share]) => share >= 5).sort(([one], [other]) => other - one);
  const places = listed.map(([share, name]) => `${share} % on the ${name}`).join(", ") || "hardly on any object";
  write(element.looking, `The glow shows where the policy attends: ${places}.`);
}

/** The share of the attention that lies on an object: on the places, `size` in a row, whose centre it covers, or nearly. */
function attentionOn({ x, y, size: radius }, attention, size) {
  const place = (index) => REACH * ((2 * index + 1) / size - 1);
  const near = (i) => Math.hypot(place(i % size) - x, place(Math.floor(i / size)) + y) < radius + REACH / size;
  return attention.reduce((sum, value, i) => sum + (near(i) ? value : 0), 0);
}

/** [what happened, its kind]. */
function describe() {
  const { lifted, held, steps, over, objects, closedness } = scene;
  if (lifted !== null) {
    const named = namedObjects(scene.instruction, objects);
    const picked = `it picked up the ${nameOf(objects[lifted])} in ${steps} steps`;
    if (named.length === 0) return [`Done: ${picked}. The instruction names no object of this scene.`, ""];
    const rest = named.length > 1 ? `, one of ${named.length} objects that the instruction names` : "";
    if (named.includes(lifted)) return [`Success: ${picked}${rest}.`, "success"];
    const wanted = named.map((i) => `the ${nameOf(objects[i])}`).join(" or ");
    return [`Wrong object: ${picked}. The instruction names ${wanted}.`, "failure"];
  }
  if (over) return [`Not done: it picked up nothing in ${steps} steps.`, "failure"];
  if (!policy) return [element.problem.hidden ? "Loading the policy …" : "", ""];
  if (steps === 0) return ["Press Play.", ""];
  if (held !== null) return [`It holds the ${nameOf(objects[held])}.`, ""];
  return [closedness > 0.75 ? "The gripper is closed and holds nothing." : "The gripper is open.", ""];
}

function describeWords() {
  if (!policy) return "";
  const { unknown, cut } = policy.tokenizer.encode(element.instruction.value);
  const words = [...new Set(unknown)];
  const more = words.length > SHOWN ? ` and ${words.length - SHOWN} more` : "";
  const list = words.slice(0, SHOWN).map((word) => `“${word.slice(0, 30)}”`).join(", ");
  const sentences = [];
  if (words.length) {
    sentences.push(`Not in the policy's vocabulary: ${list}${more}. To the policy, all unknown words are the same.`);
  }
  if (cut) sentences.push(`It reads only the first ${policy.tokenizer.maxWords} words.`);
  return sentences.join(" ");
}

function placeOf({ x, y }) {
  const percent = (value) => `${Math.round(100 * Math.abs(value))} %`;
  return `${percent(x)} to the ${x < 0 ? "left" : "right"}, ${percent(y)} ${y < 0 ? "down" : "up"} from the middle`;
}

/** Change a text only where it differs, so that a screen reader reads it once. */
function write(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

function complain(message) {
  element.problem.hidden = false;
  element.problem.textContent = message;
}

// ---- loading

async function read(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path} is missing`);
  return response;
}

async function load() {
  const missing = [];
  const note = (error) => missing.push(error.message);
  const ort = await import("./vendor/onnxruntime.js").catch(() => note(new Error("vendor/onnxruntime.js is missing")));
  const files = ["policy/policy.json", "policy/tokenizer.json", "policy/policy.onnx"].map((path) => read(path).catch(note));
  const [config, tokenizer, graph] = await Promise.all(files);
  if (missing.length) {
    throw new Error(`This page has not been built: ${missing.join(", ")}.\nBuild it in the repository with: make playground`);
  }
  ort.env.wasm.wasmPaths = { wasm: new URL("vendor/onnxruntime.wasm", document.baseURI).href };
  ort.env.wasm.numThreads = 1; // several would need headers that static servers do not send
  policy = await Policy.load(ort, {
    config: await config.json(),
    tokenizer: await tokenizer.json(),
    graph: new Uint8Array(await graph.arrayBuffer()),
  });
}

element.form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!policy) return;
  if (playing) playing = false;
  else play();
  show();
});
element.instruction.addEventListener("input", look);
element.step.addEventListener("click", advance);
element.show.addEventListener("change", show);
element.back.addEventListener("click", () => {
  playing = false;
  restart();
});
element.new.addEventListener("click", () => {
  sceneNumber += 1;
  openScene();
});

openScene();
try {
  await load();
  element.execute.textContent = policy.acting.execute;
} catch (error) {
  complain(error.message);
}
restart();
