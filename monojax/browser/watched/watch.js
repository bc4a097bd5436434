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

  // The features of a dictionary by its newest checkpoint.
  function features({step, rows, silent, densities, examples}) {
    return element("section", {"data-features": step}, element("h2", {}, `Features after step ${dom.number(step)}`),
      element("p", {}, `On ${dom.number(rows)} rows of the store; ${dom.number(silent)} features fire on none of them.`),
      element("div", {class: "curves"},
        element("figure", {class: "panel"}, element("figcaption", {}, "densities of the others"),
          charts.histogram({edges: densities.log10_edges, counts: densities.counts, title: "Histogram of densities",
                            xLabel: "log₁₀ density", yLabel: "features"})),
        element("figure", {class: "panel"}, element("figcaption", {}, "tokens on which features fire most"),
          element("table", {class: "plain"}, element("tbody", {}, examples.map(([feature, tokens]) => element("tr", {},
            element("th", {scope: "row"}, String(feature)),
            element("td", {}, tokens.map((token) => dom.token(token, {class: "boxed"}))))))))));
  }

  function register({title, time, stages: rows, logs}) {
    document.getElementById("main").replaceChildren(
      element("h1", {}, title), element("p", {class: "quiet"}, `As of ${time}.`), stages(rows), ...logs.flatMap((log) =>
        [training(log), ...(log.features ? [features(log.features)] : [])]));
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
