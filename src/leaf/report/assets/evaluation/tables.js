"use strict";
// The tables of scores and of differences between two systems.
const scoreTables = (() => {
  const e = leaf.element;
  // Rewards have units of their own, and say how many decimals they need.
  const number = (value, metric) => leaf.number(value, metric.digits ?? 1);
  const signed = (value, metric) => leaf.signed(value, metric.digits ?? 1);
  const smallest = (metric) => 10 ** -(metric.digits ?? 1);
  const titleOf = (metric) => metric.name + (metric.less ? " ↓" : "");

  function framed(label, headings, rows) {
    const heading = (text) => e(text === "over passes" ? "th.over" : "th", { scope: "col" }, text);
    const head = e("thead", {}, e("tr", {}, ...headings.map(heading)));
    return leaf.scrolling(label, e("table.scores", {}, head, e("tbody", {}, ...rows)));
  }

  // Of a single recording there is no interval and no p.
  const DASH = "–";
  const between = (low, high, write) => (low === null ? DASH : `${write(low)} to ${write(high)}`);

  // A line from low to high, if there are such, with a dot at the value, on the scale [from, to].
  function interval([value, low, high], [from, to], ...below) {
    const at = (x) => `${(100 * (x - from)) / (to - from)}%`;
    const width = `${(100 * (high - low)) / (to - from)}%`;
    const bar = low === null ? null : e("i.bar", { style: `left:${at(low)};width:${width}` });
    return e("span.range", { "aria-hidden": "true" }, ...below, bar, e("i.dot", { style: `left:${at(value)}` }));
  }

  // The ends of a scale for all intervals of a metric.
  function scale(metric) {
    const scores = metric.scores.filter(Boolean);
    const lowest = Math.min(...scores.map(([value, low]) => low ?? value));
    const highest = Math.max(...scores.map(([value, , high]) => high ?? value));
    const margin = Math.max((highest - lowest) * 0.06, 5 * smallest(metric));
    return [lowest - margin, highest + margin];
  }

  // `scores` of a metric: per system [value, low, high, value of each pass], or null.
  function scoreRows(metric, comparison, overPasses) {
    const first = metric.scores.findIndex(Boolean);
    const ends = scale(metric);
    return [...metric.scores.entries()].flatMap(([system, score]) => {
      if (!score) return [];
      const [value, low, high, ...passes] = score;
      const name = system === first ? titleOf(metric) : e("span.again", {}, metric.name);
      const reached = [Math.min(...passes), Math.max(...passes)].map((end) => number(end, metric));
      const range = passes.length > 1 ? reached.join(" to ") : "";
      return e(
        system === first ? "tr.first" : "tr",
        {},
        e("th", { scope: "row", title: metric.signature }, name),
        e("td.name", {}, comparison.mark(system), comparison.set.systems[system]),
        e("td.number", {}, number(value, metric)),
        e("td.number.dim", {}, between(low, high, (end) => number(end, metric))),
        e("td.graph", {}, interval([value, low, high], ends)),
        overPasses ? e("td.number.dim.over", {}, range) : null,
      );
    });
  }

  function scores(comparison) {
    const { metrics, passes } = comparison.set;
    const overPasses = passes.some((count) => count > 1);
    const scored = metrics.filter((metric) => metric.scores.some(Boolean));
    const rows = scored.flatMap((metric) => scoreRows(metric, comparison, overPasses));
    const headings = ["metric", "system", "score", "95 % interval", "", ...(overPasses ? ["over passes"] : [])];
    return framed("scores", headings, rows);
  }

  // An interval that holds 0 says nothing of which is better.
  function verdict(low, high, { less, neutral }) {
    if (low === null) return "a single recording";
    if (neutral && low > 0) return "B has more";
    if (neutral && high < 0) return "B has fewer";
    if (low > 0) return less ? "B is worse" : "B is better";
    if (high < 0) return less ? "B is better" : "B is worse";
    return "could be chance";
  }

  function differenceRow(metric, [value, low, high, p]) {
    const reach = Math.max(...[value, low ?? value, high ?? value].map(Math.abs), smallest(metric)) * 1.08;
    const zero = e("i.zero", { style: "left:50%" });
    return e(
      "tr",
      {},
      e("th", { scope: "row", title: metric.signature }, titleOf(metric)),
      e("td.number", {}, signed(value, metric)),
      e("td.number.dim", {}, between(low, high, (end) => signed(end, metric))),
      e("td.graph", {}, interval([value, low, high], [-reach, reach], zero)),
      e("td.number.dim", {}, p === null ? DASH : p < 0.001 ? "< 0.001" : p.toFixed(3)),
      e("td", {}, verdict(low, high, metric)),
    );
  }

  function differences(comparison) {
    const rows = comparison.set.metrics.flatMap((metric) => {
      const difference = comparison.difference(metric);
      return difference ? differenceRow(metric, difference) : [];
    });
    if (!rows.length) return e("p.dim", {}, "No metric was computed for both systems.");
    return framed("differences", ["metric", "B − A", "95 % interval", "", "p", "verdict"], rows);
  }

  return { scores, differences };
})();
