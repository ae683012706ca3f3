"use strict";
// Scores, differences between two systems, and the items behind them. The data come from leaf.report.evaluation.
(() => {
  const e = leaf.element;
  const AT_ONCE = 20; // items
  const SIGNS = { better: "▲ ", same: "= ", worse: "▼ ", unscored: "" };
  const BLEU =
    "The BLEU of an item is sentence BLEU (effective order), as in the reward. The BLEU of a system is corpus BLEU, " +
    "so it is not the mean of its items.";

  const count = (number) => number.toLocaleString("en");
  const plural = (number, what) => `${count(number)} ${what}${number === 1 ? "" : "s"}`;

  // A labelled list to choose from; `options` are [value, text].
  function choice(label, options, value, onchoose, attributes = {}) {
    const select = e(
      "select",
      { ...attributes, onchange: () => onchoose(select.value) },
      ...options.map(([option, text]) => e("option", { value: option }, text)),
    );
    select.value = String(value);
    return e("label.field", {}, e("span", {}, label), select);
  }

  class Evaluation {
    constructor(root, data) {
      this.data = data;
      this.choice = new ItemChoice();
      this.controls = e("div.controls");
      this.tables = e("div.tables");
      this.notes = e("details.notes");
      this.outcomes = e("div.outcomes", { role: "group", "aria-label": "items by outcome" });
      this.filters = e("div.controls.filters");
      this.heard = e("p.dim.heard");
      this.count = e("p.count", { "aria-live": "polite" });
      this.list = e("ol.items");
      this.more = e("button.further", { type: "button", onclick: () => this.drawMore() });
      const legend = ["Against the reference: ", e("ins", {}, "added"), " and ", e("del", {}, "missing"), " words."];
      root.append(
        this.controls,
        this.tables,
        this.notes,
        e("h2", {}, "Items"),
        this.outcomes,
        this.filters,
        this.heard,
        e("p.dim.legend", {}, ...legend),
        this.count,
        this.list,
        this.more,
      );
      this.compare(new Comparison(data.sets[0]));
    }

    compare(comparison) {
      this.comparison = comparison;
      this.drawControls();
      this.drawTables();
      this.drawNotes();
      this.drawRecordings();
      this.drawFilters();
      this.drawOutcomes();
      this.drawItems();
    }

    // -- what is compared ------------------------------------------------------------------------------------------
    drawControls() {
      const { set, metric } = this.comparison;
      const { sets } = this.data;
      const titles = sets.map((one, i) => [i, one.title]);
      const rating = Comparison.rating(set);
      const metrics = rating.map((one, i) => [i, one.name]);
      const parts = [];
      if (sets.length > 1) {
        const open = (i) => this.compare(new Comparison(sets[i]));
        parts.push(choice("items", titles, sets.indexOf(set), open));
      }
      if (set.systems.length > 1) parts.push(...this.systemChoices());
      if (metrics.length) {
        const rate = (i) => this.change({ metric: rating[i] });
        parts.push(choice("score of an item", metrics, rating.indexOf(metric), rate));
      }
      const inputs = () => [...this.controls.querySelectorAll("select, button")];
      const focused = inputs().indexOf(document.activeElement);
      this.controls.replaceChildren(...parts);
      if (focused >= 0) inputs()[focused].focus(); // the keyboard continues where it was
    }

    systemChoices() {
      const { set, a, b } = this.comparison;
      const systems = set.systems.map((name, i) => [i, name]);
      const swap = () => this.change({ a: b, b: a });
      return [
        choice("A", systems, a, (i) => this.change({ a: Number(i) }), { "data-side": "A" }),
        choice("B", systems, b, (i) => this.change({ b: Number(i) }), { "data-side": "B" }),
        e("button.swap", { type: "button", onclick: swap }, "swap"),
      ];
    }

    // Compare other systems of the set, or by another metric.
    change(changes) {
      const { set, a, b, metric } = { ...this.comparison, ...changes };
      this.compare(new Comparison(set, a, b, metric));
    }

    drawTables() {
      const { comparison } = this;
      const part = (title, table) => e("div", {}, e("h2", {}, title), table);
      this.tables.replaceChildren(part("Scores", scoreTables.scores(comparison)));
      if (comparison.two) this.tables.append(part("B against A", scoreTables.differences(comparison)));
    }

    drawNotes() {
      const { notes, metrics } = this.comparison.set;
      const signatures = metrics.map((one) => `${one.name}: ${one.signature}${one.less ? ", less is better" : ""}`);
      const lines = [...notes, ...signatures, BLEU].map((text) => e("li", {}, text));
      const summary = e("summary", {}, "what was compared, and how to reproduce it");
      this.notes.replaceChildren(summary, e("ul", {}, ...lines));
    }

    drawRecordings() {
      const { items, total } = this.comparison.set;
      const said = this.data.audio ? this.aboutRecordings() : ["This page was made without recordings."];
      if (items.length < total) {
        said.push(
          `The list has ${count(items.length)} of ${count(total)} items, those with the largest changes, the lowest ` +
            "and the highest scores. The scores are over all items.",
        );
      }
      this.heard.textContent = said.join(" ");
    }

    aboutRecordings() {
      const { items, lost } = this.comparison.set;
      const heard = items.filter((item) => item.clip !== null).length;
      const megabytes = this.data.sets.reduce((sum, set) => sum + set.bytes, 0) / 1e6;
      const size = `${megabytes.toFixed(2)} MB of recordings in this page`;
      const said = [
        heard ? `${plural(heard, "item")} of ${count(items.length)} can be heard (${size}).` : "No item can be heard.",
      ];
      if (lost.full) {
        said.push(
          `There was no room for the recordings of ${plural(lost.full, "more item")}; the most improved, most ` +
            "worsened, worst and best items came first.",
        );
      }
      if (lost.missing) {
        said.push(
          `No recording was found for ${plural(lost.missing, "item")}: add a run whose task has them to the report, ` +
            "where its files are.",
        );
      }
      if (lost.unreadable) said.push(`The recordings of ${plural(lost.unreadable, "item")} could not be read.`);
      return said;
    }

    // -- which items -----------------------------------------------------------------------------------------------
    drawFilters() {
      const { set } = this.comparison;
      const state = this.choice;
      const setter = (field) => (value) => {
        state[field] = value;
        this.drawItems();
      };
      const orders = state.orders(this.comparison);
      if (!orders.some(([name]) => name === state.order)) [[state.order]] = orders;
      const kinds = [...new Set(set.items.map((item) => item.kind).filter(Boolean))].sort();
      if (!kinds.includes(state.kind)) state.kind = "";
      const parts = [this.searchField(setter("text")), choice("order", orders, state.order, setter("order"))];
      if (kinds.length > 1) {
        const options = [["", "all"], ...kinds.map((name) => [name, name])];
        parts.push(choice("kind", options, state.kind, setter("kind")));
      }
      if (set.clips.length) {
        const onchange = (event) => setter("heard")(event.target.checked);
        const box = e("input", { type: "checkbox", checked: state.heard, onchange });
        parts.push(e("label.check", {}, box, "with recording"));
      }
      this.filters.replaceChildren(...parts);
    }

    searchField(onsearch) {
      const placeholder = "words in prompt, speech, answers, id";
      const oninput = (event) => onsearch(event.target.value);
      const input = e("input", { type: "search", placeholder, value: this.choice.text, oninput });
      return e("label.field.search", {}, e("span", {}, "search"), input);
    }

    // A bar of buttons as wide as their items are many; a second click on one shows all items again.
    drawOutcomes() {
      const { comparison } = this;
      this.outcomes.hidden = !comparison.two || !comparison.metric;
      if (this.outcomes.hidden) {
        this.choice.outcome = "all";
        return;
      }
      const outcomes = [...comparison.set.items.keys()].map((i) => comparison.outcome(i));
      const button = (kind) => {
        const size = outcomes.filter((outcome) => outcome === kind).length;
        const chosen = this.choice.outcome === kind;
        const onclick = () => {
          this.choice.outcome = chosen ? "all" : kind;
          this.drawOutcomes();
          this.drawItems();
          this.outcomes.querySelector(`.${kind}`).focus();
        };
        const look = { class: `outcome ${kind}`, style: `flex-grow:${size}`, "aria-pressed": String(chosen) };
        return size ? e("button", { type: "button", ...look, onclick }, `${SIGNS[kind]}${size} ${kind}`) : "";
      };
      this.outcomes.replaceChildren(...Object.keys(SIGNS).map(button));
    }

    // -- the list --------------------------------------------------------------------------------------------------
    drawItems() {
      const { comparison } = this;
      const { metric, set } = comparison;
      this.items = this.choice.items(comparison);
      this.list.replaceChildren();
      this.appendItems();
      const digits = metric?.digits ?? 1;
      const means = comparison.systems.map((system) => leaf.number(comparison.mean(this.items, system), digits));
      const about = metric && this.items.length ? `; mean of their ${metric.name}: ${means.join(" → ")}` : "";
      this.count.textContent = `${plural(this.items.length, "item")} of ${count(set.items.length)}${about}`;
    }

    appendItems() {
      const shown = this.list.children.length;
      const next = this.items.slice(shown, shown + AT_ONCE);
      this.list.append(...next.map((i) => itemCard(this.comparison, i, this.data.audio)));
      const left = this.items.length - shown - next.length;
      this.more.hidden = left === 0;
      this.more.textContent = `show ${Math.min(AT_ONCE, left)} more`;
    }

    drawMore() {
      const first = this.list.children.length;
      this.appendItems();
      const card = this.list.children[first];
      card.tabIndex = -1;
      card.focus({ preventScroll: true });
    }
  }

  leaf.section("evaluation", (root, data) => new Evaluation(root, data));
})();
