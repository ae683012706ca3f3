"use strict";
// The Vega-Lite plots of the overview: a quantity by step, and the seconds of a step by stage.
const curvePlots = (() => {
  const X = {
    field: "step",
    type: "quantitative",
    title: "step",
    axis: { grid: false, tickMinStep: 1, tickCount: 6, format: "d", labelOverlap: true, labelSeparation: 8 },
  };
  const y = (field) => ({ field, type: "quantitative", title: null, scale: { zero: false, nice: true } });
  const byMethod = ({ methods, colours }, property) => ({
    field: "method",
    type: "nominal",
    legend: null,
    scale: { domain: methods, range: colours.map(property) },
  });

  // Mean of each value and those before it. The ends of a band are smoothed as its curve is.
  function moving(values, window) {
    return values.map((_, i) => leaf.mean(values.slice(Math.max(0, i - window + 1), i + 1)));
  }

  function points(curve, window, run = curve.run) {
    const [value, low, high] = [curve.value, curve.low, curve.high].map((values) => moving(values || [], window));
    const { method } = curve;
    return curve.step.map((step, i) => ({ step, value: value[i], low: low[i], high: high[i], method, run }));
  }

  // The note on the point nearest to the mouse.
  function nearest(values, title, colour) {
    // The mouse is over a cell that holds its nearest point, and Vega-Lite's own tooltip looks for the point's names in
    // the cell instead of in the point: so this one is written out.
    const point = "(datum.datum || datum)";
    const told =
      `{run: ${point}.run, method: ${point}.method, step: format(${point}.step, ".0f"), ` +
      `${JSON.stringify(title)}: format(${point}.value, ".4~g")}`;
    const select = { type: "point", on: "pointerover", nearest: true, clear: "pointerout" };
    const opacity = { condition: { param: "near", empty: false, value: 1 }, value: 0 };
    return {
      data: { values },
      params: [{ name: "near", select }],
      mark: { type: "point", filled: true, size: 60, tooltip: { expr: told } },
      encoding: { x: X, y: y("value"), color: colour, opacity },
    };
  }

  // `view`: the methods of the page with the numbers of their colours, the points to average over, and whether to draw
  // single runs beside their mean.
  function curve(panel, view) {
    const { window, single } = view;
    const validation = panel.title.startsWith("Validation");
    const over = validation ? 1 : window; // validations are few
    const lines = panel.lines.flatMap((line) => points(line, over));
    const means = panel.bands.flatMap((band) => points(band, over, `mean of ${band.method}`));
    const averaged = means.length > 0;
    const color = byMethod(view, plots.colour);
    const strokeDash = byMethod(view, plots.dash);
    const between = { x: X, y: y("low"), y2: { field: "high" }, color };
    const short = panel.lines.every((line) => line.step.length < 3); // a line of one point would not be seen
    const point = (validation || short) && { size: 30 };

    const layer = [];
    const layerOf = (values, mark, encoding) => layer.push({ data: { values }, mark, encoding });
    if (averaged) layerOf(means, { type: "area", opacity: 0.18 }, between);
    const intervals = lines.filter((row) => row.low !== undefined);
    if (!averaged && intervals.length) layerOf(intervals, { type: "rule", opacity: 0.5 }, between);
    if (single || !averaged) {
      const look = averaged
        ? { strokeWidth: 0.8, opacity: 0.5, point: false }
        : { strokeWidth: 1.8, opacity: 1, point };
      layerOf(lines, { type: "line", ...look }, { x: X, y: y("value"), color, strokeDash, detail: { field: "run" } });
    }
    if (averaged) layerOf(means, { type: "line", strokeWidth: 2.4, point }, { x: X, y: y("value"), color, strokeDash });
    layer.push(nearest(averaged ? means : lines, panel.title, color));
    return { height: 150, layer };
  }

  // `stages`: [{run, seconds: {stage: seconds}}].
  function times(stages) {
    const values = stages.flatMap(({ run, seconds }) =>
      Object.entries(seconds).map(([stage, mean], order) => ({ run, stage, seconds: mean, order })),
    );
    const legend = { orient: "bottom", columns: 4, title: null };
    const range = [0, 1, 2, 3, 4, 5, 6].map(plots.colour);
    return {
      height: 26 * stages.length,
      data: { values },
      mark: { type: "bar", stroke: leaf.colour("raised") },
      encoding: {
        y: { field: "run", type: "nominal", title: null, axis: { labelLimit: 120 } },
        x: { field: "seconds", type: "quantitative", title: "seconds", stack: "zero" },
        order: { field: "order" },
        color: { field: "stage", type: "nominal", sort: null, legend, scale: { range } },
        tooltip: [{ field: "run" }, { field: "stage" }, { field: "seconds", format: ".3~g" }],
      },
    };
  }

  return { curve, times };
})();
