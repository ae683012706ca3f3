"use strict";
// Do completions part at LEAF's cuts, do rewards differ there, where does credit go? Data: leaf.report.forks.
(() => {
  const { element } = leaf;
  const HEIGHT = 180; // pixels of a plot
  const ABOUT_CUTS =
    "LEAF cuts a group at its boundaries, before tokens that the model found surprising. A cut fires if at least " +
    "two completions still share the prefix before it. It is usable if the rewards of these completions differ. Only " +
    "usable cuts show which part of a completion made the difference.";
  const ABOUT_COUNTS =
    "Counted over the recorded groups, which a run writes every few steps. The cuts of one prompt are alike, so the " +
    "intervals count them as fewer trials.";
  const ABOUT_CREDIT =
    "If completions part early, does only their beginning get credit? The plots show the share of all credit, " +
    "whatever its sign, by position. A rule without a tree, such as GRPO, spreads credit evenly over the same " +
    "completions.";

  const namesOf = (data) => data.methods.map(({ method }) => method);
  const coloursOf = (data) => data.methods.map(({ colour }) => colour);

  // -- the table ---------------------------------------------------------------------------------------------------
  const percent = (rate) => `${(100 * rate).toFixed(0)} %`;
  const rate = (value, [low, high]) => `${percent(value)} (${percent(low)} to ${percent(high)})`;
  const COLUMNS = [
    ["groups", ({ groups }) => groups],
    ["cuts", ({ whole }) => whole.boundaries],
    ["fire (95 % Wilson)", ({ whole }) => rate(whole.fire_rate, whole.fire_interval)],
    ["usable (95 % Wilson)", ({ whole }) => rate(whole.usable_rate, whole.usable_interval)],
    ["shared groups", ({ whole }) => whole.groups],
    ["completions in one", ({ whole }) => whole.group_size.toFixed(2)],
    ["reward spread", ({ whole }) => whole.reward_spread.toFixed(3)],
  ];

  function table(data) {
    const head = ["method", ...COLUMNS.map(([name]) => name)].map((name) => element("th", { scope: "col" }, name));
    const row = (method) => {
      const cells = COLUMNS.map(([, value]) => element("td.number", {}, `${value(method)}`));
      return element("tr", {}, element("td", {}, method.method), ...cells);
    };
    const body = element("tbody", {}, ...data.methods.map(row));
    return leaf.scrolling(
      "forks by method",
      element("table", {}, element("thead", {}, element("tr", {}, ...head)), body),
    );
  }

  // -- plots -------------------------------------------------------------------------------------------------------
  const colourBy = (field, domain, numbers) => ({
    field,
    type: "nominal",
    legend: null,
    scale: { domain, range: numbers.map(plots.colour) },
  });
  const axis = { labelAngle: 0 };
  const beside = (names) => ({ field: "method", sort: names });

  // Share of cuts by position, as a point with its interval.
  function rates(data, kind) {
    const names = namesOf(data);
    const values = data.methods.flatMap(({ method, places }) =>
      places.map((place) => {
        const [low, high] = place[`${kind}_interval`];
        return { method, stretch: place.stretch, value: place[`${kind}_rate`], low, high, cuts: place.boundaries };
      }),
    );
    const stretches = [...new Set(values.map((place) => place.stretch))];
    const before = "tokens before the cut";
    const share = { type: "quantitative", title: null, scale: { domain: [0, 1] }, axis: { format: "%" } };
    const tooltip = [
      { field: "method" },
      { field: "stretch", title: before },
      ...["value", "low", "high"].map((field) => ({ field, format: ".0%" })),
      { field: "cuts" },
    ];
    const shape = { field: "method", legend: null, scale: { domain: names } };
    return {
      height: HEIGHT,
      data: { values },
      layer: [
        { mark: { type: "rule", strokeWidth: 2 }, encoding: { y: { field: "low", ...share }, y2: { field: "high" } } },
        {
          mark: { type: "point", filled: true, size: 70, opacity: 1 },
          encoding: { shape, y: { field: "value", type: "quantitative" }, tooltip },
        },
      ],
      encoding: {
        x: { field: "stretch", type: "nominal", sort: stretches, title: before, axis },
        xOffset: beside(names),
        color: colourBy("method", names, coloursOf(data)),
      },
    };
  }

  // How often each value of a field occurs, by method.
  function counts(data, values, field, x) {
    const names = namesOf(data);
    return {
      height: HEIGHT,
      data: { values },
      mark: "bar",
      encoding: {
        x: { field, type: "ordinal", axis, ...x },
        xOffset: beside(names),
        y: { field: "count", type: "quantitative", title: null },
        color: colourBy("method", names, coloursOf(data)),
        tooltip: [{ field: "method" }, { field }, { field: "count" }],
      },
    };
  }

  function forkPlots(data) {
    const sizes = data.methods.flatMap(({ method, sizes: all }) =>
      all.map(([size, count]) => ({ method, size, count })),
    );
    const spreads = data.methods.flatMap(({ method, spreads: all }) =>
      all.map(([stretch, count]) => ({ method, spread: data.spreads[stretch], count })),
    );
    const byPosition = "share by position, with Wilson intervals";
    return [
      plots.plot("Cuts that fire", byPosition, () => rates(data, "fire")),
      plots.plot("Usable cuts", byPosition, () => rates(data, "usable")),
      plots.plot("Completions that share a prefix", "how many, at the cuts", () =>
        counts(data, sizes, "size", { title: "completions" }),
      ),
      plots.plot("Reward spread", "highest minus lowest reward of the completions that share a prefix", () =>
        counts(data, spreads, "spread", { title: "spread", sort: data.spreads }),
      ),
    ];
  }

  // -- where the credit goes ---------------------------------------------------------------------------------------
  const withoutNote = (rule) => rule.split(",")[0]; // of "leaf, as trained"

  // LEAF and GRPO have one colour on every page, whether they trained or not; a rule that trained has its method's.
  const OWN = { leaf: 0, grpo: 1 };
  const colourOfRule = (colour) => (rule) => OWN[withoutNote(rule)] ?? colour;

  // `field` of the data is `fifths` or `stretches`, `labels` are its places.
  function creditShare(credit, colourOf, field, labels, title) {
    const rules = credit.map(({ rule }) => rule).sort((a, b) => colourOf(a) - colourOf(b));
    const reached = (i) => field === "fifths" || credit.some((one) => one[field][i] > 0);
    const values = credit.flatMap(({ rule, groups, [field]: shares }) =>
      shares.map((value, i) => ({ rule, place: labels[i], value, groups })).filter((_, i) => reached(i)),
    );
    const legend = rules.length > 1 ? { orient: "bottom", title: null, columns: 2, labelLimit: 220 } : null;
    const colours = rules.map(colourOf);
    return {
      height: HEIGHT,
      data: { values },
      mark: { type: "bar", cornerRadiusEnd: 2 },
      encoding: {
        x: { field: "place", type: "nominal", sort: labels, title, axis: { ...axis, labelOverlap: true } },
        xOffset: { field: "rule", sort: rules },
        y: { field: "value", type: "quantitative", title: null, axis: { format: "%" } },
        color: { ...colourBy("rule", rules, colours), legend },
        tooltip: [
          { field: "rule" },
          { field: "place" },
          { field: "value", format: ".1%" },
          { field: "groups", title: "groups with credit" },
        ],
      },
    };
  }

  function creditPlots(data, { method, colour, credit }) {
    const colourOf = colourOfRule(colour);
    const whose = `completions of ${method}`;
    return [
      plots.plot("Credit by fifths of a completion", whose, () =>
        creditShare(credit, colourOf, "fifths", data.fifths, "fifth of its tokens"),
      ),
      plots.plot("Credit by token position", whose, () =>
        creditShare(credit, colourOf, "stretches", data.stretches, "token"),
      ),
    ];
  }

  leaf.section("forks", (root, data) => {
    root.append(
      element("p.facts", {}, plots.key(namesOf(data), coloursOf(data))),
      element("p", {}, ABOUT_CUTS),
      table(data),
      element("p.dim", {}, ABOUT_COUNTS),
      element("div.panels", {}, ...forkPlots(data)),
      element("h2", {}, "Where the credit goes"),
      element("p", {}, ABOUT_CREDIT),
      element("div.panels", {}, ...data.methods.flatMap((method) => creditPlots(data, method))),
    );
  });
})();
