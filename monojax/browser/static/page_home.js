"use strict";

// The page that a site opens with: what the run is, its main figures and what they mean, a map, and where to begin.
app.page((() => {
  const {element} = dom;
  const {section, table} = blocks;
  const PAPER = {l0: 4.9, recovered: 0.79};  // A/1 of "Towards Monosemanticity"
  const LEAST = 0.5;  // of the label's score, and of the share of the top domain, of features to begin with
  const BINS = 4;  // of densities, for each power of ten
  const share = (value) => `${dom.fixed(100 * value, 1)} %`;
  // [figure, how it is shown, what it means]
  const FIGURES = [
    ["l0", (value) => dom.fixed(value, 1), "features fire on a token, on average (L0)"],
    ["explained_variance", share, "of the variance of the activations is in what the features reconstruct"],
    ["ce_recovered_zero", share, "of what these activations do for the model's predictions survives when the " +
      "reconstruction takes their place (cross-entropy recovered)"],
    ["label_score_median", (value) => dom.fixed(value, 2), "is the median label's score: how well it predicts on new " +
      "text where its feature fires, from 0, chance, to 1"],
    ["analysed_tokens", dom.number, "tokens of text were looked at"],
  ];

  const figure = (name) => {
    const {figures = {}} = data.index.summary;
    return figures[`sae/${name}`] ?? figures[name];
  };

  // What the dictionary is, as far as the run's settings tell.
  function sentence() {
    const {sae = {}, activations = {}, subject = {}} = data.index.summary.config ?? {};
    const sites = (names) => (names && names.length ? names : [activations.site]).filter(Boolean).join(" and ");
    const [reads, writes] = [sites(sae.reads), sites(sae.writes)];
    const layers = subject.model && subject.model.n_layers;
    const model = subject.weights || (layers && `a transformer of ${layers} layer${layers > 1 ? "s" : ""}`);
    const rows = figure("rows_seen");
    return [`${dom.number(data.index.n_features)} features`,
      reads && (reads === writes ? ` of the activations at ${reads}` : ` from the activations at ${reads} to those at ${writes}`),
      reads && model && ` in ${model}`, sae.recipe && `, learned by the recipe ${sae.recipe}`,
      dom.isNumber(rows) && ` from ${dom.number(rows)} rows`, "."].filter(Boolean).join("");
  }

  function figures() {
    const known = FIGURES.map(([name, shown, meaning]) => [figure(name), shown, meaning])
      .filter(([value]) => dom.isNumber(value));
    if (!known.length) return null;
    return section("In figures", element("dl", {class: "figures"}, known.map(([value, shown, meaning]) =>
      element("div", {}, element("dt", {}, shown(value)), element("dd", {}, meaning)))));
  }

  function counts() {
    const status = data.cells.find(({kind}) => kind === "status");
    const totals = data.index.statuses.map(() => 0);
    for (const value of status.values) totals[value]++;
    return element("ul", {class: "tiles"}, data.index.statuses.map((name, i) => element("li", {},
      dom.link(`#/${query.format({...query.DEFAULTS, [status.key]: name})}`,
        element("strong", {}, dom.number(totals[i])), ` ${name}`),
      element("span", {class: "quiet"}, ` ${dom.percent(totals[i] / data.index.n_features)}`))));
  }

  function search() {
    const field = element("input", {type: "search", id: "home-search", "aria-label": "Search", autocomplete: "off",
                                    placeholder: "a token, a label or a kind of text", spellcheck: "false"});
    return element("form", {class: "controls", role: "search", onsubmit: (event) => {
      event.preventDefault();
      app.openList({...query.DEFAULTS, q: field.value}, false);
    }}, field, element("button", {}, "Find features"));
  }

  // Ten features to begin with, of different domains: of those that are mostly of one domain and whose labels predict
  // them, for each domain the one that does most for reconstructions; then those of which both is most so.
  function first() {
    const [domain, of, score, status, part] = ["domain", "share", "score", "status", "part"].map((key) =>
      data.cells.find((cell) => cell.key === key));
    if (!domain || !of || !score) return null;
    const worth = (id) => score.values[id] * of.values[id];
    const does = (id) => (part ? part.values[id] : worth(id));
    const best = new Map();
    score.values.forEach((value, id) => {
      const [where, before] = [domain.values[id], best.get(domain.values[id])];
      if (where < 0 || data.index.statuses[status.values[id]] !== "regular") return;
      if (value === null || value < LEAST || of.values[id] < LEAST) return;
      if (before === undefined || does(id) > does(before)) best.set(where, id);
    });
    const ids = [...best.values()].sort((a, b) => worth(b) - worth(a)).slice(0, 10);
    if (!ids.length) return null;
    return section("Ten features to begin with",
      element("p", {}, "Of different kinds of text a feature that is mostly of that kind, whose label predicts it, and which does most."),
      table([["Top domain"], ["Label"], ["Score", true], ["Feature", true]], ids.map((id) =>
        [data.index.domains[domain.values[id]], (data.label(id) || {text: "–"}).text, dom.fixed(score.values[id], 2),
         dom.link(`#/feature/${id}`, String(id))])));
  }

  // The features of each status by density, above one another; dead ones have none.
  function densities() {
    const [density, status] = ["density", "status"].map((key) => data.cells.find((cell) => cell.key === key));
    const logs = density.values.map((value) => (value > 0 ? Math.log10(value) : null));
    const known = logs.filter((value) => value !== null);
    if (!known.length) return null;
    const [low, high] = [known, known].map((values, i) => (i ? Math.ceil : Math.floor)(
      BINS * values.reduce((a, b) => (i ? Math.max : Math.min)(a, b), values[0])) / BINS);
    const edges = charts.equalEdges(low, Math.max(high, low + 1 / BINS), Math.max(Math.round(BINS * (high - low)), 1));
    const series = data.index.statuses.map((name, value) => {
      const counts = new Array(edges.length - 1).fill(0);
      logs.forEach((log, id) => {
        if (log === null || status.values[id] !== value) return;
        counts[Math.min(Math.floor(BINS * (log - low) + 1e-9), counts.length - 1)]++;
      });
      return {name, counts};
    }).filter(({counts}) => counts.some(Boolean));
    return section("Densities", element("p", {}, "How many features fire on which share of the tokens."),
      charts.stacked({edges, series, title: "Histogram of the features' densities", xLabel: "log₁₀ density",
                      yLabel: "features"}),
      element("p", {class: "legend"}, series.map(({name}) =>
        [element("span", {class: "swatch", style: `background:var(--${name})`}), `${name}  `]).flat()));
  }

  // What a frontier's points differ in, as words: k, or the coefficient of the sparsity penalty.
  function knobName(rows) {
    const knobs = [...new Set(rows.map(({knob}) => knob))];
    return knobs.length === 1 && knobs[0] ? knobs[0].replaceAll("_", " ") : "sparsity";
  }

  function frontier(rows) {
    const knob = knobName(rows);
    const usable = rows.filter((row) => dom.isNumber(row.l0) && dom.isNumber(row.ce_recovered_zero));
    const points = usable.map((row) => ({
      kind: "run", x: row.l0, y: 100 * row.ce_recovered_zero, label: dom.number(row.sparsity, 2),
      name: `${knob} ${dom.number(row.sparsity)}: L0 ${dom.number(row.l0)}, ` +
        `${dom.percent(row.ce_recovered_zero)} recovered`}));
    const paper = {kind: "paper", x: PAPER.l0, y: 100 * PAPER.recovered, label: "paper A/1",
                   name: "Towards Monosemanticity, A/1: L0 4.9, 79 % recovered"};
    return section("Sparsity against fidelity",
      element("p", {}, `One point for each ${knob}, which stands beside it; higher and further left is better. The `,
        "paper's A/1 has L0 4.9 and recovers 79 %, with another model and other text."),
      charts.scatter({points: [...points, paper], title: "CE recovered against L0",
                      xLabel: "L0, features per token", yLabel: "CE recovered, %"}),
      table([[knob.replace(/^\w(?=\w)/, (letter) => letter.toUpperCase()), true], ["L0", true], ["CE recovered", true], ["Explained variance", true]],
        rows.map((row) => [dom.number(row.sparsity), dom.number(row.l0),
          dom.percent(row.ce_recovered_zero), dom.number(row.explained_variance)])));
  }

  function map() {
    if (!featureMap.isThere()) return null;
    const {controls, note, canvas, legend} = featureMap.build(query.DEFAULTS);
    return section("Map", controls, note, canvas, legend);
  }

  function show(main) {
    const {frontier: points} = data.index.summary;
    main.replaceChildren(element("h1", {}, data.index.title), element("p", {}, sentence()), search(), counts(),
      element("div", {class: "columns home"},
        element("div", {class: "numbers"}, first(), map()),
        element("div", {class: "numbers"}, figures(), densities(), points ? frontier(points) : null)));
    scrollTo(0, 0);
    return "Home";
  }

  return {path: "home", nav: "Home", order: -10, show};
})());
