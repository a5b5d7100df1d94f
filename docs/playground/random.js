// Seeded random numbers: the same seed gives the same scene and the same noise in every browser (not those of NumPy).

export class Random {
  constructor(seed) {
    this.state = seed >>> 0;
  }

  /** Uniform in [low, high): mulberry32. */
  uniform(low = 0, high = 1) {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let t = this.state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return low + (((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * (high - low);
  }

  /** Standard normal: Box-Muller. */
  normal() {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }

  integer(size) {
    return Math.floor(this.uniform(0, size));
  }

  choose(choices) {
    return choices[this.integer(choices.length)];
  }

  /** A shuffled copy: Fisher and Yates. */
  shuffle(items) {
    const shuffled = [...items];
    for (let i = shuffled.length - 1; i > 0; i--) {
      const j = this.integer(i + 1);
      [shuffled[i], shuffled[j]] = [shuffled[j], shuffled[i]];
    }
    return shuffled;
  }
}
