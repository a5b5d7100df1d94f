// The tab "Backward, step by step": draws what vla_mini/play/backward.py answers.

import { digits, element, onScheme, photo, picture, shape, vector } from "./drawing.js";

const WAIT = { component: 1500, node: 250 }; // milliseconds of a step while playing
const [WIDTH, HEIGHT, COLUMN, ROW] = [124, 44, 156, 64]; // of the graph's boxes, and between them

export function mount(panel, post) {
  let answer = null, unit = "component", at = 0, timer = null, asked = 0;

  // ---- the page's parts

  const button = (text, keys, act) => element("button", { type: "button", "aria-keyshortcuts": keys, click: act }, text);
  const start = button("Start", "Home", () => go(0));
  const back = button("◀ Back", "ArrowLeft", () => go(at - 1));
  const play = button("▶ Play", "Space", () => (timer ? pause() : run()));
  const step = button("Step ▶", "ArrowRight", () => go(at + 1));
  const slider = element("input", { type: "range", min: 0, "aria-label": "Step of the backward pass", input: () => go(Number(slider.value)) });
  const count = element("span", { class: "count" });
  const units = ["component", "node"].map((name) => element("label", {},
    element("input", { type: "radio", name: "backward-unit", value: name, checked: name === unit, change: () => changeUnit(name) }),
    name === "component" ? " one part of the policy" : " one node of the graph"));
  const sample = element("select", { change: ask });
  const graph = element("div", { class: "graph" });
  const card = element("div", { class: "card" });
  const list = element("details", { class: "nodes" });
  const table = element("div", { class: "components" });
  const notes = element("div", { class: "notes", role: "status" });
  const mistake = element("p", { class: "mistake", role: "alert" });
  const spoken = element("p", { class: "spoken", role: "status" });
  const switches = element("details", { class: "switches" });
  const fields = {};

  panel.classList.add("backward");
  panel.replaceChildren(
    element("h2", {}, "Backward, step by step"),
    element("p", {}, "The loss of one sample is a single number. ", element("code", {}, "backward()"),
      " goes back from it through everything that was computed, and finds for each value how the loss would change with it. Press Step."),
    element("p", {}, element("label", {}, "Sample ", sample)),
    graph,
    element("p", { class: "legend" },
      "From the loss, right, to the inputs, left. Filled: the gradient has been there. Thick frame: it is there now. Dashed: it does not get there."),
    notes,
    element("div", { class: "transport", role: "group", "aria-label": "Backward pass" }, start, back, play, step, slider, count),
    element("div", { class: "units", role: "radiogroup", "aria-label": "One step is" }, "A step is ", units,
      element("span", { class: "hint" }, "Keys: → step, ← back, Space play")),
    mistake, spoken,
    element("div", { class: "columns" }, element("div", {}, card, list), element("div", {}, table, switches)));
  document.addEventListener("keydown", (event) => { // also where nothing has the focus; the tabs have keys of their own
    if (!panel.hidden && !event.target.closest?.('[role="tablist"]')) onKey(event);
  });
  onScheme(() => answer && draw());
  ask();

  // ---- asking

  function request() {
    const chosen = { sample: Number(sample.value || 0) };
    if (fields.detach?.value) chosen.detach = fields.detach.value;
    if (fields.no_grad?.value) chosen.no_grad = fields.no_grad.value;
    for (const name of ["bf16", "accumulate", "inputs"]) if (fields[name]) chosen[name] = fields[name].checked;
    if (fields.freeze) chosen.freeze = fields.freeze.filter((box) => box.checked).map((box) => box.value);
    return chosen;
  }

  async function ask(event) {
    const mine = ++asked;
    pause();
    panel.setAttribute("aria-busy", "true");
    try {
      const found = await post(request());
      if (mine !== asked) return;
      const first = answer === null, other = event?.target === sample;
      answer = found;
      mistake.textContent = "";
      if (first) fill();
      at = first || other ? 0 : stops().length - 1; // after a switch, the end: where the flow got to
      draw();
    } catch (error) {
      if (mine === asked) mistake.textContent = error.message;
    } finally {
      if (mine === asked) panel.removeAttribute("aria-busy");
    }
  }

  // ---- stepping

  const stops = () => (unit === "component" ? answer.segments : answer.steps.map((_, index) => ({ first: index, last: index })));
  const segmentOf = (index) => answer.segments.find(({ first, last }) => first <= index && index <= last);

  function go(index) {
    if (!answer) return;
    at = Math.max(0, Math.min(stops().length - 1, index));
    draw();
  }

  function changeUnit(name) {
    const here = stops()[at] ?? { first: 0 };
    unit = name;
    for (const label of units) label.firstChild.checked = label.firstChild.value === name;
    at = Math.max(0, stops().findIndex(({ last }) => last >= here.first));
    draw();
  }

  function run() {
    if (!answer) return;
    if (at >= stops().length - 1) at = 0;
    const next = () => {
      if (at >= stops().length - 1) return pause();
      go(at + 1);
      timer = setTimeout(next, WAIT[unit]);
    };
    play.textContent = "❚❚ Pause";
    timer = setTimeout(next, WAIT[unit]);
    draw();
  }

  function pause() {
    clearTimeout(timer);
    timer = null;
    play.textContent = "▶ Play";
    if (answer) speak();
  }

  function onKey(event) {
    const kind = event.target.tagName;
    const typing = ["SELECT", "TEXTAREA"].includes(kind) || (kind === "INPUT" && event.target.type !== "radio");
    if (event.altKey || event.ctrlKey || event.metaKey || typing) return;
    const act = { ArrowRight: () => go(at + 1), ArrowLeft: () => go(at - 1), Home: () => go(0), End: () => go(Infinity) }[event.key]
      ?? (event.key === " " && !["BUTTON", "SUMMARY"].includes(kind) ? () => play.click() : null);
    if (!act) return;
    event.preventDefault();
    act();
  }

  // ---- drawing

  function draw() {
    const all = stops(), stop = all[at];
    slider.max = Math.max(0, all.length - 1);
    slider.value = at;
    count.textContent = all.length ? `${at + 1} of ${all.length}` : "no steps";
    slider.setAttribute("aria-valuetext", stop ? `${count.textContent}, ${answer.steps[stop.first].component}` : "no steps");
    for (const control of [start, back]) control.disabled = !stop || at === 0;
    step.disabled = !stop || at === all.length - 1;
    play.disabled = slider.disabled = !stop;
    drawGraph(stop);
    drawCard(stop);
    drawTable(stop);
    notes.replaceChildren(...answer.notes.map((note) => element("p", {}, note)));
    if (!timer) speak();
  }

  function speak() {
    const stop = stops()[at];
    if (!stop) return void (spoken.textContent = answer.error ?? "");
    const { operation, component, module, norm } = answer.steps[stop.first];
    const where = unit === "component" ? component : `${operation} in ${module}`;
    spoken.textContent = `Step ${count.textContent}: ${where}, norm of the gradient ${digits(norm)}`;
  }

  // Boxes in columns by their distance from the loss, which is on the right.
  function places() {
    const column = new Map([["loss", 0]]);
    for (const name of column.keys()) // grows meanwhile
      for (const [source, target] of answer.edges) if (source === name && !column.has(target)) column.set(target, column.get(name) + 1);
    const columns = [];
    for (const [name, index] of column) (columns[index] ??= []).push(name);
    const tallest = Math.max(...columns.map(({ length }) => length));
    const boxes = new Map();
    columns.forEach((names, index) => names.forEach((name, row) => boxes.set(name, {
      x: (columns.length - 1 - index) * COLUMN + 4,
      y: (row + (tallest - names.length) / 2) * ROW + 4,
    })));
    return { boxes, width: (columns.length - 1) * COLUMN + WIDTH + 8, height: (tallest - 1) * ROW + HEIGHT + 8 };
  }

  function drawGraph(stop) {
    const { boxes, width, height } = places();
    const batch = stop ? answer.steps[stop.first].micro_batch : 0;
    const ran = new Set(answer.steps.slice(0, (stop?.last ?? -1) + 1).filter((one) => one.micro_batch === batch).map((one) => one.component));
    const now = stop && answer.steps[stop.last].component;
    const reached = new Set(answer.steps.map(({ component }) => component));
    const flows = new Set(answer.flowing.map(String));
    const drawing = vector("svg", { viewBox: `0 0 ${width} ${height}`, style: `min-width: ${0.75 * width}px; max-width: ${1.2 * width}px`, role: "img" });
    drawing.append(vector("title", {}, stop ? `The parts of the policy. The gradient is in ${now}; it has been in ${[...ran].join(", ")}.`
      : "The parts of the policy. No gradient flows."));
    for (const [source, target] of answer.edges) {
      const from = boxes.get(source), to = boxes.get(target);
      const [x1, y1, x2, y2] = [from.x, from.y + HEIGHT / 2, to.x + WIDTH + 7, to.y + HEIGHT / 2], middle = (x1 + x2) / 2;
      const state = !flows.has(String([source, target])) ? "cut" : ran.has(source) && ran.has(target) ? "ran" : "";
      drawing.append(vector("path", { class: `edge ${state}`, d: `M${x1} ${y1} C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}` }),
        vector("path", { class: `head ${state}`, d: `M${x2 - 7} ${y2} l8 -4 v8 z` }));
    }
    for (const [name, { x, y }] of boxes) {
      const state = name === now ? "now" : !reached.has(name) ? "cut" : ran.has(name) ? "ran" : "";
      const box = vector("g", { class: `box ${state}`, transform: `translate(${x} ${y})` },
        vector("title", {}, answer.components.find((row) => row.name === name)?.description ?? ""),
        vector("rect", { width: WIDTH, height: HEIGHT, rx: 6 }),
        vector("text", { x: WIDTH / 2, y: HEIGHT / 2 }, name.replace("projection.", "proj. ").replace("auxiliary.", "aux. ")));
      box.addEventListener("click", () => goTo(name));
      drawing.append(box);
    }
    const scrolled = boxes.get(now ?? "loss").x / width;
    graph.replaceChildren(drawing);
    graph.scrollLeft = scrolled * drawing.clientWidth - graph.clientWidth / 3; // where it is wider than the page
  }

  function goTo(component) {
    const found = stops().findIndex(({ first }) => answer.steps[first].component === component);
    if (found >= 0) go(found);
  }

  function drawCard(stop) {
    if (!stop) {
      list.hidden = true;
      return card.replaceChildren(element("h3", {}, "Nothing to go back through"));
    }
    const one = answer.steps[stop.first], segment = segmentOf(stop.first), row = answer.components.find(({ name }) => name === one.component);
    const passes = answer.request.accumulate ? `Micro-batch ${one.micro_batch + 1} of 2. ` : "";
    const about = unit === "component"
      ? [element("h3", {}, one.component), element("p", {}, passes, row?.description ?? "")]
      : [element("h3", {}, one.operation, element("small", {}, ` in ${one.module}`)), element("p", {}, passes, one.rule)];
    card.replaceChildren(...about, ...arriving(one), ...(unit === "component" ? onTheWay(segment) : goesOn(one)));
    drawList(segment, stop);
  }

  // The gradient that arrives at a step, in numbers and as a picture.
  function arriving(one) {
    if (one === answer.steps[0])
      return [element("p", {}, "The loss is ", element("strong", {}, digits(answer.loss)), ". Its derivative by itself is 1: the first gradient.",
        answer.loss < 0 ? " It is below zero because a keyframe loss, a log-density, is part of it." : "")];
    const what = one.parameter ? `The gradient of ${one.parameter}` : "The gradient that arrives";
    if (one.value != null) return [element("p", {}, `${what}: a single number, `, element("strong", {}, digits(one.value)), ".")];
    const zeros = one.zeros > 0 ? `, ${(100 * one.zeros).toFixed(one.zeros < 0.995 ? 0 : 1)} % zeros` : "";
    return [element("p", {}, `${what}: ${one.shapes.map(shape).join("; ")}, `,
        element("span", { class: one.dtype === "bfloat16" ? "rounded" : "" }, one.dtype), `, norm ${digits(one.norm)}${zeros}.`),
      element("div", { class: "pictures" }, beside(one), picture(panel, one.picture))];
  }

  const inImages = ({ component, picture: drawn }) => drawn?.kind === "maps" && component !== "loss";

  function beside(one) {
    if (!inImages(one)) return null;
    return answer.cameras[one.micro_batch].map((camera) => element("figure", {},
      photo(camera, `Camera image ${camera.name} of the sample`), element("figcaption", {}, `Camera image: ${camera.name}`)));
  }

  // Where the first gradient of a part has no places, the first one on the way that has.
  function onTheWay({ first, last, operations }) {
    const inside = answer.steps.slice(first, last + 1), one = inside[0];
    const mapped = inImages(one) ? null : inside.find(({ attention }) => attention) ?? inside.find(inImages);
    const picture_ = mapped && [element("p", {}, `On the way, at ${mapped.operation} in ${mapped.module}:`),
      element("div", { class: "pictures" }, beside(mapped), picture(panel, mapped.picture))];
    const text = inside.length === 1 ? "One node runs here" : `${inside.length} nodes run here, one after another`;
    return [...(picture_ ?? []), element("p", { class: "counts" }, `${text}: ${operations}.`)];
  }

  function goesOn({ following }) {
    const names = following.map((index) => answer.steps[index].parameter ?? `${answer.steps[index].operation} in ${answer.steps[index].module}`);
    return [element("p", { class: "counts" }, names.length ? `It is passed on to ${names.join(" and to ")}.` : "Here this path ends.")];
  }

  // All nodes of the part, by module.
  function drawList({ component, first, last }, stop) {
    const items = [];
    for (let index = first; index <= last; index++) {
      const one = answer.steps[index];
      if (index === first || one.module !== answer.steps[index - 1].module) items.push(element("li", { class: "module" }, one.module));
      const marked = unit === "node" && index === stop.first;
      items.push(element("li", {}, element("button", { type: "button", "aria-current": marked ? "step" : null, click: () => { changeUnit("node"); go(index); } },
        element("span", {}, one.parameter ? `${one.operation}: ${one.parameter.replace(`${one.module}.`, "")}` : one.operation),
        element("span", { class: "number" }, `norm ${digits(one.norm)}`))));
    }
    const scrolled = list.dataset.first === String(first) ? list.querySelector("ol")?.scrollTop ?? 0 : 0;
    const nodes = element("ol", {}, items);
    list.hidden = false;
    list.dataset.first = first;
    list.replaceChildren(element("summary", {}, `The nodes of ${component}, in the order in which autograd runs them`), nodes);
    nodes.scrollTop = scrolled;
    const current = nodes.querySelector("[aria-current]");
    if (current && list.open) nodes.scrollTop = Math.max(0, current.offsetTop - nodes.offsetTop - nodes.clientHeight / 2);
  }

  // How much of each part's gradient is in .grad by now.
  function drawTable(stop) {
    const arrived = {}, switched = answer.notes.length > 0;
    for (const one of answer.steps.slice(0, (stop?.last ?? -1) + 1))
      if (one.operation === "AccumulateGrad") arrived[one.component] = (arrived[one.component] ?? 0) + 1;
    const rows = answer.components.filter((row) => row.parameters || row.had_gradient).map((row) => {
      const done = arrived[row.name] ?? 0, whole = row.tensors && done === row.tensors;
      const text = !row.has_gradient ? "no gradient" : whole ? digits(row.norm) : done ? `${done} of ${row.tensors}` : "–";
      return element("tr", { class: row.has_gradient ? "" : "none" },
        element("th", { scope: "row", title: row.description }, row.name),
        element("td", {}, element("progress", { max: row.tensors || 1, value: done, "aria-label": `${row.name}: ${done} of ${row.tensors} tensors have their gradient` })),
        element("td", { class: "number" }, text),
        switched ? element("td", { class: "number" }, row.has_gradient ? difference(row.difference) : "") : null);
    });
    const heads = ["part", "filled", "norm", ...(switched ? ["changed by"] : [])];
    table.replaceChildren(element("table", {},
      element("caption", {}, "What is in ", element("code", {}, ".grad"), " so far"),
      element("thead", {}, element("tr", {}, heads.map((head, index) => element("th", { scope: "col", class: index > 1 ? "number" : "" }, head)))),
      element("tbody", {}, rows)),
      switched ? element("p", { class: "legend" }, `Changed by: difference to the gradient without switches${answer.request.accumulate ? ", of one batch of both samples" : ""}, relative to its norm.`) : "");
  }

  const difference = (share) => (share === 0 ? "0" : share == null ? "–" : share < 0.001 ? share.toExponential(1) : `${(100 * share).toFixed(1)} %`);

  // ---- the form, once

  function fill() {
    sample.replaceChildren(...answer.samples.map((text, index) => element("option", { value: index }, `${index + 1}: ${text}`)));
    const choice = (name, options) => (fields[name] = element("select", { change: ask }, element("option", { value: "" }, "nothing"),
      options.map((option) => element("option", { value: option }, option))));
    const box = (name, checked = false) => (fields[name] = element("input", { type: "checkbox", checked, change: ask }));
    fields.freeze = answer.choices.freeze.map((name) => element("input", { type: "checkbox", value: name, change: ask }));
    const row = (label, field, help) => element("div", { class: "switch" }, element("label", {}, element("code", {}, label), " ", field), element("small", {}, help));
    switches.replaceChildren(
      element("summary", {}, "Switches: where does the flow end, and what is rounded?"),
      row("detach", choice("detach", answer.choices.detach), "The value is passed on, the gradient is not. The context of the action head: knowledge insulation; an auxiliary loss still trains the trunk. The others: inputs of the trunk."),
      element("fieldset", { class: "switch" }, element("legend", {}, element("code", {}, "freeze")),
        element("div", { class: "boxes" }, fields.freeze.map((field) => element("label", {}, field, ` ${field.value}`))),
        element("small", {}, "These parameters require no gradient. It still goes through them where something behind them needs it.")),
      row("no_grad", choice("no_grad", answer.choices.no_grad), "Computed without recording a graph: there is nothing to go back through."),
      row("bf16", box("bf16"), "The forward pass under autocast: matrix products in bfloat16, so gradients are rounded there, too."),
      row("accumulate", box("accumulate"), "Two micro-batches, this sample and the next: two backward passes, one .grad."),
      row("gradient of the inputs", box("inputs", true), "Training does not need it, saliency maps do."),
      element("button", { type: "button", click: reset }, "All switches off"));
  }

  function reset() {
    for (const field of [fields.detach, fields.no_grad]) field.value = "";
    for (const field of [fields.bf16, fields.accumulate, ...fields.freeze]) field.checked = false;
    fields.inputs.checked = true;
    ask();
  }
}
