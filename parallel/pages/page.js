// What a page can do beyond being read: fold, sort, filter, copy, and change its colours. All content is there without.
// Text goes in as text: nothing here parses HTML, and the page's policy refuses it (require-trusted-types-for).
"use strict";

const all = (selector, within = document) => [...within.querySelectorAll(selector)];

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Colours: as the system has them, or as chosen. The style has its dark colours in one media query.
const THEMES = { system: "screen and (prefers-color-scheme: dark)", dark: "screen", light: "not all" };

const darkRules = [...document.styleSheets[0].cssRules].filter((rule) => rule.media?.mediaText === THEMES.system);

function remembered() {
  try {
    return localStorage.getItem("paralab-theme");
  } catch {
    return null; // some browsers keep nothing for a page from a file
  }
}

function setTheme(name, button) {
  for (const rule of darkRules) rule.media.mediaText = THEMES[name];
  document.documentElement.style.colorScheme = name === "system" ? "light dark" : name;
  button.textContent = `Colours: ${name}`;
  button.dataset.theme = name;
  try {
    localStorage.setItem("paralab-theme", name);
  } catch {
    // then it is chosen anew next time
  }
}

function addThemes(place) {
  const names = Object.keys(THEMES);
  const button = make("button", { type: "button" });
  button.addEventListener("click", () => {
    setTheme(names[(names.indexOf(button.dataset.theme) + 1) % names.length], button);
  });
  const last = remembered();
  setTheme(names.includes(last) ? last : "system", button);
  place.append(button);
}

// Folding: what an address points at is unfolded, and paper shows everything.
function unfold(element) {
  for (let at = element; at; at = at.parentElement) {
    if (at.tagName === "DETAILS") at.open = true;
  }
}

function unfoldTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  unfold(target);
  const own = target.querySelector(":scope > details");
  if (own) own.open = true;
  target.scrollIntoView();
}

function addFolding(place) {
  const folded = all("main details");
  if (!folded.length) return;
  const button = make("button", { type: "button" });
  const show = () => {
    button.textContent = folded.every((one) => one.open) ? "Fold all" : "Unfold all";
  };
  button.addEventListener("click", () => {
    const open = !folded.every((one) => one.open);
    for (const one of folded) one.open = open;
    show();
  });
  for (const one of folded) one.addEventListener("toggle", show);
  place.append(button);
  show();
  let before = [];
  addEventListener("beforeprint", () => {
    before = folded.filter((one) => !one.open);
    for (const one of before) one.open = true;
  });
  addEventListener("afterprint", () => before.forEach((one) => (one.open = false)));
  addEventListener("hashchange", unfoldTarget);
  unfoldTarget();
}

// Commands: a button copies one.
function addCopy(place) {
  const command = place.querySelector("pre");
  const button = make("button", { type: "button", textContent: "Copy" });
  button.setAttribute("aria-label", `Copy the command ${command.textContent}`);
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(command);
    try {
      await navigator.clipboard.writeText(command.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  place.append(button);
}

// Tables: a click on the name of a column sorts by it; what is unknown comes last.
const UNKNOWN = "–";

const byText = new Intl.Collator("en", { numeric: true }).compare;

function compare(a, b) {
  return a.number === undefined || b.number === undefined ? byText(a.text, b.text) : a.number - b.number;
}

function sortBy(table, column, descending) {
  const keys = [...table.tBodies[0].rows].map((row) => {
    const cell = row.cells[column];
    return { row, text: cell.textContent, number: cell.dataset.v, unknown: cell.textContent.trim() === UNKNOWN };
  });
  keys.sort((a, b) => a.unknown - b.unknown || (descending ? -1 : 1) * compare(a, b));
  table.tBodies[0].append(...keys.map((key) => key.row));
  all("thead th", table).forEach((head, i) => {
    if (i === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
}

function addSorting(table) {
  if (table.tBodies[0].rows.length < 2) return;
  all("thead th", table).forEach((head, column) => {
    const button = make("button", { type: "button" }, ...head.childNodes);
    button.addEventListener("click", () => sortBy(table, column, head.getAttribute("aria-sort") === "ascending"));
    head.append(button);
  });
}

function addTools(table) {
  const heads = all("thead th", table);
  const rows = [...table.tBodies[0].rows];
  const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const count = make("output", { className: "quiet" });
  const search = make("input", { type: "search", placeholder: "such as zero3 oom" });
  const choices = heads.filter((head) => "choose" in head.dataset).map((head) => {
    const column = heads.indexOf(head);
    const values = [...new Set(rows.map((row) => row.cells[column].textContent))];
    values.sort(byText);
    const select = make("select", {}, new Option("all", ""), ...values.map((value) => new Option(value, value)));
    return { column, select, name: head.textContent, several: values.length > 1 };
  });
  const filter = () => {
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = choices.filter((choice) => choice.select.value);
    let shown = 0;
    for (const row of rows) {
      row.hidden = !wanted.every((word) => words.get(row).includes(word))
        || !chosen.every((choice) => row.cells[choice.column].textContent === choice.select.value);
      shown += !row.hidden;
    }
    count.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
  };
  const labelled = (name, control) => make("label", {}, `${name} `, control);
  const tools = make("div", { className: "tools" }, labelled("Filter", search));
  tools.append(...choices.filter((one) => one.several).map((one) => labelled(one.name, one.select)));
  tools.append(columnsMenu(table, heads, rows), count);
  tools.addEventListener("input", filter);
  table.parentElement.before(tools);
  filter();
}

function columnsMenu(table, heads, rows) {
  const menu = make("details", { className: "columns" }, make("summary", { textContent: "Columns" }));
  heads.forEach((head, column) => {
    const box = make("input", { type: "checkbox", checked: !("later" in head.dataset) });
    const show = () => {
      for (const row of [head.parentElement, ...rows]) row.cells[column].hidden = !box.checked;
    };
    box.addEventListener("change", show);
    menu.append(make("label", {}, box, ` ${head.textContent}`));
    show();
  });
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    menu.open = false;
    menu.firstChild.focus();
  });
  return menu;
}

const buttons = make("div", { className: "buttons" });
document.querySelector("header").append(buttons);
addThemes(buttons);
addFolding(buttons);
all(".command").forEach(addCopy);
all("table.tools").forEach(addTools);
all("table.sorts").forEach(addSorting);
