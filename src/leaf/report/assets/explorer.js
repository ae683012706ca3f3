"use strict";
// The tree explorer. The address is #trees/run/step/group; credit, tints and texts come from leaf.report.explorer.
leaf.section("trees", (root, data) => {
  const { element } = leaf;
  const NAMESPACE = "http://www.w3.org/2000/svg";
  const WIDEST = 560, NARROW = 640; // pixels: of a card, and of a stage in which trees grow downwards
  const BAR = "┃", KEPT = "◆", FORK = "◇";
  const titles = new Map(data.rules);
  const flat = data.runs.flatMap((run, r) => run.groups.map((group) => ({ r, group })));
  let at = 0, mode = "first", other = "grpo", cursor = null, view = null;

  const signed = (value) => {
    const text = Math.abs(value).toFixed(2);
    return Number(text) === 0 ? "0.00" : (value < 0 ? "−" : "+") + text;
  };
  const numbers = (members) => members.map((k) => `#${k}`).join(" ");
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const range = (values) => {
    const low = signed(Math.min(...values)), high = signed(Math.max(...values));
    return low === high ? low : `${low} to ${high}`;
  };
  const title = (rule) => (rule === "recorded" ? `as recorded (${data.runs[flat[at].r].credit})` : titles.get(rule));
  const spread = (rows) => rows.map((row) => row.flatMap(([count, value]) => Array(count).fill(value)));

  // -- the parts that stay ---------------------------------------------------------------------------------------------
  const choice = (label, onchange) => element("select", { "aria-label": label, onchange });
  const step = (by, unit) => () => move(by, unit);
  const arrow = (text, label, onclick) => element("button.arrow", { type: "button", "aria-label": label, onclick }, text);
  // Another run is shown at the same place, where it recorded one.
  const runs = choice("run", () => {
    const r = Number(runs.value), same = find(r, flat[at].group.step, flat[at].group.number);
    show(same < 0 ? flat.findIndex((one) => one.r === r) : same);
  });
  const steps = choice("step", () => show(find(flat[at].r, Number(steps.value), 0)));
  const groups = choice("group", () => show(Number(groups.value)));
  const against = choice("rule to hold against LEAF", () => { other = against.value; draw(); });
  const modes = element("div.modes", { role: "group", "aria-label": "whose credit is shown" });
  const note = element("p.note", { role: "status" });
  const facts = element("dl.facts"), sound = element("div.sound"), stage = element("div.stage"), legend = element("div.legend");
  const heading = element("h2"), sample = element("p.dim.sample");
  const tip = element("div.tip", { hidden: true, "aria-hidden": "true" });
  data.runs.forEach((run, r) => runs.append(element("option", { value: r }, run.name)));
  root.append(
    element(
      "div.choose", {},
      element("label", { hidden: data.runs.length < 2 }, "run ", runs),
      element("span", {}, element("label", {}, "step ", steps), arrow("‹", "previous step", step(-1, "step")), arrow("›", "next step", step(1, "step"))),
      element("span", {}, element("label", {}, "group ", groups), arrow("‹", "previous group", step(-1, "group")), arrow("›", "next group", step(1, "group"))),
      sample,
    ),
    note,
    element("div.about", {}, element("div", {}, heading, facts), sound),
    element("div.credit", {}, modes, element("label", {}, "against ", against), legend),
    stage,
    element("p.dim.keys", {}, ...[
      ["←↑↓→", "walk through the tokens"], ["n p", "next and previous group"], ["N P", "next and previous step"],
      ["1 2 3 4", "whose credit"], ["a", "play the audio"], ["Esc", "close the note on a token"],
    ].flatMap(([key, what], i) => [i ? ", " : "", element("kbd", {}, key), ` ${what}`]), "."),
    element("p.dim.signs", {}, "V̂ is the mean reward of the n completions that share a prefix. A token that several share is tinted by the mean of ",
      `their advantages; ⌀ says the mean. ${BAR} boundary, ${KEPT} retained node of LEAF, ${FORK} other fork, ■ end of sequence; a ribbon is as wide as its completions are many.`),
    tip,
  );

  // -- which group -----------------------------------------------------------------------------------------------------
  const find = (r, wanted, number) => flat.findIndex((one) => one.r === r && one.group.step === wanted && one.group.number === number);
  const address = ({ r, group }) => `#trees/${encodeURIComponent(data.runs[r].name)}/${group.step}/${group.number}`;

  function move(by, unit) {
    const { r, group } = flat[at];
    let next = at;
    do next += by; while (unit === "step" && flat[next]?.r === r && flat[next].group.step === group.step);
    if (flat[next]?.r !== r) return;
    const beside = unit === "step" ? find(r, flat[next].group.step, group.number) : next;
    show(beside < 0 ? next : beside);
  }

  function show(index) {
    note.textContent = "";
    at = index;
    cursor = null;
    if (location.hash !== address(flat[at])) location.replace(address(flat[at]));
    draw();
  }

  // Read the address; without one, the last recorded step's first group from which something is learnt.
  function fromAddress() {
    const [section, name, wanted, number] = location.hash.slice(1).split("/");
    if (section !== "trees" || name === undefined) return view === null ? start() : undefined;
    if (view !== null && location.hash === address(flat[at])) return undefined;
    let run = name;
    try { run = decodeURIComponent(name); } catch { /* an address that was typed wrongly names no run */ }
    const found = find(data.runs.findIndex((one) => one.name === run), Number(wanted), Number(number || 0));
    if (found >= 0) { at = found; cursor = null; note.textContent = ""; return draw(); }
    if (view === null) start();
    note.textContent = `There is no group at ${run}/${wanted || ""}/${number || ""} on this page; another one is shown.`;
    return undefined;
  }

  function start() {
    const last = flat.filter((one) => one.r === 0).at(-1).group.step;
    const those = flat.map((one, i) => [one, i]).filter(([one]) => one.r === 0 && one.group.step === last);
    at = (those.find(([one]) => !one.group.idle) || those[0])[1];
    draw();
  }

  // -- drawing ---------------------------------------------------------------------------------------------------------
  function draw() {
    const { r, group } = flat[at], run = data.runs[r];
    const held = stage.contains(document.activeElement);
    if (!(other in group.credit)) other = "grpo";
    const advantages = { leaf: spread(group.credit.leaf), other: spread(group.credit[other]) };
    const all = [...advantages.leaf.flat(), ...advantages.other.flat()].map(Math.abs);
    const gaps = advantages.leaf.flatMap((row, k) => row.map((value, t) => Math.abs(value - advantages.other[k][t])));
    const largest = (mode === "difference" ? gaps : all).reduce((most, value) => Math.max(most, value), 0);
    view = { group, advantages, largest, tokens: [], byKey: new Map(), links: [] };
    selects(run, r, group);
    about(run, group);
    switches();
    const wanted = group.reference === null ? null : element("p.reference", {}, element("span.dim", {}, "reference "), element("span", {}, group.reference));
    stage.replaceChildren(...[wanted, tree()].filter(Boolean));
    scale(largest);
    place();
    hide();
    if (held) focus(view.byKey.get(cursor), false);
  }

  function selects(run, r, group) {
    runs.value = r;
    const recorded = [...new Set(run.groups.map((one) => one.step))];
    steps.replaceChildren(...recorded.map((value) => element("option", { value }, String(value))));
    steps.value = group.step;
    groups.replaceChildren(...flat.map((one, i) => [one, i]).filter(([one]) => one.r === r && one.group.step === group.step)
      .map(([one, i]) => element("option", { value: i }, `${one.group.number}: ${one.group.id}`)));
    groups.value = at;
    sample.textContent = run.groups.length < run.total
      ? `${run.groups.length} of ${run.total} recorded groups: ${recorded.length} of ${run.steps} recorded steps, evenly`
      : `all ${run.total} recorded groups`;
  }

  function about(run, group) {
    heading.textContent = `${group.id}, step ${group.step}`;
    const credit = `trained with ${titles.get(run.credit) || run.credit}; LEAF's boundaries: ${group.boundaries.join(", ") || "none"}`;
    const rows = [["prompt", group.prompt], ["spoken", group.spoken], ["credit", credit]];
    facts.replaceChildren(...rows.filter(([, value]) => value !== null && value !== "")
      .flatMap(([name, value]) => [element("dt", {}, name), element(`dd.${name}`, {}, value)]));
    if (sound.dataset.group === String(at)) return; // a recording plays on while the credit is switched
    sound.dataset.group = at;
    sound.replaceChildren(
      group.clip === null ? element("p.dim.silence", {}, group.silence) : leaf.player(data.clips[group.clip], `recording of ${group.id}`),
      element("p.dim.files", { title: group.files.join(", ") }, group.files.join(", ")),
    );
  }

  function switches() {
    const rules = [...data.rules.map(([rule]) => rule), "recorded"].filter((rule) => rule !== "leaf" && rule in view.group.credit);
    against.replaceChildren(...rules.map((value) => element("option", { value }, title(value))));
    against.value = other;
    const named = [["first", "LEAF"], ["second", title(other)], ["both", "both"], ["difference", `LEAF − ${title(other)}`]];
    const focused = modes.contains(document.activeElement);
    modes.replaceChildren(...named.map(([name, text]) =>
      element("button", { type: "button", "aria-pressed": String(mode === name), "data-mode": name, onclick: () => { mode = name; draw(); } }, text)));
    if (focused) modes.querySelector('[aria-pressed="true"]').focus();
  }

  // What a row of tokens shows: [its rule's name, advantage of completion k at position t].
  function shownRows() {
    const { leaf: first, other: second } = view.advantages;
    const rows = { first: ["LEAF", (k, t) => first[k][t]], second: [title(other), (k, t) => second[k][t]],
      difference: ["difference", (k, t) => first[k][t] - second[k][t]] };
    return mode === "both" ? [rows.first, rows.second] : [rows[mode]];
  }

  function tree() {
    const { group } = view;
    const below = new Map([[-1, []]]);
    group.stretches.forEach((stretch, i) => { below.set(i, []); below.get(stretch.above).push(i); });
    const made = element("div.tree", { role: "tree", "aria-label": "completions as a prefix tree" });
    const names = mode === "both" ? shownRows().map(([name]) => name) : ["prompt"];
    const top = element("div.card", {}, ...names.map((name) => element("div.row", {}, element("span.token.root", {}, name))),
      element("div.under", {}, element("span.node", {}, `n ${group.n}  V̂ ${group.value.toFixed(3)}`)));
    register(top.querySelector(".token"), { key: "root", label: `root: ${group.n} scored completions, mean reward ${group.value.toFixed(3)}`, level: 1, above: null });
    const trunk = branch(top, "root");
    if (group.empty.length) trunk.below.append(outcomeBranch("(empty)", group.empty, view.tokens[0], "empty", trunk.card));
    const parts = [];
    for (const [i, stretch] of group.stretches.entries()) {
      const parent = stretch.above < 0 ? trunk : parts[stretch.above];
      const further = below.get(i).length > 0;
      const part = stretchBranch(stretch, i, further, parent);
      parts.push(part);
      parent.below.append(part.whole);
      if (further && stretch.ends.length) part.below.append(outcomeBranch("(ends here)", stretch.ends, part.last, `end-${i}`, part.card));
    }
    const ribbons = document.createElementNS(NAMESPACE, "svg");
    ribbons.setAttribute("aria-hidden", "true");
    made.append(ribbons, trunk.whole);
    view.tree = made;
    view.ribbons = ribbons;
    // In the order in which they are read: depth first.
    const order = new Map([...made.querySelectorAll("[role=treeitem]")].map((node, i) => [node, i]));
    view.tokens.sort((a, b) => order.get(a.node) - order.get(b.node));
    if (!view.byKey.has(cursor)) cursor = null;
    view.byKey.get(cursor ?? "root").node.tabIndex = 0;
    return made;
  }

  function branch(made, key) {
    const below = element("div.below");
    return { card: made, below, whole: element("div.branch", { "data-key": key }, made, below) };
  }

  function register(node, token) {
    node.setAttribute("role", "treeitem");
    node.setAttribute("aria-level", token.level);
    node.setAttribute("aria-label", token.label);
    node.tabIndex = -1;
    token.node = node;
    token.below = [];
    token.above?.below.push(token);
    node.dataset.token = token.key;
    view.tokens.push(token);
    view.byKey.set(token.key, token);
    return token;
  }

  function stretchBranch(stretch, i, further, parent) {
    const { group } = view;
    const end = stretch.start + stretch.texts.length;
    const closes = group.boundaries.includes(end) && (stretch.retained || further);
    const unbroken = /\S{20}/u.test(stretch.texts.join("")); // such as Chinese, or a model gone astray
    const made = element(unbroken ? "div.card.unbroken" : "div.card", { "data-stretch": i });
    let last = parent.last || view.tokens[0];
    const under = element("div.under");
    for (const [number, [name, advantage]] of shownRows().entries()) {
      const row = element("span.text");
      const seen = [];
      for (const [j, text] of stretch.texts.entries()) {
        const t = stretch.start + j;
        const values = stretch.members.map((k) => advantage(k, t));
        seen.push(...values);
        if (j && group.boundaries.includes(t)) row.append(mark(t));
        const node = element("span.token", { "data-token": `${i}-${j}` }, text || "▫");
        tint(node, mean(values));
        if (number === 0) last = register(node, { key: `${i}-${j}`, stretch, j, level: t + 2, above: last, label: spoken(stretch, j) });
        else node.setAttribute("aria-hidden", "true");
        row.append(node);
      }
      if (closes) row.append(mark(end));
      const several = mode === "both" && range(seen) !== signed(seen[0]);
      const figure = element("span.advantage", { title: `advantage: ${name} ${range(seen)}` }, several ? `⌀ ${signed(mean(seen))}` : range(seen));
      made.append(element("div.row", {}, row, mode === "both" ? figure : null));
      if (mode !== "both") under.append(figure);
    }
    const value = stretch.value === null ? "unscored" : `V̂ ${stretch.value.toFixed(3)}`;
    if (stretch.retained) under.prepend(element("span.node.retained", { title: "retained node of LEAF" }, `${KEPT} n ${stretch.n}  ${value}`));
    else if (further) under.prepend(element("span.node", { title: "node that LEAF does not retain" }, `${FORK} n ${stretch.n}  ${value}`));
    const part = { ...branch(made, i), last };
    if (under.childNodes.length) made.append(under);
    view.links.push({ from: parent.card, to: made, size: stretch.members.length });
    if (!further) {
      last.node.setAttribute("aria-label", `${last.label}; here end ${result(stretch.ends)}`);
      part.below.remove();
      part.whole.append(...outcome(stretch.ends, made));
    }
    return part;
  }

  function outcomeBranch(text, ends, above, key, from) {
    const made = element("div.card.bare", {}, element("div.row", {}, element("span.token.root", {}, text)));
    register(made.querySelector(".token"), { key, level: above.level + 1, above, label: `${text} ${result(ends)}` });
    view.links.push({ from, to: made, size: ends.length });
    return element("div.branch", { "data-key": key }, made, ...outcome(ends, made));
  }

  // The space up to the right edge, and there what the completions that end here earned.
  function outcome(ends, from) {
    const { group } = view;
    const reach = Math.max(1, ...group.rewards.filter((value) => value !== null).map(Math.abs));
    const earned = new Map();
    for (const k of ends) earned.set(group.rewards[k], [...(earned.get(group.rewards[k]) || []), k]);
    const made = element("div.outcome", {}, ...[...earned].map(([reward, those]) => {
      const bar = element("span.bar", { "aria-hidden": "true" }, element(reward !== null && reward < 0 ? "i.negative" : "i"));
      bar.firstChild.style.width = `${reward === null ? 0 : (100 * Math.abs(reward)) / reach}%`;
      return element("div.earned", {}, bar, element("span.reward", {}, reward === null ? "unscored" : reward.toFixed(3)),
        element("span.numbers", {}, numbers(those)),
        those.some((k) => group.truncated[k]) ? element("span.cut", { title: "cut by the length limit" }, "✂ truncated") : null);
    }));
    view.links.push({ from, to: made, size: ends.length });
    return [element("span.leader"), made];
  }

  const result = (ends) => `${numbers(ends)}, reward ${[...new Set(ends.map((k) => view.group.rewards[k]))].map((r) => (r === null ? "unscored" : r.toFixed(3))).join(", ")}${ends.some((k) => view.group.truncated[k]) ? ", truncated" : ""}`;
  const mark = (t) => element("span.boundary", { title: `boundary at ${t}` }, BAR);

  function tint(node, value) {
    const share = view.largest ? Math.min(Math.abs(value) / view.largest, 1) : 0;
    if (share < 0.02) return;
    node.classList.add(value > 0 ? "up" : "down");
    node.style.setProperty("--share", share.toFixed(3));
  }

  function scale(largest) {
    const name = mode === "difference" ? "difference of advantages" : "advantage";
    const cells = [-1, -0.5, -0.15, 0, 0.15, 0.5, 1].map((share) => {
      const cell = element("span.token", {}, share < 0 ? "−" : share > 0 ? "+" : "0");
      tint(cell, share * largest);
      return cell;
    });
    legend.replaceChildren(...(largest
      ? [element("span", {}, `${name} −${largest.toFixed(2)}`), element("span.scale", { "aria-hidden": "true" }, ...cells), element("span", {}, `+${largest.toFixed(2)}`)]
      : [element("span", {}, view.group.idle && mode !== "difference"
        ? "advantage 0 everywhere: nothing is learnt from rewards that do not differ" : `${name}: 0 everywhere`)]));
  }

  // -- widths and ribbons ---------------------------------------------------------------------------------------------------------
  // Give each card the largest width at which all completions through it fit into the stage: on the way to every leaf the
  // widest cards give way first, none to less than its longest word. Returns whether that does.
  function fit() {
    const cards = [...view.tree.querySelectorAll(".card")];
    const measured = (width) => {
      for (const made of cards) made.style.width = width;
      return new Map(cards.map((made) => [made, Math.ceil(made.getBoundingClientRect().width)]));
    };
    const least = measured("min-content"), natural = measured("max-content");
    const gap = parseFloat(getComputedStyle(view.tree.querySelector(".below")).paddingLeft);
    const most = new Map(cards.map((made) => [made, Math.min(WIDEST, natural.get(made))]));
    let fits = true;
    for (const end of view.tree.querySelectorAll(".outcome")) {
      const path = [];
      for (let part = end.parentElement; part !== view.tree; part = part.parentElement) if (part.matches(".branch")) path.push(part.firstChild);
      const held = (width) => path.reduce((sum, made) => sum + Math.max(least.get(made), Math.min(width, most.get(made))), 0);
      const free = view.room - end.offsetWidth - gap * path.length;
      let low = 0, high = WIDEST;
      while (high - low > 1) {
        const middle = (low + high) / 2;
        if (held(middle) > free) high = middle;
        else low = middle;
      }
      fits &&= held(0) <= free;
      if (held(WIDEST) > free) for (const made of path) most.set(made, Math.max(least.get(made), Math.min(Math.floor(low), most.get(made))));
    }
    for (const made of cards) made.style.width = fits ? `${Math.max(most.get(made), least.get(made))}px` : "";
    return fits;
  }

  function place() {
    if (!view.tree.getBoundingClientRect().width) return;
    const { paddingLeft, paddingRight } = getComputedStyle(stage);
    view.room = stage.clientWidth - parseFloat(paddingLeft) - parseFloat(paddingRight);
    view.tree.classList.remove("down");
    const down = view.room < NARROW || !fit();
    if (view.room < NARROW) for (const made of view.tree.querySelectorAll(".card")) made.style.width = "";
    view.tree.classList.toggle("down", down);
    const box = view.tree.getBoundingClientRect();
    const unit = Math.min(5, 26 / view.group.rewards.length);
    const used = new Map();
    const total = new Map();
    const leaving = view.links.filter((link) => link.size);
    for (const { from, size } of leaving) total.set(from, (total.get(from) || 0) + size);
    view.ribbons.setAttribute("viewBox", `0 0 ${box.width} ${box.height}`);
    view.ribbons.style.width = `${box.width}px`;
    view.ribbons.style.height = `${box.height}px`;
    view.ribbons.replaceChildren(...leaving.map(({ from, to, size }) => {
      const a = from.getBoundingClientRect(), b = to.getBoundingClientRect();
      const done = used.get(from) || 0;
      used.set(from, done + size);
      const path = document.createElementNS(NAMESPACE, "path");
      let route;
      if (down) {
        const x = a.left - box.left + 8, y = b.top + b.height / 2 - box.top;
        route = `M${x} ${a.bottom - box.top} V${y - 6} Q${x} ${y} ${x + 6} ${y} H${b.left - box.left}`;
      } else {
        const start = a.top + a.height / 2 - box.top + unit * (done + size / 2 - total.get(from) / 2);
        const x = a.right - box.left, x2 = b.left - box.left, y = b.top + b.height / 2 - box.top;
        route = `M${x} ${start} C${x + 20} ${start} ${Math.min(x2, x + 36) - 20} ${y} ${Math.min(x2, x + 36)} ${y} H${x2}`;
      }
      path.setAttribute("d", route);
      path.setAttribute("stroke-width", down ? Math.max(1.5, (unit * size) / 3) : Math.max(1.5, unit * size));
      return path;
    }));
  }
  new ResizeObserver(() => { if (view) place(); }).observe(stage);

  // -- the note on a token ---------------------------------------------------------------------------------------------
  const both = (stretch, j) => stretch.members.map((k) => [k, view.advantages.leaf[k][stretch.start + j], view.advantages.other[k][stretch.start + j]]);

  function spoken(stretch, j) {
    const values = both(stretch, j);
    return `“${stretch.texts[j]}”, token ${stretch.start + j}, surprisal ${stretch.nats[j].toFixed(2)} nats, in ${numbers(stretch.members)}, `
      + `LEAF ${range(values.map((one) => one[1]))}, ${title(other)} ${range(values.map((one) => one[2]))}`;
  }

  function explain(token, node = token?.node) {
    if (!token?.stretch) return hide();
    const { stretch, j } = token;
    const rows = new Map();
    for (const [k, a, b] of both(stretch, j)) {
      const key = `${signed(a)} ${signed(b)}`;
      if (!rows.has(key)) rows.set(key, { a, b, members: [] });
      rows.get(key).members.push(k);
    }
    const line = (name, a, b, kind = "tr") => element(kind, {}, element("th", { scope: "row" }, name), ...[a, b, a - b].map((value) => element("td.number", {}, signed(value))));
    const found = [...rows.values()];
    const values = both(stretch, j);
    tip.replaceChildren(
      element("div.what", {}, element("code", {}, stretch.texts[j] || "▫"), element("span.dim", {}, ` token ${stretch.start + j}`)),
      element("div", {}, `surprisal ${stretch.nats[j].toFixed(3)} nats, probability ${Math.exp(-stretch.nats[j]).toFixed(3)}`),
      element("table", {},
        element("tr", {}, element("th", {}, "advantage"), ...["LEAF", title(other), "difference"].map((name) => element("th.number", {}, name))),
        ...found.map(({ a, b, members }) => line(numbers(members), a, b)),
        found.length > 1 ? line("mean", mean(values.map((one) => one[1])), mean(values.map((one) => one[2])), "tr.mean") : null),
    );
    tip.hidden = false;
    const spot = node.getBoundingClientRect(), size = tip.getBoundingClientRect();
    const wide = document.documentElement.clientWidth, high = window.innerHeight;
    const above = spot.top - 10 - size.height;
    tip.style.left = `${Math.max(8, Math.min(spot.left, wide - size.width - 8))}px`;
    tip.style.top = `${above > 8 ? above : Math.max(8, Math.min(spot.bottom + 10, high - size.height - 8))}px`;
    return undefined;
  }
  function hide() { tip.hidden = true; }

  const tokenAt = (target) => view.byKey.get(target.closest?.("[data-token]")?.dataset.token);
  stage.addEventListener("mouseover", (event) => { explain(tokenAt(event.target), event.target); });
  stage.addEventListener("mouseleave", hide);
  stage.addEventListener("click", (event) => { focus(tokenAt(event.target)); });
  stage.addEventListener("focusin", (event) => {
    const token = tokenAt(event.target);
    if (!token) return;
    view.byKey.get(cursor ?? "root").node.tabIndex = -1;
    token.node.tabIndex = 0;
    cursor = token.key;
    explain(token);
  });
  stage.addEventListener("focusout", hide);
  // The note moves along with a token that is focused, and leaves one that was under the mouse.
  document.addEventListener("scroll", () => { if (!tip.hidden) explain(tokenAt(document.activeElement)); }, { passive: true, capture: true });

  function focus(token, scroll = true) {
    if (!token) return;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    token.node.focus({ preventScroll: true });
    if (scroll) token.node.scrollIntoView({ block: "nearest", inline: "nearest", behavior: still ? "auto" : "smooth" });
    explain(token);
  }

  // -- keys ------------------------------------------------------------------------------------------------------------
  // Left and right walk along a completion; up and down go to the stretch drawn above or below.
  function walk(token, key) {
    if (key === "Home") return view.tokens[0];
    if (key === "End") return view.tokens.at(-1);
    if (key === "ArrowLeft") return token.above;
    if (key === "ArrowRight") return token.below[0];
    const starts = view.tokens.filter((one) => !one.stretch || one.j === 0);
    const here = starts.findLastIndex((one) => view.tokens.indexOf(one) <= view.tokens.indexOf(token));
    return key === "ArrowDown" ? starts[here + 1] : token === starts[here] ? starts[here - 1] : starts[here];
  }
  const keys = {
    n: step(1, "group"), p: step(-1, "group"), N: step(1, "step"), P: step(-1, "step"),
    a: () => sound.querySelector(".player button")?.click(), Escape: hide,
  };
  ["first", "second", "both", "difference"].forEach((name, i) => { keys[i + 1] = () => { mode = name; draw(); }; });
  document.addEventListener("keydown", (event) => {
    if (root.hidden || event.ctrlKey || event.altKey || event.metaKey || event.target.closest?.("select, input, textarea")) return;
    const token = stage.contains(event.target) ? tokenAt(event.target) : undefined;
    if (token && /^(Arrow|Home|End)/.test(event.key)) focus(walk(token, event.key));
    else if (Object.hasOwn(keys, event.key)) keys[event.key]();
    else return;
    event.preventDefault();
  });
  addEventListener("hashchange", fromAddress);
  fromAddress();
});
