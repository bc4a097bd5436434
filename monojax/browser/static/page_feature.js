"use strict";

// The page of one feature: its numbers and histograms at the left, its examples at the right. Which columns it shows
// and in which panels is described in the index (data.index.entries).
app.page((() => {
  const {element} = dom;
  const PROMPT = "1,2,3,4,5,6,7,8,9,10";  // the paper's
  const N_WRITTEN = 48;                   // tokens

  function heading(given, state) {
    const {id} = given;
    const {order, places} = query.run(state);
    const place = places[id];
    const status = data.status(id);
    const step = (by, text, title) => element("button", {
      type: "button", id: by > 0 ? "next" : "previous", title, disabled: order.length === 0,
      onclick: () => app.step(by)}, text);
    return element("div", {class: "heading"},
      element("h1", {}, `Feature ${id}`),
      element("span", {class: `badge ${status}`}, status),
      element("span", {class: "place"}, document.body.dataset.embedded ? data.index.title : place >= 0
        ? `${dom.number(place + 1)} of ${dom.number(order.length)} in the list` : "not in the list"),
      element("span", {class: "steps"},
        dom.link(`#/${query.format(state)}`, "List"),
        liveMachine.isThere() ? dom.link(`#/try/${id}`, liveMachine.title()) : null,
        dom.link(`#/compare/${id}`, "Compare"),
        step(-1, "‹ Previous", "Previous feature of the list (k or ←)"),
        step(1, "Next ›", "Next feature of the list (j or →)"),
        element("button", {type: "button", title: "A random feature of the list (r)",
                           onclick: () => app.random()}, "Random")),
      panels.label(id), panels.otherLabels(given),
      document.body.dataset.embedded ? null : notes.field(id));
  }

  // The feature of each other dictionary beside this site whose direction is most like this feature's.
  function elsewhere(id) {
    const {all, matches} = data.index.dictionaries ?? {all: [], matches: {}};
    const there = all.filter(({folder}) => folder in matches && matches[folder][0][id] >= 0);
    if (!there.length) return null;
    return element("section", {class: "panel"}, element("h2", {}, "In other dictionaries"),
      panels.table(["Feature", "Cosine"], there.map(({name, folder}) => {
        const [ids, cosines] = matches[folder];
        const href = `../${encodeURIComponent(folder)}/index.html#/feature/${ids[id]}`;
        return [dom.link(href, `${ids[id]} of ${name}`), dom.fixed(cosines[id], 3)];
      })));
  }

  // A button that lets the subject continue the prompt of Towards Monosemanticity, as it is and with the feature held.
  function steering(id, {feature, isCurrent}) {
    if (!liveMachine.canWrite() || !feature.max_act || document.body.dataset.embedded) return null;
    const written = () => element("p", {class: "written", dir: "auto", "aria-live": "polite"});
    const [outputs, status] = [[written(), written()], element("span", {class: "quiet", role: "status"})];
    const headings = ["as it is", `with the feature held at ${dom.fixed(feature.max_act, 2)}, its max`];
    const boxes = element("div", {hidden: true}, outputs.map((output, i) =>
      element("div", {}, element("h3", {}, headings[i]), output)));
    let turn = 0;

    async function write() {
      const own = ++turn;
      const isWanted = () => own === turn && isCurrent();
      status.textContent = "writing";
      const machine = await liveMachine.open();
      await machine.read(PROMPT);
      await machine.write(id, feature.max_act, N_WRITTEN, isWanted, (i, continuation) => {
        boxes.hidden = false;
        outputs[i].textContent = continuation;
      });
      if (!isWanted()) return;
      status.textContent = "";
      boxes.dataset.written = "true";
    }
    const begin = () => write().catch((error) => { status.textContent = `The model does not answer: ${error.message}`; });
    return element("section", {class: "panel", id: "steering"}, element("h2", {}, "What it makes the subject write"),
      element("p", {class: "controls"}, element("button", {type: "button", id: "write", onclick: begin}, "Write"),
        status), boxes, element("p", {class: "quiet"}, `Continues the paper's prompt, ${PROMPT}. `,
        dom.link(`#/try/${id}`, "Any other text, at any strength")));
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
    const [first, ...others] = panels.numbers(given).filter(Boolean);
    main.replaceChildren(heading(given, state),
      element("div", {class: examples.length ? "columns" : ""},
        element("div", {class: examples.length ? "numbers" : "numbers alone"}, first, steering(id, {...given, isCurrent}),
          others, elsewhere(id)),
        examples));
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
