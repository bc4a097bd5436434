"use strict";

// Two features side by side: #/compare/12,45. With one number, the other is the nearest regular one by direction.
app.page((() => {
  const {element} = dom;
  const N_EXAMPLES = 10;  // of each group

  const isFeature = (text) => /^\d{1,9}$/.test(text) && Number(text) < data.index.n_features;

  // What the page of one feature says of another one among its neighbours.
  function similarities({feature}, other) {
    return data.index.entries.filter(({kind}) => kind === "features").flatMap((entry) => {
      const place = feature[entry.name].indexOf(other);
      return place < 0 ? [] : [`${entry.label.toLowerCase()} ${dom.fixed(feature[entry.beside[0]][place], 2)}`];
    });
  }

  function chooser([first, second]) {
    const fields = [first, second].map((id, i) => element("input", {
      type: "number", min: "0", max: data.index.n_features - 1, step: "1", required: true, value: id,
      "aria-label": `${i ? "second" : "first"} feature`}));
    return element("form", {id: "compare", class: "controls", onsubmit: (event) => {
      event.preventDefault();
      location.hash = `#/compare/${fields.map(({value}) => value).join(",")}`;
    }}, fields[0], "with", fields[1], element("button", {}, "Compare"));
  }

  function column(id, given) {
    const shortened = {...given, feature: {...given.feature}};
    for (const {name} of data.index.entries.filter(({kind}) => kind === "examples")) {
      shortened.feature[name] = given.feature[name].map((group) => group.slice(0, N_EXAMPLES));
    }
    const status = data.status(id);
    return element("div", {class: "numbers", "data-feature": id},
      element("div", {class: "heading"}, element("h2", {}, dom.link(`#/feature/${id}`, `Feature ${id}`)),
        element("span", {class: `badge ${status}`}, status), panels.label(id)),
      data.index.entries.filter(({kind}) => kind === "examples").map((entry) => panels.examples(entry, shortened)),
      panels.numbers(given));
  }

  async function fill(main, ids, isCurrent) {
    let loaded;
    try {
      loaded = await Promise.all(ids.map(data.feature));
    } catch (error) {
      if (isCurrent()) app.message(main, "The features cannot be shown", error.message);
      return;
    }
    if (!isCurrent()) return;
    if (ids.length === 1) {
      const nearest = data.index.entries.filter(({kind}) => kind === "features")
        .flatMap(({name}) => loaded[0].feature[name]).find((id) => id >= 0 && data.status(id) === "regular");
      location.replace(`#/compare/${ids[0]},${nearest ?? (ids[0] + 1) % data.index.n_features}`);
      return;
    }
    const alike = similarities(loaded[0], ids[1]);
    main.replaceChildren(element("div", {class: "heading"}, element("h1", {}, "Compare two features"), chooser(ids)),
      element("p", {class: "quiet", id: "alike"}, alike.length ? `They are alike: ${alike.join(", ")}.`
        : `Neither direction nor activations put feature ${ids[1]} among the neighbours of feature ${ids[0]}.`),
      element("div", {class: "columns two"}, ids.map((id, i) => column(id, {id, ...loaded[i]}))));
    main.dataset.compared = ids.join(",");
  }

  function show(main, route) {
    const ids = route.argument.split(",");
    if (ids.length > 2 || !ids.every(isFeature)) {
      app.message(main, "Two features are needed", `Their numbers are 0 to ${data.index.n_features - 1}, as in ` +
        "#/compare/0,1.");
      return "No such features";
    }
    fill(main, ids.map(Number), route.isCurrent);
    return `Features ${ids.join(" and ")}`;
  }

  return {path: "compare", takesArgument: true, show};
})());
