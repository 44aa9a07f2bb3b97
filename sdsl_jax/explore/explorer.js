// The explorer: controls, charts and tables of one page. It computes nothing: `ask` gives it the view
// of a state, from Python while `sdsl explore` runs, or from the grid of states that an exported page holds.

const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  // Texts become text nodes: nothing that a state or a law is named can become markup.
  element.append(...children);
  return element;
};

const CAPTIONS = {
  map: "Speed-up over draft size and lookahead. Star: the best design. Diamonds: candidates. Outlined: within 1% of the best. White: does not fit in memory.",
  curve: "Speed-up against draft size, each at its best lookahead. Green: sizes within 1% and 5% of the best. Band: 90% interval over draws of the laws, where they have any; the device is taken as known.",
  schedule: "Best lookahead by batch and context with the best draft, while decoding. 0: do not speculate. ×: does not fit in memory.",
  round: "Time of one round by part, and of the target alone for as many tokens.",
};
const TITLES = { map: "Where is it fast?", curve: "How much does the size matter?", schedule: "How far at which load?", round: "Where does the time go?" };

// What the address says: values of the page's controls, and names that are none.
const fromHash = (names) => {
  const pairs = [...new URLSearchParams(location.hash.slice(1))];
  return {
    values: Object.fromEntries(pairs.filter(([name]) => names.includes(name))),
    unknown: pairs.map(([name]) => name).filter((name) => !names.includes(name)),
  };
};
const unknownNames = (unknown) =>
  unknown.length ? `The address names ${unknown.join(", ")}, which is no control of this page.` : "";
// 1 sequence, 2 sequences.
const withUnit = (label, unit) => [label, label === "1" ? unit.replace(/s$/, "") : unit].join(" ").trim();

