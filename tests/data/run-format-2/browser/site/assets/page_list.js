"use strict";

// The list of features: filters, a sortable table, pages of rows. Which columns it has, and how each is drawn, sorted
// and filtered, is described in the index (data.cells).
app.page((() => {
  const {element} = dom;
  const PAGE_ROWS = 100;

  let parts = null;   // the controls and table that are on the page
  let state = null;

  function change(changes, replace = true) {
    app.openList({...state, page: "1", ...changes}, replace);
  }

  // The controls of the list. Each is {node, show}: its element, and a function that brings it up to date with `state`.

  // A field or menu for the entry `name` of the state.
  function field(tag, name, attributes, ...children) {
    const node = element(tag, {id: `filter-${name}`, ...attributes}, ...children);
    return {node, show: () => {
      if (node.value !== state[name] && document.activeElement !== node) node.value = state[name];
    }};
  }

  function input(name, attributes) {
    let timer = null;
    return field("input", name, {...attributes, oninput: (event) => {
      clearTimeout(timer);
      timer = setTimeout(() => change({[name]: event.target.value}), 120);
    }});
  }

  function searchField() {
    const searched = [...new Set(data.cells.map(({kind}) => kinds[kind].searched).filter(Boolean))];
    return input("q", {type: "search", placeholder: `${dom.listing(searched, "or") || "number of a feature"}   ( / )`,
                       "aria-label": "Search", autocomplete: "off", spellcheck: "false"});
  }

  // A button for each word, and one for all of them; each says how many features it lets through.
  function words({key, kind, heading, values}) {
    const names = kinds[kind].words();
    const counts = names.map(() => 0);
    for (const value of values) counts[value]++;
    const buttons = [...names, "all"].map((name, i) => element("button", {
      type: "button", value: name, [`data-${key}`]: name, onclick: () => change({[key]: name}, false),
    }, name, " ", element("span", {class: "count"}, dom.number(counts[i] ?? data.index.n_features))));
    return {
      node: element("div", {class: "segments", role: "group", "aria-label": heading}, buttons),
      show: () => buttons.forEach((button) => button.setAttribute("aria-pressed", button.value === state[key])),
    };
  }

  function choice({key, kind, heading}) {
    return field("select", key, {
      "aria-label": heading, onchange: (event) => change({[key]: event.target.value}, false),
    }, element("option", {value: ""}, `all ${key}s`),
      kinds[kind].words().map((name) => element("option", {value: name}, name)));
  }

  function range({key, kind, heading, help}) {
    const name = kinds[kind].rangeName(heading.toLowerCase());
    const ends = ["min", "max"].map((side) => input(`${key}-${side}`,
      {type: "number", step: "any", placeholder: side, "aria-label": `${side} ${name}`}));
    return {
      node: element("span", {class: "range", title: help}, name, ends[0].node, "to", ends[1].node),
      show: () => ends.forEach((end) => end.show()),
    };
  }

  function filterControls() {
    const drawings = {words, choice, range};
    return Object.keys(drawings).flatMap((filter) => query.filters
      .filter(({kind}) => kinds[kind].filter === filter).map((column) => drawings[filter](column)));
  }

  function header(column) {
    const attributes = {scope: "col", class: classes(column), title: column.help};
    if (!column.sortable) return element("th", attributes, column.heading);
    const button = element("button", {type: "button", onclick: () => {
      const turned = query.direction(state) === "asc" ? "desc" : "asc";
      change({sort: column.key, dir: state.sort === column.key ? turned : ""}, false);
    }}, column.heading, element("span", {class: "arrow", "aria-hidden": "true"}));
    return element("th", {...attributes, "data-sort": column.key}, button);
  }

  const classes = ({kind, wide_only: isWide}) =>
    [kinds[kind].isNumeric ? "numeric" : "", isWide ? "wide-only" : ""].filter(Boolean).join(" ") || null;

  function mount(main) {
    const number = {key: "id", heading: "Feature", kind: "number", help: null, sortable: true};
    const controls = [searchField(), ...filterControls()];
    parts = {
      controls,
      count: element("p", {class: "count-line", role: "status"}),
      headers: [number, ...data.cells].map(header),
      body: element("tbody", {}),
      pager: element("nav", {class: "pager", "aria-label": "Pages of the list"}),
    };
    main.replaceChildren(
      element("h1", {class: "hidden"}, "Features"),
      element("div", {class: "filters"}, controls.map(({node}) => node),
        element("button", {type: "button", id: "random", title: "A random feature of the list (r)",
                           onclick: () => app.random()}, "Random"),
        element("button", {type: "button", id: "reset", onclick: () =>
          change(query.DEFAULTS, false)}, "Reset")),
      parts.count,
      element("div", {class: "scroll list"},
        element("table", {id: "features"},
          element("caption", {class: "hidden"}, "Features of the dictionary"),
          element("thead", {}, element("tr", {}, parts.headers)), parts.body)),
      parts.pager);
  }

  function cell(column, id) {
    return element("td", {class: classes(column), title: column.hover ? dom.number(column.hover.values[id]) +
      ` ${column.hover.label}` : null}, kinds[column.kind].cell(column.values[id]));
  }

  function row(id, suffix) {
    const href = `#/feature/${id}${suffix}`;
    return element("tr", {"data-id": id, onclick: (event) => {
      if (!event.target.closest("a") && !getSelection().toString()) location.hash = href;
    }},
      element("th", {scope: "row", class: "numeric"}, dom.link(href, String(id))),
      data.cells.map((column) => cell(column, id)));
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

  function showState() {
    for (const control of parts.controls) control.show();
    for (const node of parts.headers) {
      if (node.dataset.sort !== state.sort) node.removeAttribute("aria-sort");
      else node.setAttribute("aria-sort", query.direction(state) === "asc" ? "ascending" : "descending");
    }
  }

  function update() {
    showState();
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

  function show(main, route) {
    state = route.state;
    if (route.isNew) mount(main);
    update();
    return "Features";
  }

  return {path: "", nav: "Features", order: 0, keepsList: true, show};
})());
