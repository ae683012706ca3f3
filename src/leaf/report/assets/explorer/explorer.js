"use strict";
// The tree explorer: which group and whose credit are shown. The address is #trees/run/step/group; credit, texts and
// recordings come from leaf.report.explorer.
(() => {
  const { element } = leaf;
  const MODES = ["first", "second", "both", "difference"]; // LEAF's credit, the other rule's, both, LEAF's minus its
  const KEYS = [
    ["←↑↓→", "walk through the tokens"],
    ["n p", "next and previous group"],
    ["N P", "next and previous step"],
    ["1 2 3 4", "whose credit"],
    ["a", "play the audio"],
    ["Esc", "close the note on a token"],
  ];
  const SIGNS =
    "V̂ is the mean reward of the n completions that share a prefix. A token that several completions share has the " +
    "tint of their mean advantage; ⌀ marks a mean. ┃ is a boundary, ◆ a node that LEAF retains, ◇ another fork, " +
    "■ the end of the sequence. The more completions a ribbon carries, the wider it is.";

  const WEIGHTS =
    " The completions are distinct: p is the probability of each, w its weight, which V̂ has too. The mass of a " +
    "branch is the probability of its completions, of what the policy says there in all.";

  const select = (label, onchange) => element("select", { "aria-label": label, onchange });
  const option = (value, text) => element("option", { value }, text);
  const arrow = (text, label, onclick) =>
    element("button.arrow", { type: "button", "aria-label": label, onclick }, text);

  class Explorer {
    constructor(root, data) {
      this.root = root;
      this.data = data;
      this.titles = new Map(data.rules);
      this.shown = data.runs.flatMap((run, r) => run.groups.map((group) => ({ r, group })));
      this.at = 0; // the group, among those shown
      this.mode = "first";
      this.other = "grpo"; // the rule that LEAF is compared with
      this.cursor = null; // key of the token that has the focus
      this.drawn = null;
      this.build();
      this.listen();
      this.openAddress();
    }

    // -- the parts that stay ---------------------------------------------------------------------------------------
    build() {
      this.note = element("p.note", { role: "status" });
      this.weights = element("span");
      this.heading = element("h2");
      this.facts = element("dl.facts");
      this.sound = element("div.sound");
      this.legend = element("div.legend");
      this.stage = element("div.stage");
      this.tip = new TokenNote();
      const keys = KEYS.flatMap(([key, what], i) => [i ? ", " : "", element("kbd", {}, key), ` ${what}`]);
      this.root.append(
        this.buildChoice(),
        this.note,
        element("div.about", {}, element("div", {}, this.heading, this.facts), this.sound),
        this.buildCredit(),
        this.stage,
        element("p.dim.keys", {}, ...keys, "."),
        element("p.dim.signs", {}, SIGNS, this.weights),
        this.tip.element,
      );
    }

    buildChoice() {
      this.runs = select("run", () => this.chooseRun(Number(this.runs.value)));
      this.steps = select("step", () => this.show(this.find(this.current.r, Number(this.steps.value), 0)));
      this.groups = select("group", () => this.show(Number(this.groups.value)));
      this.sample = element("p.dim.sample");
      this.runs.append(...this.data.runs.map((run, r) => option(r, run.name)));
      const stepper = (unit, choice) =>
        element(
          "span",
          {},
          element("label", {}, `${unit} `, choice),
          arrow("‹", `previous ${unit}`, () => this.move(-1, unit)),
          arrow("›", `next ${unit}`, () => this.move(1, unit)),
        );
      const runs = element("label", { hidden: this.data.runs.length < 2 }, "run ", this.runs);
      return element("div.choose", {}, runs, stepper("step", this.steps), stepper("group", this.groups), this.sample);
    }

    buildCredit() {
      this.modes = element("div.modes", { role: "group", "aria-label": "whose credit is shown" });
      this.against = select("rule to compare LEAF with", () => {
        this.other = this.against.value;
        this.draw();
      });
      return element("div.credit", {}, this.modes, element("label", {}, "against ", this.against), this.legend);
    }

    // -- which group -----------------------------------------------------------------------------------------------
    get current() {
      return this.shown[this.at];
    }

    find(r, step, number) {
      return this.shown.findIndex((one) => one.r === r && one.group.step === step && one.group.number === number);
    }

    // Another run is shown at the same step and group, if it recorded them.
    chooseRun(r) {
      const { step, number } = this.current.group;
      const same = this.find(r, step, number);
      this.show(same < 0 ? this.shown.findIndex((one) => one.r === r) : same);
    }

    move(by, unit) {
      const { r, group } = this.current;
      const sameStep = (one) => one?.r === r && one.group.step === group.step;
      let next = this.at + by;
      while (unit === "step" && sameStep(this.shown[next])) next += by;
      if (this.shown[next]?.r !== r) return;
      const beside = unit === "step" ? this.find(r, this.shown[next].group.step, group.number) : next;
      this.show(beside < 0 ? next : beside);
    }

    show(index) {
      this.note.textContent = "";
      this.at = index;
      this.cursor = null;
      if (location.hash !== this.address()) location.replace(this.address());
      this.draw();
    }

    address() {
      const { r, group } = this.current;
      return `#trees/${encodeURIComponent(this.data.runs[r].name)}/${group.step}/${group.number}`;
    }

    // Show what the address names.
    openAddress() {
      const [section, name, step, number] = location.hash.slice(1).split("/");
      if (section !== "trees" || name === undefined) {
        if (!this.drawn) this.openFirst();
        return;
      }
      if (this.drawn && location.hash === this.address()) return;
      let run = name;
      try {
        run = decodeURIComponent(name);
      } catch {
        // An address that was typed wrongly names no run.
      }
      const r = this.data.runs.findIndex((one) => one.name === run);
      const found = this.find(r, Number(step), Number(number || 0));
      if (found >= 0) {
        this.show(found);
        return;
      }
      if (!this.drawn) this.openFirst();
      const wanted = `${run}/${step || ""}/${number || ""}`;
      this.note.textContent = `This page has no group at ${wanted}, so it shows another one.`;
    }

    // The first run's last step, and there the first group from which something is learned.
    openFirst() {
      const last = this.shown.filter((one) => one.r === 0).at(-1).group.step;
      const candidates = this.shown.filter((one) => one.r === 0 && one.group.step === last);
      this.at = this.shown.indexOf(candidates.find((one) => !one.group.idle) || candidates[0]);
      this.draw();
    }

    // -- drawing ---------------------------------------------------------------------------------------------------
    title(rule) {
      const { credit } = this.data.runs[this.current.r];
      return rule === "recorded" ? `as recorded (${credit})` : this.titles.get(rule);
    }

    // The rules that LEAF can be compared with in a group.
    others(group) {
      return [...this.titles.keys(), "recorded"].filter((rule) => rule !== "leaf" && rule in group.credit);
    }

    draw() {
      const { group } = this.current;
      const focused = this.stage.contains(document.activeElement);
      if (!(this.other in group.credit)) this.other = this.others(group)[0];
      this.credit = new CreditView(group, this.mode, this.other, this.title(this.other));
      this.drawn = new DrawnTree(group, this.credit);
      if (!this.drawn.byKey.has(this.cursor)) this.cursor = null;
      this.focusable().node.tabIndex = 0;
      this.drawChoice();
      this.drawFacts();
      this.drawSound();
      this.drawModes();
      this.drawLegend();
      this.weights.textContent = group.draw ? WEIGHTS : "";
      const wanted = [element("span.dim", {}, "reference "), element("span", {}, group.reference)];
      const reference = group.reference === null ? [] : [element("p.reference", {}, ...wanted)];
      this.stage.replaceChildren(...reference, this.drawn.element);
      treeLayout.place(this.drawn, this.stage);
      this.tip.hide();
      if (focused) this.focus(this.drawn.byKey.get(this.cursor), false);
    }

    drawChoice() {
      const { r, group } = this.current;
      const run = this.data.runs[r];
      const steps = [...new Set(run.groups.map((one) => one.step))];
      const here = [...this.shown.entries()].filter(([, one]) => one.r === r && one.group.step === group.step);
      this.runs.value = r;
      this.steps.replaceChildren(...steps.map((step) => option(step, String(step))));
      this.steps.value = group.step;
      this.groups.replaceChildren(...here.map(([i, one]) => option(i, `${one.group.number}: ${one.group.id}`)));
      this.groups.value = this.at;
      const some = `${run.groups.length} of ${run.total} recorded groups`;
      this.sample.textContent =
        run.groups.length === run.total
          ? `all ${run.total} recorded groups`
          : `${some}: ${steps.length} of ${run.steps} recorded steps, evenly spaced`;
    }

    drawFacts() {
      const { r, group } = this.current;
      const trained = this.data.runs[r].credit;
      const boundaries = group.boundaries.join(", ") || "none";
      const rows = [
        ["prompt", group.prompt],
        ["spoken", group.spoken],
        ["credit", `trained with ${this.titles.get(trained) || trained}; LEAF's boundaries: ${boundaries}`],
      ];
      const known = rows.filter(([, value]) => value !== null && value !== "");
      this.heading.textContent = `${group.id}, step ${group.step}`;
      this.facts.replaceChildren(
        ...known.flatMap(([name, value]) => [element("dt", {}, name), element(`dd.${name}`, {}, value)]),
      );
    }

    drawSound() {
      if (this.sound.dataset.group === String(this.at)) return; // the recording plays on while the credit is switched
      const { clip, silence, id, files } = this.current.group;
      const names = files.join(", ");
      this.sound.dataset.group = this.at;
      this.sound.replaceChildren(
        clip === null
          ? element("p.dim.silence", {}, silence)
          : leaf.player(this.data.clips[clip], `recording of ${id}`),
        element("p.dim.files", { title: names }, names),
      );
    }

    drawModes() {
      const rules = this.others(this.current.group);
      this.against.replaceChildren(...rules.map((rule) => option(rule, this.title(rule))));
      this.against.value = this.other;
      const other = this.title(this.other);
      const names = { first: "LEAF", second: other, both: "both", difference: `LEAF − ${other}` };
      const button = (mode) => {
        const pressed = String(mode === this.mode);
        const onclick = () => this.setMode(mode);
        return element("button", { type: "button", "aria-pressed": pressed, "data-mode": mode, onclick }, names[mode]);
      };
      const focused = this.modes.contains(document.activeElement);
      this.modes.replaceChildren(...MODES.map(button));
      if (focused) this.modes.querySelector('[aria-pressed="true"]').focus();
    }

    setMode(mode) {
      this.mode = mode;
      this.draw();
    }

    drawLegend() {
      const { largest } = this.credit;
      const name = this.mode === "difference" ? "difference of advantages" : "advantage";
      if (!largest) {
        const { idle } = this.current.group; // why there is nothing to learn, or null
        this.legend.replaceChildren(`${name} 0 everywhere${idle === null ? "" : `: ${idle}`}`);
        return;
      }
      const cells = [-1, -0.5, -0.15, 0, 0.15, 0.5, 1].map((share) => {
        const cell = element("span.token", {}, share < 0 ? "−" : share > 0 ? "+" : "0");
        this.credit.tint(cell, share * largest);
        return cell;
      });
      this.legend.replaceChildren(
        element("span", {}, `${name} ${leaf.signed(-largest, 2)}`),
        element("span.scale", { "aria-hidden": "true" }, ...cells),
        element("span", {}, leaf.signed(largest, 2)),
      );
    }

    // -- mouse, focus and keys -------------------------------------------------------------------------------------
    // The one token that the tab key reaches.
    focusable() {
      return this.drawn.byKey.get(this.cursor ?? "root");
    }

    tokenAt(target) {
      return this.drawn.byKey.get(target.closest?.("[data-token]")?.dataset.token);
    }

    focus(token, scroll = true) {
      if (!token) return;
      const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
      token.node.focus({ preventScroll: true });
      if (scroll) {
        token.node.scrollIntoView({ block: "nearest", inline: "nearest", behavior: still ? "auto" : "smooth" });
      }
      this.tip.show(token, this.credit);
    }

    listen() {
      const { stage, tip } = this;
      stage.addEventListener("mouseover", (event) => tip.show(this.tokenAt(event.target), this.credit, event.target));
      stage.addEventListener("mouseleave", () => tip.hide());
      stage.addEventListener("click", (event) => this.focus(this.tokenAt(event.target)));
      stage.addEventListener("focusin", (event) => this.focused(this.tokenAt(event.target)));
      stage.addEventListener("focusout", () => tip.hide());
      // The note moves with a token that has the focus, and leaves one that was under the mouse.
      const onScroll = () => {
        if (!tip.element.hidden) tip.show(this.tokenAt(document.activeElement), this.credit);
      };
      document.addEventListener("scroll", onScroll, { passive: true, capture: true });
      document.addEventListener("keydown", (event) => this.keyed(event));
      addEventListener("hashchange", () => this.openAddress());
      new ResizeObserver(() => {
        if (this.drawn) treeLayout.place(this.drawn, stage);
      }).observe(stage);
    }

    focused(token) {
      if (!token) return;
      this.focusable().node.tabIndex = -1;
      token.node.tabIndex = 0;
      this.cursor = token.key;
      this.tip.show(token, this.credit);
    }

    keyed(event) {
      const typing = event.target.closest?.("select, input, textarea");
      if (this.root.hidden || event.ctrlKey || event.altKey || event.metaKey || typing) return;
      const token = this.stage.contains(event.target) ? this.tokenAt(event.target) : undefined;
      const actions = {
        n: () => this.move(1, "group"),
        p: () => this.move(-1, "group"),
        N: () => this.move(1, "step"),
        P: () => this.move(-1, "step"),
        a: () => this.sound.querySelector(".player button")?.click(),
        Escape: () => this.tip.hide(),
      };
      if (token && /^(Arrow|Home|End)/.test(event.key)) this.focus(this.drawn.walk(token, event.key));
      else if (/^[1-4]$/.test(event.key)) this.setMode(MODES[event.key - 1]);
      else if (Object.hasOwn(actions, event.key)) actions[event.key]();
      else return;
      event.preventDefault();
    }
  }

  leaf.section("trees", (root, data) => new Explorer(root, data));
})();
