// Images, maps over images, and bars, drawn from what the server sends (messages.py).

import { bytes as bytesOf } from "./drawing.js";

/** The canvases of `stage`, one for each camera, with a text alternative. */
function canvases(stage, count, label) {
  const found = [...stage.querySelectorAll("canvas")];
  while (found.length < count) {
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    stage.prepend(canvas);
    found.unshift(canvas);
  }
  for (const canvas of found) canvas.setAttribute("aria-label", label);
  return found;
}

/** RGB bytes -> ImageData. */
function pixelsOf({ width, height, bytes }) {
  const rgb = bytesOf(bytes);
  const data = new ImageData(width, height);
  for (let i = 0, j = 0; j < rgb.length; i += 4, j += 3) {
    data.data.set([rgb[j], rgb[j + 1], rgb[j + 2], 255], i);
  }
  return data;
}

function paint(canvas, data) {
  [canvas.width, canvas.height] = [data.width, data.height];
  canvas.getContext("2d").putImageData(data, 0, 0);
}

export function drawImages(stage, images, label) {
  canvases(stage, images.length, label).forEach((canvas, i) => paint(canvas, pixelsOf(images[i])));
}

/** Each map over its image, which is grey and dark: black to bright is 0 to the largest value of all maps. */
export function drawMaps(stage, images, maps, label) {
  canvases(stage, images.length, label).forEach((canvas, i) => {
    const image = new OffscreenCanvas(1, 1);
    paint(image, pixelsOf(images[i]));
    const scaled = new OffscreenCanvas(maps.width, maps.height).getContext("2d");
    scaled.drawImage(image, 0, 0, maps.width, maps.height);
    const data = scaled.getImageData(0, 0, maps.width, maps.height);
    const map = bytesOf(maps.bytes[i]);
    const bright = [255, 200, 60];
    for (let p = 0; p < map.length; p++) {
      const [r, g, b] = data.data.subarray(4 * p, 4 * p + 3);
      const grey = 0.45 * (0.3 * r + 0.59 * g + 0.11 * b);
      const share = (map[p] / 255) ** 0.7;
      for (let c = 0; c < 3; c++) data.data[4 * p + c] = grey + share * (bright[c] - grey);
    }
    paint(canvas, data);
  });
}

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/** One bar for each [name, value]; the longest is the largest value. A third entry is shown beside the bar. */
export function drawBars(list, rows) {
  const largest = Math.max(...rows.map(([, value]) => value)) || 1;
  list.replaceChildren(
    ...rows.map(([name, value, shown]) => {
      const row = element("li", "");
      const track = element("span", "track");
      const bar = element("span", "bar");
      bar.style.setProperty("--value", value / largest);
      track.append(bar);
      row.dataset.value = value;
      row.title = `${name}: ${value.toPrecision(3)}`;
      row.setAttribute("aria-label", row.title);
      const label = element("span", "name", name);
      const beside = shown === undefined ? [] : [element("span", "value", shown.toFixed(2))];
      row.append(...(list.classList.contains("words") ? [track, label] : [label, track, ...beside]));
      return row;
    }),
  );
}

/** One bar for each dimension of an action, from the middle to the left or right, and a mark for the other action. */
export function drawAction(list, rows) {
  const place = (unit) => Math.max(-1, Math.min(1, unit));
  list.replaceChildren(
    ...rows.map(({ name, policy: [raw, unit], other }) => {
      const row = element("li", "");
      const track = element("span", "track");
      const bar = element("span", unit < 0 ? "bar negative" : "bar");
      bar.style.setProperty("--value", Math.abs(place(unit)));
      track.append(bar);
      if (other) {
        const mark = element("span", "mark");
        mark.style.setProperty("--value", place(other[1]));
        track.append(mark);
      }
      row.title = `${name}: ${raw.toPrecision(3)}${other ? `; the mark: ${other[0].toPrecision(3)}` : ""}`;
      row.setAttribute("aria-label", row.title);
      row.append(element("span", "name", name), track, element("span", "value", raw.toFixed(2)));
      return row;
    }),
  );
}

/** For each dimension of an action, the policy's and the recorded one over `steps`: arrays of what `drawAction` takes. */
export function drawTraces(list, steps) {
  const svg = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  list.replaceChildren(
    ...steps[0].map(({ name }, dimension) => {
      const pairs = steps.map((rows) => [rows[dimension].policy[1], rows[dimension].other[1]]);
      const difference = pairs.reduce((sum, [a, b]) => sum + Math.abs(a - b), 0) / pairs.length;
      const picture = svg("svg", { viewBox: "0 0 100 30", preserveAspectRatio: "none", role: "img" });
      for (const [which, kind] of ["predicted", "recorded"].entries()) {
        const place = (pair, step) => `${(100 * step) / Math.max(1, steps.length - 1)},${15 - 14 * Math.max(-1, Math.min(1, pair[which]))}`;
        picture.append(svg("polyline", { class: kind, points: pairs.map(place).join(" ") }));
      }
      picture.setAttribute("aria-label", `${name}: predicted and recorded, mean difference ${difference.toFixed(2)}`);
      const row = element("li", "");
      row.append(element("span", "name", name), picture, element("span", "value", difference.toFixed(2)));
      return row;
    }),
  );
}
