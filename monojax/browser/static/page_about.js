"use strict";

// The page about the run: all its figures, and what the terms mean. A section whose data is absent is left out.
app.page((() => {
  const {element} = dom;
  const {section, table} = blocks;
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
    ["Around 91 % of the max, 82 %, …", "Examples with activations nearest to 10/11, 9/11, … 0 of the feature's " +
      "largest. They show whether a feature means the same when it is weaker."],
    ["Bottom activations", "Tokens drawn at random from those on which the feature does not fire."],
    ["F1", "Of a feature or neuron as a detector of a class of text: the harmonic mean of its precision " +
      "and recall."],
    ["Specificity, recall", "Of a feature and a kind of text: the share of the tokens on which the feature fires " +
      "that are of the kind, and the share of the kind's tokens on which it fires."],
    ["Share of L1", "A neuron's absolute decoder weight over the sum of all of them: small where a feature " +
      "is not just a neuron."],
  ];

  const figureName = (name) => name.replaceAll("/", " / ").replaceAll("_", " ")
    .replace(/\b(l0|l1|ce|mse|sae|f1)\b/g, (term) => term.toUpperCase()).replace(/^n (\w)/, "number of $1");

  function figures(values) {
    return section("Figures", table([["Figure"], ["Value", true]],
      Object.entries(values).map(([name, value]) =>
        [figureName(name), typeof value === "string" ? value : dom.number(value)])));
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
    const panels = [ownLabels(), part("figures", figures), part("statuses", statuses), part("detectors", detectors),
                    part("proxies", proxies), part("config", configuration)];
    main.replaceChildren(element("h1", {}, "About the run"), element("div", {class: "about"}, panels), terms());
    scrollTo(0, 0);
    return "About the run";
  }

  return {path: "about", nav: "About the run", order: 100, show};
})());
