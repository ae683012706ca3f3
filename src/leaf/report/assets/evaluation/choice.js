"use strict";
// Which items are listed, and in which order.
const ItemChoice = (() => {
  const lowest = (value) => (value === null ? -Infinity : value);
  const minus = (value) => (value === null ? null : -value);

  // Name of an order: what it is called, what it puts first, and whether it takes two systems.
  const ORDERS = {
    gain: { title: "most improved first", key: (c, i) => c.gain(i), two: true },
    loss: { title: "most worsened first", key: (c, i) => minus(c.gain(i)), two: true },
    worst: { title: "worst first", key: (c, i) => minus(c.merit(i, c.b)) },
    best: { title: "best first", key: (c, i) => c.merit(i, c.b) },
    file: { title: "as in the file" },
  };

  function textOf(item, { a, b }) {
    const right = item.references || [item.reference];
    const texts = [item.id, item.kind, item.prompt, item.text, ...right, ...item.said[a], ...item.said[b]];
    return texts.filter(Boolean).join("\n").toLowerCase();
  }

  return class ItemChoice {
    text = ""; // words to find
    outcome = "all"; // or better, same, worse, unscored
    kind = ""; // all kinds
    order = "gain";
    heard = false; // only items with a recording

    // The orders that a comparison allows, [name, title].
    orders({ two, metric }) {
      const allowed = Object.entries(ORDERS).filter(([, order]) => (two || !order.two) && (metric || !order.key));
      return allowed.map(([name, { title }]) => [name, title]);
    }

    admits(comparison, i, wanted) {
      const item = comparison.set.items[i];
      if (this.outcome !== "all" && comparison.outcome(i) !== this.outcome) return false;
      if (this.kind && item.kind !== this.kind) return false;
      if (this.heard && item.clip === null) return false;
      if (!wanted.length) return true;
      const text = textOf(item, comparison);
      return wanted.every((word) => text.includes(word));
    }

    // The numbers of the chosen items in their order.
    items(comparison) {
      const wanted = this.text.toLowerCase().split(/\s+/).filter(Boolean);
      const found = [...comparison.set.items.keys()].filter((i) => this.admits(comparison, i, wanted));
      const { key } = ORDERS[this.order];
      if (!key) return found;
      const keys = new Map(found.map((i) => [i, lowest(key(comparison, i))]));
      // Not by their difference, which of two infinities is no number. Equal ones keep the order of the file.
      return found.sort((x, y) => Number(keys.get(y) > keys.get(x)) - Number(keys.get(y) < keys.get(x)));
    }
  };
})();
