"use strict";

// A run in progress. The file progress.js beside this page calls watch.register with what monojax/pipeline/watch.py has
// found, and is loaded again every few seconds, since a page that was opened from disk cannot be told of changes.
const watch = (() => {
  const {element} = dom;
  const AGAIN = 3;  // seconds

  function stages(rows) {
    return element("section", {class: "panel"}, element("h2", {}, "Stages"),
      element("table", {class: "plain"}, element("tbody", {}, rows.map(({name, state, seconds}) =>
        element("tr", {}, element("th", {scope: "row"}, name), element("td", {}, state),
          element("td", {class: "numeric"}, seconds === null ? "" : `${dom.number(Math.round(seconds))} s`))))));
  }

  function training({name, step, n_steps: nSteps, curves}) {
    const share = nSteps ? step / nSteps : 0;
    return element("section", {"data-log": name}, element("h2", {}, `${name}: step ${dom.number(step)}` +
      (nSteps ? ` of ${dom.number(nSteps)}` : "")),
      nSteps ? element("progress", {max: "1", value: String(share), "aria-label": `progress of ${name}`}) : null,
      element("div", {class: "curves"}, Object.entries(curves).map(([curve, points]) =>
        element("figure", {class: "panel"},
          element("figcaption", {}, `${curve.replaceAll("_", " ")} ${dom.number(points.at(-1)[1])}`),
          charts.line({points, title: `${curve.replaceAll("_", " ")} of ${name}`, xLabel: "step", yLabel: ""})))));
  }

  function register({title, time, stages: rows, logs}) {
    document.getElementById("main").replaceChildren(
      element("h1", {}, title), element("p", {class: "quiet"}, `As of ${time}.`), stages(rows), ...logs.map(training));
  }

  function load() {
    const script = element("script", {src: `progress.js?${Date.now()}`});
    script.addEventListener("load", () => script.remove());
    script.addEventListener("error", () => script.remove());
    document.head.append(script);
  }

  load();
  setInterval(load, 1000 * AGAIN);
  return {register};
})();
