"use strict";

// A reader's own labels of features. They stay in this browser, under the site's title, and can be taken away as JSON:
// {"title": the site's, "labels": {number of a feature: label}}.
const notes = (() => {
  const {element} = dom;
  const key = () => `monojax: labels of ${data.index.title}, ${data.index.n_features} features`;

  // {number of a feature: label}. A browser may keep nothing for a page, as in a frame without an address.
  function all() {
    try {
      return JSON.parse(localStorage.getItem(key())) ?? {};
    } catch {
      return {};
    }
  }

  // Keeps a label; gives what is to be said where the browser keeps nothing.
  function set(id, text) {
    const labels = all();
    if (text.trim()) labels[id] = text.trim();
    else delete labels[id];
    try {
      localStorage.setItem(key(), JSON.stringify(labels));
      return "";
    } catch {
      return "This browser does not keep labels for the page.";
    }
  }

  // Where a feature's own label is written and read.
  function field(id) {
    const problem = element("span", {class: "quiet", role: "status"});
    const keep = ({target}) => { problem.textContent = set(id, target.value); };
    return element("p", {class: "own-label"}, element("input", {
      type: "text", value: all()[id] ?? "", placeholder: "Your own label", maxlength: "500", dir: "auto",
      "aria-label": `Your own label of feature ${id}`, title: "Kept in this browser; About the run lists all of them",
      oninput: keep, onchange: keep}), problem);
  }

  function download() {
    const text = JSON.stringify({title: data.index.title, labels: all()}, null, 1);
    const url = URL.createObjectURL(new Blob([text], {type: "application/json"}));
    element("a", {href: url, download: "labels.json"}).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  // All own labels as a list; null where there are none.
  function listed() {
    const labels = Object.entries(all());
    if (!labels.length) return null;
    return element("div", {id: "own-labels"},
      element("dl", {class: "terms"}, labels.flatMap(([id, text]) =>
        [element("dt", {}, dom.link(`#/feature/${id}`, id)), element("dd", {dir: "auto"}, text)])),
      element("p", {}, element("button", {type: "button", id: "save-labels", onclick: download}, "Save as JSON")));
  }

  return {field, listed};
})();
