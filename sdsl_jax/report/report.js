// Makes a report explorable: tables sort and filter, charts answer the pointer and the keyboard, and
// both download. The page reads without it; what only works with it is made here or unhidden here.

const study = document.body.dataset.study || "report";

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function save(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: `${study}-${name}` }).click();
  // A browser may begin to read the file only after the click has been handled.
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

function csv(rows) {
  const quoted = (cell) => {
    const text = cell === null || cell === undefined ? "" : String(cell);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(quoted).join(",") + "\r\n").join("");
}

// --- Tables ---------------------------------------------------------------------------------------

const SUFFIXES = { k: 1e3, M: 1e6, B: 1e9, T: 1e12, "%": 1e-2 };
const NUMBER = /^[≤≥]?\s*([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)\s*([kMBT%]|µs|×)?(?=$|[\s[])/;
const FEW_ROWS = 8;

// What a cell says, without the letters of its warnings and with an ASCII minus.
function textOf(cell) {
  const copy = cell.cloneNode(true);
  copy.querySelectorAll("sup").forEach((mark) => mark.remove());
  return copy.textContent.replaceAll("−", "-").replace(/\s+/g, " ").trim();
}

const isMissing = (text) => text === "" || text === "–";

// A cell sorts by its number; of an interval or a range, by the first.
function numberOf(text) {
  const match = NUMBER.exec(text);
  return match ? Number(match[1].replaceAll(",", "")) * (SUFFIXES[match[2]] || 1) : NaN;
}

// Rows never leave their group, so each group is sorted by itself.
function groupsOf(table) {
  const groups = [{ head: null, rows: [] }];
  for (const row of table.tBodies[0].rows) {
    if (row.classList.contains("group")) groups.push({ head: row, rows: [] });
    else groups.at(-1).rows.push(row);
  }
  return groups;
}

function sorted(rows, column, descending) {
  const keys = new Map(rows.map((row) => [row, textOf(row.cells[column])]));
  const known = rows.filter((row) => !isMissing(keys.get(row)));
  const numeric = known.every((row) => !Number.isNaN(numberOf(keys.get(row))));
  const compare = numeric
    ? (a, b) => numberOf(keys.get(a)) - numberOf(keys.get(b))
    : (a, b) => keys.get(a).localeCompare(keys.get(b), "en", { numeric: true });
  // Array.sort is stable. A dash is no number, so it comes last in both directions.
  known.sort((a, b) => (descending ? compare(b, a) : compare(a, b)));
  return [...known, ...rows.filter((row) => isMissing(keys.get(row)))];
}

function makeSortable(table, groups) {
  const heads = [...table.tHead.rows[0].cells];
  // A click sorts upwards, the next downwards, and the third restores the order of the report.
  const next = { none: "ascending", ascending: "descending", descending: "none" };
  heads.forEach((head, column) => {
    const button = element("button", { type: "button", className: "sort" }, ...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const order = next[head.getAttribute("aria-sort")];
      heads.forEach((one) => one.setAttribute("aria-sort", one === head ? order : "none"));
      for (const { head: title, rows } of groups) {
        const ordered = order === "none" ? rows : sorted(rows, column, order === "descending");
        if (title) table.tBodies[0].append(title);
        table.tBodies[0].append(...ordered);
      }
    });
  });
}

function filterBox(groups, caption) {
  const rows = groups.flatMap((group) => group.rows);
  const count = element("span", { className: "count" });
  count.setAttribute("role", "status");
  const box = element("input", { type: "search", placeholder: "Filter rows" });
  box.setAttribute("aria-label", `Filter rows of: ${caption}`);
  box.addEventListener("input", () => {
    const words = box.value.toLowerCase().replaceAll("−", "-").split(/\s+/).filter(Boolean);
    for (const { head, rows: own } of groups) {
      const title = head ? textOf(head) : "";
      for (const row of own) {
        // Words of the group's title count as words of its rows.
        const text = [title, ...[...row.cells].map(textOf)].join(" ").toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
      if (head) head.hidden = own.every((row) => row.hidden);
    }
    const left = rows.filter((row) => !row.hidden).length;
    count.textContent = words.length ? `${left} of ${rows.length} rows` : "";
  });
  return [box, count];
}

// Spreadsheets and programs read 96192; they take 96,192 for text, and a dash as well.
function plainCell(text) {
  if (isMissing(text)) return "";
  return /^[+-]?\d{1,3}(,\d{3})+(\.\d+)?$/.test(text) ? text.replaceAll(",", "") : text;
}

// The rows that are shown, in the order shown; titles of groups become a column.
function tableRows(table) {
  const heads = [...table.tHead.rows[0].cells].map(textOf);
  const grouped = table.querySelector("tr.group") !== null;
  const rows = [grouped ? ["group", ...heads] : heads];
  let title = "";
  for (const row of table.tBodies[0].rows) {
    if (row.classList.contains("group")) title = textOf(row);
    else if (!row.hidden) {
      const cells = [...row.cells].map(textOf).map(plainCell);
      rows.push(grouped ? [title, ...cells] : cells);
    }
  }
  return rows;
}

const slug = (text) =>
  text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60);

for (const box of document.querySelectorAll(".tabled")) {
  const table = box.querySelector("table");
  const caption = table.caption.textContent.trim();
  const groups = groupsOf(table);
  const rows = groups.flatMap((group) => group.rows).length;
  if (rows < 2) continue;
  makeSortable(table, groups);
  const button = element("button", { type: "button", textContent: "CSV" });
  button.dataset.download = "csv";
  button.setAttribute("aria-label", `Download as CSV: ${caption}`);
  button.addEventListener("click", () =>
    save(`${slug(caption)}.csv`, "text/csv;charset=utf-8", csv(tableRows(table))),
  );
  const tools = element("div", { className: "tools" });
  if (rows > FEW_ROWS) tools.append(...filterBox(groups, caption));
  tools.append(button);
  box.prepend(tools);
}

// --- Charts ---------------------------------------------------------------------------------------

// The library is a megabyte: it is not parsed until the page is there to be read.
let loading;
function library() {
  loading ??= new Promise((resolve) => {
    window.addEventListener("chart-library", () => resolve(window.vegaEmbed), { once: true });
    const text = document.getElementById("chart-library").textContent;
    const ready = '\nwindow.dispatchEvent(new Event("chart-library"));';
    document.body.append(element("script", { type: "module", textContent: text + ready }));
  });
  return loading;
}

const config = JSON.parse(document.getElementById("chart-config")?.textContent ?? "{}");

// All data of a chart as one table. The first column names the data set of a row.
function chartRows(spec) {
  const sets = Object.entries(spec.datasets);
  const columns = [...new Set(sets.flatMap(([, rows]) => rows.flatMap(Object.keys)))];
  const rows = sets.flatMap(([name, own]) =>
    own.map((row) => [name, ...columns.map((column) => row[column])]),
  );
  return [["data", ...columns], ...rows];
}

function addDownloads(figure, spec, view) {
  const name = figure.dataset.chart;
  const tools = element("div", { className: "tools" });
  const actions = {
    SVG: async () => save(`${name}.svg`, "image/svg+xml", await view.toSVG()),
    PNG: async () => {
      const href = await view.toImageURL("png", 2);
      element("a", { href, download: `${study}-${name}.png` }).click();
    },
    CSV: () => save(`${name}.csv`, "text/csv;charset=utf-8", csv(chartRows(spec))),
  };
  for (const [kind, action] of Object.entries(actions)) {
    const button = element("button", { type: "button", textContent: kind, onclick: action });
    button.dataset.download = kind.toLowerCase();
    button.setAttribute("aria-label", `Download as ${kind}: ${figure.getAttribute("aria-label")}`);
    tools.append(button);
  }
  figure.append(tools);
}

// Vega answers clicks on its legends only; these make their entries buttons for the keyboard as well.
function makeLegendUsable(plot, spec, view) {
  if (!JSON.stringify(spec.layer).includes('"bind":"legend"')) return;
  const series = new Set(Object.values(spec.datasets).flatMap((rows) => rows.map((r) => r.series)));
  const entries = () =>
    [...plot.querySelectorAll(".role-legend-label text")].filter((entry) =>
      series.has(entry.__data__?.datum?.value),
    );
  const refresh = () => {
    const chosen = view.data("shown_store").flatMap((row) => row.values);
    for (const entry of entries()) {
      const pressed = !chosen.length || chosen.includes(entry.__data__.datum.value);
      const values = { tabindex: 0, role: "button", "aria-pressed": pressed };
      for (const [key, value] of Object.entries(values)) entry.setAttribute(key, value);
      entry.setAttribute("aria-label", entry.textContent);
    }
  };
  plot.addEventListener("keydown", (event) => {
    if (!["Enter", " "].includes(event.key) || !entries().includes(event.target)) return;
    event.preventDefault();
    event.target.dispatchEvent(new MouseEvent("click", { bubbles: true, view: window }));
  });
  view.addDataListener("shown_store", () => setTimeout(refresh));
  view.addResizeListener(() => setTimeout(refresh));
  refresh();
}

// Arrow keys step through the points of a focused chart, and the line below says what each is.
function makePointsReachable(plot, said) {
  let at = -1;
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || event.target !== plot) return;
    event.preventDefault();
    const dots = [...plot.querySelectorAll(".mark-symbol.role-mark > path")].filter(
      (dot) => dot.__data__?.tooltip && dot.getAttribute("opacity") !== "0",
    );
    if (!dots.length) return;
    plot.querySelector(".reached")?.classList.remove("reached");
    at = (at + step + dots.length) % dots.length;
    dots[at].classList.add("reached");
    const lines = Object.entries(dots[at].__data__.tooltip);
    said.textContent = lines.map(([title, value]) => `${title}: ${value}`).join("; ");
  });
  plot.addEventListener("blur", () => {
    plot.querySelector(".reached")?.classList.remove("reached");
    said.textContent = "";
    at = -1;
  });
}

