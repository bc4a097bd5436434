"use strict";

// A map: each feature a point, by density and score or, where the run has a map, by UMAP of the directions. A click on
// a point opens the feature; arrow keys and Enter do so, too. build(state) gives its parts, {controls, note, canvas, legend}, of the features that a
// state of the list lets through. Where that is of the status that the list shows at first, features of all are drawn.
const featureMap = (() => {
  const {element} = dom;
  const [WIDTH, HEIGHT, MARGIN] = [900, 600, 46];
  const REACH = 12;           // pixels from which a point is found
  const MANY = 20000;         // features above which points are single pixels
  // Of colours that are told apart by the colour-blind (Okabe and Ito); further domains are grey.
  const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#b8860b", "#7a5195"];
  const OTHER = "#9a9a9a";
  const KEYS = [["ArrowLeft", -1, 0], ["ArrowRight", 1, 0], ["ArrowUp", 0, -1], ["ArrowDown", 0, 1]];

  const cell = (key) => data.cells.find((column) => column.key === key);
  const valuesOf = (key, transform = (value) => value) => {
    const column = cell(key);
    return column && column.values.map((value) => (value === null ? NaN : transform(value)));
  };

  function layouts() {
    const found = [];
    if (data.index.map) {
      const known = (values) => values.map((value) => value ?? NaN);
      found.push({name: "directions (UMAP)", x: known(data.index.map.x), y: known(data.index.map.y), labels: null});
    }
    const [density, score, max] = [valuesOf("density", (value) => (value > 0 ? Math.log10(value) : NaN)),
                                   valuesOf("score"), valuesOf("max")];
    for (const [name, values] of [["score", score], ["max", max]]) {
      if (density && values) found.push({name: `density and ${name}`, x: density, y: values, labels: ["log₁₀ density", name]});
    }
    return found;
  }

  // {name, colours: a colour for each feature, legend: [[text, colour]]}
  function colourings() {
    const found = [];
    const domain = cell("domain");
    if (domain) {
      const counts = data.index.domains.map(() => 0);
      for (const value of domain.values) if (value >= 0) counts[value]++;
      const named = [...counts.keys()].sort((a, b) => counts[b] - counts[a]).slice(0, COLOURS.length)
        .filter((value) => counts[value]);
      found.push({name: "top domain", colours: domain.values.map((value) => COLOURS[named.indexOf(value)] ?? OTHER),
                  legend: [...named.map((value, i) => [data.index.domains[value], COLOURS[i]]), ["others", OTHER]]});
    }
    const status = cell("status");
    const style = getComputedStyle(document.documentElement);
    const ofStatus = data.index.statuses.map((name) => style.getPropertyValue(`--${name}`).trim());
    found.push({name: "status", colours: status.values.map((value) => ofStatus[value]),
                legend: data.index.statuses.map((name, i) => [name, ofStatus[i]])});
    const score = cell("score");
    if (score) {
      const shade = (value) => (value === null ? OTHER : `hsl(28 90% ${Math.round(82 - 47 * Math.max(value, 0))}%)`);
      found.push({name: "score", colours: score.values.map(shade),
                  legend: [[0, "0"], [0.5, "0.5"], [1, "1"]].map(([value, text]) => [text, shade(value)])});
    }
    return found;
  }

  // Where values lie between two pixels, by the least and the largest value of the features that are listed.
  function scaled(values, isListed, from, to) {
    let [low, high] = [Infinity, -Infinity];
    values.forEach((value, id) => {
      if (Number.isFinite(value) && isListed(id)) [low, high] = [Math.min(low, value), Math.max(high, value)];
    });
    return {low, high, places: values.map((value) => from + (to - from) * (value - low) / (high - low || 1))};
  }

  function anyStatus(state) {
    const {key} = cell("status");
    return state[key] === query.DEFAULTS[key] ? {...state, [key]: "all"} : state;
  }

  function build(state) {
    const spaces = layouts();
    const dyes = colourings();
    const drawn = {space: 0, dye: 0, x: null, y: null, at: null};  // at: the feature that keys have come to
    const canvas = element("canvas", {width: WIDTH, height: HEIGHT, tabindex: "0", role: "application",
      "aria-label": "Map of the features. Arrow keys go from point to point, Enter opens the feature."});
    const note = element("p", {class: "quiet", id: "map-note", role: "status"});
    const legend = element("p", {class: "legend", id: "map-legend"});
    const {places} = query.run(anyStatus(state));
    const isListed = (id) => places[id] >= 0;

    function draw() {
      const {x, y, labels} = spaces[drawn.space];
      const {colours, legend: named} = dyes[drawn.dye];
      const across = scaled(x, isListed, MARGIN, WIDTH - 14);
      const up = scaled(y, isListed, HEIGHT - MARGIN, 14);
      [drawn.x, drawn.y] = [across.places, up.places];
      const style = getComputedStyle(document.documentElement);
      const context = canvas.getContext("2d");
      context.clearRect(0, 0, WIDTH, HEIGHT);
      const size = data.index.n_features > MANY ? 1 : 4;
      let count = 0;
      for (let id = 0; id < data.index.n_features; id++) {
        if (!isListed(id) || !Number.isFinite(drawn.x[id]) || !Number.isFinite(drawn.y[id])) continue;
        context.fillStyle = colours[id];
        context.fillRect(drawn.x[id] - size / 2, drawn.y[id] - size / 2, size, size);
        count++;
      }
      if (drawn.at !== null) {
        context.strokeStyle = style.getPropertyValue("--text");
        context.lineWidth = 2;
        context.beginPath();
        context.arc(drawn.x[drawn.at], drawn.y[drawn.at], 9, 0, 2 * Math.PI);
        context.stroke();
      }
      context.fillStyle = style.getPropertyValue("--quiet");
      context.font = "12px system-ui, sans-serif";
      if (labels) {
        context.textAlign = "center";
        context.fillText(`${labels[0]}, ${dom.number(across.low, 3)} to ${dom.number(across.high, 3)}`, WIDTH / 2, HEIGHT - 14);
        context.save();
        context.translate(16, HEIGHT / 2);
        context.rotate(-Math.PI / 2);
        context.fillText(`${labels[1]}, ${dom.number(up.low, 3)} to ${dom.number(up.high, 3)}`, 0, 0);
        context.restore();
      }
      legend.replaceChildren(...named.flatMap(([text, colour]) =>
        [element("span", {class: "swatch", style: `background:${colour}`}), `${text}  `]));
      note.textContent = `${dom.number(count)} features. Move to a point, also by arrow keys, to read its label; a click or Enter opens it.`;
      canvas.dataset.drawn = count;
    }

    // The listed feature that is nearest to a place, of those within reach that lie where isThere(dx, dy) says; or null.
    function nearest(px, py, reach, isThere = () => true) {
      let [best, least] = [null, reach ** 2];
      for (let id = 0; id < data.index.n_features; id++) {
        const [dx, dy] = [drawn.x[id] - px, drawn.y[id] - py];
        const distance = dx ** 2 + dy ** 2;
        if (distance < least && isListed(id) && isThere(dx, dy)) [best, least] = [id, distance];
      }
      return best;
    }

    // That of an event's place.
    function under(event) {
      const box = canvas.getBoundingClientRect();
      return nearest((event.clientX - box.left) * WIDTH / box.width, (event.clientY - box.top) * HEIGHT / box.height, REACH);
    }

    function tell(id) {
      const label = data.label(id);
      note.textContent = `Feature ${id}${label ? `: ${label.text}` : ""}`;
    }

    function describe(event) {
      const id = under(event);
      canvas.style.cursor = id === null ? "default" : "pointer";
      if (id !== null) tell(id);
    }

    // An arrow key goes to the nearest point in its quarter of the plane, at first to the one in the middle.
    function onKey(event) {
      const [, ux, uy] = KEYS.find(([key]) => key === event.key) ?? [];
      if (event.key === "Enter" && drawn.at !== null) app.openFeature(drawn.at);
      if (ux === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation();
      const id = drawn.at === null ? nearest(WIDTH / 2, HEIGHT / 2, Infinity)
        : nearest(drawn.x[drawn.at], drawn.y[drawn.at], Infinity, (dx, dy) => {
          const along = dx * ux + dy * uy;
          return along > 0 && along >= Math.abs(dx * uy) + Math.abs(dy * ux);
        });
      if (id === null) return;
      drawn.at = id;
      draw();
      tell(id);
    }
    const choice = (name, options, change) => element("label", {}, `${name} `, element("select", {
      id: `map-${name}`, onchange: (event) => { change(Number(event.target.value)); draw(); },
    }, options.map((option, i) => element("option", {value: String(i)}, option.name))));
    canvas.addEventListener("mousemove", describe);
    canvas.addEventListener("keydown", onKey);
    canvas.addEventListener("click", (event) => {
      const id = under(event);
      if (id !== null) app.openFeature(id);
    });
    const controls = element("p", {class: "controls"}, choice("place", spaces, (i) => { drawn.space = i; }),
      choice("colour", dyes, (i) => { drawn.dye = i; }));
    draw();
    return {controls, note, canvas, legend};
  }

  return {isThere: () => layouts().length > 0, build};
})();
