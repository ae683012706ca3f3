"use strict";
// The table of runs, which every column sorts by mouse and keyboard, and the table of their settings.
const runTables = (() => {
  const { element, number, signed } = leaf;
  const digits = (value) => (Math.abs(value) <= 1.5 ? 3 : 2);

  // [heading, value of a run, digits of it]: a value is text, a number, or null for none.
  function columnsOf({ metrics, runs }) {
    const named = runs.some((run) => run.method !== run.name); // else the methods are called as their runs
    const columns = [
      ["run", (run) => run.name],
      ...(named ? [["method", (run) => run.method]] : []),
      ["seed", (run) => run.seed],
      ["steps", (run) => run.steps],
      ["minutes", (run) => run.minutes],
      ["reward, last tenth", (run) => run.reward],
    ];
    for (const name of metrics) {
      if (name === "truncated" || name === "length_mean") continue; // they have a curve, and no best
      columns.push([name, (run) => run.scores[name]?.last ?? null]);
      columns.push([`best ${name}`, (run) => run.scores[name]?.top ?? null]);
    }
    return columns;
  }

  function cell(run, [name, valueOf]) {
    const value = valueOf(run);
    if (value === null) return element("td", {}, "–");
    if (typeof value === "string") return element("td.text", {}, value);
    if (name === "steps") return element("td.number", {}, run.steps === run.of ? `${value}` : `${value} of ${run.of}`);
    if (name === "seed") return element("td.number", {}, `${value}`);
    const text = number(value, name === "minutes" ? 1 : digits(value));
    const score = run.scores[name];
    return element("td.number", {}, text, " ", score ? change(score) : null);
  }

  // How a score changed since the first validation.
  function change({ first, last, less }) {
    const by = last - first;
    const worse = less ? by > 0 : by < 0;
    return element(`span.dim.${worse ? "down" : "up"}`, {}, signed(by, digits(last)));
  }

  // Runs without a value come last in both directions.
  function compare(x, y, sign) {
    if (x === null || y === null) return (x === null) - (y === null);
    if (typeof x === "number") return (x - y) * sign;
    return x.localeCompare(y, "en", { numeric: true }) * sign;
  }

  function runTable(data) {
    const columns = columnsOf(data);
    const head = element("tr");
    const body = element("tbody");
    const sort = (at, descending) => {
      const valueOf = columns[at][1];
      const sorted = [...data.runs].sort((a, b) => compare(valueOf(a), valueOf(b), descending ? -1 : 1));
      body.replaceChildren(...sorted.map((run) => element("tr", {}, ...columns.map((column) => cell(run, column)))));
      [...head.children].forEach((heading, i) => {
        if (i === at) heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
        else heading.removeAttribute("aria-sort");
      });
    };
    columns.forEach(([name, valueOf], at) => {
      const kind = data.runs.some((run) => typeof valueOf(run) === "number") ? "th.number" : "th.text";
      const onclick = () => sort(at, head.children[at].getAttribute("aria-sort") === "ascending");
      head.append(element(kind, { scope: "col" }, element("button", { type: "button", onclick }, name)));
    });
    sort(0, false);
    return leaf.scrolling("runs", element("table.runs", {}, element("thead", {}, head), body));
  }

  const settingsOf = (data) => data.runs.map((run) => new Map(data.settings[run.name]));
  const differ = (settings, key) => new Set(settings.map((one) => one.get(key))).size > 1;

  // A row for each setting in which the runs differ and a column for each run, or the other way round if that is
  // narrower.
  function differencesTable(data) {
    const settings = settingsOf(data);
    const keys = data.differences.filter((key) => differ(settings, key));
    if (!keys.length) return null;
    const names = data.runs.map((run) => run.name);
    const valueOf = (key, at) => settings[at].get(key) ?? "–";
    const wide = names.length > keys.length;
    const [rows, columns] = wide ? [names, keys] : [keys, names];
    const cells = (row) => columns.map((_, at) => (wide ? valueOf(keys[at], row) : valueOf(keys[row], at)));
    const heading = (scope) => (name) => element("th", { scope }, name);
    const head = element("thead", {}, element("tr", {}, element("td"), ...columns.map(heading("col"))));
    const body = rows.map((name, row) =>
      element("tr", {}, heading("row")(name), ...cells(row).map((value) => element("td", {}, value))),
    );
    return element(
      "div.settings",
      {},
      element("p", {}, element("b", {}, "Where the runs differ")),
      leaf.scrolling("where the runs differ", element("table", {}, head, element("tbody", {}, ...body))),
    );
  }

  // What all runs have in common; of a single run, all.
  function settingsTable(data) {
    const settings = settingsOf(data);
    const keys = [...new Set(settings.flatMap((one) => [...one.keys()]))].filter((key) => !differ(settings, key));
    const row = (key) =>
      element("tr", {}, element("th", { scope: "row" }, key), element("td", {}, settings[0].get(key)));
    return element(
      "details.settings",
      {},
      element("summary", {}, data.runs.length > 1 ? "settings of all runs" : "settings"),
      leaf.scrolling("settings", element("table", {}, element("tbody", {}, ...keys.map(row)))),
    );
  }

  return { runTable, differencesTable, settingsTable };
})();
