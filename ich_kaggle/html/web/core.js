"use strict";
// Shared by all pages: the data, elements that hold text only, formatting, the address, the keys.

const report = {
  content: null,
  files: {},
  pages: {}, // by view: {show(state), keys}
  studies: new Map(),

  begin(content, files) {
    this.content = content;
    Object.assign(WINDOWS, content.windows);
    this.files = files;
  },

  keep(id, data) {
    this.studies.set(id, data);
  },

  // Return a promise of a study's data, loaded on first use.
  study(id) {
    if (this.studies.has(id)) return Promise.resolve(this.studies.get(id));
    const inert = document.getElementById(`study-${id}`);
    if (inert) {
      this.keep(id, JSON.parse(inert.textContent));
      return this.study(id);
    }
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = this.files[id];
      script.onload = () => resolve(this.studies.get(id));
      script.onerror = () => reject(new Error(`${this.files[id]} is missing: make the report again`));
      document.head.append(script);
    });
  },

  // Return the address of a picture: a path, or a data URI if it is embedded.
  picture(reference) {
    if (!reference.startsWith("#")) return reference;
    return "data:image/png;base64," + document.getElementById(reference.slice(1)).textContent;
  },
};

const SHORT = { epidural: "EDH", intraparenchymal: "IPH", intraventricular: "IVH", subarachnoid: "SAH", subdural: "SDH", any: "any" };
const reading = () => report.content.reading; // set for scans without labels, read by a bundle
const WINDOWS = {}; // by name, in order: those of the channels of a cached picture, then bone

// Return a new element; strings become text, never markup. "tag.class.class" names it.
function h(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const number = (value, digits = 4) => (value == null ? "–" : value.toFixed(digits));
const percent = (value, digits = 1) => (value == null ? "–" : `${(100 * value).toFixed(digits)} %`);
const count = (value) => value.toLocaleString("en");
const plural = (n, one, many = one + "s") => `${count(n)} ${n === 1 ? one : many}`;
const chance = (value) => (value == null ? "–" : value > 0 && value < 0.001 ? "<0.001" : value.toFixed(3));

// A part of a page.
const card = (title, note, ...content) => h("section.card", {}, h("h2", {}, title), note ? h("p.note", {}, note) : null, content);

// A choice of one option, as a row of native radio buttons.
function choices(name, legend, options, chosen, onchange) {
  return h("fieldset.choices", {}, h("legend", {}, legend), options.map(([value, ...content]) =>
    h("label", {}, h("input", { type: "radio", name, value, checked: value === chosen, onchange: () => onchange(value) }), h("span", {}, ...content))));
}

// A wide table scrolls in its own frame, by keyboard as well.
function scrolling(title, table) {
  return h("div.scroll", { tabindex: "0", role: "region", "aria-label": title }, table);
}

// Return a table of `rows`, elements; the heads of numeric columns are aligned to the right.
function table(head, rows) {
  const heads = head.map((cell, i) => h(rows[0]?.children[i]?.classList.contains("number") ? "th.number" : "th", { scope: "col" }, cell));
  return h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, rows));
}

function swatch(label) {
  return h("i.swatch", { "data-label": label, "aria-hidden": "true" });
}

// The kinds of hemorrhage among `names`, in short.
function tags(names) {
  const kinds = names.filter((name) => name !== "any");
  return h("span.tags", {}, kinds.length ? kinds.map((name) => h("span.tag", { title: name }, swatch(name), SHORT[name])) : h("span.tag", {}, names.length ? "any" : "none"));
}

// The address holds the state of the page: #study=ID&slice=12&window=bone
function address() {
  return Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
}

function link(changes) {
  const { source } = address();
  return "#" + new URLSearchParams({ ...changes, ...(source ? { source } : {}) });
}

function go(changes, { replace = false } = {}) {
  const next = Object.entries({ ...address(), ...changes }).filter(([, value]) => value != null);
  const hash = "#" + new URLSearchParams(next);
  if (hash !== location.hash) history[replace ? "replaceState" : "pushState"](null, "", hash);
  route();
}

// Return the state that the address holds, with null for values that are missing or invalid.
function state() {
  const { content } = report;
  const said = address();
  const view = said.study != null ? "studies" : Object.hasOwn(report.pages, said.view ?? "") ? said.view : Object.keys(report.pages)[0];
  const source = content.sources.findIndex((one) => one.name === said.source);
  return {
    view,
    source: Math.max(0, source),
    study: said.study,
    slice: parseInt(said.slice, 10) - 1,
    window: said.window in WINDOWS ? said.window : null,
    label: content.labels.includes(said.label) ? said.label : null,
  };
}

function route() {
  const now = state();
  for (const view of Object.keys(report.pages)) document.getElementById(view).hidden = view !== now.view;
  for (const one of document.querySelectorAll("nav a")) {
    if (one.dataset.view === now.view) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
    one.href = link({ view: one.dataset.view });
  }
  document.getElementById("source").selectedIndex = now.source;
  report.pages[now.view].show(now);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const target = event.target;
  const isRange = target.type === "range";
  if (target.matches("select, textarea, input:not([type=range]):not([type=checkbox]):not([type=radio])")) return;
  if ((isRange || target.type === "radio") && /^(Arrow|Page|Home|End)/.test(event.key)) return;
  const common = { "?": openHelp, t: toggleTheme };
  const action = common[event.key] ?? report.pages[state().view].keys?.[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

const KEYS = [
  ["Anywhere", [["?", "this help"], ["t", "dark or light theme"]]],
  ["Studies", [
    ["↑ ↓ or ← →", "previous or next slice; also the mouse wheel"],
    ["Page ↑ Page ↓", "five slices back or forward"],
    ["Home End", "first or last slice"],
    ["1 2 3 4", "window, in the order of the buttons"],
    ["n p", "next or previous study in the list"],
    ["l", "next label of the explanation"],
    ["e", "show or hide the explanation"],
    ["/", "search"],
  ]],
];

function openHelp() {
  const help = document.getElementById("help");
  const { maps } = report.content;
  const keys = ([key]) => !reading() || maps.length || !"le".includes(key); // those of the explanation
  help.replaceChildren(
    h("h2", { id: "help-title" }, "Keys"),
    ...KEYS.map(([title, rows]) => h("table", {}, h("caption", {}, title), h("tbody", {}, rows.filter(keys).map(([key, text]) =>
      h("tr", {}, h("th", { scope: "row" }, h("kbd", {}, key)), h("td", {}, text)))))),
    h("p.note", {}, reading()?.intended_use ?? "Scores are out of fold: each slice is predicted by models that were not trained on any slice of its patient. Scores of ensembles are nested: the blend, too, was fitted without the fold it is scored on. Intervals are 95 % of 1,000 bootstrap draws of patients."),
    h("form", { method: "dialog" }, h("button.primary", { autofocus: true }, "Close")),
  );
  help.showModal();
}

function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  charts.redraw();
}

function toggleTheme() {
  const theme = isDark() ? "light" : "dark";
  try {
    localStorage.setItem("theme", theme);
  } catch {} // some browsers store nothing for pages on the disk
  setTheme(theme);
}
