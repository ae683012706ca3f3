"use strict";
// Whose credit is shown: the advantages of LEAF and of the rule it is compared with, by completion and token.
const CreditView = (() => {
  const { mean } = leaf;

  const signed = (value) => leaf.signed(value, 2);
  const completions = (members) => members.map((k) => `#${k}`).join(" ");
  // The data have runs [number of tokens, advantage].
  const spread = (rows) => rows.map((row) => row.flatMap(([count, value]) => Array(count).fill(value)));

  function range(values) {
    const low = signed(Math.min(...values));
    const high = signed(Math.max(...values));
    return low === high ? low : `${low} to ${high}`;
  }

  return class CreditView {
    static range = range;
    static signed = signed;
    static completions = completions;

    // `mode`: first (LEAF), second (the other rule), both, or difference. `title`: the other rule's name for people.
    constructor(group, mode, other, title) {
      this.mode = mode;
      this.title = title;
      this.leaf = spread(group.credit.leaf);
      this.other = spread(group.credit[other]);
      this.rows = this.chosenRows();
      const shown = mode === "difference" ? this.differences() : [...this.leaf.flat(), ...this.other.flat()];
      // The full tint; the same for both rules, so that they can be compared.
      this.largest = shown.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    }

    differences() {
      return this.leaf.flatMap((row, k) => row.map((value, t) => value - this.other[k][t]));
    }

    // What each row of a card shows: a name, and the advantage of completion k at position t.
    chosenRows() {
      const first = { name: "LEAF", advantage: (k, t) => this.leaf[k][t] };
      const second = { name: this.title, advantage: (k, t) => this.other[k][t] };
      const difference = { name: "difference", advantage: (k, t) => this.leaf[k][t] - this.other[k][t] };
      return this.mode === "both" ? [first, second] : [{ first, second, difference }[this.mode]];
    }

    // [completion, LEAF's advantage, the other rule's] at token j of a stretch.
    pairs(stretch, j) {
      const t = stretch.start + j;
      return stretch.members.map((k) => [k, this.leaf[k][t], this.other[k][t]]);
    }

    // The same pairs, completions with equal advantages together, and then their mean: [whose, LEAF's, the other's].
    lines(stretch, j) {
      const pairs = this.pairs(stretch, j);
      const alike = new Map();
      for (const pair of pairs) {
        const shown = `${signed(pair[1])} ${signed(pair[2])}`;
        alike.set(shown, [...(alike.get(shown) || []), pair]);
      }
      const lines = [...alike.values()].map((same) => [completions(same.map(([k]) => k)), same[0][1], same[0][2]]);
      if (lines.length > 1)
        lines.push(["mean", mean(pairs.map((pair) => pair[1])), mean(pairs.map((pair) => pair[2]))]);
      return lines;
    }

    // What a screen reader says of a token.
    spoken(stretch, j) {
      const pairs = this.pairs(stretch, j);
      return [
        `“${stretch.texts[j]}”`,
        `token ${stretch.start + j}`,
        `surprisal ${leaf.number(stretch.nats[j], 2)} nats`,
        `in ${completions(stretch.members)}`,
        `LEAF ${range(pairs.map((pair) => pair[1]))}`,
        `${this.title} ${range(pairs.map((pair) => pair[2]))}`,
      ].join(", ");
    }

    // Tint an element by an advantage: direction as a class, strength from 0 to 1 for the style sheet.
    tint(node, value) {
      const share = this.largest ? Math.min(Math.abs(value) / this.largest, 1) : 0;
      if (share < 0.02) return;
      node.classList.add(value > 0 ? "up" : "down");
      node.style.setProperty("--share", share.toFixed(3));
    }
  };
})();
