"use strict";
// Two systems of a set of items, A and B, or one system alone where both are the same; and the metric that rates items.
const Comparison = (() => {
  return class Comparison {
    // `a` and `b` are the numbers of the systems, `metric` one of those that rate items, or null if none does.
    constructor(set, a = 0, b = set.systems.length - 1, metric = Comparison.rating(set)[0] || null) {
      this.set = set;
      this.a = a;
      this.b = b;
      this.metric = metric;
    }

    // The metrics of which more, or less, is better; lengths are neutral.
    static rating(set) {
      return set.metrics.filter((metric) => !metric.neutral);
    }

    get two() {
      return this.a !== this.b;
    }

    get systems() {
      return this.two ? [this.a, this.b] : [this.a];
    }

    // An item's score, null for none.
    score(i, system) {
      return this.metric ? this.metric.items[system][i] : null;
    }

    // The same, such that more is better.
    merit(i, system) {
      const score = this.score(i, system);
      return score === null || !this.metric.less ? score : -score;
    }

    // By how much B is better than A, null where one has no score.
    gain(i) {
      const [before, after] = [this.merit(i, this.a), this.merit(i, this.b)];
      return before === null || after === null ? null : after - before;
    }

    outcome(i) {
      const gain = this.gain(i);
      if (gain === null) return "unscored";
      const near = 0.05 * 10 ** -(this.metric.digits ?? 1); // a twentieth of the last decimal that the page shows
      if (gain > near) return "better";
      return gain < -near ? "worse" : "same";
    }

    // The mean of the items' scores, null without any.
    mean(items, system) {
      const scores = items.map((i) => this.score(i, system)).filter((score) => score !== null);
      return scores.length ? leaf.mean(scores) : null;
    }

    // B − A by a metric as [difference, low, high, p], or null. The data have one direction only.
    difference(metric) {
      const forward = metric.differences[`${this.a}-${this.b}`];
      if (forward) return forward;
      const back = metric.differences[`${this.b}-${this.a}`];
      if (!back) return null;
      const [difference, low, high, p] = back;
      return low === null ? [-difference, null, null, p] : [-difference, -high, -low, p];
    }

    // The sign A or B of a system, or an empty one of the same width.
    mark(system) {
      const side = !this.two ? "" : system === this.a ? "A" : system === this.b ? "B" : "";
      if (!side) return leaf.element("b.side");
      return leaf.element(`b.side.${side.toLowerCase()}`, { title: `system ${side} of the comparison` }, side);
    }
  };
})();
