"use strict";
// The overview: what ran, how it ended, and its curves. The data come from leaf.report.curves.
(() => {
  const { element } = leaf;
  const WINDOWS = [
    [1, "as they are"],
    [5, "mean of 5 points"],
    [15, "mean of 15 points"],
  ];
  const ABOUT_SCORES =
    "Scores are those of the last validation, each with its change since the first one (step 0 if there is one). The " +
    "best score leaves out step 0, which is the model before training.";

  const several = (data) => data.runs.length > 1;
  const bandsOf = (data) => data.panels.flatMap((panel) => panel.bands);
  // A flat line says no more than its number.
  const isFlat = (panel) => new Set(panel.lines.flatMap((line) => line.value)).size === 1;

  function whatRan(data) {
    const runs = `${data.runs.length} run${several(data) ? "s" : ""}`;
    const methods = data.methods.length > 1 ? ` of ${data.methods.length} methods` : "";
    const facts = element("p.facts", {}, element("b", {}, runs + methods), plots.key(data.methods, data.colours));
    const notes = data.notes.map((note) => element("p.dim", {}, note));
    const accidents = data.runs.flatMap((run) =>
      Object.entries(run.accidents).map(([what, often]) => element("p.accident", {}, `${run.name}: ${often} ${what}`)),
    );
    return [facts, ...notes, ...accidents];
  }

  function tables(data) {
    const about = data.metrics.length ? [element("p.dim", {}, ABOUT_SCORES)] : [];
    const differences = runTables.differencesTable(data);
    return [runTables.runTable(data), ...about, ...(differences ? [differences] : []), runTables.settingsTable(data)];
  }

  // -- what the curves show ----------------------------------------------------------------------------------------
  function aboutBands(bands) {
    const methods = (interval) => [
      ...new Set(bands.filter((band) => band.interval === interval).map((band) => band.method)),
    ];
    const [many, few] = [methods(true), methods(false)];
    const among = (names) => (many.length && few.length ? ` (${names.join(", ")})` : "");
    const said = ["Thick lines are means over the runs of a method."];
    if (many.length) said.push(`Bands are 95 % Student intervals of these means${among(many)}.`);
    if (few.length) {
      said.push(
        `Bands reach from the lowest run to the highest, because there are too few runs for an interval${among(few)}.`,
      );
    }
    return said;
  }

  function aboutCurves(data) {
    const bands = bandsOf(data);
    const said = bands.length ? aboutBands(bands) : [];
    if (data.panels.some((panel) => panel.lines.some((line) => line.low))) {
      said.push("Bars at validation points are 95 % bootstrap intervals over items.");
    }
    const averaged = Math.max(1, ...data.panels.map((panel) => panel.averaged));
    if (averaged > 1) said.push(`The runs are long, so a point is the mean of up to ${averaged} steps.`);
    const flat = data.panels
      .filter(isFlat)
      .map((panel) => `${panel.title.toLowerCase()} ${+panel.lines[0].value[0].toPrecision(4)}`);
    const where = several(data) ? "every run" : "the run";
    if (flat.length) said.push(`The same at every step of ${where}: ${flat.join(", ")}.`);
    return said.length ? [element("p.dim", {}, said.join(" "))] : [];
  }

  function figures(data, view) {
    const curves = data.panels
      .filter((panel) => !isFlat(panel))
      .map((panel) => {
        const label = `${panel.title} by step, ${panel.lines.length} runs`;
        return plots.plot(panel.title, panel.what, () => curvePlots.curve(panel, view), label);
      });
    if (!data.stages.length) return curves;
    const times = () => curvePlots.times(data.stages);
    return [...curves, plots.plot("Where the time goes", "seconds of a step by stage, mean", times)];
  }

  // Controls that change the view, and then redraw.
  function controls(data, view, redraw) {
    const option = ([value, text]) => element("option", { value, selected: value === view.window }, text);
    const onWindow = (event) => {
      view.window = Number(event.target.value);
      redraw();
    };
    const onSingle = (event) => {
      view.single = event.target.checked;
      redraw();
    };
    const single = element("input", { type: "checkbox", id: "single", checked: true, onchange: onSingle });
    return element(
      "p.facts",
      {},
      element("label", { for: "smooth" }, "curves "),
      element("select", { id: "smooth", onchange: onWindow }, ...WINDOWS.map(option)),
      bandsOf(data).length ? element("label", {}, single, " single runs") : null,
      several(data) ? plots.key(data.methods, data.colours) : null,
    );
  }

  leaf.section("curves", (root, data) => {
    const longest = Math.max(0, ...data.panels.flatMap((panel) => panel.lines.map((line) => line.step.length)));
    // The rewards of a few prompts a step are noise, and more so in a small picture.
    const view = { methods: data.methods, colours: data.colours, window: longest > 60 ? 5 : 1, single: true };
    const drawn = figures(data, view);
    const redraw = () => drawn.forEach((figure) => figure.redraw());
    root.append(
      ...whatRan(data),
      ...tables(data),
      element("h2", {}, "Curves"),
      controls(data, view, redraw),
      ...aboutCurves(data),
      element("div.panels", {}, ...drawn),
    );
  });
})();
