"use strict";
// Widths of the cards of a tree, and the ribbons between them. A tree grows to the right, or downwards where the stage
// is too narrow for that.
const treeLayout = (() => {
  const WIDEST_CARD = 560; // pixels
  const NARROW_STAGE = 640;
  const RIBBON = 5; // pixels of a ribbon per completion, and
  const RIBBONS = 26; // of all completions together at most

  const leftPadding = (made) => parseFloat(getComputedStyle(made).paddingLeft);

  function cardsBefore(outcome, tree) {
    const path = [];
    for (let part = outcome.parentElement; part !== tree; part = part.parentElement) {
      if (part.matches(".branch")) path.push(part.firstChild);
    }
    return path;
  }

  // The largest whole number up to `most` that passes a test which small numbers pass and large ones do not.
  function largest(most, passes) {
    let [low, high] = [0, most];
    while (high - low > 1) {
      const middle = (low + high) / 2;
      if (passes(middle)) low = middle;
      else high = middle;
    }
    return Math.floor(low);
  }

  // Give each card the largest width at which all completions through it fit into the room: on the way to every outcome
  // the widest cards give way first, and none gets narrower than its longest word. Returns whether all fit.
  function fit(tree, room) {
    const cards = [...tree.querySelectorAll(".card")];
    const measured = (width) => {
      for (const card of cards) card.style.width = width;
      return new Map(cards.map((card) => [card, Math.ceil(card.getBoundingClientRect().width)]));
    };
    const least = measured("min-content");
    const natural = measured("max-content");
    const most = new Map(cards.map((card) => [card, Math.min(WIDEST_CARD, natural.get(card))]));
    const gap = leftPadding(tree.querySelector(".below"));
    const within = (card, width) => Math.max(least.get(card), Math.min(width, most.get(card)));
    let fits = true;
    for (const outcome of tree.querySelectorAll(".outcome")) {
      const path = cardsBefore(outcome, tree);
      const free = room - outcome.offsetWidth - gap * path.length;
      const taken = (width) => path.reduce((sum, card) => sum + within(card, width), 0);
      if (taken(0) > free) fits = false;
      if (taken(WIDEST_CARD) > free) {
        const width = largest(WIDEST_CARD, (each) => taken(each) <= free);
        for (const card of path) most.set(card, within(card, width));
      }
    }
    for (const card of cards) card.style.width = fits ? `${within(card, WIDEST_CARD)}px` : "";
    return fits;
  }

  // The path of a ribbon between two boxes, relative to the tree's.
  function routeDown(from, to, box) {
    const x = from.left - box.left + 8;
    const y = to.top + to.height / 2 - box.top;
    return `M${x} ${from.bottom - box.top} V${y - 6} Q${x} ${y} ${x + 6} ${y} H${to.left - box.left}`;
  }

  // `offset`: from the middle of the left box, so that ribbons leave it side by side.
  function routeRight(from, to, box, offset) {
    const start = from.top + from.height / 2 - box.top + offset;
    const left = from.right - box.left;
    const right = to.left - box.left;
    const y = to.top + to.height / 2 - box.top;
    const bend = Math.min(right, left + 36);
    return `M${left} ${start} C${left + 20} ${start} ${bend - 20} ${y} ${bend} ${y} H${right}`;
  }

  function drawRibbons(drawn, down) {
    const box = drawn.element.getBoundingClientRect();
    const unit = Math.min(RIBBON, RIBBONS / drawn.group.rewards.length);
    const links = drawn.links.filter((link) => link.size);
    const leaving = new Map(); // card -> completions that leave it
    for (const { from, size } of links) leaving.set(from, (leaving.get(from) || 0) + size);
    const before = new Map(); // card -> completions whose ribbons are drawn
    const paths = links.map(({ from, to, size }) => {
      const done = before.get(from) || 0;
      before.set(from, done + size);
      const [a, b] = [from.getBoundingClientRect(), to.getBoundingClientRect()];
      const offset = unit * (done + size / 2 - leaving.get(from) / 2);
      const d = down ? routeDown(a, b, box) : routeRight(a, b, box, offset);
      return leaf.svg("path", { d, "stroke-width": Math.max(1.5, down ? (unit * size) / 3 : unit * size) });
    });
    const { ribbons } = drawn;
    ribbons.setAttribute("viewBox", `0 0 ${box.width} ${box.height}`);
    ribbons.style.width = `${box.width}px`;
    ribbons.style.height = `${box.height}px`;
    ribbons.replaceChildren(...paths);
  }

  // Lay out a DrawnTree in its stage.
  function place(drawn, stage) {
    const tree = drawn.element;
    if (!tree.getBoundingClientRect().width) return; // hidden
    const room = stage.clientWidth - 2 * leftPadding(stage);
    tree.classList.remove("down");
    const down = room < NARROW_STAGE || !fit(tree, room);
    if (down) for (const card of tree.querySelectorAll(".card")) card.style.width = "";
    tree.classList.toggle("down", down);
    drawRibbons(drawn, down);
  }

  return { place };
})();
