"use strict";

// What fills the panels of a feature's page, by kind: functions of an entry (the description of a column) and of
// {id, feature, strings}, where `feature` has the columns' values and `strings` the texts of its tokens. Each gives an
// element, or null where there is nothing to show.
const panels = (() => {
  const {element} = dom;
  const SCORE_NOTE = "How well these words predict the feature's activation on text that had no part in their " +
    "choice: the rank correlation, 1 for perfect, 0 for chance.";
  const ORDER_NOTE = "Tokens follow one another as the text is written: those of Hebrew or Arabic, for instance, from " +
    "right to left.";

  // Values of the columns beside an entry's own, in the order of the description.
  const beside = (entry, feature) => entry.beside.map((name) => feature[name]);

  // A table of which the first column is text and the others are numbers.
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

  // Links to other features, each with its label, or without one the token on which it fires most; -1 is none.
  function features(entry, {feature}) {
    const [similarities] = beside(entry, feature);
    const tokens = data.cells.find(({kind}) => kind === "top_tokens");
    const named = (id) => {
      const label = data.label(id);
      return label ? element("span", {class: "feature-label"}, label.text)
        : tokens ? kinds.top_tokens.cell(tokens.values[id]) : null;
    };
    const rows = feature[entry.name].flatMap((id, i) => (id < 0 ? [] : [[
      [dom.link(`#/feature/${id}`, String(id)), " ", named(id)].flat(), dom.fixed(similarities[i], 3)]]));
    return rows.length ? table(["Feature", entry.label], rows) : null;
  }

  function activationHistogram(entry, {feature}) {
    const [largest] = beside(entry, feature);
    const counts = feature[entry.name];
    if (!largest) return null;
    const shares = feature.act_domain_share;
    const top = feature.domain_share && feature.domain_share.domains[0];
    const chart = charts.histogram({
      edges: charts.equalEdges(0, largest, counts.length), counts,
      title: "Histogram of the non-zero activations", xLabel: entry.label, yLabel: "tokens, log scale",
      logarithmic: true, tint: (activation) => 0.2 + 0.8 * activation / largest, shares,
    });
    return shares && top !== undefined ? [chart, element("p", {class: "legend"},
      element("span", {class: "swatch", style: "background:rgb(var(--heat-colour))"}), `of ${data.index.domains[top]}  `,
      element("span", {class: "swatch", style: "background:var(--bar)"}), "of others")] : chart;
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

  // The tokens that a feature comes from in its strongest example.
  function sources(entry, {feature, strings}) {
    const [back, weights, whole] = beside(entry, feature);
    const listed = feature[entry.name].map((place, i) => ({place, back: back[i], weight: weights[i]}))
      .filter(({place}) => place >= 0);
    if (!listed.length) return null;
    const rest = whole - listed.reduce((sum, {weight}) => sum + weight, 0);
    return [element("p", {class: "quiet", title: entry.help}, `${entry.label}, of its pre-activation ${dom.fixed(whole, 2)}:`),
      ...weightBars([...listed.map(({place, back: n, weight}) => ({
        head: [dom.token(strings[place], {class: "boxed"}), n ? ` ${n} before` : " itself"], weight})),
        {head: "others and biases", weight: rest}], entry.help)];
  }

  // A table of rows {head, weight, title}, with bars; the colour of those below 0 is another.
  function weightBars(rows, caption) {
    const most = Math.max(...rows.map(({weight}) => Math.abs(weight)), 1e-9);
    return [element("table", {class: "plain bars"}, element("caption", {class: "hidden"}, caption),
      element("tbody", {}, rows.map(({head, weight, title = null}) => element("tr", {title},
        element("th", {scope: "row"}, head),
        element("td", {class: `bar-cell${weight < 0 ? " negative" : ""}`, "aria-hidden": "true"},
          element("span", {style: `width:${(100 * Math.abs(weight) / most).toFixed(1)}%`})),
        element("td", {class: "numeric"}, dom.signed(weight, 2))))))];
  }

  // The largest shares; what the site leaves out of the others is their number and their sum.
  function domains(entry, {feature}) {
    const {domains: listed, shares, n_others: nOthers, others} = feature[entry.name];
    if (!listed.length) return null;
    const row = (name, share) => element("tr", {},
      element("th", {scope: "row", title: name}, name),
      element("td", {class: "bar-cell", "aria-hidden": "true"},
        element("span", {style: `width:${Math.max(100 * share, 0.5)}%`})),
      element("td", {class: "numeric"}, share < 5e-4 ? "< 0.1 %" : dom.percent(share)));
    return element("table", {class: "bars"},
      element("caption", {class: "hidden"}, "Share of the feature's total activation in each domain"),
      element("tbody", {}, listed.map((domain, i) => row(data.index.domains[domain], shares[i])),
        nOthers ? row(`${dom.number(nOthers)} others`, others) : null));
  }

  // The places of texts that contents.py has packed into a string (`Strings.packed`).
  const digits = Array.from({length: 92}, (_, i) => String.fromCharCode(35 + i)).filter((c) => c !== "\\" && c !== "<");
  const valueOf = new Map(digits.map((digit, i) => [digit, i]));
  function unpacked(packed) {
    const places = [];
    for (let at = 0; at < packed.length;) {
      const isLong = packed[at] === "!";
      const end = at + (isLong ? 4 : 2);
      let number = 0;
      for (let i = isLong ? at + 1 : at; i < end; i++) number = number * digits.length + valueOf.get(packed[i]);
      places.push(number - 1);
      at = end;
    }
    return places;
  }

  // What is drawn of an example: [{text, first, parts}], where `parts` are the [text, activation, effect] of the tokens
  // from number `first` on. These are one token, or, as `joined` says, several that share a character.
  function spans([,, packed, acts, joined, effects], strings) {
    const tokens = unpacked(packed);
    const runs = new Map((joined || []).map(([first, count, place]) => [first, {count, text: strings[place]}]));
    const found = [];
    for (let first = 0; first < tokens.length;) {
      const {count, text} = runs.get(first) || {count: 1, text: strings[tokens[first]]};
      const parts = tokens.slice(first, first + count).map((place, i) =>
        [strings[place], acts[first + i], effects ? effects[first + i] : 0]);
      if (tokens[first] >= 0) found.push({text, first, parts});
      first += count;
    }
    return found;
  }

  // How an effect is underlined: thicker the larger it is, up to that of one nat; dashed where the feature hurts.
  function effectStyle(effect) {
    if (!effect) return ["", null];
    const width = 1 + 2 * Math.min(Math.abs(effect), 1);
    return [effect > 0 ? " helps" : " hurts", `--effect:${width.toFixed(1)}px`];
  }

  // The classes of a token whose background is so hot, 0 to 1. On the hottest, dark text is read better than white.
  const heatClass = (heat) => `${heat > 0 ? " hot" : ""}${heat > 0.72 ? " hottest" : ""}`;

  function exampleSpan({text, first, parts}, centre, largest, changes) {
    const activation = Math.max(...parts.map(([, act]) => act));
    const effect = parts.reduce((sum, [,, of]) => sum + of, 0);
    const [effectClass, effectWidth] = effectStyle(effect);
    const heat = largest > 0 ? Math.min(Math.max(activation / largest, 0), 1) : 0;
    const isCentre = first <= centre && centre < first + parts.length;
    return dom.token(text, {
      class: `window${heatClass(heat)}${isCentre ? " centre" : ""}${effectClass}`,
      style: [heat > 0 ? `--heat:${heat.toFixed(3)}` : null, effectWidth].filter(Boolean).join(";") || null,
      "data-token": text, "data-act": activation, "data-max": largest, "data-effect": effect || null,
      "data-parts": parts.length > 1 ? JSON.stringify(parts) : null,
      "data-changes": isCentre && changes ? JSON.stringify(changes) : null,
    });
  }

  // The window of an example that is longer, [packed places of texts, {place in the window: activation}].
  function longerText([packed, acts], strings, largest) {
    return element("span", {class: "text longer", dir: "auto"}, unpacked(packed).map((place, i) => {
      const activation = acts[i] ?? 0;
      const heat = largest > 0 ? Math.min(activation / largest, 1) : 0;
      return dom.token(strings[place], {
        class: `window${heatClass(heat)}`, style: heat > 0 ? `--heat:${heat.toFixed(3)}` : null,
        "data-token": strings[place], "data-act": activation, "data-max": largest});
    }));
  }

  function example(item, strings, largest, longer) {
    const [document, domain,, acts,,, changed] = item;
    const centre = (acts.length - 1) / 2;
    const listed = (places, values) => places.map((place, i) => [strings[place], values[i]]);
    const changes = changed ? [listed(changed[0], changed[1]), listed(changed[2], changed[3])] : null;
    const text = element("span", {class: "text", dir: "auto"},
      spans(item, strings).map((span) => exampleSpan(span, centre, largest, changes)));
    const source = element("span", {class: "source", title: document >= 0 ? `document ${document}` : null},
      domain >= 0 ? data.index.domains[domain] : "");
    if (longer) {
      let other = null;
      const button = element("button", {type: "button", class: "more", "aria-expanded": "false",
        title: "More of the text around it", onclick: () => {
          other ??= longerText(longer, strings, largest);
          const isShort = text.isConnected;
          (isShort ? text : other).replaceWith(isShort ? other : text);
          button.setAttribute("aria-expanded", String(isShort));
        }}, "more");
      source.append(" ", button);
    }
    return element("li", {}, element("span", {class: "act"}, dom.fixed(acts[centre], 2)), text, source);
  }

  const underlined = (name, text) => element("span", {class: `token window ${name}`, style: "--effect:3px"}, text);

  function legend(largest, hasEffects) {
    return element("p", {class: "legend"},
      element("span", {class: "scale", "aria-hidden": "true"}),
      `background: activation, 0 to the feature's max ${dom.number(largest)}; framed: the token the ` +
      "example was chosen for; ",
      hasEffects ? ["without the feature a token is predicted ", underlined("helps", "worse"), " or ",
                    underlined("hurts", "better"), "; "] : [],
      element("span", {class: "token"}, element("span", {class: "space"}, " ")),
      " space, ", element("span", {class: "mark"}, "↵"), " new line, ",
      element("span", {class: "bytes"}, "\\xd8"), " byte of a character that is cut off; tokens that " +
      "share a character are drawn as one. ",
      element("span", {class: "note", tabindex: "0", title: ORDER_NOTE}, "Order of the tokens"));
  }

  function examples(entry, {feature, strings}) {
    const largest = feature.max_act;
    const groups = feature[entry.name].map((group, i) => (group.length === 0 ? null :
      element("section", {class: "group", "data-group": data.index.groups[i]},
        element("h3", {}, data.index.groups[i]),
        element("ol", {class: "examples"}, group.map((item, e) =>
          example(item, strings, largest, i === 0 && feature.longer ? feature.longer[e] : null))))));
    const isEmpty = groups.every((group) => group === null);
    const hasEffects = feature[entry.name].some((group) => group.some((item) => item[5]));
    return element("div", {class: "evidence"}, element("h2", {class: "hidden"}, entry.panel),
      isEmpty ? element("p", {class: "message"}, largest ? "There are no examples of this feature."
        : "The feature never fired on the analysed text, so there are no examples.") : legend(largest, hasEffects),
      groups);
  }

  const drawings = {
    neurons, features, domains, examples, sources, weighted_tokens: weightedTokens,
    activation_histogram: activationHistogram, logit_histogram: logitHistogram,
  };

  // A feature's label with its score; null where it has none.
  function label(id) {
    const found = data.label(id);
    return found && element("p", {class: "feature-label"}, found.text,
      element("span", {class: "quiet", title: SCORE_NOTE}, found.score === null
        ? "  fires too rarely for a score" : `  score ${dom.fixed(found.score, 2)}`));
  }

  // The labels that were next best, each with its score; null where there are none.
  function otherLabels({feature, strings}) {
    const others = feature.other_labels ?? [];
    return others.length ? element("p", {class: "quiet other-labels", title: SCORE_NOTE}, "Next best: ",
      others.map(([place, score]) => `${strings[place]} (${dom.fixed(score, 2)})`).join(" · ")) : null;
  }

  // The entries whose values are single numbers, as a list of names and values.
  function statistics(entries, feature) {
    if (!entries.length) return null;
    return element("dl", {class: "statistics"}, entries.map((entry) => {
      const [value, more] = kinds[entry.kind].line(feature[entry.name]);
      return element("div", {title: entry.help}, element("dt", {}, entry.label),
        element("dd", {}, value, more ? element("span", {class: "quiet"}, ` ${more}`) : null));
    }));
  }

  // The panels in the order of their first entry; those with nothing to show are left out.
  function numbers(given) {
    const byPanel = new Map();
    for (const entry of data.index.entries.filter(({kind}) => kind !== "examples")) {
      byPanel.set(entry.panel, [...byPanel.get(entry.panel) ?? [], entry]);
    }
    return [...byPanel].map(([title, entries]) => {
      const isLine = ({kind}) => Boolean(kinds[kind] && kinds[kind].line);
      const content = [statistics(entries.filter(isLine), given.feature),
        ...entries.filter((entry) => !isLine(entry)).map((entry) => drawings[entry.kind](entry, given))].flat();
      if (content.every((node) => node === null)) return null;
      return element("section", {class: "panel"}, element("h2", {}, title),
        element("div", {class: "content"}, content));
    });
  }

  return {...drawings, table, weightBars, numbers, label, otherLabels, effectStyle, heatClass};
})();