export function explorer(root, setup, ask) {
  const inputs = {};
  const names = setup.controls.map((control) => control.name);
  const start = setup.state;
  let asked = fromHash(names);
  let state = { ...start, ...asked.values }, note = unknownNames(asked.unknown);

  // ---- controls
  const slider = (control, id) => {
    const input = make("input", { type: "range", id, min: 0, max: control.values.length - 1, step: 1 });
    const shown = make("output", { for: id });
    const label = () => {
      shown.textContent = withUnit(control.labels[input.value], control.unit);
      input.setAttribute("aria-valuetext", shown.textContent);
    };
    input.addEventListener("input", () => { label(); changed(control.name, control.values[input.value]); });
    return {
      element: make("div", { class: "control" }, make("label", { for: id }, control.label), shown, input),
      set: (text) => {
        const exact = control.values.indexOf(text);
        // A value between two stops is shown at the nearer one; the state keeps it.
        const distance = (value) => Math.abs(Math.log(number(value) / number(text)));
        const nearest = control.values.reduce((best, value, i) => distance(value) < distance(control.values[best]) ? i : best, 0);
        input.value = exact >= 0 ? exact : nearest;
        label();
      },
    };
  };
  const choice = (control, id) => {
    const options = control.values.map((value, i) => make("option", { value }, control.labels[i]));
    const input = make("select", { id }, ...options);
    input.addEventListener("change", () => changed(control.name, input.value));
    return {
      element: make("div", { class: "control" }, make("label", { for: id }, control.label), input),
      set: (text) => { input.value = text; },
    };
  };
  const sizes = (control, id) => {
    const input = make("input", { type: "text", id, placeholder: "125M,1.3B", autocomplete: "off", spellcheck: "false" });
    input.addEventListener("change", () => changed(control.name, input.value.trim()));
    return {
      element: make("div", { class: "control" }, make("label", { for: id }, control.label), input),
      set: (text) => { input.value = text; },
    };
  };
  const forms = { slider, choice, sizes };
  const groups = new Map();
  for (const control of setup.controls) {
    const id = `control-${control.name}`;
    const input = forms[control.form](control, id);
    inputs[control.name] = input;
    if (!groups.has(control.group)) groups.set(control.group, make("fieldset", {}, make("legend", {}, control.group)));
    groups.get(control.group).append(input.element);
  }
  const reset = make("button", { type: "button" }, "Reset");
  reset.addEventListener("click", () => { state = { ...start }; showControls(); answer(); });
  const form = make("form", { class: "controls", "aria-label": "What to serve, and how" }, ...groups.values(), reset);
  form.addEventListener("submit", (event) => event.preventDefault());

  const showControls = () => {
    for (const control of setup.controls) {
      inputs[control.name].set(state[control.name]);
      const { only_with: needed, without } = control;
      inputs[control.name].element.hidden = Boolean(
        (needed && state[needed[0]] !== needed[1]) || (without && state[without[0]] === without[1]));
      if (control.name === "engine") {
        const known = ["", ...(setup.engines[state.hardware] ?? [])];
        for (const option of inputs.engine.element.querySelectorAll("option")) option.hidden = option.disabled = !known.includes(option.value);
      }
    }
    const other = names.filter((name) => state[name] !== start[name]);
    const hash = new URLSearchParams(other.map((name) => [name, state[name]])).toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  };
  const changed = (name, value) => {
    state = { ...state, [name]: value };
    if (name === "hardware" && !(setup.engines[value] ?? []).includes(state.engine)) state.engine = "";
    showControls();
    answer();
  };

  // ---- the answer
  const verdict = make("p", { class: "verdict", role: "status" });
  const error = make("p", { class: "error", role: "alert", hidden: true });
  const numbers = make("dl", { class: "numbers" });
  const figures = Object.keys(setup.charts).map((name) =>
    make("figure", { "data-chart": name }, make("h2", {}, TITLES[name]), make("div", { class: "chart" }), make("figcaption", {}, CAPTIONS[name] ?? "")));
  const moves = make("tbody");
  const candidates = make("tbody");
  const table = (caption, heads, body) => make("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": caption },
    make("table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))), body));
  const copied = (label, pre) => {
    const button = make("button", { type: "button" }, "Copy");
    button.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(pre.textContent); button.textContent = "Copied"; }
      catch { getSelection().selectAllChildren(pre); button.textContent = "Selected: press Ctrl-C"; }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    return make("div", { class: "copied" }, make("h3", {}, label), button, pre);
  };
  const command = make("pre", { class: "command", tabindex: 0 });
  const engines = make("div");
  const warnings = make("ul");
  const panel = (title, ...children) => make("section", { class: "panel" }, make("h2", {}, title), ...children);
  const movesTable = table("The best design after one change, by how much S moves", ["change", "draft", "γ", "S"], moves);
  const candidatesTable = table("Candidates and published models in the draft's place, each at its best lookahead. Published models have shapes of their own.", ["draft", "γ", "α", "S", "lost"], candidates);
  const answerArea = make("div", { class: "answer" }, error, verdict, numbers, make("div", { class: "charts" }, ...figures),
    make("div", { class: "panels" }, panel("What would move the choice?", movesTable), panel("Other drafts", candidatesTable)),
    panel("Take it with you", copied("The same answer on the command line", command), engines),
    panel("What it rests on", warnings));
  root.replaceChildren(make("div", { class: "explorer" }, form, answerArea));

  // Drawn once, with the data of the first view; later views replace the data.
  const drawn = {};
  const draw = async (figure, data) => {
    const name = figure.dataset.chart;
    if (drawn[name]) {
      for (const [key, values] of Object.entries(data)) drawn[name].data(key, values);
      return drawn[name].runAsync();
    }
    const actions = { export: { svg: true, png: true }, source: false, compiled: false, editor: false };
    // Errors only: Vega warns of every dataset without rows, such as candidates where none were named.
    const options = { actions, downloadFileName: name, renderer: "canvas", logLevel: 1 };
    const spec = { ...setup.charts[name], datasets: data };
    drawn[name] = (await vegaEmbed(figure.querySelector(".chart"), spec, options)).view;
  };

  const rows = (body, values) => body.replaceChildren(...values.map((row) =>
    make("tr", {}, ...row.map((cell, i) => make(i ? "td" : "th", i ? {} : { scope: "row" }, cell)))));
  const show = async (view) => {
    root.dataset.pays = view.pays;
    verdict.textContent = view.verdict;
    numbers.replaceChildren(...view.numbers.map(([label, value]) => make("div", {}, make("dt", {}, label), make("dd", {}, value))));
    rows(moves, view.moves);
    rows(candidates, view.candidates);
    candidatesTable.closest(".panel").hidden = !view.candidates.length;
    command.textContent = view.command;
    engines.replaceChildren(...Object.entries(view.engines).map(([name, text]) => make("details", {}, make("summary", {}, `${name} settings`), copied(name, make("pre", { tabindex: 0 }, text)))));
    warnings.replaceChildren(...view.warnings.map((text) => make("li", {}, text)));
    await Promise.all(figures.map((figure) => {
      const keys = setup.datasets[figure.dataset.chart];
      const data = Object.fromEntries(keys.map((key) => [key, expanded(view.datasets[key])]));
      figure.hidden = !data[keys[0]].length;
      // A chart that is not shown has no width to be drawn in.
      return figure.hidden ? null : draw(figure, data);
    }));
  };

  // One question at a time; of those that come meanwhile, the last.
  let asking = false, waiting = false;
  const answer = async () => {
    if (asking) { waiting = true; return; }
    asking = true;
    do {
      waiting = false;
      const began = performance.now();
      const question = state;
      let shown = question;
      try {
        const view = await ask(question);
        const said = [note, view.note, view.error].filter(Boolean).join(" ");
        error.hidden = !said;
        error.textContent = said;
        if (!view.error) await show(view);
        // A page of a few states says which one it shows.
        if (view.held && question === state) { state = shown = { ...state, ...view.held }; showControls(); }
        note = "";
      } catch (problem) {
        error.hidden = false;
        error.textContent = String(problem.message ?? problem);
      }
      root.dataset.milliseconds = (performance.now() - began).toFixed(0);
      root.dataset.answered = JSON.stringify(shown);
    } while (waiting);
    asking = false;
  };
  addEventListener("hashchange", () => {
    asked = fromHash(names);
    state = { ...start, ...asked.values };
    note = unknownNames(asked.unknown);
    showControls();
    answer();
  });
  showControls();
  return answer();
}

// Rows of a dataset; what all of them share is sent once.
const expanded = (data) => Array.isArray(data) ? data : (data?.rows ?? []).map((row) => ({ ...data.shared, ...row }));

// 70B, 0.7, 1e9: as an address writes numbers.
const SUFFIX = { k: 1e3, M: 1e6, B: 1e9, T: 1e12 };
const number = (text) => {
  const suffix = SUFFIX[text.slice(-1)];
  return suffix ? Number(text.slice(0, -1)) * suffix : Number(text);
};
