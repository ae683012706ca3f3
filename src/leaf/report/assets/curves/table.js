"use strict";
// The table of runs, which every column sorts by mouse and keyboard, and the table of their settings.
const runTables = (() => {
  const { element, number, signed } = leaf;
  const digits = (value) => (Math.abs(value) <= 1.5 ? 3 : 2);

  // [heading, value of a run, digits of it]: a value is text, a number, or null for none.
  function columnsOf(metrics) {
    const columns = [
      ["run", (run) => run.name],
      ["method", (run) => run.method],
      ["seed", (run) => run.seed],
      ["steps", (run) => run.steps],
      ["minutes", (run) => run.minutes],
      ["reward, last tenth", (run) => run.reward],
    ];
    for (const name of metrics) {
      if (name === "truncated") continue; // it has a curve, and no best
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
    const columns = columnsOf(data.metrics);
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

  // One wide cell where all runs agree.
  function settingRow(key, settings) {
    const heading = element("th", { scope: "row" }, key);
    const values = settings.map((one) => one.get(key) ?? "–");
    if (new Set(values).size > 1) {
      return element("tr.differs", {}, heading, ...values.map((value) => element("td", {}, value)));
    }
    return element("tr", {}, heading, element("td", { colspan: values.length }, values[0]));
  }

  function settingsTable(data) {
    const settings = data.runs.map((run) => new Map(data.settings[run.name]));
    const keys = [...new Set(settings.flatMap((one) => [...one.keys()]))];
    const several = data.runs.length > 1;
    const names = data.runs.map((run) => element("th", { scope: "col" }, run.name));
    const head = several ? element("thead", {}, element("tr", {}, element("td"), ...names)) : null;
    const body = element("tbody", {}, ...keys.map((key) => settingRow(key, settings)));
    return element(
      "details.settings",
      {},
      element("summary", {}, several ? "settings (where the runs differ in bold)" : "settings"),
      leaf.scrolling("settings", element("table", {}, head, body)),
    );
  }

  return { runTable, settingsTable };
})();
