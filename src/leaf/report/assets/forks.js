"use strict";
leaf.section("forks", (root, data) => {
  const { element } = leaf;
  const names = data.methods.map((method) => method.method);
  root.append(element("p.facts", {}, plots.key(names)));
  root.append(element("p", {}, "LEAF cuts a group where its completions are surprising. A cut fires where at least two completions still share the prefix before it, and is usable where the rewards of those differ: only there does credit by spans say more than one advantage for all."));
  const percent = (rate) => `${(100 * rate).toFixed(0)} %`;
  const rate = (value, [low, high]) => `${percent(value)} (${percent(low)} to ${percent(high)})`;
  root.append(element("div.scroll", { tabindex: "0", role: "region", "aria-label": "forks by method" }, element("table", {}, element("thead", {}, element("tr", {}, ...["method", "groups", "cuts", "fire (95 % Wilson)", "usable (95 % Wilson)", "shared groups", "completions in one", "reward spread"].map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", {}, ...data.methods.map(({ method, groups, whole }) => element("tr", {}, element("td", {}, method), ...[groups, whole.boundaries, rate(whole.fire_rate, whole.fire_interval), rate(whole.usable_rate, whole.usable_interval), whole.groups, whole.group_size.toFixed(2), whole.reward_spread.toFixed(3)].map((text) => element("td.number", {}, `${text}`))))))));
  root.append(element("p.dim", {}, "Counted over the groups that were recorded, every few steps of a run; cuts of one group are not independent, so the intervals are somewhat narrow."));

  // A rule has one colour in all pictures, whether it trained or not.
  const plain = (rule) => rule.split(",")[0];
  const known = new Set(data.methods.flatMap(({ credit }) => credit.map((one) => plain(one.rule))));
  const every = [...new Set([...names, "leaf", "grpo", ...known])].filter((rule) => known.has(rule)); // as the methods, where they are named so
  const colour = (field, domain, at = (_, i) => i) => ({ field, type: "nominal", legend: domain.length > 1 ? { orient: "bottom", title: null, columns: 2, labelLimit: 220 } : null, scale: { domain, range: domain.map((one, i) => plots.colour(at(one, i))) } });
  const places = data.methods.flatMap(({ method, places: all }) => all.flatMap((place) => [["fires", place.fire_rate, place.fire_interval], ["usable", place.usable_rate, place.usable_interval]]
    .map(([kind, value, [low, high]]) => ({ method, kind, stretch: place.stretch, value, low, high, cuts: place.boundaries }))));
  const stretches = [...new Set(places.map((place) => place.stretch))];
  const by_place = (kind) => () => ({ height: 180, data: { values: places.filter((place) => place.kind === kind) },
    layer: [{ mark: { type: "rule", strokeWidth: 2 }, encoding: { y: { field: "low", type: "quantitative", title: null, scale: { domain: [0, 1] }, axis: { format: "%" } }, y2: { field: "high" } } },
      { mark: { type: "point", filled: true, size: 70, opacity: 1 }, encoding: { shape: { field: "method", legend: null, scale: { domain: names } }, y: { field: "value", type: "quantitative" }, tooltip: [{ field: "method" }, { field: "stretch", title: "tokens before the cut" }, { field: "value", format: ".0%" }, { field: "low", format: ".0%" }, { field: "high", format: ".0%" }, { field: "cuts" }] } }],
    encoding: { x: { field: "stretch", type: "nominal", sort: stretches, title: "tokens before the cut", axis: { labelAngle: 0 } }, xOffset: { field: "method", sort: names }, color: { ...colour("method", names), legend: null } } });
  const sizes = data.methods.flatMap(({ method, sizes: all }) => all.map(([size, count]) => ({ method, size, count })));
  const spreads = data.methods.flatMap(({ method, spreads: all }) => all.map(([stretch, count]) => ({ method, spread: data.spreads[stretch], count })));
  const grid = element("div.panels");
  grid.append(
    plots.plot("Cuts that fire", "share by position, with Wilson intervals", by_place("fires")),
    plots.plot("Usable cuts", "share by position, with Wilson intervals", by_place("usable")),
    plots.plot("Completions that share a prefix", "how many, at the cuts", () => ({ height: 180, data: { values: sizes }, mark: "bar", encoding: { x: { field: "size", type: "ordinal", title: "completions", axis: { labelAngle: 0 } }, xOffset: { field: "method", sort: names }, y: { field: "count", type: "quantitative", title: null }, color: { ...colour("method", names), legend: null }, tooltip: [{ field: "method" }, { field: "size" }, { field: "count" }] } })),
    plots.plot("Reward spread", "highest minus lowest reward where a prefix is shared", () => ({ height: 180, data: { values: spreads }, mark: "bar", encoding: { x: { field: "spread", type: "ordinal", sort: data.spreads, title: "spread", axis: { labelAngle: 0 } }, xOffset: { field: "method", sort: names }, y: { field: "count", type: "quantitative", title: null }, color: { ...colour("method", names), legend: null }, tooltip: [{ field: "method" }, { field: "spread" }, { field: "count" }] } })),
  );
  root.append(grid, element("h2", {}, "Where the credit goes"),
    element("p", {}, "The objection to credit by prefixes is that completions part early, so that only early tokens gain. This is the share of all credit, whatever its sign, by position; GRPO on the same completions is what an even hand gives."));
  const mass = element("div.panels");
  for (const { method, credit } of data.methods) {
    const rules = [...credit].sort((a, b) => every.indexOf(plain(a.rule)) - every.indexOf(plain(b.rule))).map((one) => one.rule);
    const held = (field, i) => field === "fifths" || credit.some((one) => one[field][i] > 0); // no stretch that no completion reaches
    const share = (field, labels, title) => () => ({ height: 180, data: { values: credit.flatMap((one) => one[field].map((value, i) => ({ rule: one.rule, place: labels[i], value, groups: one.groups })).filter((_, i) => held(field, i))) }, mark: { type: "bar", cornerRadiusEnd: 2 },
      encoding: { x: { field: "place", type: "nominal", sort: labels, title, axis: { labelAngle: 0, labelOverlap: true } }, xOffset: { field: "rule", sort: rules }, y: { field: "value", type: "quantitative", title: null, axis: { format: "%" } }, color: colour("rule", rules, (rule) => every.indexOf(plain(rule))), tooltip: [{ field: "rule" }, { field: "place" }, { field: "value", format: ".1%" }, { field: "groups", title: "groups with credit" }] } });
    mass.append(plots.plot("Credit by fifths of a completion", `completions of ${method}`, share("fifths", data.fifths, "fifth of its tokens")), plots.plot("Credit by token position", `completions of ${method}`, share("stretches", data.stretches, "token")));
  }
  root.append(mass);
});
