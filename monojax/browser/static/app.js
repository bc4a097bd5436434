"use strict";

// Routes, keys, the tooltip. Routes: #/?FILTERS  #/feature/ID?FILTERS  #/about
const app = (() => {
  const {element} = dom;
  const main = document.getElementById("main");
  const help = document.getElementById("help");
  const tooltip = document.getElementById("tooltip");
  let route = {view: null, state: query.parse("")};
  let nShown = 0;  // counts what was asked for, so that a slow load does not overwrite a later page

  function parseRoute() {
    const [, path, text] = /^#?\/?([^?]*)\??(.*)$/s.exec(location.hash);
    const state = query.parse(text);
    const feature = /^feature\/(.*)$/.exec(path);
    if (feature) return {view: "feature", given: feature[1], state};
    return {view: path === "" ? "index" : path, state};
  }

  function message(target, title, text) {
    target.replaceChildren(element("div", {class: "message", role: "alert"}, element("h1", {}, title),
      element("p", {}, text), element("p", {}, dom.link("#/", "All features"))));
  }

  function featureId(text) {
    return /^\d{1,9}$/.test(text) && Number(text) < data.index.n_features ? Number(text) : null;
  }

  function showFeature() {
    const id = featureId(route.given);
    if (id === null) {
      message(main, `There is no feature ${decode(route.given)}`,
        `This dictionary has the features 0 to ${data.index.n_features - 1}.`);
      return "No such feature";
    }
    route.id = id;
    const turn = nShown;
    featureView.show(main, id, route.state, () => turn === nShown);
    return `Feature ${id}`;
  }

  function decode(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  }

  function show() {
    const before = route;
    route = parseRoute();
    nShown++;
    hideTooltip();
    delete main.dataset.feature;
    let name = "Features";
    if (route.view === "index") {
      if (before.view !== "index") indexView.mount(main, openList);
      indexView.update(route.state);
    } else if (route.view === "feature") {
      name = showFeature();
    } else if (route.view === "about") {
      aboutView.show(main);
      name = "About the run";
    } else {
      message(main, "There is no such page", location.hash);
    }
    document.title = `${name} – ${data.index.title}`;
    for (const [id, view] of [["nav-features", "index"], ["nav-about", "about"]]) {
      const link = document.getElementById(id);
      if (route.view === view) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.getElementById("nav-features").href = `#/${query.format(route.state)}`;
  }

  function openList(state, replace) {
    const hash = `#/${query.format(state)}`;
    if (replace) location.replace(hash);
    else location.hash = hash;
  }

  function openFeature(id) {
    if (id !== null) location.hash = `#/feature/${id}${query.format(route.state)}`;
  }

  function step(by) {
    if (route.view === "feature" && route.id !== undefined) {
      openFeature(query.neighbour(route.state, route.id, by));
    }
  }

  const random = () => openFeature(query.random(route.state, route.id));

  function search() {
    if (route.view !== "index") {
      location.hash = `#/${query.format(route.state)}`;
      addEventListener("hashchange", () => setTimeout(search), {once: true});
      return;
    }
    const field = document.getElementById("filter-q");
    field.focus();
    field.select();
  }

  function toList() {
    if (route.view !== "index") openList(route.state, false);
  }

  const KEYS = {
    j: () => step(1), ArrowRight: () => step(1), k: () => step(-1), ArrowLeft: () => step(-1),
    r: random, "/": search, u: toList, Escape: toList, "?": () => help.showModal(),
  };

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    if (event.target.closest("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const action = Object.hasOwn(KEYS, event.key) ? KEYS[event.key] : null;
    if (!action) return;
    event.preventDefault();
    action();
  }

  function hideTooltip() {
    tooltip.hidden = true;
  }

  function showTooltip(event) {
    const target = event.target.closest("[data-token]");
    if (!target) {
      hideTooltip();
      return;
    }
    const share = Number(target.dataset.share);
    tooltip.replaceChildren(dom.token(target.dataset.token, {class: "boxed"}),
      element("span", {}, `activation ${dom.number(Number(target.dataset.act))}`),
      element("span", {class: "quiet"}, share > 0 ? `${dom.percent(share)} of the max` : ""));
    tooltip.hidden = false;
    const box = target.getBoundingClientRect();
    const left = Math.min(box.left, innerWidth - tooltip.offsetWidth - 8);
    const below = box.bottom + 6 + tooltip.offsetHeight < innerHeight;
    tooltip.style.left = `${Math.max(left, 8)}px`;
    tooltip.style.top = `${below ? box.bottom + 6 : box.top - tooltip.offsetHeight - 6}px`;
  }

  function start() {
    if (!data.index) {
      message(main, "The data is missing", "data/index.js could not be read: build the site again.");
      return;
    }
    const jump = document.getElementById("jump-id");
    jump.max = data.index.n_features - 1;
    jump.placeholder = `0 … ${data.index.n_features - 1}`;
    document.getElementById("jump").addEventListener("submit", (event) => {
      event.preventDefault();
      openFeature(jump.value);
      jump.blur();
    });
    document.getElementById("help-button").addEventListener("click", () => help.showModal());
    document.getElementById("skip").addEventListener("click", (event) => {
      event.preventDefault();  // the address is the route
      main.focus();
    });
    document.addEventListener("keydown", onKey);
    main.addEventListener("mouseover", showTooltip);
    main.addEventListener("mouseleave", hideTooltip);
    addEventListener("scroll", hideTooltip, {passive: true});
    addEventListener("hashchange", show);
    show();
  }

  return {start, openFeature, step, random, message};
})();

app.start();
