// The first tab: one visitor's scene, over a websocket. Each request is answered by the step that is shown then.

import { drawAction, drawBars, drawImages, drawMaps, drawTraces } from "./pictures.js";

const tab = document.querySelector("#play");
const get = (selector) => tab.querySelector(selector);
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

let ask; // (what, ...arguments) => Promise: whether it was done
let about; // what stays the same (messages.py)
let view; // the step that is shown
let playing = false;
let dragged = null; // the handle under the pointer
let chosen = null; // index of the handle that is selected
let actions = []; // of a recording's steps so far
let typed = false; // whether there are words that were not given to the policy yet

export async function mount() {
  ask = await connect();
  prepare();
  show();
  tab.inert = false; // there is nothing to act in before
}

/** Connect, and wait for the first step. */
function connect() {
  const socket = new WebSocket(`${location.protocol.replace("http", "ws")}//${location.host}/ws`);
  const waiting = [];
  return new Promise((resolve) => {
    waiting.push((answer) => {
      if (answer.error) return say(answer.error, "error"); // there is no scene, and the connection is closed
      about = answer.about;
      view = answer;
      resolve((what, ...given) => {
        if (socket.readyState !== WebSocket.OPEN) return Promise.resolve(false);
        socket.send(JSON.stringify({ do: what, with: given }));
        return new Promise((done) => waiting.push((answer) => done(take(answer))));
      });
    });
    socket.addEventListener("message", ({ data }) => waiting.shift()(JSON.parse(data)));
    socket.addEventListener("close", () => {
      playing = false;
      for (const element of tab.querySelectorAll("button, input, select")) element.disabled = true;
      tab.inert = false;
      if (view || waiting.length) say("The connection is lost: start the server again, then reload this page.", "error");
    });
  });
}

/** Show an answer; whether what was asked for is done. */
function take(answer) {
  if (answer.error) {
    say(answer.error, "error");
    return false;
  }
  view = answer;
  show();
  return true;
}

/** A live region is only changed where its text is: it would be read aloud again. */
function say(text, kind) {
  const outcome = get("#outcome");
  outcome.className = kind;
  if (outcome.textContent !== text) outcome.textContent = text;
}

// ---- what the visitor does

function prepare() {
  get("#kind").textContent = about.scene;
  if (about.recorded) get("#say label").textContent = "Press Play to see what the policy would do in each recorded frame; or give it other words.";
  const size = about.size.toReversed().join(" × ");
  const hint = about.palette.length ? " Drag objects and the gripper, or choose one with Tab and use the arrow keys." : "";
  const images = about.cameras.length > 1 ? `what the policy’s cameras see: ${about.cameras.join(", ")}` : "what the policy’s camera sees";
  get("#scene figcaption").textContent = `The scene: ${images} (${size} pixels).${hint}`;
  get("#colour").replaceChildren(...about.palette.map(({ name, seen }) => new Option(seen ? name : `${name} (never in training)`, name)));
  get("#expert").hidden = !about.expert;
  const weights = get("#weights input");
  get("#weights").hidden = about.policies.length < 2;
  weights.max = about.policies.length - 1;
  weights.value = about.policies.indexOf(view.policy);

  get("#say").addEventListener("submit", (event) => {
    event.preventDefault();
    give(get("#instruction").value);
  });
  get("#instruction").addEventListener("input", () => (typed = true));
  get("#toggle").addEventListener("click", () => (playing ? stop() : play()));
  get("#step").addEventListener("click", async () => stop() || ((await giveTyped()) && ask("step")));
  get("#back").addEventListener("click", () => stop() || ask("go", view.step - 1));
  get("#time").addEventListener("input", ({ target }) => stop() || latest("time", "go", Number(target.value)));
  get("#reset").addEventListener("click", () => reset());
  get("#next").addEventListener("click", () => reset(view.seed + 1));
  get("#seed").addEventListener("change", ({ target }) => reset(Number(target.value)));
  get("#expert input").addEventListener("change", async ({ target }) => {
    if (!(await ask("expert", target.checked))) target.checked = view.expert;
  });
  weights.addEventListener("input", () => {
    get("#weights output").textContent = about.policies[weights.value];
    latest("weights", "policy", about.policies[weights.value]);
  });
  get("#colour").addEventListener("change", ({ target }) => ask("change", "recolour", chosen, target.value));
}

let plays = 0; // how often Play was pressed

/** Give the policy an instruction; whether it has it. */
function give(instruction) {
  typed = false;
  get("#instruction").value = instruction;
  return ask("say", instruction);
}

function reset(...seed) {
  stop();
  typed = false;
  ask("reset", ...seed);
}

async function giveTyped() {
  return !typed || give(get("#instruction").value);
}

async function play() {
  const mine = ++plays; // an earlier loop may still wait for its next step
  playing = true;
  await giveTyped();
  showPlaying();
  if (isOver()) await ask("go", 0);
  while (playing && mine === plays) {
    const start = performance.now();
    const done = await ask("step");
    if (mine === plays && (!done || isOver() || document.getElementById("play").hidden)) playing = false;
    await pause(Math.max(0, 1000 / Number(get("#speed").value) - (performance.now() - start)));
  }
  showPlaying();
}

/** Whether there is no further step. */
function isOver() {
  return view.step === view.last && view.outcome.kind !== "running";
}

function stop() {
  playing = false;
}

const asked = new Map(); // by name, the newest request that is not sent yet

/** Ask, but leave out what is overtaken by a newer request of the same name while an older one is on its way. */
async function latest(name, ...request) {
  const sending = asked.has(name);
  asked.set(name, request);
  if (sending) return;
  while (asked.get(name) !== null) {
    const next = asked.get(name);
    asked.set(name, null);
    await ask(...next);
  }
  asked.delete(name);
}

