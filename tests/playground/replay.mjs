// node replay.mjs SCENE_JS EPISODES FRAMES: plays the moves of each episode and writes every image; prints the states.
import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [sceneJs, episodes, frames] = process.argv.slice(2);
const { Scene, namedObjects } = await import(pathToFileURL(sceneJs));

const images = [];
const results = JSON.parse(readFileSync(episodes)).map(({ table, moves, ...fields }) => {
  const grain = Buffer.from(table, "base64");
  const scene = new Scene({ ...fields, table: new Float32Array(new Uint8Array(grain).buffer) });
  const observe = () => {
    images.push(scene.render());
    const { position, closedness, held, lifted, over } = scene;
    return { position, closedness, held, lifted, over, objects: scene.objects.map(({ x, y }) => [x, y]) };
  };
  const start = observe();
  const states = moves.map(({ action, place }) => {
    if (place) scene.place(...place);
    else scene.step(action);
    return observe();
  });
  scene.reset();
  return { states: [start, ...states], afterReset: observe(), named: namedObjects(scene.instruction, scene.objects) };
});
writeFileSync(frames, Buffer.concat(images));
console.log(JSON.stringify(results));
