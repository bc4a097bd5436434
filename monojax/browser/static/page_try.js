"use strict";

// The page "Your text": the subject and the dictionary are run on what is typed. It shows the features on each token,
// what the text's losses would be without a feature, and how the subject writes on with one held. Where nothing can be
// run it is the page "Texts", which shows the features on some texts of the run.
app.page((() => {
  const {element} = dom;
  const EXAMPLE = "def read(path):\n  with open(path) as file:\n    return file.read()\n\nIn the beginning God created " +
    "the heaven and the earth.";
  const N_LISTED = 12;        // features of a list
  const N_SOURCES = 8;        // tokens that a feature comes from
  const SOURCES_NOTE = "What each token contributes to the feature's pre-activation on the chosen token: by way of " +
    "attention, and for the token itself past it, too. Attention and the norms' scales are held as they are; through " +
    "the MLP it is a first-order estimate.";
  const LEAST_EFFECT = 0.005; // nats; smaller effects count as none
  const N_WRITTEN = 60;       // tokens of a continuation
  const PAUSE = 250;          // milliseconds without a change after which effects are computed

  let parts = null;
  let machine = null;         // what runs the model, see live_machine.js, once it is there
  let text = {tokens: [], features: []};  // what it has read
  let chosen = {token: null, feature: null, all: false};  // `all`: whether all features are listed
  let pause = 0;              // the timer of the effects
  let isReading = false;
  let isStale = false;        // whether the text has changed since the reading began
  let writing = 0;            // counts continuations, so that a new one ends the old one

  const largest = (id) => {
    const cell = data.cells.find(({key}) => key === "max");
    return cell ? cell.values[id] : 0;
  };

  // The activation of a feature at a position.
  function activation(position, feature) {
    const place = text.features[position].ids.indexOf(feature);
    return place < 0 ? 0 : text.features[position].values[place];
  }

  // The features of a list, the first of them at once and all of them if that is asked for.
  function featureTable(caption, found) {
    if (!found.length) return [element("p", {class: "quiet"}, "No feature fires.")];
    const isWhole = found.length <= N_LISTED || chosen.all;
    const more = isWhole ? [] : [element("button", {type: "button", class: "all", "data-feature": "all", onclick: () => choose({all: true})},
      `All ${dom.number(found.length)} features`)];
    return [element("table", {class: "plain"}, element("caption", {class: "hidden"}, caption),
      element("tbody", {}, (isWhole ? found : found.slice(0, N_LISTED)).map(([id, value]) => {
        const label = data.label(id);
        return element("tr", {},
          element("td", {class: "numeric"}, dom.link(`#/feature/${id}`, String(id))),
          element("td", {}, element("button", {
            type: "button", class: "choose", "aria-pressed": String(id === chosen.feature), "data-feature": id,
            title: `Colour the text by this feature${label ? `: ${label.text}` : ""}`, onclick: () => choose({feature: id === chosen.feature ? null : id}),
          }, label ? label.text : `feature ${id}`)),
          element("td", {class: "bar-cell", "aria-hidden": "true"},
            element("span", {style: `width:${Math.min(100 * value / (largest(id) || value), 100)}%`})),
          element("td", {class: "numeric"}, dom.fixed(value, 2)));
      }))), ...more];
  }

  // An activation as a share of the largest that the feature can reach; 0 for faint features, whose largest is nothing.
  const share = (id, value) => (data.status(id) === "faint" ? 0 : Math.min(value / (largest(id) || value), 1));

  // [feature, its largest activation in the text], strongest first as shares of what each can reach.
  function inWholeText() {
    const best = new Map();
    for (const {ids, values} of text.features) {
      ids.forEach((id, i) => best.set(id, Math.max(best.get(id) ?? 0, values[i])));
    }
    return strongest([...best]);
  }

  const strongest = (pairs) => pairs.sort((a, b) => share(...b) - share(...a) || b[1] - a[1]);

  function tokenSpan(token, position, effects) {
    const {ids, values} = text.features[position];
    const {feature} = chosen;
    const value = feature === null ? 0 : activation(position, feature);
    const heat = feature === null ? ids.reduce((most, other, i) => Math.max(most, share(other, values[i])), 0)
      : Math.min(value / (largest(feature) || 1), 1);
    const [effectClass, effectWidth] = effects ? panels.effectStyle(effects[position]) : ["", null];
    const node = dom.token(token, {
      class: `window${panels.heatClass(heat)}${effectClass}` + (position === chosen.token ? " centre" : ""),
      style: [heat > 0 ? `--heat:${heat.toFixed(3)}` : null, effectWidth].filter(Boolean).join(";") || null,
      role: "button", tabindex: "0", "aria-label": dom.visible(token), "data-position": position, "data-token": token, "data-act": value,
      "data-max": feature === null ? 0 : largest(feature), "data-effect": effects ? effects[position] : null,
    });
    return token.includes("\n") ? [node, element("br", {})] : [node];
  }

  // What is focused is drawn anew, and is focused again.
  function draw(effects = null) {
    const {activeElement: active} = document;
    const box = active && active.closest("#own-tokens, #on-token, #in-text");
    drawLists(effects);
    if (!box || active.isConnected) return;
    const name = box.id === "own-tokens" ? "position" : "feature";
    const again = box.querySelector(`[data-${name}="${active.dataset[name]}"]`);
    if (again) again.focus({preventScroll: true});
  }

  function drawLists(effects) {
    parts.tokens.replaceChildren(...text.tokens.flatMap((token, position) => tokenSpan(token, position, effects)));
    const position = chosen.token;
    parts.onToken.replaceChildren(...(position === null || position >= text.tokens.length
      ? [element("p", {class: "quiet"}, "Choose a token of the text.")]
      : [element("p", {}, "Features on ", dom.token(text.tokens[position], {class: "boxed"})),
         ...featureTable("Features on the chosen token", strongest(text.features[position].ids.map((id, i) =>
           [id, text.features[position].values[i]])))]));
    parts.inText.replaceChildren(...featureTable("Features in the text", inWholeText()));
    drawChosen();
  }

  function drawChosen() {
    const {feature} = chosen;
    parts.steer.hidden = feature === null || !machine.writes;
    if (parts.steer.hidden || parts.steer.dataset.feature === String(feature)) return;
    forgetWritten();
    parts.steer.dataset.feature = feature;
    const label = data.label(feature);
    parts.steerTitle.replaceChildren("Write on with ", dom.link(`#/feature/${feature}`, `feature ${feature}`),
      label ? `: ${label.text}` : "");
    parts.slider.max = (2 * largest(feature) || 1).toFixed(2);
    parts.slider.step = (largest(feature) / 50 || 0.01).toPrecision(2);
    parts.slider.value = largest(feature).toFixed(2);
    showSlider();
  }

  function showSlider() {
    parts.value.textContent = `held at ${dom.fixed(Number(parts.slider.value), 2)}`;
  }

  // Effects take two more passes and all logits, so that they wait until nothing has changed for a moment.
  function choose(changes) {
    chosen = {...chosen, ...changes};
    draw();
    clearTimeout(pause);
    parts.comesFrom.replaceChildren();
    const {feature, token} = chosen;
    if (feature === null || !machine.writes || !text.tokens.length) return;
    const of = text;
    const isWanted = () => of === text && token === chosen.token && feature === chosen.feature && parts.tokens.isConnected;
    pause = setTimeout(async () => {
      try {
        await drawEffects(feature, isWanted);
        if (isWanted() && token !== null && activation(token, feature) > 0) await drawSources(token, feature, isWanted);
      } catch (error) {
        tell(error);
      }
    }, PAUSE);
  }

  // The tokens that the chosen feature comes from on the chosen token, by way of attention and past it.
  async function drawSources(position, feature, isWanted) {
    const found = await machine.sources(position, feature);
    if (!found || !isWanted()) return;
    const sum = (values) => values.reduce((a, b) => a + b, 0);
    const sources = found.sources.map(([at, ...ways]) => ({at, ways, weight: sum(ways)}))
      .sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
    const [listed, others] = [sources.slice(0, N_SOURCES), sources.slice(N_SOURCES)];
    const row = (head, weight, title = null) => ({head, weight, title});
    const where = (at) => (at === position ? " itself" : ` ${position - at} before`);
    const told = (ways) => ways.map((weight, i) => [i === ways.length - 1 ? "past the heads" : `head ${i}`, weight])
      .filter(([, weight]) => Math.abs(weight) > 0.005).map(([way, weight]) => `${way} ${dom.signed(weight, 2)}`).join(", ");
    parts.comesFrom.replaceChildren(
      element("h3", {title: SOURCES_NOTE}, `Where feature ${feature} comes from here`),
      element("p", {class: "quiet"}, `Of its pre-activation, ${dom.fixed(found.whole, 2)}:`),
      ...panels.weightBars([...listed.map(({at, ways, weight}) => row(at < 0 ? "in front of the text"
        : [dom.token(text.tokens[at], {class: "boxed"}), where(at)], weight, told(ways))),
      ...(others.length ? [row(`${others.length} other tokens`, sum(others.map(({weight}) => weight)))] : []),
      row("biases, of no token", found.whole - sum(sources.map(({weight}) => weight)))], SOURCES_NOTE));
  }

  // Says what went wrong, for instance that the program that has sent the page was stopped.
  function tell(error) {
    parts.status.textContent = `The model does not answer: ${error.message}`;
  }

  async function drawEffects(feature, isWanted) {
    const losses = await machine.effects(feature);
    const effects = losses.map((loss) => (Math.abs(loss) < LEAST_EFFECT ? 0 : loss));
    if (isWanted()) draw(effects);
  }

  // Reads what is typed. While one text is being read, only the newest of those that follow is kept.
  async function read() {
    if (isReading) {
      isStale = true;
      return;
    }
    if (!machine) return;  // it is not there yet, and reads once it is
    isReading = true;
    try {
      do {
        isStale = false;
        await readOnce();
      } while (isStale);
    } finally {
      isReading = false;
    }
  }

  async function readOnce() {
    const started = performance.now();
    text = await machine.read(machine.isStored ? machine.texts[Number(parts.sample.value)][1] : parts.text.value);
    if (!parts.tokens.isConnected) return;
    const [nAll, room] = [text.nAll, machine.nContext];
    parts.status.textContent = `${dom.number(Math.min(nAll, room))} tokens` +
      (nAll > room ? `; the model reads ${room} at a time, and the rest is left out` : "") +
      (machine.isStored ? "" : `; ${Math.round(performance.now() - started)} ms`);
    parts.status.dataset.ready = "true";
    if (chosen.token >= text.tokens.length) chosen.token = null;
    choose({});
  }

  // What is being written, or was, is of another feature than the one that is chosen now.
  function forgetWritten() {
    writing++;
    for (const output of parts.outputs) output.textContent = "";
    delete parts.steer.dataset.written;
  }

  // Continuations of the text, as it is and with the chosen feature held.
  async function write() {
    const turn = ++writing;
    const value = Number(parts.slider.value);
    const isWanted = () => turn === writing && parts.tokens.isConnected;
    await machine.write(chosen.feature, value, N_WRITTEN, isWanted, (i, continuation) => {
      parts.outputs[i].textContent = continuation;
    });
    if (isWanted()) parts.steer.dataset.written = value;
  }

  function onToken(event) {
    const target = event.target.closest("[data-position]");
    if (!target || (event.type === "keydown" && !["Enter", " "].includes(event.key))) return;
    event.preventDefault();
    const position = Number(target.dataset.position);
    choose({token: position === chosen.token ? null : position});
  }

  function build(main) {
    const output = (title) => {
      const out = element("p", {class: "written", dir: "auto", "aria-live": "polite"});
      return [out, element("div", {}, element("h3", {}, title), out)];
    };
    const [plain, plainBox] = output("as it is");
    const [steered, steeredBox] = output("with the feature held");
    let frame = 0;
    parts = {
      outputs: [plain, steered],
      text: element("textarea", {id: "own-text", rows: "6", spellcheck: "false", dir: "auto",
                                 "aria-label": "Text to be read", oninput: () => {
                                   cancelAnimationFrame(frame);
                                   frame = requestAnimationFrame(() => read().catch(tell));
                                 }}, parts ? parts.text.value : EXAMPLE),
      sample: element("select", {id: "own-sample", "aria-label": "A text of the run", onchange: ({target}) => {
        if (target.value && !machine.isStored) parts.text.value = machine.texts[Number(target.value)][1];
        read().catch(tell);
      }}, element("option", {value: ""}, "or a text of the run")),
      status: element("span", {id: "own-status", class: "quiet", role: "status"}, "loading the model"),
      tokens: element("div", {id: "own-tokens", class: "text", dir: "auto", onclick: onToken, onkeydown: onToken}),
      onToken: element("div", {id: "on-token"}),
      comesFrom: element("div", {id: "comes-from"}),
      inText: element("div", {id: "in-text"}),
      steerTitle: element("h2", {}),
      slider: element("input", {type: "range", id: "steer-value", min: "0", "aria-label": "activation of the feature",
                                oninput: showSlider}),
      value: element("span", {class: "quiet"}),
      aboutEffects: element("span", {}),
    };
    parts.steer = element("section", {class: "panel", id: "steer", hidden: true}, parts.steerTitle,
      element("p", {class: "controls"}, parts.slider, parts.value,
        element("button", {type: "button", id: "write", onclick: () => write().catch(tell)}, "Write on")),
      plainBox, steeredBox);
    main.replaceChildren(element("div", {class: "heading"}, element("h1", {}, liveMachine.title())),
      element("p", {}, `${liveMachine.where()} Choose a token to ` +
        "see which features fire on it; choose a feature to see where it fires.", " ", parts.aboutEffects),
      element("div", {class: "columns own"},
        element("div", {class: "evidence"}, parts.text, element("p", {class: "controls"}, parts.sample, parts.status),
          element("section", {class: "panel"}, element("h2", {class: "hidden"}, "The text's tokens"), parts.tokens),
          parts.steer),
        element("div", {class: "numbers"},
          element("section", {class: "panel"}, element("h2", {}, "On the chosen token"), parts.onToken,
            parts.comesFrom),
          element("section", {class: "panel"}, element("h2", {}, "In the whole text"), parts.inText))));
  }

  function start() {
    if (machine.writes) parts.aboutEffects.textContent = "Underlined is where it helps to predict the text.";
    if (machine.isStored) {
      parts.text.hidden = true;
      parts.sample.replaceChildren();
    }
    parts.sample.append(...machine.texts.map(([name], i) => element("option", {value: String(i)}, name)));
    return read();
  }

  function show(main, route) {
    const feature = /^\d{1,9}$/.test(route.argument) ? Number(route.argument) : null;
    chosen = {token: null, all: false, feature: feature !== null && feature < data.index.n_features ? feature : null};
    build(main);
    liveMachine.open().then((opened) => {
      machine = opened;
      return route.isCurrent() ? start() : null;
    })
      .catch((error) => { if (route.isCurrent()) app.message(main, "The model cannot be run", error.message); });
    return liveMachine.title();
  }

  return {path: "try", nav: data.index ? liveMachine.title() : "", order: 10, takesArgument: true, isAvailable: liveMachine.isThere,
          show};
})());