// ---- what there is to see

function show() {
  say(view.outcome.text, view.outcome.kind);
  if (!typed) get("#instruction").value = view.instruction;
  suggest();
  const notes = get("#notes");
  if (notes.innerText.trim() !== view.notes.join("\n")) {
    notes.replaceChildren(...view.notes.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
  }
  drawImages(get("#scene .stage"), view.images, "the scene");
  showHandles();
  const images = view.looked_at_images.length ? view.looked_at_images : view.images;
  get("#attention").hidden = !view.attention;
  if (view.attention) drawMaps(get("#attention .stage"), images, view.attention, "where the policy looks in the image");
  drawMaps(get("#pixels .stage"), images, view.pixels, "by how much each pixel moves the action");
  drawBars(get("#words ol"), view.words);
  drawBars(get("#state ol"), view.state);
  const largest = (rows) => Math.max(...rows.map(([, value]) => value)).toPrecision(2);
  get("#pixels small").textContent = `The brightest: ${view.pixels.largest.toPrecision(2)} for one unit of intensity.`;
  get("#words small").textContent = `The highest: ${largest(view.words)} for one unit of the word’s vector.`;
  get("#state small").textContent = `The longest: ${largest(view.state)} for one standard deviation.`;
  drawAction(get("#action ol"), view.action);
  const from = view.looked_at === view.step ? "" : ` It was predicted from step ${view.looked_at}, which the pictures show.`;
  const mark = about.recorded ? " The thin mark is what was recorded." : view.expert ? " The thin mark is what the expert does instead." : "";
  get("#traces").hidden = !about.recorded;
  if (about.recorded) {
    actions.length = Math.min(actions.length, view.last);
    actions[view.step] = view.action;
    drawTraces(get("#traces ol"), actions);
  }
  get("#action figcaption").textContent = `The bars go from −1 to 1 in network units, the numbers are in the environment’s own.${mark}${from}`;

  get("#when").textContent = `Step ${view.step} of ${view.last} so far (at most ${about.max_steps})`;
  Object.assign(get("#time"), { max: view.last, value: view.step });
  get("#back").disabled = view.step === 0;
  get("#step").disabled = isOver();
  if (document.activeElement !== get("#seed")) get("#seed").value = view.seed;
  get("#expert input").checked = view.expert;
  get("#weights output").textContent = view.policy;
  showPlaying();
}

function showPlaying() {
  get("#toggle").textContent = playing ? "❚❚ Pause" : "▶ Play";
}

function suggest() {
  const list = get("#sentences");
  if ([...list.options].map((option) => option.value).join() === view.sentences.join()) return;
  list.replaceChildren(...view.sentences.map((sentence) => new Option(sentence, sentence)));
  const suggestions = get("#suggestions");
  suggestions.hidden = view.sentences.length > 6;
  const buttons = view.sentences.map((sentence) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: sentence });
    button.addEventListener("click", () => give(sentence));
    return button;
  });
  suggestions.replaceChildren("Try: ", ...buttons);
}

// ---- objects that can be moved

function showHandles() {
  const stage = get("#scene .stage");
  const old = new Map([...stage.querySelectorAll(".handle")].map((handle) => [Number(handle.dataset.index), handle]));
  for (const { index, label, x, y, radius } of view.handles) {
    const handle = old.get(index) ?? makeHandle(stage, index);
    old.delete(index);
    handle.setAttribute("aria-label", `${label}: arrow keys move it`);
    handle.title = label;
    handle.style.width = `${200 * radius}%`;
    if (handle !== dragged && !asked.has("move")) place(handle, x, y); // a move on its way is not taken back
  }
  for (const handle of old.values()) handle.remove();
  showChosen();
}

function place(handle, x, y) {
  [handle.style.left, handle.style.top] = [`${100 * x}%`, `${100 * y}%`];
}

function makeHandle(stage, index) {
  const handle = Object.assign(document.createElement("button"), { type: "button", className: "handle" });
  handle.dataset.index = index;
  const move = async (x, y) => {
    const clip = (value) => Math.max(0, Math.min(1, value));
    place(handle, clip(x), clip(y));
    await latest("move", "change", "move", index, clip(x), clip(y));
    showHandles(); // where it is allowed to be
  };
  handle.addEventListener("pointerdown", (event) => {
    handle.setPointerCapture(event.pointerId);
    dragged = handle;
  });
  handle.addEventListener("pointermove", (event) => {
    if (dragged !== handle) return;
    const box = stage.getBoundingClientRect();
    move((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  });
  handle.addEventListener("lostpointercapture", () => (dragged = null));
  handle.addEventListener("focus", () => {
    chosen = index;
    showChosen();
  });
  handle.addEventListener("keydown", (event) => {
    const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (!x && !y) return;
    event.preventDefault();
    const size = event.shiftKey ? 0.1 : 0.02;
    move(parseFloat(handle.style.left) / 100 + size * x, parseFloat(handle.style.top) / 100 + size * y);
  });
  stage.append(handle);
  return handle;
}

function showChosen() {
  const object = view.handles.find(({ index }) => index === chosen && index >= 0);
  for (const handle of tab.querySelectorAll(".handle")) handle.classList.toggle("chosen", Number(handle.dataset.index) === chosen);
  get("#selected").hidden = !object;
  if (!object) return;
  get("#selected strong").textContent = `The ${object.label}`;
  if (document.activeElement !== get("#colour")) get("#colour").value = object.colour;
}
