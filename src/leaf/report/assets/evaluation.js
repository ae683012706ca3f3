"use strict";
// Scores, differences between two systems, and the items behind them. Data: leaf.report.evaluation.
leaf.section("evaluation", (root, data) => {
  const e = leaf.element, AT_ONCE = 20, NEAR = 0.005;
  let set, metric, a, b, shown;

  const number = (value, digits = 1) => (value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−"));
  const signed = (value, digits = 1) => (value > 0 ? "+" : "") + number(value, digits);
  const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
  const chosen = (options, label, change) => {
    const select = e("select", { onchange: () => change(select.value) }, ...options.map(([value, text]) => e("option", { value }, text)));
    return { select, field: e("label.field", {}, e("span", {}, label), select) };
  };

  // -- the difference of two texts, word by word ---------------------------------------------------------------------
  // A word is a run of letters and digits, with apostrophes and hyphens inside; any other sign stands alone, and so does
  // every character of the scripts that write without spaces.
  const UNSPACED = "\\p{Script=Han}\\p{Script=Hiragana}\\p{Script=Katakana}\\p{Script=Thai}";
  const WORD = "(?:(?![" + UNSPACED + "])[\\p{L}\\p{N}\\p{M}])+";
  const PIECES = new RegExp(`\\s+|${WORD}(?:['’-]${WORD})*|.`, "gu"), HAS_UNSPACED = new RegExp(`[${UNSPACED}]`, "u");
  function tokens(text) {
    const found = [];
    // The first word of one text may follow words of the other.
    let before = HAS_UNSPACED.test(text) ? "" : " ";
    for (const piece of text.match(PIECES) || []) {
      if (piece.trim()) found.push({ text: piece, key: set.lowercase ? piece.toLowerCase() : piece, before });
      before = piece.trim() ? "" : " ";
    }
    return found;
  }

  // Runs [{kind: "same" | "missing" | "extra", words}], missing before extra, from a longest common subsequence.
  function difference(reference, prediction) {
    const [r, p] = [tokens(reference), tokens(prediction)];
    let head = 0, tail = 0;
    while (head < r.length && head < p.length && r[head].key === p[head].key) head += 1;
    while (tail < Math.min(r.length, p.length) - head && r[r.length - 1 - tail].key === p[p.length - 1 - tail].key) tail += 1;
    const [x, y] = [r.slice(head, r.length - tail), p.slice(head, p.length - tail)];
    const runs = [];
    const add = (kind, token) => {
      const last = runs[runs.length - 1];
      if (last && last.kind === kind) last.words.push(token);
      else runs.push({ kind, words: [token] });
    };
    for (const token of p.slice(0, head)) add("same", token);
    const width = y.length + 1;
    if (x.length * y.length <= 400000) {
      const length = new Uint16Array((x.length + 1) * width);
      for (let i = x.length - 1; i >= 0; i -= 1) {
        for (let j = y.length - 1; j >= 0; j -= 1) {
          length[i * width + j] = x[i].key === y[j].key
            ? length[(i + 1) * width + j + 1] + 1
            : Math.max(length[(i + 1) * width + j], length[i * width + j + 1]);
        }
      }
      let i = 0, j = 0;
      while (i < x.length || j < y.length) {
        if (i < x.length && j < y.length && x[i].key === y[j].key) { add("same", y[j]); i += 1; j += 1; }
        else if (j === y.length || (i < x.length && length[(i + 1) * width + j] >= length[i * width + j + 1])) { add("missing", x[i]); i += 1; }
        else { add("extra", y[j]); j += 1; }
      }
    } else { // thousands of words on both sides: what lies between is taken as replaced
      for (const token of x) add("missing", token);
      for (const token of y) add("extra", token);
    }
    for (const token of p.slice(p.length - tail)) add("same", token);
    return runs;
  }

  function marked(reference, prediction) {
    const line = e("span.said", { dir: "auto" });
    if (!prediction.trim()) return e("span.said.dim", {}, "(said nothing)");
    if (!reference) { line.textContent = prediction; return line; }
    const runs = difference(reference, prediction);
    runs.forEach(({ kind, words: its }, at) => {
      const inside = its.map((token, i) => (i ? token.before : "") + token.text).join("");
      if (at) line.append(its[0].before);
      line.append({ same: inside, missing: e("del", {}, inside), extra: e("ins", {}, inside) }[kind]);
    });
    return line;
  }

  // -- scores --------------------------------------------------------------------------------------------------------
  // A line from low to high with a dot at the value, on the scale [from, to].
  function range(low, value, high, from, to, zero) {
    const at = (x) => `${(100 * (x - from)) / (to - from)}%`;
    return e(
      "span.range", { "aria-hidden": "true" },
      zero ? e("i.zero", { style: `left:${at(0)}` }) : null,
      e("i.bar", { style: `left:${at(low)};width:${(100 * (high - low)) / (to - from)}%` }),
      e("i.dot", { style: `left:${at(value)}` }),
    );
  }

  function scoreTable() {
    const several = set.passes.some((count) => count > 1);
    const rows = [];
    for (const one of set.metrics) {
      const known = one.scores.filter(Boolean);
      if (!known.length) continue;
      const lows = known.map((score) => score[1]), highs = known.map((score) => score[2]);
      const margin = Math.max((Math.max(...highs) - Math.min(...lows)) * 0.06, 0.5);
      const from = Math.min(...lows) - margin, to = Math.max(...highs) + margin;
      one.scores.forEach((score, at) => {
        if (!score) return;
        const [value, low, high, ...passes] = score;
        rows.push(e(
          at === one.scores.findIndex(Boolean) ? "tr.first" : "tr", {},
          e("th", { scope: "row", title: one.signature }, at === one.scores.findIndex(Boolean) ? one.name + (one.less ? " ↓" : "") : e("span.again", {}, one.name)),
          e("td.name", {}, mark(at), set.systems[at]),
          e("td.number", {}, number(value)),
          e("td.number.dim", {}, `${number(low)} to ${number(high)}`),
          e("td.graph", {}, range(low, value, high, from, to)),
          several ? e("td.number.dim.over", {}, passes.length > 1 ? `${number(Math.min(...passes))} to ${number(Math.max(...passes))}` : "") : null,
        ));
      });
    }
    return framed("scores", ["metric", "system", "score", "95 % interval", "", ...(several ? ["over passes"] : [])], rows);
  }

  const framed = (name, head, rows) => e(
    "div.scroll", { tabindex: "0", role: "region", "aria-label": name },
    e("table.scores", {}, e("thead", {}, e("tr", {}, ...head.map((text) => e(text === "over passes" ? "th.over" : "th", { scope: "col" }, text)))), e("tbody", {}, ...rows)),
  );

  const mark = (at) => (at === a && b !== a ? e("b.side.a", { title: "the first of the two compared" }, "A") : at === b && b !== a ? e("b.side.b", { title: "the second of the two compared" }, "B") : e("b.side", {}));

  // [difference, low, high, p] of B against A; the data have one direction only.
  function against(one) {
    const forward = one.differences[`${a}-${b}`], back = one.differences[`${b}-${a}`];
    if (forward) return forward;
    return back ? [-back[0], -back[2], -back[1], back[3]] : null;
  }

  function differenceTable() {
    const rows = [];
    for (const one of set.metrics) {
      const found = against(one);
      if (!found) continue;
      const [value, low, high, p] = found;
      const most = Math.max(Math.abs(low), Math.abs(high), 0.1) * 1.08;
      const better = one.less ? -1 : 1;
      const verdict = low * better > 0 ? "better" : high * better < 0 ? "worse" : "could be chance";
      rows.push(e(
        "tr", {},
        e("th", { scope: "row", title: one.signature }, one.name + (one.less ? " ↓" : "")),
        e("td.number", {}, signed(value)),
        e("td.number.dim", {}, `${signed(low)} to ${signed(high)}`),
        e("td.graph", {}, range(low, value, high, -most, most, true)),
        e("td.number.dim", {}, p < 0.001 ? "< 0.001" : p.toFixed(3)),
        e("td", {}, verdict),
      ));
    }
    if (!rows.length) return e("p.dim", {}, "Nothing was scored for both of them.");
    return framed("differences", ["metric", "B − A", "95 % interval", "", "p", "B is"], rows);
  }

  // -- items ---------------------------------------------------------------------------------------------------------
  const score = (i, system) => (metric ? metric.items[system][i] : null);
  const change = (i) => {
    const [before, after] = [score(i, a), score(i, b)];
    return before === null || after === null ? null : (after - before) * (metric.less ? -1 : 1);
  };
  const outcome = (i) => {
    const by = change(i);
    return by === null ? "unscored" : by > NEAR ? "better" : by < -NEAR ? "worse" : "same";
  };
  const two = () => a !== b;

  function sides(item) {
    const reference = item.reference || "";
    const list = two() ? [a, b] : [a];
    const same = two() && item.said[a].length === item.said[b].length && item.said[a].every((text, pass) => text === item.said[b][pass]);
    const line = (system, label, pass) => {
      const text = item.said[system][pass];
      const right = reference && text.trim().split(/\s+/).join(" ") === reference.trim().split(/\s+/).join(" ");
      return e(
        "div.line", {},
        label,
        e("span.text", {}, marked(reference, text), right ? e("span.tag.right", {}, "✓ as the reference") : null, item.cut[system][pass] ? e("span.tag", {}, "cut by the length limit") : null),
      );
    };
    const label = (system) => e("span.label", {}, two() ? mark(system) : null, e("span", {}, set.systems[system]));
    const both = e("span.label", {}, mark(a), mark(b), e("span", {}, "the same"));
    const lines = (same ? [[a, both]] : list.map((system) => [system, label(system)])).map(([system, its]) => {
      const box = e("div.system", {}, line(system, its, 0));
      const more = item.said[system].length - 1;
      if (more > 0) {
        const alike = item.said[system].slice(1).filter((text) => text === item.said[system][0]).length;
        const how = alike === more ? ", the same" : alike ? `, ${alike} the same` : "";
        const rest = e("details.passes", {}, e("summary", {}, plural(more, "more pass", "more passes") + how));
        rest.addEventListener("toggle", () => {
          if (rest.open && rest.children.length === 1) for (let pass = 1; pass <= more; pass += 1) rest.append(line(system, e("span.label", {}, `pass ${pass + 1}`), pass));
        });
        box.append(rest);
      }
      return box;
    });
    return lines;
  }

  function card(i) {
    const item = set.items[i];
    const by = two() && metric ? change(i) : null;
    const kind = two() && metric ? outcome(i) : "";
    const scores = metric
      ? e("span.scored", {}, e("span.dim", {}, metric.name), " ", two()
        ? `${number(score(i, a))} → ${number(score(i, b))}` : number(score(i, a)), " ", by === null ? null : e(`b.by.${kind}`, {}, kind === "same" ? "=" : `${kind === "better" ? "▲" : "▼"} ${signed(score(i, b) - score(i, a))}`))
      : null;
    const others = set.metrics.filter((one) => one !== metric && (one.items[a][i] !== null || one.items[b][i] !== null));
    const verdicts = set.verdicts.flatMap((one) => {
      const names = { win: "is better", loss: "is worse", tie: "is as good", inconsistent: "undecided, the orders disagree", failed: "no readable verdict" };
      return one.items[i].map((verdict) => `judge: ${set.systems[one.a]} against ${set.systems[one.b]} ${names[verdict] || verdict}`);
    });
    const player = item.clip === null || item.clip === undefined
      ? (data.audio ? e("p.silent.dim", {}, "its recording is not in this page") : null)
      : leaf.player(set.clips[item.clip], `recording of ${item.id}`);
    return e(
      "li.item", { "data-id": item.id },
      e("div.top", {}, e("code.id", {}, item.id), item.kind ? e("span.kind.dim", {}, item.kind) : null, scores),
      item.prompt ? e("div.line.asked", {}, e("span.label", {}, "prompt"), e("span.text", { dir: "auto" }, item.prompt)) : null,
      item.text && item.text !== item.reference ? e("div.line", {}, e("span.label", {}, "spoken"), e("span.text", { dir: "auto" }, item.text)) : null,
      item.reference ? e("div.line", {}, e("span.label", {}, "reference"), e("span.text.reference", { dir: "auto" }, item.reference)) : null,
      ...sides(item),
      player,
      others.length || verdicts.length
        ? e("details.more", {}, e("summary", {}, "other scores"), e("ul", {}, ...others.map((one) => e("li", {}, `${one.name} ${[...new Set([a, b])].map((system) => number(one.items[system][i])).join(" → ")}`)), ...verdicts.map((text) => e("li", {}, text))))
        : null,
    );
  }

  const searched = (item) => {
    const texts = [item.id, item.kind, item.prompt, item.text, item.reference, ...item.said[a], ...item.said[b]];
    return texts.filter(Boolean).join("\n").toLowerCase();
  };
  const nulls = (value) => (value === null ? -Infinity : value);
  const good = (i, system) => (score(i, system) === null ? null : score(i, system) * (metric.less ? -1 : 1));
  const SORTS = {
    gain: ["most improved first", (i) => nulls(change(i)), true],
    loss: ["most worsened first", (i) => nulls(change(i) === null ? null : -change(i)), true],
    worst: ["worst first", (i) => nulls(good(i, b) === null ? null : -good(i, b)), false],
    best: ["best first", (i) => nulls(good(i, b)), false],
    file: ["as in the file", null, false],
  };

  const state = { text: "", only: "all", kind: "", sort: "gain", heard: false };
  const found = () => {
    const wanted = state.text.toLowerCase().split(/\s+/).filter(Boolean);
    const list = set.items.map((_, i) => i).filter((i) => {
      const item = set.items[i];
      return (state.only === "all" || outcome(i) === state.only) && (!state.kind || item.kind === state.kind)
        && (!state.heard || (item.clip !== null && item.clip !== undefined))
        && (!wanted.length || wanted.every((word) => searched(item).includes(word)));
    });
    const key = SORTS[state.sort][1];
    return key ? list.map((i) => [key(i), i]).sort((x, y) => (y[0] === x[0] ? x[1] - y[1] : y[0] > x[0] ? 1 : -1)).map(([, i]) => i) : list;
  };

  const mean = (list, system) => {
    const values = list.map((i) => score(i, system)).filter((value) => value !== null);
    return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
  };

  // -- the page ------------------------------------------------------------------------------------------------------
  const tables = e("div.tables"), bar = e("div.outcomes", { role: "group", "aria-label": "items by outcome" });
  const legend = e("p.dim.legend", {}, "Against the reference: ", e("ins", {}, "said instead"), " and ", e("del", {}, "missing"), ".");
  const list = e("ol.items"), count = e("p.count", { "aria-live": "polite" }), more = e("button.further", { type: "button" });
  const controls = e("div.controls"), filters = e("div.controls.filters"), heard = e("p.dim.heard"), notes = e("details.notes");

  function drawItems() {
    const all = found();
    shown = Math.min(shown, Math.max(all.length, AT_ONCE));
    list.replaceChildren(...all.slice(0, shown).map(card));
    const means = metric && all.length
      ? `; mean of their ${metric.name}: ${[...new Set([a, b])].map((system) => number(mean(all, system))).join(" → ")}` : "";
    count.textContent = `${plural(all.length, "item")} of ${set.items.length.toLocaleString("en")}${means}`;
    more.hidden = all.length <= shown;
    more.textContent = `show ${Math.min(AT_ONCE, all.length - shown)} more`;
    more.onclick = () => {
      const from = shown;
      shown += AT_ONCE;
      list.append(...all.slice(from, shown).map(card));
      more.hidden = all.length <= shown;
      more.textContent = `show ${Math.min(AT_ONCE, all.length - shown)} more`;
      const first = list.children[from];
      first.tabIndex = -1;
      first.focus({ preventScroll: true });
    };
  }

  function drawOutcomes() {
    bar.hidden = !two() || !metric;
    if (bar.hidden) { state.only = "all"; return; }
    const counts = { better: 0, same: 0, worse: 0, unscored: 0 };
    set.items.forEach((_, i) => { counts[outcome(i)] += 1; });
    const button = (kind, text, size) => e("button", {
      type: "button", class: `outcome ${kind}`, "aria-pressed": String(state.only === kind), style: `flex-grow:${size}`,
      onclick: (event) => {
        state.only = state.only === kind ? "all" : kind;
        again();
        bar.querySelector(`.${kind}`).focus();
        event.preventDefault();
      },
    }, text);
    bar.replaceChildren(
      ...["better", "same", "worse", "unscored"].filter((kind) => counts[kind]).map((kind) => button(kind, `${{ better: "▲ ", worse: "▼ ", same: "= ", unscored: "" }[kind]}${counts[kind]} ${kind}`, counts[kind])),
    );
  }

  function again() {
    shown = AT_ONCE;
    drawOutcomes();
    drawItems();
  }

  function drawTables() {
    tables.replaceChildren(e("div", {}, e("h2", {}, "Scores"), scoreTable()));
    if (two()) tables.append(e("div", {}, e("h2", {}, "B against A"), differenceTable()));
  }

  function drawFilters() {
    const search = e("input", { type: "search", placeholder: "words in prompt, speech, answers, id", value: state.text, oninput: () => { state.text = search.value; shown = AT_ONCE; drawItems(); } });
    const sorts = Object.entries(SORTS).filter(([name, [, key, pair]]) => (two() || !pair) && (metric || !key));
    if (!sorts.some(([name]) => name === state.sort)) state.sort = sorts[0][0];
    const sort = chosen(sorts.map(([name, [text]]) => [name, text]), "order", (value) => { state.sort = value; shown = AT_ONCE; drawItems(); });
    sort.select.value = state.sort;
    const kinds = [...new Set(set.items.map((item) => item.kind).filter(Boolean))].sort();
    if (!kinds.includes(state.kind)) state.kind = "";
    const kind = chosen([["", "all"], ...kinds.map((name) => [name, name])], "kind", (value) => { state.kind = value; shown = AT_ONCE; drawItems(); });
    kind.select.value = state.kind;
    const box = e("input", { type: "checkbox", onchange: () => { state.heard = box.checked; shown = AT_ONCE; drawItems(); } });
    box.checked = state.heard;
    filters.replaceChildren(
      e("label.field.search", {}, e("span", {}, "search"), search), sort.field,
      ...(kinds.length > 1 ? [kind.field] : []),
      ...(set.clips.length ? [e("label.check", {}, box, "with recording")] : []),
    );
  }

  function drawControls() {
    const sets = chosen(data.sets.map((one, i) => [i, one.title]), "items", (value) => open(Number(value)));
    sets.select.value = String(data.sets.indexOf(set));
    const systems = set.systems.map((name, i) => [i, name]);
    const pick = (label, at, change) => {
      const made = chosen(systems, label, (value) => { change(Number(value)); draw(); });
      made.select.value = String(at);
      made.select.dataset.side = label;
      return made.field;
    };
    const metrics = chosen(set.metrics.map((one, i) => [i, one.name]), "score of an item", (value) => { metric = set.metrics[value]; draw(); });
    metrics.select.value = String(set.metrics.indexOf(metric));
    const swap = e("button.swap", { type: "button", onclick: () => { [a, b] = [b, a]; draw(); controls.querySelector(".swap").focus(); } }, "swap");
    const held = document.activeElement && controls.contains(document.activeElement) ? [...controls.querySelectorAll("select, button")].indexOf(document.activeElement) : -1;
    controls.replaceChildren(
      ...(data.sets.length > 1 ? [sets.field] : []),
      ...(systems.length > 1 ? [pick("A", a, (value) => { a = value; }), pick("B", b, (value) => { b = value; }), swap] : []),
      ...(set.metrics.length ? [metrics.field] : []),
    );
    if (held >= 0) controls.querySelectorAll("select, button")[held].focus();
  }

  function drawNotes() {
    const { full, missing, unreadable } = set.lost;
    const with_ = set.items.filter((item) => item.clip !== null && item.clip !== undefined).length;
    const said = [];
    if (!data.audio) said.push("This page was made without recordings.");
    else {
      said.push(with_ ? `${plural(with_, "item")} of ${set.items.length.toLocaleString("en")} can be heard (${(data.sets.reduce((sum, one) => sum + one.bytes, 0) / 1e6).toFixed(2)} MB of recordings in this page).` : "No item can be heard.");
      if (full) said.push(`For ${plural(full, "further one")} there was no room; the most improved, most worsened, worst and best were taken first.`);
      if (missing) said.push(`For ${plural(missing, "item")} no recording was found: give the run that holds their task, where its files are.`);
      if (unreadable) said.push(`The ${unreadable === 1 ? "recording" : "recordings"} of ${plural(unreadable, "item")} could not be read.`);
    }
    if (set.items.length < set.total) said.push(`Listed are the ${set.items.length.toLocaleString("en")} of ${set.total.toLocaleString("en")} items with the largest changes, the lowest and the highest scores; all of them count in the scores.`);
    heard.textContent = said.join(" ");
    notes.replaceChildren(
      e("summary", {}, "what was compared, and what reproduces it"),
      e("ul", {}, ...set.notes.map((text) => e("li", {}, text)), ...set.metrics.map((one) => e("li", {}, `${one.name}: ${one.signature}${one.less ? ", less is better" : ""}`)),
        e("li", {}, "An item's own BLEU is sentence BLEU (effective order), as in the reward; the score of a system is corpus BLEU, so it is not the mean of its items.")),
    );
  }

  function draw() {
    drawControls();
    drawTables();
    drawNotes();
    drawFilters();
    again();
  }

  function open(number_) {
    set = data.sets[number_];
    metric = set.metrics[0] || null;
    [a, b] = [0, set.systems.length - 1];
    draw();
  }

  root.append(controls, tables, notes, e("h2", {}, "Items"), bar, filters, heard, legend, count, list, more);
  open(0);
});
