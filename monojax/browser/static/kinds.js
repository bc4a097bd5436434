"use strict";

// How the values of each kind of column are drawn, sorted, filtered and searched. The names are those of `Kind` in
// monojax/analysis/columns.py; panels.js has the kinds that fill a panel of a feature's page. A kind may have:
//   isNumeric   values stand at the right of their column
//   cell        (value) => what the list shows
//   line        (value) => [text, further text] among a feature's statistics
//   sortKey     (column) => a function from a feature's id to a number; NaN sorts last
//   ascending   the smallest comes first at the first click
//   filter      "words", one button for each; "choice", a menu; "range", a least and a largest value
//   words       () => the texts of the first two, by value
//   scale       a number as it is typed into the range => the number that values are compared with
//   rangeName   (heading) => what the range is of
//   searched    what a search looks for here
//   matches     (value, found) => whether it is there; found.strings and found.domains say which texts match
const kinds = (() => {
  const {element} = dom;

  const number = {
    isNumeric: true,
    cell: (value) => dom.number(value),
    line: (value) => [dom.number(value), ""],
    sortKey: (column) => (id) => column.values[id] ?? NaN,
    filter: "range",
    scale: (typed) => typed,
    rangeName: (heading) => heading,
  };

  const percent = {
    ...number,
    cell: (value) => dom.percent(value),
    line: (value) => [dom.percent(value), ""],
    scale: (typed) => typed / 100,
    rangeName: (heading) => `${heading}, %`,
  };

  const logDensity = {
    ...number,
    cell: (value) => [element("span", {class: "quiet"}, dom.percent(value)), " ",
                      element("span", {class: "log"}, dom.log10(value))],
    line: (value) => [dom.percent(value), `log₁₀ ${dom.log10(value)}`],
    scale: (typed) => 10 ** typed,
    rangeName: (heading) => `log₁₀ ${heading}`,
  };

  // A number that is a name, with -1 for none.
  const neuronName = (value) => (value < 0 ? "–" : String(value));
  const neuron = {...number, cell: neuronName, line: (value) => [neuronName(value), ""]};

  const status = {
    cell: (value) => element("span", {class: `badge ${data.index.statuses[value]}`}, data.index.statuses[value]),
    sortKey: number.sortKey,
    filter: "words",
    words: () => data.index.statuses,
  };

  const boxes = (places) => places.map((place) => dom.token(data.index.strings[place], {class: "boxed"}));

  // A function from a text's place among `texts` to its alphabetical rank.
  function alphabetical(texts) {
    const keys = texts.map((text) => text.trim().toLowerCase());
    const sorted = [...keys.keys()].sort((a, b) => (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : 0));
    const ranks = new Int32Array(keys.length);
    sorted.forEach((text, place) => { ranks[text] = place; });
    return (place) => ranks[place] ?? NaN;
  }

  const topTokens = {
    cell: (places) => boxes(places.slice(0, 1)),
    sortKey: (column) => {
      const rank = alphabetical(data.index.strings);
      return (id) => rank(column.values[id][0]);
    },
    ascending: true,
    searched: "token",
    matches: (places, found) => places.some((place) => found.strings[place]),
  };

  const label = {
    cell: (place) => (place < 0 ? "–" : element("span", {class: "feature-label"}, data.index.strings[place])),
    sortKey: (column) => {
      const rank = alphabetical(data.index.strings);
      return (id) => rank(column.values[id]);
    },
    ascending: true,
    searched: "label",
    matches: (place, found) => place >= 0 && found.strings[place] === 1,
  };

  const weightedTokens = {
    cell: (places) => boxes(places.slice(0, 3)),
    sortKey: (column) => (id) => column.order[id] ?? NaN,
    searched: "logit",
    matches: topTokens.matches,
  };

  const topDomain = {
    cell: (value) => (value < 0 ? "–" : data.index.domains[value]),
    sortKey: (column) => {
      const rank = alphabetical(data.index.domains);
      return (id) => rank(column.values[id]);
    },
    ascending: true,
    filter: "choice",
    words: () => data.index.domains,
    searched: "domain",
    matches: (value, found) => value >= 0 && found.domains[value],
  };

  return {
    number, percent, neuron, status, label,
    activation: {...number, cell: (value) => dom.fixed(value, 2)},
    log_density: logDensity,
    sparkline: {cell: (digits) => charts.sparkline(digits)},
    top_tokens: topTokens,
    weighted_tokens: weightedTokens,
    top_domain: topDomain,
    top_share: percent,
  };
})();
