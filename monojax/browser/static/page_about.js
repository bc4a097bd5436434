"use strict";

// The page about the run: its figures and what the terms mean. A section whose data is absent is left out.
app.page((() => {
  const {element} = dom;
  const PAPER = {l0: 4.9, recovered: 0.79};  // A/1 of "Towards Monosemanticity"
  const TERMS = [
    ["Feature", "A direction in activation space that the sparse autoencoder learned, with an encoder that " +
      "says how strongly it is present. The dictionary is the set of them."],
    ["Activation", "How strongly a feature is present on a token; zero on most tokens. Examples are " +
      "coloured by activation over the feature's largest one, its max, since features differ in scale."],
    ["Density", "The share of tokens on which a feature fires (activation above zero). Real features of " +
      "the paper lie about 10⁻⁴ to 10⁻². Shown as a base-10 logarithm."],
    ["Alive, regular, faint, ultralow, dead", "An alive feature fired at all on the text that was looked at, a dead " +
      "one never. Of the alive ones, ultralow features fire so rarely that they are seldom meaningful, and faint " +
      "ones only so weakly that reconstructions would hardly miss them; the others are called regular here. Only " +
      "these are listed at first, as in the paper."],
    ["L0", "The mean number of features that fire on a token. Lower is sparser, thus easier to read."],
    ["CE recovered", "How much of the language model's performance survives when activations are replaced " +
      "by the dictionary's reconstruction: 100 % is as good as untouched, 0 % as bad as removing the " +
      "activations. CE is the cross entropy of the next token."],
    ["Variance carried, CE carried", "What the features of a kind add to reconstructions, as a share of what all " +
      "features add (of the sum of squares); and how much of what all features do for the model's predictions " +
      "they do alone. The latter need not add up to 100 %."],
    ["Explained variance", "The share of the activations' variance that the reconstruction accounts for."],
    ["Logit weights", "The direct effect of a feature on the next token: its decoder direction through the " +
      "output weights, with the median over the vocabulary at zero."],
    ["Interval 0 to 10", "Examples with activations nearest to 10/11, 9/11, … 0 of the feature's largest. " +
      "They show whether a feature means the same when it is weaker."],
    ["Bottom activations", "Examples on which the feature is least active."],
    ["F1", "Of a feature or neuron as a detector of a class of text: the harmonic mean of its precision " +
      "and recall."],
    ["Specificity, recall", "Of a feature and a kind of text: the share of the tokens on which the feature fires " +
      "that are of the kind, and the share of the kind's tokens on which it fires."],
    ["Share of L1", "A neuron's absolute decoder weight over the sum of all of them: small where a feature " +
      "is not just a neuron."],
  ];

  function section(title, ...content) {
    return element("section", {class: "panel"}, element("h2", {}, title), ...content);
  }

  function table(heads, rows) {
    return element("div", {class: "scroll", tabindex: "0"}, element("table", {class: "plain"},
      element("thead", {}, element("tr", {}, heads.map(([head, isNumeric]) =>
        element("th", {scope: "col", class: isNumeric ? "numeric" : null}, head)))),
      element("tbody", {}, rows.map((row) => element("tr", {}, row.map((content, i) =>
        element("td", {class: heads[i][1] ? "numeric" : null}, content)))))));
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

  const figureName = (name) => name.replaceAll("/", " / ").replaceAll("_", " ")
    .replace(/\b(l0|l1|ce|mse|sae|f1)\b/g, (term) => term.toUpperCase()).replace(/^n (\w)/, "number of $1");

  // Ten features to begin with: of each domain the one whose label predicts best, of the best of these.
  function first() {
    const [domain, score, status] = ["domain", "score", "status"].map((key) => data.cells.find((cell) => cell.key === key));
    if (!domain || !score) return null;
    const best = new Map();
    score.values.forEach((value, id) => {
      const [where, before] = [domain.values[id], best.get(domain.values[id])];
      if (value === null || where < 0 || data.index.statuses[status.values[id]] !== "regular") return;
      if (before === undefined || value > score.values[before]) best.set(where, id);
    });
    const ids = [...best.values()].sort((a, b) => score.values[b] - score.values[a]).slice(0, 10);
    if (!ids.length) return null;
    return section("Ten features to begin with",
      element("p", {}, "Of ten kinds of text the feature whose label predicts it best."),
      table([["Top domain"], ["Label"], ["Score", true], ["Feature", true]], ids.map((id) =>
        [data.index.domains[domain.values[id]], (data.label(id) || {text: "–"}).text, dom.fixed(score.values[id], 2),
         dom.link(`#/feature/${id}`, String(id))])));
  }

  function figures(values) {
    return section("Figures", table([["Figure"], ["Value", true]],
      Object.entries(values).map(([name, value]) =>
        [figureName(name), typeof value === "string" ? value : dom.number(value)])));
  }

  function densities(histogram) {
    return section("Densities", charts.histogram({
      edges: histogram.log10_edges, counts: histogram.counts, title: "Histogram of the features' densities",
      xLabel: "log₁₀ density", yLabel: "features"}));
  }

  function statuses(rows) {
    const heads = ["Kind", "Features", "Density", "Encoder bias", "Encoder · decoder", "Max", "Variance carried",
      "CE carried"];
    return section("Kinds of features",
      element("p", {}, "Medians of the features of each kind, and what they carry together."),
      table(heads.map((head, i) => [head, i > 0]), rows.map((row) => [row.status, dom.number(row.features),
        dom.percent(row.density), dom.number(row.encoder_bias), dom.fixed(row.encoder_decoder_cosine, 2),
        dom.fixed(row.max_act, 2), dom.percent(row.variance_share), dom.percent(row.ce_share)])));
  }

  function detectors(rows) {
    return section("Detectors of a class of text",
      element("p", {}, "For each class the feature that detects it best, beside the best single neuron."),
      table([["Class"], ["Feature", true], ["F1", true], ["Neuron", true], ["F1 of neuron", true]],
        rows.map((row) => [row.class, dom.link(`#/feature/${row.feature}`, String(row.feature)),
          dom.fixed(row.feature_f1, 3), String(row.neuron), dom.fixed(row.neuron_f1, 3)])));
  }

  function proxies(rows) {
    const share = (value) => (dom.isNumber(value) ? dom.percent(value) : "");
    return section("Scripts, formats and domains",
      element("p", {}, "For each the feature that follows it best, by Pearson's correlation with a log-likelihood " +
        "ratio (of a domain: with whether the text is of it), beside the best single neuron."),
      table([["Text", false], ["Share", true], ["Feature", true], ["Pearson", true], ["Specificity", true],
             ["Recall", true], ["Neuron", true], ["Pearson of neuron", true]],
        rows.map((row) => [row.kind === "domain" ? `domain ${row.proxy}` : row.proxy, share(row.share),
          dom.link(`#/feature/${row.feature}`, String(row.feature)), dom.fixed(row.pearson, 3),
          share(row.specificity), share(row.recall), row.neuron === null ? "" : String(row.neuron),
          dom.fixed(row.neuron_pearson, 3)])));
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

  function configuration(value) {
    return section("Configuration", element("details", {}, element("summary", {}, "Show as JSON"),
      element("pre", {tabindex: "0"}, JSON.stringify(value, null, 2))));
  }

  function terms() {
    return section("Terms", element("dl", {class: "terms"}, TERMS.flatMap(([term, text]) =>
      [element("dt", {}, term), element("dd", {}, text)])));
  }

  function ownLabels() {
    const listed = notes.listed();
    return listed && section("Your own labels", listed);
  }

  function show(main) {
    const summary = data.index.summary;
    const part = (name, draw) => (summary[name] ? draw(summary[name]) : null);
    const panels = [first(), ownLabels(), part("figures", figures), part("density_histogram", densities),
                    part("statuses", statuses), part("frontier", frontier), part("detectors", detectors),
                    part("proxies", proxies), part("config", configuration)];
    main.replaceChildren(element("h1", {}, "About the run"), counts(),
      element("div", {class: "about"}, panels), terms());
    scrollTo(0, 0);
    return "About the run";
  }

  return {path: "about", nav: "About the run", order: 100, show};
})());
