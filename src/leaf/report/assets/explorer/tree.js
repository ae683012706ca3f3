"use strict";
// The tree of one group as elements: a card per stretch of tokens, and at the right what the completions earned.
const DrawnTree = (() => {
  const { element, svg, number } = leaf;
  const [BOUNDARY, RETAINED, FORK, EMPTY] = ["┃", "◆", "◇", "▫"];

  const boundary = (t) => element("span.boundary", { title: `boundary at ${t}` }, BOUNDARY);
  const reward = (value) => (value === null ? "unscored" : number(value, 3));

  // A part of the tree: its card and what is drawn below it.
  function branch(card, key) {
    const below = element("div.below");
    return { card, below, whole: element("div.branch", { "data-key": key }, card, below) };
  }

  // Fields: `element`; `ribbons`, which treeLayout fills from `links` ({from, to, size}: two elements and the number of
  // completions between them); `tokens` in reading order, each with its key, its element (node), the token before it
  // (above), those after it (below), and, unless it is a root or an end, its stretch and its number there (j).
  return class DrawnTree {
    constructor(group, credit) {
      this.group = group;
      this.credit = credit;
      this.tokens = [];
      this.byKey = new Map();
      this.links = [];
      this.ribbons = svg("svg", { "aria-hidden": "true" });
      this.inner = new Set(group.stretches.map((stretch) => stretch.above)); // stretches that others continue
      const label = { role: "tree", "aria-label": "completions as a prefix tree" };
      this.element = element("div.tree", label, this.ribbons, this.trunk());
    }

    // Stretches come depth first, so that the one above is always drawn, and tokens are registered as they are read.
    trunk() {
      const { group } = this;
      const root = this.root();
      if (group.empty.length) root.below.append(this.end("(empty)", group.empty, "empty", root));
      const parts = [];
      for (const [i, stretch] of group.stretches.entries()) {
        const above = stretch.above < 0 ? root : parts[stretch.above];
        parts.push(this.stretch(stretch, i, above));
        above.below.append(parts[i].whole);
      }
      return root.whole;
    }

    root() {
      const { group, credit } = this;
      const names = credit.rows.length > 1 ? credit.rows.map((row) => row.name) : ["prompt"];
      const rows = names.map((name) => element("div.row", {}, element("span.token.root", {}, name)));
      const value = number(group.value, 3);
      const mass = group.draw ? `  mass ${group.draw.mass} of 1` : "";
      const under = element("div.under", {}, element("span.node", {}, `n ${group.n}  V̂ ${value}${mass}`));
      const card = element("div.card", {}, ...rows, under);
      const label = `root: ${group.n} scored completions, mean reward ${value}`;
      const last = this.register(card.querySelector(".token"), { key: "root", label, level: 1, above: null });
      return { ...branch(card, "root"), last };
    }

    register(node, token) {
      node.setAttribute("role", "treeitem");
      node.setAttribute("aria-level", token.level);
      node.setAttribute("aria-label", token.label);
      node.dataset.token = token.key;
      node.tabIndex = -1;
      const registered = { ...token, node, below: [] };
      token.above?.below.push(registered);
      this.tokens.push(registered);
      this.byKey.set(token.key, registered);
      return registered;
    }

    stretch(stretch, i, above) {
      const further = this.inner.has(i);
      // Text without spaces, such as Chinese or that of a model gone astray, may break anywhere.
      const unbroken = /\S{20}/u.test(stretch.texts.join(""));
      const card = element(unbroken ? "div.card.unbroken" : "div.card", { "data-stretch": i });
      const under = element("div.under");
      const node = this.node(stretch, further);
      if (node) under.append(node);
      let last = above.last;
      this.credit.rows.forEach((row, index) => {
        const drawn = this.row(stretch, i, row, index === 0 ? last : null);
        last = drawn.last || last;
        const several = this.credit.rows.length > 1;
        card.append(element("div.row", {}, drawn.text, several ? drawn.figure : null));
        if (!several) under.append(drawn.figure);
      });
      if (under.childNodes.length) card.append(under);
      this.links.push({ from: above.card, to: card, size: stretch.members.length });
      const part = { ...branch(card, i), last };
      if (!further) {
        last.node.setAttribute("aria-label", `${last.label}; here end ${this.result(stretch.ends)}`);
        part.below.replaceWith(...this.outcome(stretch.ends, card));
      } else if (stretch.ends.length) {
        part.below.append(this.end("(ends here)", stretch.ends, `end-${i}`, part));
      }
      return part;
    }

    // One row of a card: the tokens with the tints of one rule, and their advantages as a figure. Only the first row
    // can be walked through; `before` is the token before it, and null for other rows.
    row(stretch, i, { name, advantage }, before) {
      const { boundaries } = this.group;
      const text = element("span.text");
      const seen = [];
      let last = before;
      for (const [j, piece] of stretch.texts.entries()) {
        const t = stretch.start + j;
        const values = stretch.members.map((k) => advantage(k, t));
        seen.push(...values);
        if (j && boundaries.includes(t)) text.append(boundary(t));
        const node = element("span.token", { "data-token": `${i}-${j}` }, piece || EMPTY);
        this.credit.tint(node, leaf.mean(values));
        if (before) {
          const label = this.credit.spoken(stretch, j);
          last = this.register(node, { key: `${i}-${j}`, stretch, j, level: t + 2, above: last, label });
        } else {
          node.setAttribute("aria-hidden", "true");
        }
        text.append(node);
      }
      const end = stretch.start + stretch.texts.length;
      const closed = stretch.retained || this.inner.has(i);
      if (closed && boundaries.includes(end)) text.append(boundary(end));
      return { text, last, figure: this.figure(name, seen) };
    }

    figure(name, values) {
      const range = CreditView.range(values);
      const [first] = values;
      // Two rows leave no room for a range.
      const short = this.credit.rows.length > 1 && range !== CreditView.signed(first);
      const text = short ? `⌀ ${CreditView.signed(leaf.mean(values))}` : range;
      return element("span.advantage", { title: `advantage: ${name} ${range}` }, text);
    }

    node(stretch, further) {
      const value = stretch.value === null ? "unscored" : `V̂ ${number(stretch.value, 3)}`;
      const mass = stretch.mass ? `  mass ${stretch.mass.join(" of ")}` : "";
      const text = `n ${stretch.n}  ${value}${mass}`;
      if (stretch.retained) {
        return element("span.node.retained", { title: "node that LEAF retains" }, `${RETAINED} ${text}`);
      }
      return further ? element("span.node", { title: "node that LEAF does not retain" }, `${FORK} ${text}`) : null;
    }

    // Completions that end where others go on, or at once.
    end(text, ends, key, above) {
      const card = element("div.card.bare", {}, element("div.row", {}, element("span.token.root", {}, text)));
      const label = `${text} ${this.result(ends)}`;
      const { last } = above;
      this.register(card.querySelector(".token"), { key, label, level: last.level + 1, above: last });
      this.links.push({ from: above.card, to: card, size: ends.length });
      return element("div.branch", { "data-key": key }, card, ...this.outcome(ends, card));
    }

    // The space up to the right edge, and there what the completions that end here earned.
    outcome(ends, from) {
      const { rewards } = this.group;
      const byReward = new Map();
      for (const k of ends) byReward.set(rewards[k], [...(byReward.get(rewards[k]) || []), k]);
      const made = element("div.outcome", {}, ...[...byReward].map((earned) => this.earned(...earned)));
      this.links.push({ from, to: made, size: ends.length });
      return [element("span.leader"), made];
    }

    earned(value, members) {
      const { rewards, truncated } = this.group;
      const longest = Math.max(1, ...rewards.filter((one) => one !== null).map(Math.abs));
      const width = value === null ? 0 : (100 * Math.abs(value)) / longest;
      const filled = element(value < 0 ? "i.negative" : "i", { style: `width: ${width}%` });
      const cut = members.some((k) => truncated[k]);
      return element(
        "div.earned",
        {},
        element("span.bar", { "aria-hidden": "true" }, filled),
        element("span.reward", { title: this.parts(members[0]) }, reward(value)),
        element("span.numbers", {}, CreditView.completions(members)),
        this.group.draw ? element("span.numbers.weight", {}, members.map((k) => this.weight(k)).join("; ")) : null,
        cut ? element("span.cut", { title: "cut by the length limit" }, "✂ truncated") : null,
      );
    }

    weight(k) {
      const { p, weights } = this.group.draw;
      return `p ${p[k]}, w ${weights[k]}`;
    }

    // What each of several reward functions gave to a completion.
    parts(k) {
      const named = Object.entries(this.group.parts);
      return named.length > 1 ? named.map(([name, values]) => `${name} ${reward(values[k])}`).join(", ") : "";
    }

    result(ends) {
      const rewards = new Set(ends.map((k) => reward(this.group.rewards[k])));
      const cut = ends.some((k) => this.group.truncated[k]) ? ", truncated" : "";
      const weight = this.group.draw ? `, ${ends.map((k) => this.weight(k)).join("; ")}` : "";
      return `${CreditView.completions(ends)}, reward ${[...rewards].join(", ")}${weight}${cut}`;
    }

    // The token that a key leads to: left and right along a completion, up and down to the stretch above or below it.
    walk(token, key) {
      if (key === "Home") return this.tokens[0];
      if (key === "End") return this.tokens.at(-1);
      if (key === "ArrowLeft") return token.above;
      if (key === "ArrowRight") return token.below[0];
      const starts = this.tokens.filter((one) => !one.stretch || one.j === 0);
      const place = this.tokens.indexOf(token);
      const here = starts.findLastIndex((one) => this.tokens.indexOf(one) <= place);
      if (key === "ArrowDown") return starts[here + 1];
      return token === starts[here] ? starts[here - 1] : starts[here];
    }
  };
})();
