// The tab "One step of learning": draws what vla_mini/play/learning.py answers.

import { digits, element, photo, vector } from "./drawing.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT] = [640, 300, 52, 40, 28, 90]; // of the chart, and its margins
const STYLES = { sgd: ["--negative", "none"], adam: ["--positive", "7 4"], muon: ["--accent", "2 3"] }; // colour and dashes
const NAMES = { sgd: "SGD", adam: "Adam", adamw: "AdamW", muon: "Muon" };

export function mount(panel, post) {
  let facts = null, asked = { step: 0, compare: 0 };

  const optimizer = element("select", { change: fillDefaults });
  const number = (step) => element("input", { type: "number", min: 0, step, size: 8 });
  const rate = number("any"), momentum = number("any"), decay = number("any"), clipping = number("any");
  const momentumName = element("span", {}, "momentum");
  const batch = element("details", { class: "batch" });
  const result = element("div", { class: "result", role: "status" });
  const mistake = element("p", { class: "mistake", role: "alert" });
  const rates = element("div", { class: "fields" });
  const chart = element("div", { class: "chart" });
  const mistakeCompare = element("p", { class: "mistake", role: "alert" });
  const rule = element("p", { class: "legend" });
  const field = (name, input) => element("label", {}, name, " ", input);

  const forms = element("div", { hidden: true }); // until their values are known

  panel.classList.add("learning");
  panel.replaceChildren(
    element("h2", {}, "One step of learning"),
    element("p", {}, "The gradient tells in which direction the loss grows. An optimizer turns it into an update of the weights. " +
      "Each press begins again from this policy's weights, which stay as they are."),
    forms);
  forms.replaceChildren(
    element("form", { submit: (event) => { event.preventDefault(); take(); } },
      element("div", { class: "fields" }, field("Optimizer", optimizer), field("learning rate", rate)),
      rule,
      batch,
      element("details", {}, element("summary", {}, "More settings"),
        element("div", { class: "fields" }, field(momentumName, momentum), field("weight decay", decay),
          field("clip the gradient's norm at", clipping)), element("p", { class: "legend" }, "Empty: no clipping.")),
      element("button", { type: "submit" }, "Take one step")),
    mistake, result,
    element("h3", {}, "Ten steps with SGD, Adam and Muon"),
    element("p", {}, "The same batch and the same weights to start from, each optimizer with its own learning rate."),
    element("form", { submit: (event) => { event.preventDefault(); compare(); } }, rates,
      element("button", { type: "submit" }, "Take ten steps with each")),
    mistakeCompare, chart);
  begin();

  // ---- asking

  const given = (input) => (input.value.trim() === "" ? undefined : Number(input.value));
  const samples = () => [...batch.querySelectorAll("input")].flatMap((box, index) => (box.checked ? [index] : []));

  async function ask(kind, request, shown, error) {
    const mine = ++asked[kind];
    shown.setAttribute("aria-busy", "true");
    try {
      const answer = await post(JSON.parse(JSON.stringify(request))); // without what is undefined
      if (mine !== asked[kind]) return null;
      error.textContent = "";
      return answer;
    } catch (reason) {
      if (mine === asked[kind]) {
        error.textContent = reason.message;
        shown.replaceChildren();
      }
      return null;
    } finally {
      if (mine === asked[kind]) shown.removeAttribute("aria-busy");
    }
  }

  async function begin() {
    const wait = element("p", { role: "status" }, "One moment: the samples are being read.");
    panel.append(wait);
    try {
      fill(await post({}));
      forms.hidden = false;
      wait.remove();
    } catch (reason) {
      wait.textContent = reason.message;
    }
  }

  async function take() {
    const answer = await ask("step", {
      samples: samples(), optimizer: optimizer.value, learning_rate: given(rate), momentum: given(momentum),
      weight_decay: given(decay), clip_norm: given(clipping),
    }, result, mistake);
    if (answer) draw(answer);
  }

  async function compare() {
    const chosen = Object.fromEntries([...rates.querySelectorAll("input")].map((input) => [input.name, given(input)]));
    const answer = await ask("compare", { compare: true, samples: samples(), rates: chosen, clip_norm: given(clipping) }, chart, mistakeCompare);
    if (answer) drawCurves(answer);
  }

  // ---- the forms, once

  function fill(answer) {
    facts = answer;
    optimizer.append(...Object.keys(answer.optimizers).map((name) => element("option", { value: name, selected: name === answer.optimizer }, NAMES[name])));
    fillDefaults();
    const summary = element("summary");
    const boxes = answer.samples.map((sample, index) => element("label", {},
      element("input", { type: "checkbox", checked: answer.chosen.includes(index), change: counted }),
      photo(sample, ""), element("span", {}, sample.instruction)));
    batch.append(summary, element("p", { class: "legend" }, "The loss is the mean over the valid actions of the chosen samples."), element("div", { class: "samples" }, boxes));
    counted();
    rates.append(...Object.keys(STYLES).map((name) => field(`${NAMES[name]}: learning rate`,
      element("input", { type: "number", min: 0, step: "any", size: 8, name, value: answer.optimizers[name].learning_rate }))));
    function counted() {
      summary.textContent = `Batch: ${samples().length} of ${answer.samples.length} samples`;
    }
  }

  function fillDefaults() {
    const row = facts.optimizers[optimizer.value];
    [rate.value, momentum.value, decay.value] = [row.learning_rate, row.momentum, row.weight_decay];
    momentumName.textContent = optimizer.value.startsWith("adam") ? "momentum (β₁)" : "momentum";
    rule.textContent = `${NAMES[optimizer.value]}: ${row.rule}.`;
  }

  // ---- drawing

  const percent = (ratio) => (typeof ratio !== "number" ? "–" : ratio >= 1e-4 ? `${Number((100 * ratio).toPrecision(2))} %` : `${(100 * ratio).toExponential(0)} %`);
  const table = (caption, heads, rows) => element("div", { class: "wide" }, element("table", {},
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, heads.map((head, index) => element("th", { scope: "col", class: index ? "number" : "" }, head)))),
    element("tbody", {}, rows)));

  function draw(answer) {
    const clipped = answer.clip_factor != null && answer.clip_factor < 1
      ? `Clipping multiplies the gradient, of norm ${digits(answer.gradient_norm)}, by ${digits(answer.clip_factor)}.`
      : `The gradient has the norm ${digits(answer.gradient_norm)} and is not clipped.`;
    const largest = Math.max(...answer.components.map(({ ratio }) => (typeof ratio === "number" ? ratio : 0)), Number.MIN_VALUE);
    const rows = answer.components.map((row) => element("tr", {},
      element("th", { scope: "row" }, row.name),
      ...[row.gradient, row.update, row.weights].map((value) => element("td", { class: "number" }, digits(value))),
      element("td", { class: "number" }, percent(row.ratio)),
      element("td", { class: "share", "aria-hidden": "true" }, element("div", { class: "bar", style: `width: ${100 * (typeof row.ratio === "number" ? row.ratio / largest : 0)}%` }))));
    result.replaceChildren(
      element("p", { class: "losses" }, "Loss ", element("strong", {}, digits(answer.before)), " → ", element("strong", {}, digits(answer.after))),
      element("p", {}, answer.words, " ", clipped),
      element("p", { class: "legend" }, "Where the policy has a keyframe loss, a log-density, the loss may be below zero."),
      table("What the step does to each part", ["part", "norm of gradient", "norm of update", "norm of weights", "update / weights", ""], rows));
  }

  // Round numbers between two losses: multiples of 1, 2 or 5 times a power of ten.
  function ticks(low, high) {
    const rough = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
    const first = Math.ceil(low / step);
    return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, index) => (first + index) * step);
  }

  function drawCurves({ steps, curves }) {
    const losses = curves.flatMap((curve) => curve.losses), first = curves[0].losses[0];
    const [low, most] = [Math.min(...losses), Math.max(...losses)];
    const high = Math.min(most, first + 4 * Math.max(first - low, 1e-3 * Math.abs(first), 1e-6)); // a diverging curve leaves the chart
    const x = (index) => LEFT + (index / steps) * (WIDTH - LEFT - RIGHT);
    const y = (loss) => TOP + ((high - loss) / (high - low || 1)) * (HEIGHT - TOP - BOTTOM);
    const drawing = vector("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" },
      vector("title", {}, `The loss over ${steps} steps, from ${digits(first)}: ` + curves.map((curve) => `${NAMES[curve.optimizer]} ${digits(curve.losses.at(-1))}`).join(", ")));
    for (const loss of ticks(low, high)) {
      drawing.append(vector("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(loss), y2: y(loss) }),
        vector("text", { x: LEFT - 6, y: y(loss), class: "left" }, digits(loss)));
    }
    for (let index = 0; index <= steps; index += 2) drawing.append(vector("text", { x: x(index), y: HEIGHT - BOTTOM + 16 }, index));
    drawing.append(vector("text", { x: x(steps / 2), y: HEIGHT - 6 }, "steps"), vector("text", { x: LEFT - 6, y: 10, class: "left" }, "loss"));
    const ends = [];
    for (const { optimizer: name, losses: values } of curves) {
      const [tone, dashes] = STYLES[name], shown = values.findIndex((loss) => loss > high);
      const inside = shown < 0 ? values : values.slice(0, shown + 1);
      const points = inside.map((loss, index) => `${x(index)},${y(Math.min(loss, high))}`);
      drawing.append(vector("polyline", { points: points.join(" "), class: "curve", style: `stroke: var(${tone})`, "stroke-dasharray": dashes }));
      ends.push({ name, tone, x: x(inside.length - 1) + 6, y: y(Math.min(inside.at(-1), high)), up: shown >= 0 });
    }
    ends.sort((one, other) => one.y - other.y).forEach((end, index) => {
      if (index && end.y < ends[index - 1].y + 16 && Math.abs(end.x - ends[index - 1].x) < 60) end.y = ends[index - 1].y + 16;
      drawing.append(vector("text", { x: end.x, y: end.y, class: "right name", style: `fill: var(${end.tone})` }, NAMES[end.name] + (end.up ? " ↑" : "")));
    });
    const rows = Array.from({ length: steps + 1 }, (_, index) => element("tr", {}, element("th", { scope: "row" }, index),
      curves.map(({ losses: values }) => element("td", { class: "number" }, index < values.length ? digits(values[index]) : "not finite"))));
    chart.replaceChildren(drawing,
      ...curves.filter(({ words }) => words).map(({ optimizer: name, words }) => element("p", {}, element("strong", {}, `${NAMES[name]}: `), words, ".")),
      most > high ? element("p", { class: "legend" }, "↑ The curve continues above the chart; its numbers are in the table.") : "",
      element("details", {}, element("summary", {}, "The same as a table"),
        table("Loss after each step", ["step", ...curves.map((curve) => `${NAMES[curve.optimizer]}, ${curve.learning_rate}`)], rows)));
  }
}
