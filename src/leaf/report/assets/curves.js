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
    if (typeof value !== "number") return element(value === null ? "td" : "td.text", {}, value === null ? "–" : value);
    if (name === "steps") return element("td.number", {}, run.steps === run.of ? `${value}` : `${value} of ${run.of}`);
    if (name === "seed") return element("td.number", {}, `${value}`);
    const score = run.scores[name];
    const change = score ? score.last - score.first : 0;
    return element("td.number", {}, figure(value, name === "minutes" ? 1 : size(value)), " ",
      score ? element(`span.dim.${(score.less ? change > 0 : change < 0) ? "down" : "up"}`, {}, `${change < 0 ? "−" : "+"}${figure(Math.abs(change), size(value))}`) : null);
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
    const kind = data.runs.some((run) => typeof columns[at][1](run) === "number") ? "th.number" : "th.text";
    head.append(element(kind, { scope: "col" }, element("button", { type: "button", onclick: () => sort(at, head.children[at].getAttribute("aria-sort") === "ascending") }, name)));
  });
  root.append(element("div.scroll", { tabindex: "0", role: "region", "aria-label": "runs" }, element("table.runs", {}, element("thead", {}, head), body)));
  sort(0, false);
  if (data.metrics.length) root.append(element("p.dim", {}, "Validation scores are those of the last validation, with the change since the first (step 0 where there is one). The best leave step 0 out, the model before training."));

  // -- settings: one column where all runs agree
  const settings = data.runs.map((run) => new Map(data.settings[run.name]));
  const keys = [...new Set(settings.flatMap((one) => [...one.keys()]))];
  const line = (key) => {
    const values = settings.map((one) => one.has(key) ? one.get(key) : "–");
    if (new Set(values).size === 1) return element("tr", {}, element("th", { scope: "row" }, key), element("td", { colspan: values.length }, values[0]));
    return element("tr.differs", {}, element("th", { scope: "row" }, key), ...values.map((value) => element("td", {}, value)));
  };
  root.append(element("details.settings", {}, element("summary", {}, several ? "settings, in bold those in which the runs differ" : "settings"),
    element("div.scroll", { tabindex: "0", role: "region", "aria-label": "settings" }, element("table", {},
      several ? element("thead", {}, element("tr", {}, element("td"), ...data.runs.map((run) => element("th", { scope: "col" }, run.name)))) : null,
      element("tbody", {}, ...keys.map(line))))));

  // -- curves
  const bands = data.panels.flatMap((panel) => panel.bands), banded = bands.length > 0;
  const longest = Math.max(0, ...data.panels.flatMap((panel) => panel.lines.map((line) => line.step.length)));
  let window = longest > 60 ? 5 : 1, single = true; // rewards of a few prompts a step are noise; more so in a small picture
  const smooth = element("select", { id: "smooth" }, ...[[1, "as they are"], [5, "mean of 5 points"], [15, "mean of 15 points"]].map(([n, text]) => element("option", { value: n, selected: n === window }, text)));
  const lines = element("input", { type: "checkbox", id: "single", checked: true });
  root.append(element("h2", {}, "Curves"), element("p.facts", {}, element("label", { for: "smooth" }, "curves "), smooth,
    banded ? element("label", {}, lines, " single runs") : null, several ? plots.key(methods) : null));
  const averaged = Math.max(1, ...data.panels.map((panel) => panel.averaged));
  const said = [];
  if (banded) {
    const of = (interval) => [...new Set(bands.filter((one) => one.interval === interval).map((one) => one.method))];
    const among = (kind) => of(true).length && of(false).length ? ` (${kind.join(", ")})` : "";
    said.push("Thick lines are means over the runs of a method.");
    if (of(true).length) said.push(`Bands are the means' 95 % Student intervals${among(of(true))}.`);
    if (of(false).length) said.push(`Bands reach from the lowest run to the highest: for an interval the runs are too few${among(of(false))}.`);
  }
  if (data.panels.some((panel) => panel.lines.some((line) => line.low))) said.push("Bars at validation points are 95 % bootstrap intervals over items.");
  if (averaged > 1) said.push(`Runs are long: a point is the mean of up to ${averaged} steps.`);
  // A flat line says no more than its number.
  const level = (panel) => new Set(panel.lines.flatMap((one) => one.value)).size === 1;
  const flat = data.panels.filter(level), moved = data.panels.filter((panel) => !level(panel));
  if (flat.length) said.push(`The same at every step of ${several ? "every run" : "the run"}: ${flat.map((panel) => `${panel.title.toLowerCase()} ${+panel.lines[0].value[0].toPrecision(4)}`).join(", ")}.`);
  if (said.length) root.append(element("p.dim", {}, said.join(" ")));

  // Smoothed ends of a band are never nearer than those of smoothed curves would be.
  const moving = (values, window) => window === 1 ? values : values.map((_, i) => {
    const part = values.slice(Math.max(0, i - window + 1), i + 1);
    return part.reduce((a, b) => a + b, 0) / part.length;
  });
  const spec = (panel) => () => {
    const validation = panel.title.startsWith("Validation"), over = validation ? 1 : window; // validations are few
    const dots = (validation || panel.lines.every((line) => line.step.length < 3)) && { size: 30 }; // a line of one point is not seen
    const rows = (curve, more) => {
      const [value, low, high] = [curve.value, curve.low || [], curve.high || []].map((values) => moving(values, over));
      return curve.step.map((step, i) => ({ step, value: value[i], low: low[i], high: high[i], method: curve.method, run: curve.run, ...more }));
    };
    const colour = { field: "method", type: "nominal", legend: null, scale: { domain: methods, range: methods.map((_, i) => plots.colour(i)) } };
    const dash = { field: "method", type: "nominal", legend: null, scale: { domain: methods, range: methods.map((_, i) => plots.dash(i)) } };
    const x = { field: "step", type: "quantitative", title: "step", axis: { grid: false, tickMinStep: 1, tickCount: 6, format: "d", labelOverlap: true, labelSeparation: 8 } };
    const y = (field) => ({ field, type: "quantitative", title: null, scale: { zero: false, nice: true } });
    const single_lines = panel.lines.flatMap((line) => rows(line)), means = panel.bands.flatMap((line) => rows(line, { run: `mean of ${line.method}` }));
    const faint = means.length > 0;
    // The mouse is over a cell that holds its nearest point; Vega-Lite's own tooltip looks for that point's names in the cell.
    const near = "(datum.datum || datum)";
    const told = `{run: ${near}.run, method: ${near}.method, step: format(${near}.step, ".0f"), ${JSON.stringify(panel.title)}: format(${near}.value, ".4~g")}`;
    const layer = [];
    if (means.length) layer.push({ data: { values: panel.bands.flatMap((line) => rows({ ...line })) }, mark: { type: "area", opacity: .18 }, encoding: { x, y: y("low"), y2: { field: "high" }, color: colour } });
    const bars = single_lines.filter((row) => row.low !== undefined);
    if (!faint && bars.length) layer.push({ data: { values: bars }, mark: { type: "rule", opacity: .5 }, encoding: { x, y: y("low"), y2: { field: "high" }, color: colour } });
    if (single || !faint) layer.push({ data: { values: single_lines }, mark: { type: "line", strokeWidth: faint ? .8 : 1.8, opacity: faint ? .5 : 1, point: !faint && dots }, encoding: { x, y: y("value"), color: colour, strokeDash: dash, detail: { field: "run" } } });
    if (means.length) layer.push({ data: { values: means }, mark: { type: "line", strokeWidth: 2.4, point: dots }, encoding: { x, y: y("value"), color: colour, strokeDash: dash } });
    layer.push({ data: { values: faint ? means : single_lines }, params: [{ name: "near", select: { type: "point", on: "pointerover", nearest: true, clear: "pointerout" } }], mark: { type: "point", filled: true, size: 60, tooltip: { expr: told } },
      encoding: { x, y: y("value"), color: colour, opacity: { condition: { param: "near", empty: false, value: 1 }, value: 0 } } });
    return { height: 150, layer };
  };
  const grid = element("div.panels");
  const figures = moved.map((panel) => plots.plot(panel.title, panel.what, spec(panel), `${panel.title} by step, ${panel.lines.length} runs`));
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
