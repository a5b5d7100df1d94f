// An exported policy (scripts/export.py), run by onnxruntime-web: observations -> actions, as vla_mini/export/runtime.py and
// the Controller of vla_mini/acting.py do in Python.

import { SIZE } from "./drawing.js";

const FORMAT = "vla-mini-onnx-1";
const ENVIRONMENT = "vla_mini/ToyPick-v0";

/** The tokenizer of language=table (tokenizer.json): one token for each word, after a start token. */
export class Tokenizer {
  constructor(config) {
    if (config.model.type !== "WordLevel") {
      throw new Error(`The policy's tokenizer is ${config.model.type}; this page reads WordLevel, that of language=table.`);
    }
    this.vocabulary = config.model.vocab;
    this.unknown = config.model.unk_token;
    this.special = config.added_tokens.map((token) => token.content);
    this.start = config.post_processor.single[0].SpecialToken.id;
    this.maxWords = config.truncation.max_length - 1;
    const literal = this.special.map((token) => token.replace(/[[\]\\^$.*+?(){}|]/g, "\\$&"));
    this.specialPattern = new RegExp(`(${literal.join("|")})`);
  }

  /** {tokens, unknown, cut}: token ids, the words that are not in the vocabulary, and whether words were cut off. */
  encode(text) {
    const pieces = text.split(this.specialPattern);
    const words = pieces.flatMap((piece) => (this.special.includes(piece) ? [piece] : splitWords(piece)));
    const read = words.slice(0, this.maxWords);
    const unknown = read.filter((word) => !Object.hasOwn(this.vocabulary, word) || word === this.unknown);
    const tokens = [this.start, ...read].map((word) =>
      Object.hasOwn(this.vocabulary, word) ? this.vocabulary[word] : this.vocabulary[this.unknown],
    );
    return { tokens, unknown, cut: words.length > read.length };
  }
}

/** Runs of letters and digits, and runs of other characters, in lower case. */
function splitWords(text) {
  const letters = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}";
  const runs = new RegExp(`[${letters}]+|[^${letters}\\p{White_Space}]+`, "gu");
  return text.normalize("NFKC").toLowerCase().match(runs) ?? [];
}

export class Policy {
  /**
   * - ort: the module onnxruntime-web
   * - config, tokenizer, graph: policy.json, tokenizer.json (both parsed) and the bytes of policy.onnx
   *
   * Throws an Error that says why, where they are not a policy for toy_pick.
   */
  static async load(ort, { config, tokenizer, graph }) {
    if (config.format !== FORMAT) throw new Error(`policy.json: format ${config.format} is not ${FORMAT}.`);
    const { image_size: size, state, action, cameras } = config.features;
    if (config.source.env !== ENVIRONMENT || `${size}` !== `${SIZE},${SIZE}` || cameras.length !== 1) {
      throw new Error(`The policy was trained on ${config.source.env ?? "other data"}; this page plays ${ENVIRONMENT}.`);
    }
    const policy = new Policy();
    Object.assign(policy, { ort, tokenizer: new Tokenizer(tokenizer), history: config.history, acting: config.acting });
    Object.assign(policy, { horizon: config.horizon, actionSize: action.length, stateSize: state.length });
    policy.needsNoise = config.needs_noise;
    policy.session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
    return policy;
  }

  /**
   * {actions, attention}: a chunk of actions in raw units, [t][a]; and how much each place of the newest image is attended to,
   * a square as a flat array, the mean over the trunk's queries; null of a trunk that has none.
   *
   * - frames: the newest observations {image, state, instruction}, the newest first, as many as the policy's history
   */
  async act(frames, random) {
    const { Tensor } = this.ort;
    const { tokens } = this.tokenizer.encode(frames[0].instruction);
    const state = frames.flatMap((frame) => [...frame.state]);
    const inputs = {
      images: new Tensor("uint8", joinImages(frames), [1, frames.length, 3, SIZE, SIZE]),
      tokens: new Tensor("int64", BigInt64Array.from(tokens, BigInt), [1, tokens.length]),
      token_mask: new Tensor("bool", new Uint8Array(tokens.length).fill(1), [1, tokens.length]),
      state: new Tensor("float32", Float32Array.from(state), [1, state.length]),
    };
    if (this.needsNoise) {
      const noise = Float32Array.from({ length: this.horizon * this.actionSize }, () => random.normal());
      inputs.noise = new Tensor("float32", noise, [1, this.horizon, this.actionSize]);
    }
    const { actions, attention } = await this.session.run(inputs);
    if (!actions.data.every(Number.isFinite)) throw new Error("the policy's actions are not finite: are its weights?");
    const rows = Array.from({ length: this.horizon }, (_, t) =>
      actions.data.slice(t * this.actionSize, (t + 1) * this.actionSize),
    );
    return { actions: rows, attention: attention ? meanOverQueries(attention, frames.length) : null };
  }
}

/** Images "h w c" -> one array "k c h w". */
function joinImages(frames) {
  const pixels = SIZE * SIZE;
  const joined = new Uint8Array(frames.length * 3 * pixels);
  frames.forEach(({ image }, k) => {
    for (let i = 0; i < pixels; i++) for (let c = 0; c < 3; c++) joined[(3 * k + c) * pixels + i] = image[3 * i + c];
  });
  return joined;
}

/** Attention "1 q (k n)" -> "n" of the first of k images. */
function meanOverQueries({ data, dims: [, queries, places] }, numImages) {
  return Float32Array.from({ length: places / numImages }, (_, place) => {
    let sum = 0;
    for (let query = 0; query < queries; query++) sum += data[query * places + place];
    return sum / queries;
  });
}

/**
 * Acts in one episode by the chunks of a policy: `execute` actions of each; with `ensemble`, each action is the mean of all
 * chunks that reach that far.
 */
export class Controller {
  constructor(policy, random) {
    Object.assign(this, { policy, random });
    this.frames = []; // the newest first
    this.chunks = []; // the oldest first: {start, actions}
    this.steps = 0;
    this.attention = null; // of the newest prediction
  }

  /** The next action for an observation {image, state, instruction}. */
  async step(observation) {
    const { history, acting } = this.policy;
    this.frames = [observation, ...this.frames].slice(0, history);
    if (this.steps % acting.execute === 0) {
      this.chunks.push({ start: this.steps, actions: await this.predict(this.frames) });
    }
    this.chunks = this.chunks.filter(({ start, actions }) => this.steps < start + actions.length);
    const candidates = this.chunks.map(({ start, actions }) => actions[this.steps - start]);
    this.steps += 1;
    return acting.ensemble === null ? candidates.at(-1) : weightedMean(candidates, acting.ensemble);
  }

  /** Set `attention` to what an observation would give now, without acting. */
  async look(observation) {
    await this.predict([observation, ...this.frames]);
  }

  /** A chunk for the newest observations. Where there are fewer than the policy takes, the earliest is repeated. */
  async predict(frames) {
    const filled = Array.from({ length: this.policy.history }, (_, age) => frames[age] ?? frames.at(-1));
    const { actions, attention } = await this.policy.act(filled, this.random);
    this.attention = attention;
    return actions;
  }
}

/** The mean of actions, weighted by exp(-decay * index). */
function weightedMean(actions, decay) {
  const weights = actions.map((_, index) => Math.exp(-decay * index));
  const total = weights.reduce((sum, weight) => sum + weight);
  return actions[0].map((_, a) => actions.reduce((sum, action, i) => sum + weights[i] * action[a], 0) / total);
}
