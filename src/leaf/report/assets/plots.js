"use strict";
// What the sections with plots share: colours, dashes, a key, and a Vega-Lite plot that follows the page's theme.
const plots = (() => {
  const { element, svg } = leaf;
  // Okabe and Ito's colours, in an order whose neighbours differ in lightness too; yellow is too light on white. The
  // first two are LEAF's and GRPO's, see leaf.report.runs.
  const LIGHT = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#595959", "#56b4e9", "#e69f00"];
  const DARK = ["#56b4e9", "#e69f00", "#2fc79a", "#e59ac4", "#f0f0f0", "#7fa8ff", "#ff8a4c"];
  const DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 4], [10, 2], [1, 3]]; // prettier-ignore
  const SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"; // a name; nothing is fetched
  const drawers = new Map(); // place of a plot -> the function that draws it
  const stale = new Set(); // places to be drawn when they are seen

  const colour = (i) => (leaf.dark() ? DARK : LIGHT)[i % LIGHT.length];
  const dash = (i) => DASHES[i % DASHES.length];

  function theme() {
    const [ink, dim, line] = ["ink", "dim", "line"].map(leaf.colour);
    return {
      background: "transparent",
      font: "system-ui, 'DejaVu Sans', sans-serif",
      view: { stroke: null },
      axis: {
        labelColor: dim,
        titleColor: dim,
        gridColor: line,
        domainColor: line,
        tickColor: line,
        labelFontSize: 11,
        titleFontSize: 11,
        titleFontWeight: "normal",
        gridOpacity: 0.6,
      },
      legend: { labelColor: ink, titleColor: dim, labelFontSize: 11, titleFontSize: 11 },
      text: { color: ink },
      header: { labelColor: ink, titleColor: dim },
    };
  }

  // Make a figure of a Vega-Lite plot. `spec` is a function, because it reads the colours anew when the theme changes.
  function plot(title, what, spec, label = title) {
    const place = element("div.plot", { role: "img", "aria-label": label });
    const caption = element("figcaption", {}, element("b", {}, title), what ? element("span", {}, what) : null);
    const size = { width: "container", autosize: { type: "fit-x", contains: "padding" } };
    const draw = () =>
      vegaEmbed(
        place,
        { $schema: SCHEMA, ...size, ...spec(), config: theme() },
        { actions: false, renderer: "svg", tooltip: { theme: leaf.dark() ? "dark" : "light" } },
      );
    drawers.set(place, draw);
    stale.add(place);
    requestAnimationFrame(refresh); // by then it is in the page
    return Object.assign(element("figure", {}, caption, place), { redraw: draw });
  }

  // A plot measures its container, and in a hidden section that has no width: the plot waits until it is shown.
  function refresh() {
    for (const place of stale) {
      if (place.clientWidth > 0 && stale.delete(place)) drawers.get(place)();
    }
  }
  leaf.onShow(refresh);
  leaf.onTheme(() => {
    for (const place of drawers.keys()) stale.add(place);
    refresh();
  });
  addEventListener("resize", () => {
    // Vega itself fits those that are seen.
    for (const place of drawers.keys()) if (place.clientWidth === 0) stale.add(place);
  });

  // Make a key of methods: the colour and dash of each, by its number in the palette.
  function key(methods, colours) {
    const box = element("span.facts");
    const entry = (method, at) => {
      const i = colours[at];
      const stroke = { stroke: colour(i), "stroke-width": 3, "stroke-dasharray": i ? dash(i).join(" ") : "none" };
      const line = svg("line", { x1: 0, x2: 28, y1: 5, y2: 5, ...stroke });
      return element("span.key", {}, svg("svg", { "aria-hidden": "true" }, line), method);
    };
    const paint = () => box.replaceChildren(...methods.map(entry));
    leaf.onTheme(paint);
    paint();
    return box;
  }

  return { colour, dash, plot, key };
})();