async function draw(figure) {
  if (figure.dataset.state) return;
  figure.dataset.state = "drawing";
  const plot = figure.querySelector(".plot");
  const spec = JSON.parse(figure.querySelector("script").textContent);
  try {
    const vegaEmbed = await library();
    const { view } = await vegaEmbed(plot, spec, { actions: false, renderer: "svg", config });
    const said = element("p", { className: "said" });
    said.setAttribute("role", "status");
    figure.append(said);
    plot.tabIndex = 0;
    plot.setAttribute("role", "group");
    plot.setAttribute("aria-label", `Chart: ${figure.getAttribute("aria-label")}`);
    addDownloads(figure, spec, view);
    makeLegendUsable(plot, spec, view);
    makePointsReachable(plot, said);
    figure.dataset.state = "drawn";
  } catch (error) {
    figure.dataset.state = "failed";
    plot.textContent = `This chart could not be drawn: ${error.message}`;
  }
}

const charts = [...document.querySelectorAll("figure.chart")];
const observer = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => draw(target)),
  { rootMargin: "400px" },
);

// The others follow while the reader reads, one at a time: a print then shows all of them.
const idle = window.requestIdleCallback ?? ((run) => setTimeout(run, 200));
async function drawRest() {
  const next = charts.find((figure) => !figure.dataset.state);
  if (!next) return;
  await draw(next);
  idle(drawRest);
}

window.addEventListener("load", () => {
  charts.forEach((figure) => observer.observe(figure));
  setTimeout(() => idle(drawRest), 500);
});

document.querySelectorAll("[data-hint]").forEach((hint) => (hint.hidden = false));
