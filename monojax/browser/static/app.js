"use strict";

// Pages, keys, the tooltip. Each page is a script of its own, page_NAME.js, which calls app.page with
//   path          the first part of its address: "about" for #/about, "" for the list
//   nav           the text of its link at the top; without it there is no link
//   order         where its link stands: the list's is 0, that of the page about the run 100
//   takesArgument whether something follows the path, as in #/feature/12
//   keepsList     whether its link keeps how the list is filtered and sorted
//   isAvailable   () => whether this site has what the page shows; without it, always
//   show          (main, route) => the document's title; fills the element `main`
// where route has {path, argument, state, isNew, isCurrent}: `state` is how the list is filtered and sorted, `isNew`
// whether another page was shown before, and isCurrent() says, once a page's data is here, whether the page is still
// wanted. A page that shows a feature sets route.feature to its number, from which the keys go on.
const app = (() => {
  const {element} = dom;
  const main = document.getElementById("main");
  const help = document.getElementById("help");
  const tooltip = document.getElementById("tooltip");
  const pages = [];
  let route = {path: null, state: query.parse("")};
  let nShown = 0;  // counts what was asked for, so that a slow load does not overwrite a later page

  const available = () => pages.filter(({isAvailable}) => !isAvailable || isAvailable());

  function parseRoute() {
    const {only} = data.index;
    const hash = only === undefined ? location.hash || "#/home" : `#/feature/${only}`;
    const [, path, slash, argument, text] = /^#?\/?([^/?]*)(\/?)([^?]*)\??(.*)$/s.exec(hash);
    const page = available().find((other) => other.path === path && (other.takesArgument || !slash));
    return {page, path, argument, state: query.parse(text)};
  }

  function message(target, title, text) {
    target.replaceChildren(element("div", {class: "message", role: "alert"}, element("h1", {}, title),
      element("p", {}, text), element("p", {}, dom.link("#/", "All features"))));
  }

  function show() {
    const before = route;
    const turn = ++nShown;
    route = {...parseRoute(), isCurrent: () => turn === nShown};
    route.isNew = route.page !== before.page;
    hideTooltip();
    delete main.dataset.feature;
    let name = "No such page";
    if (route.page) name = route.page.show(main, route);
    else message(main, "There is no such page", location.hash);
    document.title = `${name} – ${data.index.title}`;
    showLinks();
  }

  // The links to the pages, made from what the pages say of themselves.
  function addLinks() {
    const linked = available().filter(({nav}) => nav).sort((a, b) => (a.order ?? 50) - (b.order ?? 50));
    document.getElementById("pages").replaceChildren(...linked.map((page) => {
      page.link = dom.link(`#/${page.path}`, page.nav);
      return page.link;
    }));
  }

  function showLinks() {
    for (const page of pages.filter(({link}) => link)) {
      if (page === route.page) page.link.setAttribute("aria-current", "page");
      else page.link.removeAttribute("aria-current");
      if (page.keepsList) page.link.href = `#/${page.path}${query.format(route.state)}`;
    }
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
    if (route.feature !== undefined) openFeature(query.neighbour(route.state, route.feature, by));
  }

  const random = () => openFeature(query.random(route.state, route.feature));

  function search() {
    if (route.path !== "") {
      location.hash = `#/${query.format(route.state)}`;
      addEventListener("hashchange", () => setTimeout(search), {once: true});
      return;
    }
    const field = document.getElementById("filter-q");
    field.focus();
    field.select();
  }

  function toList() {
    if (route.path !== "") openList(route.state, false);
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

  // Where the sites of several dictionaries lie side by side, a switch between them.
  function addSwitch() {
    const {own, all} = data.index.dictionaries ?? {all: []};
    const choice = document.getElementById("dictionary");
    choice.hidden = all.length < 2;
    choice.append(...all.map(({name, folder}) => element("option", {value: folder, selected: folder === own}, name)));
    choice.addEventListener("change", () => { location.href = `../${encodeURIComponent(choice.value)}/index.html`; });
  }

  function showSearchHelp() {
    const searched = data.cells.filter(({kind}) => kinds[kind].searched).map(({heading}) => `“${heading}”`);
    if (!searched.length) return;
    document.getElementById("help-search").textContent = "A search looks for its text in the columns " +
      `${dom.listing(searched, "and")}; in quotes, it must be the whole token. `;
  }

  function hideTooltip() {
    tooltip.hidden = true;
  }

  // The tooltip of an example's token: its text, its activation, what share of the feature's largest that is, and how
  // much worse it is predicted without the feature. Of tokens that are drawn as one, it has a line for each. Below the
  // token that the example was chosen for stand the next tokens whose logits change most without the feature.
  function showTooltip(event) {
    const target = event.target.closest("[data-token]");
    if (!target) {
      hideTooltip();
      return;
    }
    const {token, act, max, effect, parts, changes} = target.dataset;
    const line = ([text, activation, nats]) => element("tr", {},
      element("td", {}, dom.token(text, {class: "boxed"})),
      element("td", {class: "numeric"}, `activation ${dom.number(activation)}`),
      element("td", {class: "numeric quiet"},
        activation > 0 && max > 0 ? `${dom.percent(activation / max)} of the max` : ""),
      element("td", {class: "numeric quiet"}, nats ? `loss without the feature ${dom.signed(nats, 2)}` : ""));
    const changed = (name, listed) => element("div", {}, element("span", {class: "quiet"}, `${name} `),
      listed.map(([text, by]) => [dom.token(text, {class: "boxed"}), `${dom.signed(by, 2)}  `]).flat());
    const [lowered, raised] = changes ? JSON.parse(changes) : [[], []];
    tooltip.replaceChildren(
      parts ? element("div", {}, dom.token(token, {class: "boxed"}), "is made of the tokens") : "",
      element("table", {}, element("tbody", {},
        (parts ? JSON.parse(parts) : [[token, Number(act), Number(effect ?? 0)]]).map(line))),
      lowered.length ? changed("without the feature, next tokens fall", lowered) : "",
      raised.length ? changed("and rise", raised) : "");
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
    // Inside of another page, as in a blog, there is one feature and nothing around it: of this site (index.html?embed),
    // or alone (monojax/browser/single.py).
    const isAlone = data.index.only !== undefined;
    const isEmbedded = isAlone || new URLSearchParams(location.search).has("embed");
    if (isEmbedded) document.body.dataset.embedded = isAlone ? "alone" : "site";
    addLinks();
    addSwitch();
    showSearchHelp();
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
    if (!isEmbedded) document.addEventListener("keydown", onKey);
    main.addEventListener("mouseover", showTooltip);
    main.addEventListener("focusin", showTooltip);
    main.addEventListener("focusout", hideTooltip);
    main.addEventListener("mouseleave", hideTooltip);
    addEventListener("scroll", hideTooltip, {passive: true});
    addEventListener("hashchange", show);
    show();
  }

  addEventListener("DOMContentLoaded", start);  // when the scripts of the pages are here

  return {page: (page) => pages.push(page), openList, openFeature, step, random, message};
})();
