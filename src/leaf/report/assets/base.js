"use strict";
// What every section uses: registration, tabs by address, light and dark, elements from data.
const leaf = (() => {
  const drawers = {}, drawn = new Set(), listeners = [], watchers = [];

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

  const dark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

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
    if (!drawn.has(current.id)) {
      drawn.add(current.id);
      drawers[current.id](current, JSON.parse(document.getElementById(`data-${current.id}`).textContent));
    }
    for (const watcher of watchers) watcher();
  }

  function start() {
    const button = document.getElementById("theme");
    const paint = () => {
      button.textContent = dark() ? "light" : "dark";
      for (const listener of listeners) listener(dark());
    };
    button.addEventListener("click", () => {
      document.documentElement.dataset.theme = dark() ? "light" : "dark";
      paint();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
    addEventListener("hashchange", show);
    paint();
    show();
  }

  return {
    section: (name, draw) => { drawers[name] = draw; },
    onTheme: (listener) => { listeners.push(listener); },
    onShow: (watcher) => { watchers.push(watcher); }, // called whenever a section is shown
    element, dark, colour, start,
  };
})();
