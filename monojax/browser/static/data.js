"use strict";

// The data files: each is a script that calls one of the two register functions, since a page opened from
// disk may load scripts but not fetch files. What is in them: monojax/browser/contents.py.
const data = (() => {
  const MAX_BLOCKS = 48;
  const blocks = new Map();   // number -> content, the most recently used last
  const waiting = new Map();  // number -> promise of the content
  let index = null;

  function registerIndex(content) {
    index = content;
  }

  function registerBlock(number, content) {
    blocks.set(number, content);
    if (blocks.size > MAX_BLOCKS) blocks.delete(blocks.keys().next().value);
  }

  function loadBlock(number) {
    if (blocks.has(number)) {
      const content = blocks.get(number);
      blocks.delete(number);
      blocks.set(number, content);
      return Promise.resolve(content);
    }
    if (!waiting.has(number)) {
      waiting.set(number, new Promise((resolve, reject) => {
        const name = `data/features-${String(number).padStart(5, "0")}.js`;
        const script = document.createElement("script");
        script.src = name;
        script.onload = () => {
          waiting.delete(number);
          script.remove();
          resolve(blocks.get(number));
        };
        script.onerror = () => {
          waiting.delete(number);
          script.remove();
          reject(new Error(`${name} could not be read: build the site again`));
        };
        document.head.append(script);
      }));
    }
    return waiting.get(number);
  }

  // A promise of {feature, strings}: the feature's page and the strings that its tokens point into.
  async function feature(id) {
    const block = await loadBlock(Math.floor(id / index.features_per_file));
    return {feature: block.features[id % index.features_per_file], strings: block.strings};
  }

  // Loads what will probably be shown next; a failure shows when it is.
  function prefetch(id) {
    loadBlock(Math.floor(id / index.features_per_file)).catch(() => {});
  }

  // The list's columns: {key, heading, kind, help, sortable, filterable, wide_only, values, ...}, one value a feature.
  const cells = () => (index ? index.cells : []);

  // The name of a feature's status.
  function status(id) {
    const cell = cells().find(({kind}) => kind === "status");
    return cell ? index.statuses[cell.values[id]] : "";
  }

  // {text, score} of a feature's label; null where it has none.
  function label(id) {
    const [texts, scores] = ["label", "score"].map((key) => cells().find((cell) => cell.key === key));
    if (!texts || texts.values[id] < 0) return null;
    return {text: index.strings[texts.values[id]], score: scores.values[id]};
  }

  return {
    get index() { return index; },
    get cells() { return cells(); },
    status, label, registerIndex, registerBlock, feature, prefetch,
  };
})();
