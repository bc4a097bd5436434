"use strict";

// The page of one feature: its numbers and histograms at the left, its examples at the right. Which columns it shows
// and in which panels is described in the index (data.index.entries).
app.page((() => {
  const {element} = dom;
  const SCORE_NOTE = "How well these words predict the feature's activation on text that had no part in their " +
    "choice: the rank correlation, 1 for perfect, 0 for chance.";

  function heading(id, state) {
    const {order, places} = query.run(state);
    const place = places[id];
    const status = data.status(id);
    const label = data.label(id);
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
        data.index.live ? dom.link(`#/try/${id}`, "Your text") : null,
        step(-1, "‹ Previous", "Previous feature of the list (k or ←)"),
        step(1, "Next ›", "Next feature of the list (j or →)"),
        element("button", {type: "button", title: "A random feature of the list (r)",
                           onclick: () => app.random()}, "Random")),
      label ? element("p", {class: "feature-label"}, label.text, element("span", {class: "quiet", title: SCORE_NOTE},
        label.score === null ? "  fires too rarely for a score" : `  score ${dom.fixed(label.score, 2)}`)) : null);
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
  function drawn(given) {
    const byPanel = new Map();
    for (const entry of data.index.entries.filter(({kind}) => kind !== "examples")) {
      byPanel.set(entry.panel, [...byPanel.get(entry.panel) ?? [], entry]);
    }
    return [...byPanel].map(([title, entries]) => {
      const isLine = ({kind}) => Boolean(kinds[kind] && kinds[kind].line);
      const content = [statistics(entries.filter(isLine), given.feature),
        ...entries.filter((entry) => !isLine(entry)).map((entry) => panels[entry.kind](entry, given))];
      if (content.every((node) => node === null)) return null;
      return element("section", {class: "panel"}, element("h2", {}, title),
        element("div", {class: "content"}, content));
    });
  }

  async function fill(main, id, {state, isCurrent}) {
    let loaded;
    try {
      loaded = await data.feature(id);
    } catch (error) {
      if (isCurrent()) app.message(main, "The feature's data is missing", error.message);
      return;
    }
    if (!isCurrent()) return;
    const given = {id, ...loaded};
    const examples = data.index.entries.filter(({kind}) => kind === "examples")
      .map((entry) => panels.examples(entry, given));
    main.replaceChildren(heading(id, state),
      element("div", {class: examples.length ? "columns" : ""},
        element("div", {class: examples.length ? "numbers" : "numbers alone"}, drawn(given)), examples));
    main.dataset.feature = id;
    scrollTo(0, 0);
    for (const step of [1, -1]) {
      const neighbour = query.neighbour(state, id, step);
      if (neighbour !== null) data.prefetch(neighbour);
    }
  }

  function show(main, route) {
    const text = route.argument;
    if (!/^\d{1,9}$/.test(text) || Number(text) >= data.index.n_features) {
      app.message(main, `There is no feature ${dom.decoded(text)}`,
        `This dictionary has the features 0 to ${data.index.n_features - 1}.`);
      return "No such feature";
    }
    route.feature = Number(text);
    fill(main, route.feature, route);
    return `Feature ${route.feature}`;
  }

  return {path: "feature", takesArgument: true, show};
})());
