"use strict";

// The page of one feature: its numbers and histograms at the left, its examples at the right.
const featureView = (() => {
  const {element} = dom;
  const ORDER_NOTE = "Tokens stand in the order in which the model reads them, from left to right, each on " +
    "its own: words of Hebrew or Arabic, which are written from right to left, therefore follow one " +
    "another from left to right.";

  function heading(id, state) {
    const {order, places} = query.run(state);
    const place = places[id];
    const status = data.STATUSES[data.columns.status[id]];
    const step = (by, text, title) => element("button", {
      type: "button", id: by > 0 ? "next" : "previous", title, disabled: order.length === 0,
      onclick: () => app.step(by)}, text);
    return element("div", {class: "heading"},
      element("h1", {}, `Feature ${id}`),
      element("span", {class: `badge ${status}`}, status),
      element("span", {class: "place"}, place >= 0
        ? `${dom.number(place + 1)} of ${dom.number(order.length)} in the list` : "not in the list"),
      element("span", {class: "steps"},
        dom.link(`#/${query.format(state)}`, "List"),
        step(-1, "‹ Previous", "Previous feature of the list (k or ←)"),
        step(1, "Next ›", "Next feature of the list (j or →)"),
        element("button", {type: "button", title: "A random feature of the list (r)",
                           onclick: () => app.random()}, "Random")));
  }

  function panel(title, ...content) {
    return element("section", {class: "panel"}, element("h2", {}, title), ...content);
  }

  function statistics(id, feature) {
    const columns = data.columns;
    const density = columns.density[id];
    const rows = [
      ["Density", dom.percent(density), `log₁₀ ${dom.log10(density)}`, "share of tokens on which it fires"],
      ["Fires", dom.number(columns.fires[id]), "", "that as a number of tokens"],
      ["Max activation", dom.number(columns.max[id]), "", "largest activation seen"],
      ["Mean activation", dom.number(columns.mean[id]), "", "where it fires"],
      ["Encoder bias", dom.number(feature.bias), "", "with the pre-encoder bias as trained"],
      ["Encoder · decoder", dom.number(feature.cosine), "", "cosine of the feature's two directions"],
    ];
    return panel("Statistics", element("dl", {class: "statistics"}, rows.map(([name, value, more, help]) =>
      element("div", {title: help}, element("dt", {}, name),
        element("dd", {}, value, more ? element("span", {class: "quiet"}, ` ${more}`) : null)))));
  }

  function table(heads, rows) {
    return element("table", {class: "plain"},
      element("thead", {}, element("tr", {}, heads.map((head, i) =>
        element("th", {scope: "col", class: i ? "numeric" : null}, head)))),
      element("tbody", {}, rows.map((row) => element("tr", {}, row.map((content, i) =>
        element("td", {class: i ? "numeric" : null}, content))))));
  }

  function neurons(feature) {
    return panel("Largest neurons", table(["Neuron", "Weight", "Share of L1"],
      feature.neurons.map(([neuron, weight, share]) =>
        [String(neuron), dom.signed(weight, 3), dom.percent(share)])));
  }

  function activations(id, feature) {
    const largest = data.columns.max[id];
    if (!largest) return null;
    return panel("Activations", charts.histogram({
      edges: charts.equalEdges(0, largest, feature.act_counts.length), counts: feature.act_counts,
      title: "Histogram of the non-zero activations", xLabel: "activation", yLabel: "tokens, log scale",
      logarithmic: true, tint: (activation) => 0.2 + 0.8 * activation / largest,
    }));
  }

  function logits(feature, strings) {
    const list = (rows, name) => table([name, "Weight"], rows.map(([place, weight]) =>
      [dom.token(strings[place], {class: "boxed"}), dom.signed(weight, 3)]));
    const [low, high] = feature.logit_range;
    return panel("Logit weights",
      high > low ? charts.histogram({
        edges: charts.equalEdges(low, high, feature.logit_counts.length), counts: feature.logit_counts,
        title: "Histogram of the logit weights", xLabel: "logit weight", yLabel: "vocabulary, log scale",
        logarithmic: true,
      }) : null,
      element("div", {class: "pair"},
        list(feature.top_logits, "Raised"), list(feature.bottom_logits, "Lowered")));
  }

  function domains(id, feature) {
    if (!data.index.domains.length || !data.columns.fires[id]) return null;
    const shares = feature.domain_share.map((share, i) => [share, i]);
    shares.sort((a, b) => b[0] - a[0] || a[1] - b[1]);
    return panel("Domains", element("table", {class: "bars"},
      element("caption", {class: "hidden"}, "Share of the feature's total activation in each domain"),
      element("tbody", {}, shares.filter(([share]) => share > 0).map(([share, i]) => element("tr", {},
        element("th", {scope: "row"}, data.index.domains[i]),
        element("td", {class: "bar-cell", "aria-hidden": "true"},
          element("span", {style: `width:${Math.max(100 * share, 0.5)}%`})),
        element("td", {class: "numeric"}, share < 5e-4 ? "< 0.1 %" : dom.percent(share)))))));
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

  function examples(id, feature, strings) {
    const largest = data.columns.max[id];
    const groups = feature.groups.map((group, i) => (group.length === 0 ? null :
      element("section", {class: "group", "data-group": data.index.groups[i]},
        element("h3", {}, data.index.groups[i]),
        element("ol", {class: "examples"}, group.map((item) => example(item, strings, largest))))));
    const isEmpty = groups.every((group) => group === null);
    return element("div", {class: "evidence"}, element("h2", {class: "hidden"}, "Examples"),
      isEmpty ? element("p", {class: "message"}, largest ? "There are no examples of this feature."
        : "The feature never fired on the analysed text, so there are no examples.") : legend(largest),
      groups);
  }

  // Fills `main` with feature `id`; `isCurrent` says whether that is still wanted once its data is here.
  async function show(main, id, state, isCurrent) {
    let loaded;
    try {
      loaded = await data.feature(id);
    } catch (error) {
      if (isCurrent()) app.message(main, "The feature's data is missing", error.message);
      return;
    }
    if (!isCurrent()) return;
    const {feature, strings} = loaded;
    main.replaceChildren(heading(id, state),
      element("div", {class: "columns"},
        element("div", {class: "numbers"}, statistics(id, feature), activations(id, feature),
          logits(feature, strings), domains(id, feature), neurons(feature)),
        examples(id, feature, strings)));
    main.dataset.feature = id;
    scrollTo(0, 0);
    for (const step of [1, -1]) {
      const neighbour = query.neighbour(state, id, step);
      if (neighbour !== null) data.prefetch(neighbour);
    }
  }

  return {show};
})();
