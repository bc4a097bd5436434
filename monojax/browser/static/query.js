"use strict";

// What the list shows and in which order, as kept in the address: #/?q=...&status=...&sort=...
const query = (() => {
  const DEFAULTS = {q: "", status: "alive", domain: "", min: "", max: "", sort: "id", dir: "", page: "1"};
  const TEXT_SORTS = new Set(["id", "domain", "token"]);  // these begin with the smallest

  let cached = {key: null, order: null, places: null};
  let searchable = null;  // the strings as a search sees them
  let ranks = null;       // alphabetical rank of each string

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

  const direction = (state) => state.dir || (TEXT_SORTS.has(state.sort) ? "asc" : "desc");

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
    const {domain, tokens, logits} = data.columns;
    const matches = matchingStrings(text);
    const lower = text.toLowerCase();
    const domains = data.index.domains.map((name) => name.toLowerCase().includes(lower));
    const has = (i) => matches[i];
    return (id) => tokens[id].some(has) || logits[id].some(has) ||
      (domain[id] >= 0 && domains[domain[id]]) || String(id) === text;
  }

  function tests(state) {
    const {status, density, domain} = data.columns;
    const kept = [];
    if (state.status !== "all") {
      const wanted = data.STATUSES.indexOf(state.status);
      kept.push((id) => status[id] === wanted);
    }
    if (state.domain) {
      const wanted = data.index.domains.indexOf(state.domain);
      kept.push((id) => domain[id] === wanted);
    }
    const [low, high] = [parseFloat(state.min), parseFloat(state.max)];
    if (Number.isFinite(low)) kept.push((id) => density[id] >= 10 ** low);
    if (Number.isFinite(high)) kept.push((id) => density[id] <= 10 ** high);
    const text = state.q.trim();
    if (text) kept.push(searchTest(text));
    return kept;
  }

  function stringRanks() {
    if (!ranks) {
      const keys = data.index.strings.map((string) => string.trim().toLowerCase());
      const sorted = [...keys.keys()].sort((a, b) => (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : 0));
      ranks = new Int32Array(keys.length);
      sorted.forEach((string, place) => { ranks[string] = place; });
    }
    return ranks;
  }

  // A number for each feature to sort by; NaN where it has none, which sorts last either way.
  function sortKey(name) {
    const columns = data.columns;
    if (name === "domain") {
      const names = [...data.index.domains].sort();
      const places = data.index.domains.map((domain) => names.indexOf(domain));
      return (id) => places[columns.domain[id]] ?? NaN;
    }
    if (name === "token") {
      const places = stringRanks();
      return (id) => (columns.tokens[id].length ? places[columns.tokens[id][0]] : NaN);
    }
    if (["density", "max", "mean", "share", "logit", "status"].includes(name)) {
      return (id) => columns[name][id] ?? NaN;
    }
    return (id) => id;
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

  return {DEFAULTS, parse, format, direction, run, neighbour, random};
})();
