"use strict";

// What the list shows and in which order, as kept in the address: #/?q=...&status=...&sort=...
// A column that is filtered by words or by choice keeps that under its own key; one that is filtered by a range keeps
// its ends under KEY-min and KEY-max.
const query = (() => {
  const filters = data.cells.filter((cell) => cell.filterable && kinds[cell.kind].filter);
  const DEFAULTS = {
    q: "", sort: "id", dir: "", page: "1",
    ...Object.fromEntries(filters.flatMap(({key, kind}) => ({
      words: () => [[key, kinds[kind].words()[0]]],
      choice: () => [[key, ""]],
      range: () => [[`${key}-min`, ""], [`${key}-max`, ""]],
    })[kinds[kind].filter]())),
  };

  let cached = {key: null, order: null, places: null};
  let searchable = null;  // the strings as a search sees them

  function parse(text) {
    const given = new URLSearchParams(text);
    const state = {...DEFAULTS};
    for (const name of Object.keys(DEFAULTS)) if (given.has(name)) state[name] = given.get(name);
    return state;
  }

  // The state as it stands in an address: what differs from the defaults.
  function format(state, without = []) {
    const kept = new URLSearchParams();
    for (const [name, value] of Object.entries(DEFAULTS)) {
      if (state[name] !== value && !without.includes(name)) kept.set(name, state[name]);
    }
    const text = kept.toString();
    return text ? `?${text}` : "";
  }

  const sortColumn = (key) => data.cells.find((cell) => cell.key === key && cell.sortable);

  function direction(state) {
    if (state.dir) return state.dir;
    const column = sortColumn(state.sort);
    return !column || kinds[column.kind].ascending ? "asc" : "desc";
  }

  // 1 for each string that the search text matches.
  function matchingStrings(text) {
    const strings = data.index.strings;
    if (!searchable) searchable = strings.map((string) => dom.visible(string).toLowerCase());
    const whole = /^"(.+)"$/.exec(text);
    const wanted = dom.visible(whole ? whole[1] : text).toLowerCase();
    const matches = new Uint8Array(strings.length);
    searchable.forEach((string, i) => {
      matches[i] = whole ? string === wanted || string.replace(/^·+|·+$/g, "") === wanted
        : string.includes(wanted);
    });
    return matches;
  }

  // A test of a feature's id against the search text.
  function searchTest(text) {
    const lower = text.toLowerCase();
    const found = {
      strings: matchingStrings(text),
      domains: data.index.domains.map((name) => name.toLowerCase().includes(lower)),
    };
    const searched = data.cells.filter(({kind}) => kinds[kind].searched);
    return (id) => String(id) === text ||
      searched.some(({kind, values}) => kinds[kind].matches(values[id], found));
  }

  // Tests of a feature's id against the filter of one column; none where the filter lets everything through.
  function filterTests({key, kind, values}, state) {
    const {filter, words, scale} = kinds[kind];
    if (filter !== "range") {
      if (state[key] === (filter === "words" ? "all" : "")) return [];
      const wanted = words().indexOf(state[key]);
      return [(id) => values[id] === wanted];
    }
    const [low, high] = ["min", "max"].map((end) => scale(parseFloat(state[`${key}-${end}`])));
    return [Number.isNaN(low) ? null : (id) => values[id] !== null && values[id] >= low,
            Number.isNaN(high) ? null : (id) => values[id] !== null && values[id] <= high].filter(Boolean);
  }

  function tests(state) {
    const text = state.q.trim();
    return [...filters.flatMap((column) => filterTests(column, state)), ...(text ? [searchTest(text)] : [])];
  }

  // A function from a feature's id to a number to sort by; NaN where it has none, which sorts last either way.
  function sortKey(key) {
    const column = sortColumn(key);
    return column ? kinds[column.kind].sortKey(column) : (id) => id;
  }

  // The ids that the state lets through, in its order; `places` has each id's position, or -1.
  function run(state) {
    const key = format(state, ["page"]);
    if (cached.key === key) return cached;
    const kept = tests(state);
    const order = [];
    for (let id = 0; id < data.index.n_features; id++) {
      if (kept.every((test) => test(id))) order.push(id);
    }
    const sortKeyOf = sortKey(state.sort);
    const keys = new Float64Array(data.index.n_features);
    for (const id of order) keys[id] = sortKeyOf(id);
    const sign = direction(state) === "asc" ? 1 : -1;
    order.sort((a, b) => {
      const [x, y] = [keys[a], keys[b]];
      if (x === y) return a - b;
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
      return sign * (x - y);
    });
    const places = new Int32Array(data.index.n_features).fill(-1);
    order.forEach((id, place) => { places[id] = place; });
    cached = {key, order, places};
    return cached;
  }

  // The feature `step` places after `id` in the list, round its ends. From a feature outside the list, the
  // list's nearest id in that direction. null where the list is empty.
  function neighbour(state, id, step) {
    const {order, places} = run(state);
    if (!order.length) return null;
    if (places[id] >= 0) return order[(places[id] + step + order.length) % order.length];
    const ahead = order.filter((other) => (other - id) * step > 0);
    const candidates = ahead.length ? ahead : order;
    return candidates.reduce((a, b) => ((b - a) * step < 0 ? b : a));
  }

  function random(state, besides) {
    const {order} = run(state);
    const choices = order.length > 1 ? order.filter((id) => id !== besides) : order;
    return choices.length ? choices[Math.floor(Math.random() * choices.length)] : null;
  }

  return {DEFAULTS, filters, parse, format, direction, run, neighbour, random};
})();
