"use strict";
leaf.section("forks", (root, data) => {
  const { element } = leaf;
  const names = data.methods.map((method) => method.method);
  root.append(element("p.facts", {}, plots.key(names)));
  root.append(element("p", {}, "LEAF cuts a group where its completions are surprising. A cut fires where at least two completions still share the prefix before it, and is usable where the rewards of those differ: only there does credit by spans say more than one advantage for all."));
  const percent = (rate) => `${(100 * rate).toFixed(0)} %`;
  const rate = (value, [low, high]) => `${percent(value)} (${percent(low)} to ${percent(high)})`;
  root.append(element("div.scroll", {}, element("table", {}, element("thead", {}, element("tr", {}, ...["method", "groups", "cuts", "fire (95 % Wilson)", "usable (95 % Wilson)", "shared groups", "completions in one", "reward spread"].map((name) => element("th", { scope: "col" }, name)))),
    element("tbody", {}, ...data.methods.map(({ method, groups, whole }) => element("tr", {}, element("td", {}, method), ...[groups, whole.boundaries, rate(whole.fire_rate, whole.fire_interval), rate(whole.usable_rate, whole.usable_interval), whole.groups, whole.group_size.toFixed(2), whole.reward_spread.toFixed(3)].map((text) => element("td.number", {}, `${text}`))))))));
  root.append(element("p.dim", {}, "Counted over the groups that were recorded, every few steps of a run; cuts of one group are not independent, so the intervals are somewhat narrow."));

  const colour = (field, domain) => ({ field, type: "nominal", legend: domain.length > 1 ? { orient: "bottom", title: null, columns: 2, labelLimit: 220 } : null, scale: { domain, range: domain.map((_, i) => plots.colour(i)) } });
  const places = data.methods.flatMap(({ method, places: all }) => all.flatMap((place) => [["fires", place.fire_rate, place.fire_interval], ["usable", place.usable_rate, place.usable_interval]]
    .map(([kind, value, [low, high]]) => ({ method, kind, stretch: place.stretch, value, low, high, cuts: place.boundaries }))));
  const stretches = [...new Set(places.map((place) => place.stretch))];
  const by_place = (kind) => () => ({ height: 180, data: { values: places.filter((place) => place.kind === kind) },
    layer: [{ mark: { type: "rule", strokeWidth: 2 }, encoding: { y: { field: "low", type: "quantitative", title: null, scale: { domain: [0, 1] }, axis: { format: "%" } }, y2: { field: "high" } } },
      { mark: { type: "point", filled: true, size: 70, opacity: 1 }, encoding: { y: { field: "value", type: "quantitative" }, tooltip: [{ field: "method" }, { field: "stretch", title: "tokens before the cut" }, { field: "value", format: ".0%" }, { field: "low", format: ".0%" }, { field: "high", format: ".0%" }, { field: "cuts" }] } }],
    encoding: { x: { field: "stretch", type: "nominal", sort: stretches, title: "tokens before the cut", axis: { labelAngle: 0 } }, xOffset: { field: "method" }, color: { ...colour("method", names), legend: null }, shape: { field: "method", legend: null, scale: { domain: names } } } });
  const sizes = data.methods.flatMap(({ method, sizes: all }) => all.map(([size, count]) => ({ method, size, count })));
  const spreads = data.methods.flatMap(({ method, spreads: all }) => all.map((spread) => ({ method, spread })));
  const grid = element("div.panels");
  grid.append(
    plots.plot("Cuts that fire", "share by position, with Wilson intervals", by_place("fires")),
    plots.plot("Usable cuts", "share by position, with Wilson intervals", by_place("usable")),
    plots.plot("Completions that share a prefix", "how many, at the cuts", () => ({ height: 180, data: { values: sizes }, mark: "bar", encoding: { x: { field: "size", type: "ordinal", title: "completions", axis: { labelAngle: 0 } }, xOffset: { field: "method" }, y: { field: "count", type: "quantitative", title: null }, color: { ...colour("method", names), legend: null }, tooltip: [{ field: "method" }, { field: "size" }, { field: "count" }] } })),
    plots.plot("Reward spread", "highest minus lowest reward where a prefix is shared", () => ({ height: 180, data: { values: spreads }, mark: { type: "bar", opacity: names.length > 1 ? .65 : 1 }, encoding: { x: { field: "spread", bin: { maxbins: 20 }, title: "spread" }, y: { aggregate: "count", title: null, stack: null }, color: { ...colour("method", names), legend: null }, tooltip: [{ field: "method" }, { aggregate: "count" }] } })),
  );
  root.append(grid, element("h2", {}, "Where the credit goes"),
    element("p", {}, "The objection to credit by prefixes is that completions part early, so that only early tokens gain. This is the share of all credit, whatever its sign, by position; GRPO on the same completions is what an even hand gives."));
  const mass = element("div.panels");
  for (const { method, credit } of data.methods) {
    const rules = credit.map((one) => one.rule);
    const held = (field, i) => field === "fifths" || credit.some((one) => one[field][i] > 0); // no stretch that no completion reaches
    const share = (field, labels, title) => () => ({ height: 180, data: { values: credit.flatMap((one) => one[field].map((value, i) => ({ rule: one.rule, place: labels[i], value, groups: one.groups })).filter((_, i) => held(field, i))) }, mark: { type: "bar", cornerRadiusEnd: 2 },
      encoding: { x: { field: "place", type: "nominal", sort: labels, title, axis: { labelAngle: 0, labelOverlap: true } }, xOffset: { field: "rule", sort: rules }, y: { field: "value", type: "quantitative", title: null, axis: { format: "%" } }, color: colour("rule", rules), tooltip: [{ field: "rule" }, { field: "place" }, { field: "value", format: ".1%" }, { field: "groups", title: "groups with credit" }] } });
    mass.append(plots.plot(`Credit by fifths of a completion`, method, share("fifths", data.fifths, null)), plots.plot("Credit by token position", method, share("stretches", data.stretches, "token")));
  }
  root.append(mass);
});
