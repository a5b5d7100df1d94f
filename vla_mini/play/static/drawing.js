// Elements, numbers, and gradients as pictures: what backward.js and learning.js are made of.

// An element with attributes (functions are listeners, true and false switch an attribute) and children.
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child != null));
  return made;
}

export function vector(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Three digits: 0.0123, 12.3, 1.2e-7; text such as "not finite" stays.
export function digits(value) {
  if (typeof value !== "number") return value ?? "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e4 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

export const shape = (sizes) => (sizes == null ? "not used" : sizes.length ? sizes.join(" × ") : "a single number");

// The bytes of a base64 text.
export const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

// A style variable as [red, green, blue], in the colour scheme of now.
function colour(panel, name) {
  const probe = element("i", { style: `color: var(${name})` });
  panel.append(probe);
  const context = element("canvas", { width: 1, height: 1 }).getContext("2d");
  context.fillStyle = getComputedStyle(probe).color;
  probe.remove();
  context.fillRect(0, 0, 1, 1);
  return context.getImageData(0, 0, 1, 1).data.slice(0, 3);
}

// Calls `act` when the page turns light or dark, by itself or by an attribute of its root.
export function onScheme(act) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", act);
  new MutationObserver(act).observe(document.documentElement, { attributes: true });
}

function canvas(width, height, description, paint) {
  const made = element("canvas", { width, height, role: "img", "aria-label": description, class: "pixels" });
  const context = made.getContext("2d");
  const image = context.createImageData(width, height);
  for (let index = 0; index < width * height; index++) image.data.set([...paint(index), 255], 4 * index);
  context.putImageData(image, 0, 0);
  return made;
}

export function photo({ width, height, bytes: text }, description) {
  const values = bytes(text);
  return canvas(width, height, description, (index) => values.subarray(3 * index, 3 * index + 3));
}

// The picture of a gradient (pictures.py), with a caption that says what a cell is; null where there is none.
export function picture(panel, drawn) {
  if (!drawn) return null;
  if (drawn.kind === "bars") return bars(drawn);
  const values = new Int8Array(bytes(drawn.data).buffer);
  const [zero, positive, negative] = ["--surface", drawn.kind === "maps" ? "--accent" : "--positive", "--negative"]
    .map((name) => colour(panel, name));
  const mixed = (value) => {
    const share = Math.abs(value) / 127, end = value < 0 ? negative : positive;
    return [0, 1, 2].map((channel) => zero[channel] + share * (end[channel] - zero[channel]));
  };
  const size = drawn.rows * drawn.columns;
  const shown = Array.from({ length: drawn.panels ?? 1 }, (_, index) =>
    canvas(drawn.columns, drawn.rows, drawn.caption, (cell) => mixed(values[index * size + cell])));
  if (drawn.kind === "matrix") shown[0].classList.add(drawn.rows > 2 ? "matrix" : "line");
  const labels = drawn.labels && element("div", { class: "labels", "aria-hidden": "true" },
    drawn.labels.map((label) => element("span", {}, label)));
  const largest = digits(drawn.largest);
  const scale = drawn.kind === "maps" ? [swatch("--accent"), ` largest size, ${largest}`]
    : [swatch("--positive"), ` up to ${largest}  `, swatch("--negative"), ` down to −${largest}`];
  return element("figure", { class: "gradient" },
    element("div", { class: "panels" }, labels ? element("div", {}, labels, shown) : shown),
    element("figcaption", {}, `${drawn.caption}. `, element("span", { class: "scale" }, scale)));
}

const swatch = (name) => element("i", { class: "swatch", style: `background: var(${name})` });

function bars({ caption, labels, values }) {
  const largest = Math.max(...values, Number.MIN_VALUE);
  const rows = labels.map((label, index) => element("tr", {},
    element("th", { scope: "row" }, label),
    element("td", {}, element("div", { class: "bar", style: `width: ${100 * values[index] / largest}%` })),
    element("td", { class: "number" }, digits(values[index]))));
  return element("figure", { class: "gradient" }, element("table", { class: "bars" }, element("tbody", {}, rows)),
    element("figcaption", {}, `${caption}.`));
}
