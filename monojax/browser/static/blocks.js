"use strict";

// What pages are made of: panels with a heading, and tables.
const blocks = (() => {
  const {element} = dom;

  function section(title, ...content) {
    return element("section", {class: "panel"}, element("h2", {}, title), ...content);
  }

  // `heads` are [text, whether the column is of numbers].
  function table(heads, rows) {
    return element("div", {class: "scroll", tabindex: "0"}, element("table", {class: "plain"},
      element("thead", {}, element("tr", {}, heads.map(([head, isNumeric]) =>
        element("th", {scope: "col", class: isNumeric ? "numeric" : null}, head)))),
      element("tbody", {}, rows.map((row) => element("tr", {}, row.map((content, i) =>
        element("td", {class: heads[i][1] ? "numeric" : null}, content)))))));
  }

  return {section, table};
})();
