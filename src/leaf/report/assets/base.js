"use strict";
// What every section uses: registration, tabs by address, light and dark, elements and numbers as text.
const leaf = (() => {
  const drawers = {}; // name of a section -> the function that draws it
  const drawn = new Set();
  const themeListeners = [];
  const showListeners = [];

  // -- elements ----------------------------------------------------------------------------------------------------
  // element("td.number", {title: "..."}, "text", child, ...): strings become text nodes, never markup.
  function element(kind, attributes = {}, ...children) {
    const [tag, ...classes] = kind.split(".");
    const made = document.createElement(tag);
    if (classes.length) made.className = classes.join(" ");
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  function svg(tag, attributes = {}, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  // A box in which a wide table scrolls; it takes the focus, so that the arrow keys scroll it.
  const scrolling = (label, table) =>
    element("div.scroll", { tabindex: "0", role: "region", "aria-label": label }, table);

  // -- numbers -----------------------------------------------------------------------------------------------------
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  // With a real minus sign, so that columns line up; a dash for what is missing.
  const number = (value, digits) =>
    value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−");
  function signed(value, digits) {
    const text = Math.abs(value).toFixed(digits);
    if (Number(text) === 0) return text; // what rounds to zero has no sign
    return (value < 0 ? "−" : "+") + text;
  }

  // -- light and dark ----------------------------------------------------------------------------------------------
  // As the system has it, until the button is clicked. This script is in the head, so that no light page flashes up.
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => root.dataset.theme === "dark";
  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  const setTheme = (isDark) => (root.dataset.theme = isDark ? "dark" : "light");
  setTheme(system.matches);

  function startThemes() {
    const button = document.getElementById("theme");
    let clicked = false;
    const change = (isDark) => {
      setTheme(isDark);
      button.textContent = isDark ? "light" : "dark"; // what a click changes to
      for (const listener of themeListeners) listener(isDark);
    };
    button.addEventListener("click", () => {
      clicked = true;
      change(!dark());
    });
    system.addEventListener("change", () => {
      if (!clicked) change(system.matches);
    });
    change(dark());
  }

  // -- tabs --------------------------------------------------------------------------------------------------------
  function show() {
    const sections = [...document.querySelectorAll("main > section")];
    // "#trees/step=20": what follows the slash belongs to the section.
    const wanted = location.hash.slice(1).split("/")[0];
    const current = sections.find((section) => section.id === wanted) || sections[0];
    if (!current) return;
    if (current.hidden) scrollTo(0, 0);
    for (const section of sections) section.hidden = section !== current;
    for (const tab of document.querySelectorAll("header nav a")) {
      if (tab.hash === `#${current.id}`) tab.setAttribute("aria-current", "page");
      else tab.removeAttribute("aria-current");
    }
    // Drawing takes time, so a section is drawn when it is first shown.
    if (!drawn.has(current.id)) {
      drawn.add(current.id);
      drawers[current.id](current, JSON.parse(document.getElementById(`data-${current.id}`).textContent));
    }
    for (const listener of showListeners) listener();
  }

  function start() {
    startThemes();
    addEventListener("hashchange", show);
    show();
  }

  return {
    section: (name, draw) => (drawers[name] = draw),
    onTheme: (listener) => themeListeners.push(listener),
    onShow: (listener) => showListeners.push(listener), // called whenever a section is shown
    element,
    svg,
    scrolling,
    mean,
    number,
    signed,
    dark,
    colour,
    start,
  };
})();
