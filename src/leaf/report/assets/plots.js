"use strict";
// What the sections with plots share: colours, dashes, a legend, and a Vega-Lite plot that follows the page's theme.
const plots = (() => {
  // Okabe and Ito's colours, in an order whose neighbours differ in lightness too; yellow is too light on white.
  const colours = { light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#595959", "#56b4e9", "#e69f00"],
    dark: ["#56b4e9", "#e69f00", "#2fc79a", "#e59ac4", "#f0f0f0", "#7fa8ff", "#ff8a4c"] };
  const dashes = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 4], [10, 2], [1, 3]];
  const colour = (i) => { const all = leaf.dark() ? colours.dark : colours.light; return all[i % all.length]; };
  const dash = (i) => dashes[i % dashes.length];
  const drawn = new Map(), stale = new Set(); // place → what draws it; places to be drawn when they are seen

  function config() {
    const ink = leaf.colour("ink"), dim = leaf.colour("dim"), line = leaf.colour("line");
    return { background: "transparent", font: "system-ui, 'DejaVu Sans', sans-serif", view: { stroke: null },
      axis: { labelColor: dim, titleColor: dim, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 11, titleFontSize: 11, titleFontWeight: "normal", gridOpacity: .6 },
      legend: { labelColor: ink, titleColor: dim, labelFontSize: 11, titleFontSize: 11 }, text: { color: ink }, header: { labelColor: ink, titleColor: dim } };
  }

  // `spec` is a function, called again when the theme changes; it reads colours anew.
  function plot(title, what, spec, label) {
    const place = leaf.element("div.plot", { role: "img", "aria-label": label || title });
    const figure = leaf.element("figure", {}, leaf.element("figcaption", {}, leaf.element("b", {}, title), what ? leaf.element("span", {}, what) : null), place);
    const draw = () => vegaEmbed(place, { $schema: "https://vega.github.io/schema/vega-lite/v6.json", width: "container", autosize: { type: "fit-x", contains: "padding" }, ...spec(), config: config() },
      { actions: false, renderer: "svg", tooltip: { theme: leaf.dark() ? "dark" : "light" } });
    drawn.set(place, draw);
    stale.add(place);
    requestAnimationFrame(refresh); // once it stands in the page
    return Object.assign(figure, { redraw: draw });
  }
  // Plots measure their container, and one in a hidden section has no width: it is drawn when it is shown.
  function refresh() {
    for (const place of stale) if (place.clientWidth > 0 && stale.delete(place)) drawn.get(place)();
  }
  leaf.onShow(refresh);
  leaf.onTheme(() => {
    for (const place of drawn.keys()) stale.add(place);
    refresh();
  });
  addEventListener("resize", () => { // Vega fits those that are seen
    for (const place of drawn.keys()) if (place.clientWidth === 0) stale.add(place);
  });

  function key(methods) {
    const box = leaf.element("span.facts");
    const paint = () => box.replaceChildren(...methods.map((method, i) => {
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      const stroke = document.createElementNS("http://www.w3.org/2000/svg", "line");
      for (const [name, value] of Object.entries({ x1: 0, x2: 28, y1: 5, y2: 5, stroke: colour(i), "stroke-width": 3, "stroke-dasharray": i ? dash(i).join(" ") : "none" })) stroke.setAttribute(name, value);
      svg.append(stroke);
      svg.setAttribute("aria-hidden", "true");
      return leaf.element("span.key", {}, svg, method);
    }));
    leaf.onTheme(paint);
    paint();
    return box;
  }

  return { colour, dash, plot, key };
})();
