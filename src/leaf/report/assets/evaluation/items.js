"use strict";
// A card of one item: what was asked, what the systems answered, how that was rated, and its recording.
const itemCard = (() => {
  const e = leaf.element;
  const VERDICTS = {
    win: (a, b) => `${a} is better than ${b}`,
    loss: (a, b) => `${a} is worse than ${b}`,
    tie: (a, b) => `${a} is as good as ${b}`,
    inconsistent: (a, b) => `undecided between ${a} and ${b}, because the two orders gave different verdicts`,
    failed: (a, b) => `no readable verdict on ${a} and ${b}`,
  };

  const folded = (text) => text.trim().split(/\s+/).join(" ");
  const scoresOf = (comparison, i, metric) =>
    comparison.systems.map((system) => leaf.number(metric.items[system][i], metric.digits ?? 1)).join(" → ");

  function top(comparison, item, i) {
    const id = e("code.id", {}, item.id);
    const kind = item.kind ? e("span.kind.dim", {}, item.kind) : null;
    return e("div.top", {}, id, kind, comparison.metric ? rating(comparison, i) : null);
  }

  function rating(comparison, i) {
    const { metric } = comparison;
    const made = e("span.scored", {}, e("span.dim", {}, metric.name), " ", scoresOf(comparison, i, metric));
    if (comparison.two && comparison.gain(i) !== null) {
      const outcome = comparison.outcome(i);
      const by = comparison.score(i, comparison.b) - comparison.score(i, comparison.a);
      const change = leaf.signed(by, metric.digits ?? 1);
      const text = { same: "=", better: `▲ ${change}`, worse: `▼ ${change}` }[outcome];
      made.append(" ", e(`b.by.${outcome}`, {}, text));
    }
    return made;
  }

  function given(label, text, kind = "span.text") {
    return text ? e("div.line", {}, e("span.label", {}, label), e(kind, { dir: "auto" }, text)) : null;
  }

  // All that are right; the first one is what an answer is marked against, unless it matches another.
  const referencesOf = (item) => item.references || (item.reference ? [item.reference] : []);

  function answer(comparison, item, system, pass, ...label) {
    const said = item.said[system][pass];
    const right = referencesOf(item).find((text) => folded(said) === folded(text));
    const reference = right || item.reference || "";
    const text = e(
      "span.text",
      {},
      words.marked(reference, said, comparison.set.lowercase),
      right ? e("span.tag.right", {}, "✓ matches the reference") : null,
      item.cut[system][pass] ? e("span.tag", {}, "cut by the length limit") : null,
    );
    return e("div.line", {}, e("span.label", {}, ...label), text);
  }

  // The passes after the first, which are many: drawn when they are opened.
  function furtherPasses(comparison, item, system) {
    const [first, ...others] = item.said[system];
    const alike = others.filter((text) => text === first).length;
    const how = alike === others.length ? ", the same" : alike ? `, ${alike} the same` : "";
    const summary = `${others.length} more pass${others.length === 1 ? "" : "es"}${how}`;
    const made = e("details.passes", {}, e("summary", {}, summary));
    const draw = () => {
      made.append(...others.map((_, i) => answer(comparison, item, system, i + 1, `pass ${i + 2}`)));
    };
    made.addEventListener("toggle", draw, { once: true });
    return made;
  }

  function answers(comparison, item) {
    const { a, b, two, set } = comparison;
    const box = (system, ...label) =>
      e(
        "div.system",
        {},
        answer(comparison, item, system, 0, ...label),
        item.said[system].length > 1 ? furtherPasses(comparison, item, system) : null,
      );
    if (two && JSON.stringify(item.said[a]) === JSON.stringify(item.said[b])) {
      return [box(a, comparison.mark(a), comparison.mark(b), e("span", {}, "the same"))];
    }
    return comparison.systems.map((system) =>
      box(system, two ? comparison.mark(system) : null, e("span", {}, set.systems[system])),
    );
  }

  function otherScores(comparison, i) {
    const { set, metric, a, b } = comparison;
    const scored = set.metrics.filter(
      (one) => one !== metric && (one.items[a][i] !== null || one.items[b][i] !== null),
    );
    const scores = scored.map((one) => `${one.name} ${scoresOf(comparison, i, one)}`);
    const verdicts = set.verdicts.flatMap((one) =>
      one.items[i].map((verdict) => `judge: ${VERDICTS[verdict](set.systems[one.a], set.systems[one.b])}`),
    );
    const lines = [...scores, ...verdicts].map((text) => e("li", {}, text));
    return lines.length ? e("details.more", {}, e("summary", {}, "other scores"), e("ul", {}, ...lines)) : null;
  }

  function recording(set, item, audio) {
    if (item.clip !== null) return leaf.player(set.clips[item.clip], `recording of ${item.id}`);
    return audio ? e("p.silent.dim", {}, "its recording is not in this page") : null;
  }

  // `audio`: whether the page was made with recordings.
  return (comparison, i, audio) => {
    const { set } = comparison;
    const item = set.items[i];
    return e(
      "li.item",
      { "data-id": item.id },
      top(comparison, item, i),
      given("prompt", item.prompt),
      given("spoken", item.text === item.reference ? null : item.text),
      ...referencesOf(item).map((text) => given("reference", text, "span.text.reference")),
      ...answers(comparison, item),
      recording(set, item, audio),
      otherScores(comparison, i),
    );
  };
})();
