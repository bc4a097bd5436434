"use strict";

// The dictionaries of a run whose sites lie beside this one: how faithful each is, and how many features they share.
app.page((() => {
  const {element} = dom;
  const SHARED = 0.7;  // the cosine from which on a feature counts as shared

  const link = ({name, folder}) =>
    dom.link(folder === data.index.dictionaries.own ? "#/" : `../${encodeURIComponent(folder)}/index.html`, name);

  const scrolled = (table) => element("div", {class: "scroll", tabindex: "0"}, table);

  function frontier(all) {
    const usable = all.filter((one) => dom.isNumber(one.l0) && dom.isNumber(one.ce_recovered_zero));
    if (usable.length < 2) return null;
    return charts.scatter({
      points: usable.map((one) => ({kind: "run", x: one.l0, y: 100 * one.ce_recovered_zero, label: one.name,
        name: `${one.name}: L0 ${dom.number(one.l0)}, ${dom.percent(one.ce_recovered_zero)} recovered`})),
      title: "CE recovered against L0", xLabel: "L0, features per token", yLabel: "CE recovered, %"});
  }

  function shared({all, matches}) {
    const rows = all.filter(({folder}) => folder in matches).map((other) => {
      const [ids, values] = matches[other.folder];
      const cosines = values.filter((_, i) => ids[i] >= 0);  // dead features have no match
      if (!cosines.length) return [link(other), "–", "–"];
      const mean = cosines.reduce((sum, cosine) => sum + cosine, 0) / cosines.length;
      return [link(other), dom.percent(cosines.filter((cosine) => cosine >= SHARED).length / cosines.length),
              dom.fixed(mean, 2)];
    });
    if (!rows.length) return null;
    return element("section", {class: "panel"}, element("h2", {}, "Features of this dictionary that others have, too"),
      element("p", {}, `A feature is shared if a direction of the other dictionary has a cosine of ${SHARED} or more ` +
        "with its own. MMCS is the mean of the largest cosines. A feature's page names its match."),
      panels.table(["Dictionary", "Shared", "MMCS"], rows));
  }

  function show(main) {
    const {dictionaries} = data.index;
    main.replaceChildren(element("h1", {}, "Dictionaries of this run"),
      element("div", {class: "about"},
        element("section", {class: "panel"}, element("h2", {}, "How faithful they are"),
          scrolled(panels.table(
            ["Dictionary", "Recipe", "Site", "Features", "L0", "CE recovered", "Explained variance"],
            dictionaries.all.map((one) => [link(one), one.recipe, one.writes.join(", "), dom.number(one.n_features),
              dom.number(one.l0), dom.percent(one.ce_recovered_zero), dom.number(one.explained_variance)]))),
          frontier(dictionaries.all)),
        shared(dictionaries)));
    return "Dictionaries";
  }

  return {path: "dictionaries", nav: "Dictionaries", order: 90,
          isAvailable: () => (data.index.dictionaries?.all.length ?? 0) > 1, show};
})());
