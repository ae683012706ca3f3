"use strict";
leaf.section("curves", (root, data) => {
  const { element } = leaf;
  const figure = (value, digits = 2) => value === null || value === undefined ? "–" : value.toFixed(digits);
  const size = (value) => Math.abs(value) <= 1.5 ? 3 : 2;

  // -- what ran
  const methods = data.methods, several = data.runs.length > 1;
  const count = `${data.runs.length} run${several ? "s" : ""}` + (methods.length > 1 ? ` of ${methods.length} methods` : "");
  root.append(element("p.facts", {}, element("b", {}, count), plots.key(methods)));
  for (const note of data.notes) root.append(element("p.dim", {}, note));
  for (const run of data.runs) {
    for (const [what, often] of Object.entries(run.accidents)) root.append(element("p.accident", {}, `${run.name}: ${often} ${what}`));
  }

  // -- the table: every column sorts, by mouse and keyboard
  const columns = [["run", (run) => run.name], ["method", (run) => run.method], ["seed", (run) => run.seed], ["steps", (run) => run.steps],
    ["minutes", (run) => run.minutes], ["reward, last tenth", (run) => run.reward]];
  for (const name of data.metrics) {
    if (name === "truncated") continue;
    columns.push([name, (run) => run.scores[name] ? run.scores[name].last : null]);
    columns.push([`best ${name}`, (run) => run.scores[name] ? run.scores[name].top : null]);
  }
  const shown = (run, at) => {
    const [name, value] = [columns[at][0], columns[at][1](run)];
    if (typeof value !== "number") return element("td", {}, value === null ? "–" : value);
    if (name === "steps") return element("td.number", {}, run.steps === run.of ? `${value}` : `${value} of ${run.of}`);
    if (name === "seed") return element("td.number", {}, `${value}`);
    const score = run.scores[name];
    const change = score ? score.last - score.first : 0;
    return element("td.number", {}, figure(value, name === "minutes" ? 1 : size(value)), " ",
      score ? element(`span.dim.${change < 0 ? "down" : "up"}`, {}, `${change < 0 ? "−" : "+"}${figure(Math.abs(change), size(value))}`) : null);
  };
  const head = element("tr"), body = element("tbody");
  const sort = (at, down) => {
    const value = columns[at][1];
    const rows = [...data.runs].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return (typeof x === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true })) * (down ? -1 : 1);
    });
    body.replaceChildren(...rows.map((run) => element("tr", {}, ...columns.map((_, i) => shown(run, i)))));
    [...head.children].forEach((cell, i) => i === at ? cell.setAttribute("aria-sort", down ? "descending" : "ascending") : cell.removeAttribute("aria-sort"));
  };
  columns.forEach(([name], at) => {
    head.append(element("th", { scope: "col" }, element("button", { type: "button", onclick: () => sort(at, head.children[at].getAttribute("aria-sort") === "ascending") }, name)));
  });
  root.append(element("div.scroll", { tabindex: "0", role: "region", "aria-label": "runs" }, element("table", {}, element("thead", {}, head), body)));
  sort(0, false);
  if (data.metrics.length) root.append(element("p.dim", {}, "Validation scores are those of the last validation, with the change since the first (step 0 where there is one)."));

  for (const [name, settings] of Object.entries(data.settings)) {
    root.append(element("details", {}, element("summary", {}, `settings of ${name}`),
      element("table", {}, element("tbody", {}, ...settings.map(([key, value]) => element("tr", {}, element("th", { scope: "row" }, key), element("td", {}, value)))))));
  }

  // -- curves
  const banded = data.panels.some((panel) => panel.bands.length);
  let window = 1, single = true;
  const smooth = element("select", { id: "smooth" }, ...[[1, "as they are"], [5, "mean of 5 points"], [15, "mean of 15 points"]].map(([n, text]) => element("option", { value: n }, text)));
  const lines = element("input", { type: "checkbox", id: "single", checked: true });
  root.append(element("h2", {}, "Curves"), element("p.facts", {}, element("label", { for: "smooth" }, "curves "), smooth,
    banded ? element("label", {}, lines, " single runs") : null));
  const averaged = Math.max(1, ...data.panels.map((panel) => panel.averaged));
  const said = [];
  if (banded) said.push("Thick lines are means over the runs of a method, bands their 95 % Student intervals.");
  if (data.panels.some((panel) => panel.lines.some((line) => line.low))) said.push("Bars at validation points are 95 % bootstrap intervals over items.");
  if (averaged > 1) said.push(`Runs are long: a point is the mean of up to ${averaged} steps.`);
  if (said.length) root.append(element("p.dim", {}, said.join(" ")));

  const moving = (values) => window === 1 ? values : values.map((_, i) => {
    const part = values.slice(Math.max(0, i - window + 1), i + 1);
    return part.reduce((a, b) => a + b, 0) / part.length;
  });
  const rows = (curve, more) => {
    const value = moving(curve.value);
    return curve.step.map((step, i) => ({ step, value: value[i], low: curve.low ? curve.low[i] : undefined, high: curve.high ? curve.high[i] : undefined, method: curve.method, run: curve.run, ...more }));
  };
  const spec = (panel) => () => {
    const validation = panel.title.startsWith("Validation");
    const colour = { field: "method", type: "nominal", legend: null, scale: { domain: methods, range: methods.map((_, i) => plots.colour(i)) } };
    const dash = { field: "method", type: "nominal", legend: null, scale: { domain: methods, range: methods.map((_, i) => plots.dash(i)) } };
    const x = { field: "step", type: "quantitative", title: "step", axis: { grid: false, tickMinStep: 1, format: "d" } };
    const y = (field) => ({ field, type: "quantitative", title: null, scale: { zero: false, nice: true } });
    const single_lines = panel.lines.flatMap((line) => rows(line)), means = panel.bands.flatMap((line) => rows(line, { run: `mean of ${line.method}` }));
    const faint = means.length > 0;
    const layer = [];
    if (means.length) layer.push({ data: { values: panel.bands.flatMap((line) => rows({ ...line })) }, mark: { type: "area", opacity: .18 }, encoding: { x, y: y("low"), y2: { field: "high" }, color: colour } });
    const bars = single_lines.filter((row) => row.low !== undefined);
    if (!faint && window === 1 && bars.length) layer.push({ data: { values: bars }, mark: { type: "rule", opacity: .5 }, encoding: { x, y: y("low"), y2: { field: "high" }, color: colour } });
    if (single || !faint) layer.push({ data: { values: single_lines }, mark: { type: "line", strokeWidth: faint ? .8 : 1.8, opacity: faint ? .5 : 1, point: validation && !faint ? { size: 30 } : false }, encoding: { x, y: y("value"), color: colour, strokeDash: dash, detail: { field: "run" } } });
    if (means.length) layer.push({ data: { values: means }, mark: { type: "line", strokeWidth: 2.4, point: validation ? { size: 30 } : false }, encoding: { x, y: y("value"), color: colour, strokeDash: dash } });
    layer.push({ data: { values: faint ? means : single_lines }, params: [{ name: "near", select: { type: "point", on: "pointerover", nearest: true, clear: "pointerout" } }], mark: { type: "point", filled: true, size: 60 },
      encoding: { x, y: y("value"), color: colour, opacity: { condition: { param: "near", empty: false, value: 1 }, value: 0 },
        tooltip: [{ field: "run", title: "run" }, { field: "method", title: "method" }, { field: "step", title: "step", format: ".0f" }, { field: "value", title: panel.title, format: ".4~g" }] } });
    return { height: 150, layer };
  };
  const grid = element("div.panels");
  const figures = data.panels.map((panel) => plots.plot(panel.title, panel.what, spec(panel), `${panel.title} by step, ${panel.lines.length} runs`));
  if (data.stages.length) {
    const values = data.stages.flatMap((run) => Object.entries(run.seconds).map(([stage, seconds], order) => ({ run: run.run, stage, seconds, order })));
    figures.push(plots.plot("Where the time goes", "seconds of a step by stage, mean", () => ({ height: 26 * data.stages.length, data: { values }, mark: { type: "bar", stroke: leaf.colour("raised") },
      encoding: { y: { field: "run", type: "nominal", title: null, axis: { labelLimit: 120 } }, x: { field: "seconds", type: "quantitative", title: "seconds", stack: "zero" }, order: { field: "order" },
        color: { field: "stage", type: "nominal", sort: null, legend: { orient: "bottom", columns: 4, title: null }, scale: { range: [0, 1, 2, 3, 4, 5, 6].map(plots.colour) } },
        tooltip: [{ field: "run" }, { field: "stage" }, { field: "seconds", format: ".3~g" }] } })));
  }
  grid.append(...figures);
  root.append(grid);
  const redraw = () => { for (const one of figures) one.redraw(); };
  smooth.addEventListener("change", () => { window = Number(smooth.value); redraw(); });
  lines.addEventListener("change", () => { single = lines.checked; redraw(); });
});
