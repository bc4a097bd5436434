"use strict";

// What fills the panels of a feature's page, by kind: functions of an entry (the description of a column) and of
// {id, feature, strings}, where `feature` has the columns' values and `strings` the texts of its tokens. Each gives an
// element, or null where there is nothing to show.
const panels = (() => {
  const {element} = dom;
  const ORDER_NOTE = "Tokens stand in the order in which the model reads them, from left to right, each on " +
    "its own: words of Hebrew or Arabic, which are written from right to left, therefore follow one " +
    "another from left to right.";

  // Values of the columns beside an entry's own, in the order of the description.
  const beside = (entry, feature) => entry.beside.map((name) => feature[name]);

  function table(heads, rows) {
    return element("table", {class: "plain"},
      element("thead", {}, element("tr", {}, heads.map((head, i) =>
        element("th", {scope: "col", class: i ? "numeric" : null}, head)))),
      element("tbody", {}, rows.map((row) => element("tr", {}, row.map((content, i) =>
        element("td", {class: i ? "numeric" : null}, content))))));
  }

  function neurons(entry, {feature}) {
    const [weights, shares] = beside(entry, feature);
    return table(["Neuron", "Weight", "Share of L1"], feature[entry.name].map((neuron, i) =>
      [String(neuron), dom.signed(weights[i], 3), dom.percent(shares[i])]));
  }

  function activationHistogram(entry, {feature}) {
    const [largest] = beside(entry, feature);
    const counts = feature[entry.name];
    if (!largest) return null;
    return charts.histogram({
      edges: charts.equalEdges(0, largest, counts.length), counts,
      title: "Histogram of the non-zero activations", xLabel: entry.label, yLabel: "tokens, log scale",
      logarithmic: true, tint: (activation) => 0.2 + 0.8 * activation / largest,
    });
  }

  function logitHistogram(entry, {feature}) {
    const [[low, high]] = beside(entry, feature);
    const counts = feature[entry.name];
    if (!(high > low)) return null;
    return charts.histogram({
      edges: charts.equalEdges(low, high, counts.length), counts,
      title: "Histogram of the logit weights", xLabel: entry.label, yLabel: "vocabulary, log scale",
      logarithmic: true,
    });
  }

  // Half as wide as the panel, so that two of them stand side by side.
  function weightedTokens(entry, {feature, strings}) {
    const [weights] = beside(entry, feature);
    return element("div", {class: "half"}, table([entry.label, "Weight"], feature[entry.name].map((place, i) =>
      [dom.token(strings[place], {class: "boxed"}), dom.signed(weights[i], 3)])));
  }

  function domains(entry, {feature}) {
    const shares = feature[entry.name].map((share, i) => [share, i]).filter(([share]) => share > 0);
    if (!shares.length) return null;
    shares.sort((a, b) => b[0] - a[0] || a[1] - b[1]);
    return element("table", {class: "bars"},
      element("caption", {class: "hidden"}, "Share of the feature's total activation in each domain"),
      element("tbody", {}, shares.map(([share, i]) => element("tr", {},
        element("th", {scope: "row"}, data.index.domains[i]),
        element("td", {class: "bar-cell", "aria-hidden": "true"},
          element("span", {style: `width:${Math.max(100 * share, 0.5)}%`})),
        element("td", {class: "numeric"}, share < 5e-4 ? "< 0.1 %" : dom.percent(share))))));
  }

  function exampleToken(text, activation, largest, isCentre) {
    const heat = largest > 0 ? Math.min(Math.max(activation / largest, 0), 1) : 0;
    return dom.token(text, {
      class: `window${heat > 0 ? " hot" : ""}${heat > 0.55 ? " hottest" : ""}${isCentre ? " centre" : ""}`,
      style: heat > 0 ? `--heat:${heat.toFixed(3)}` : null,
      "data-token": text, "data-act": activation, "data-share": heat,
    });
  }

  function example([document, domain, tokens, acts], strings, largest) {
    const centre = (tokens.length - 1) / 2;
    const source = domain >= 0 ? data.index.domains[domain] : "";
    return element("li", {},
      element("span", {class: "act"}, dom.fixed(acts[centre], 2)),
      element("span", {class: "text"}, tokens.map((place, t) =>
        (place < 0 ? null : exampleToken(strings[place], acts[t], largest, t === centre)))),
      element("span", {class: "source", title: document >= 0 ? `document ${document}` : null}, source));
  }

  function legend(largest) {
    return element("p", {class: "legend"},
      element("span", {class: "scale", "aria-hidden": "true"}),
      `background: activation, 0 to the feature's max ${dom.number(largest)}; underlined: the token the ` +
      "example was chosen for; ", element("span", {class: "token"}, element("span", {class: "space"}, " ")),
      " space, ", element("span", {class: "mark"}, "↵"), " new line, ",
      element("span", {class: "bytes"}, "\\xd8"), " byte of a longer character. ",
      element("span", {class: "note", tabindex: "0", title: ORDER_NOTE}, "Order of the tokens"));
  }

  function examples(entry, {feature, strings}) {
    const largest = feature.max_act;
    const groups = feature[entry.name].map((group, i) => (group.length === 0 ? null :
      element("section", {class: "group", "data-group": data.index.groups[i]},
        element("h3", {}, data.index.groups[i]),
        element("ol", {class: "examples"}, group.map((item) => example(item, strings, largest))))));
    const isEmpty = groups.every((group) => group === null);
    return element("div", {class: "evidence"}, element("h2", {class: "hidden"}, entry.panel),
      isEmpty ? element("p", {class: "message"}, largest ? "There are no examples of this feature."
        : "The feature never fired on the analysed text, so there are no examples.") : legend(largest),
      groups);
  }

  return {
    neurons, domains, examples, weighted_tokens: weightedTokens,
    activation_histogram: activationHistogram, logit_histogram: logitHistogram,
  };
})();
