"use strict";

// The list of features: filters, a sortable table, pages of rows.
const indexView = (() => {
  const {element} = dom;
  const PAGE_ROWS = 100;
  const COLUMNS = [
    {sort: "id", name: "Feature", numeric: true},
    {sort: "status", name: "Status"},
    {sort: "density", name: "Density", numeric: true, help: "share of tokens on which it fires; log₁₀"},
    {sort: "max", name: "Max", numeric: true, help: "largest activation seen"},
    {sort: "mean", name: "Mean", numeric: true, help: "mean activation where the feature fires"},
    {sort: null, name: "Activations", help: "histogram of the non-zero activations, 0 to the feature's " +
      "max, logarithmic counts"},
    {sort: "token", name: "Top token", help: "token on which the largest activation was seen"},
    {sort: "logit", name: "Top logits", help: "tokens that the feature makes most likely; sorts by the " +
      "largest logit weight"},
    {sort: "domain", name: "Top domain", help: "kind of text with most of the feature's total activation"},
    {sort: "share", name: "Share", numeric: true, help: "that domain's share of the total activation"},
  ];

  let parts = null;   // the controls and table that are on the page
  let state = null;
  let go = null;      // go(state, replace): changes the address

  function change(changes, replace = true) {
    go({...state, page: "1", ...changes}, replace);
  }

  function input(name, attributes) {
    let timer = null;
    const node = element("input", {id: `filter-${name}`, ...attributes});
    node.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => change({[name]: node.value}), 120);
    });
    return node;
  }

  function statusButtons() {
    const counts = [0, 0, 0];
    for (const status of data.columns.status) counts[status]++;
    const names = [...data.STATUSES, "all"];
    return names.map((name, i) => element("button", {
      type: "button", "data-status": name, onclick: () => change({status: name}, false),
    }, name, " ", element("span", {class: "count"}, dom.number(counts[i] ?? data.index.n_features))));
  }

  function controls() {
    const domains = element("select", {id: "filter-domain", onchange: (event) =>
      change({domain: event.target.value}, false)},
      element("option", {value: ""}, "all domains"),
      data.index.domains.map((name) => element("option", {value: name}, name)));
    return {
      q: input("q", {type: "search", placeholder: "token, logit or domain   ( / )", "aria-label": "Search",
                     autocomplete: "off", spellcheck: "false"}),
      status: element("div", {class: "segments", role: "group", "aria-label": "Status"}, statusButtons()),
      domain: domains,
      min: input("min", {type: "number", step: "any", placeholder: "min", "aria-label": "min log₁₀ density"}),
      max: input("max", {type: "number", step: "any", placeholder: "max", "aria-label": "max log₁₀ density"}),
    };
  }

  function header(column) {
    const attributes = {scope: "col", class: column.numeric ? "numeric" : null, title: column.help || null};
    if (!column.sort) return element("th", attributes, column.name);
    const button = element("button", {type: "button", onclick: () => {
      const turned = query.direction(state) === "asc" ? "desc" : "asc";
      change({sort: column.sort, dir: state.sort === column.sort ? turned : ""}, false);
    }}, column.name, element("span", {class: "arrow", "aria-hidden": "true"}));
    return element("th", {...attributes, "data-sort": column.sort}, button);
  }

  function mount(main, navigate) {
    go = navigate;
    const filters = controls();
    parts = {
      ...filters,
      count: element("p", {class: "count-line", role: "status"}),
      headers: COLUMNS.map(header),
      body: element("tbody", {}),
      pager: element("nav", {class: "pager", "aria-label": "Pages of the list"}),
    };
    const hasDomains = data.index.domains.length > 0;
    main.replaceChildren(
      element("h1", {class: "hidden"}, "Features"),
      element("div", {class: "filters"},
        filters.q, filters.status, hasDomains ? filters.domain : null,
        element("span", {class: "range"}, "log₁₀ density", filters.min, "to", filters.max),
        element("button", {type: "button", id: "random", title: "A random feature of the list (r)",
                           onclick: () => app.random()}, "Random"),
        element("button", {type: "button", id: "reset", onclick: () =>
          change(query.DEFAULTS, false)}, "Reset")),
      parts.count,
      element("div", {class: "scroll list"},
        element("table", {id: "features", class: hasDomains ? "" : "no-domains"},
          element("caption", {class: "hidden"}, "Features of the dictionary"),
          element("thead", {}, element("tr", {}, parts.headers)), parts.body)),
      parts.pager);
  }

  function tokens(places) {
    return places.map((place) => dom.token(data.index.strings[place], {class: "boxed"}));
  }

  function row(id, suffix) {
    const columns = data.columns;
    const status = data.STATUSES[columns.status[id]];
    const domain = columns.domain[id];
    const cell = (numeric, ...content) => element("td", {class: numeric ? "numeric" : null}, ...content);
    const href = `#/feature/${id}${suffix}`;
    return element("tr", {"data-id": id, onclick: (event) => {
      if (!event.target.closest("a") && !getSelection().toString()) location.hash = href;
    }},
      element("th", {scope: "row", class: "numeric"}, dom.link(href, String(id))),
      cell(false, element("span", {class: `badge ${status}`}, status)),
      element("td", {class: "numeric", title: `${dom.number(columns.fires[id])} fires`},
        element("span", {class: "quiet"}, dom.percent(columns.density[id])), " ",
        element("span", {class: "log"}, dom.log10(columns.density[id]))),
      cell(true, dom.fixed(columns.max[id], 2)),
      cell(true, dom.fixed(columns.mean[id], 2)),
      cell(false, charts.sparkline(columns.spark[id])),
      cell(false, tokens(columns.tokens[id].slice(0, 1))),
      cell(false, tokens(columns.logits[id].slice(0, 3))),
      cell(false, domain < 0 ? "–" : data.index.domains[domain]),
      cell(true, domain < 0 ? "–" : dom.percent(columns.share[id])));
  }

  function drawPager(page, nPages) {
    const to = (target, text, title) => element("button", {
      type: "button", title, disabled: target < 1 || target > nPages || target === page,
      onclick: () => {
        change({page: String(target)}, false);
        scrollTo(0, 0);
      },
    }, text);
    parts.pager.replaceChildren(...(nPages < 2 ? [] : [
      to(1, "«", "First page"), to(page - 1, "‹ Previous", "Previous page"),
      element("span", {}, `page ${page} of ${nPages}`),
      to(page + 1, "Next ›", "Next page"), to(nPages, "»", "Last page")]));
  }

  function update(newState) {
    state = newState;
    for (const name of ["q", "min", "max", "domain"]) {
      const node = parts[name];
      if (node.value !== state[name] && document.activeElement !== node) node.value = state[name];
    }
    for (const button of parts.status.children) {
      button.setAttribute("aria-pressed", button.dataset.status === state.status);
    }
    for (const node of parts.headers) {
      if (node.dataset.sort !== state.sort) node.removeAttribute("aria-sort");
      else node.setAttribute("aria-sort", query.direction(state) === "asc" ? "ascending" : "descending");
    }
    const {order} = query.run(state);
    const nPages = Math.max(1, Math.ceil(order.length / PAGE_ROWS));
    const page = Math.min(Math.max(parseInt(state.page, 10) || 1, 1), nPages);
    const start = (page - 1) * PAGE_ROWS;
    const shown = order.slice(start, start + PAGE_ROWS);
    const suffix = query.format(state);
    parts.body.replaceChildren(...shown.map((id) => row(id, suffix)));
    const total = data.index.n_features;
    parts.count.textContent = order.length
      ? `${dom.number(order.length)} of ${dom.number(total)} features` +
        (nPages > 1 ? `, ${dom.number(start + 1)} to ${dom.number(start + shown.length)} shown` : "")
      : "No feature matches: change the search or the filters.";
    parts.count.dataset.matches = order.length;
    drawPager(page, nPages);
  }

  return {mount, update};
})();
