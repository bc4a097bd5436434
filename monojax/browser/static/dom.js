"use strict";

// Elements, numbers as text, and tokens as elements. Every string from the data enters the page as a text
// node, never as markup.
const dom = (() => {
  const SVG = "http://www.w3.org/2000/svg";

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value === true) node.setAttribute(name, "");
      else if (value !== false && value !== null) node.setAttribute(name, value);
    }
    node.append(...children.flat().filter((child) => child !== null));
    return node;
  }

  // element("a", {href: "#/"}, "text", child, [children]); null children are left out.
  const element = (tag, attributes, ...children) =>
    fill(document.createElement(tag), attributes || {}, children);

  const svg = (tag, attributes, ...children) =>
    fill(document.createElementNS(SVG, tag), attributes || {}, children);

  const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

  // Four significant digits, a true minus sign; "–" where there is no number.
  function number(value, digits = 4) {
    if (!isNumber(value)) return "–";
    const size = Math.abs(value);
    let text;
    if (Number.isInteger(value)) text = size.toLocaleString("en-US");
    else if (size >= 1e6 || size < 1e-4) text = size.toExponential(digits - 1).replace("e+", "e");
    else text = String(Number(size.toPrecision(digits)));
    return (value < 0 ? "−" : "") + text.replace("e-", "e−");
  }

  function fixed(value, decimals) {
    return isNumber(value) ? value.toFixed(decimals).replace("-", "−") : "–";
  }

  const signed = (value, decimals) => (value > 0 ? "+" : "") + fixed(value, decimals);

  function percent(fraction) {
    if (!isNumber(fraction)) return "–";
    const value = 100 * fraction;
    if (value === 0) return "0 %";
    if (value >= 9.95) return `${value.toFixed(value < 99 || value >= 99.95 ? 0 : 1)} %`;
    return `${value >= 1e-4 ? value.toPrecision(2) : number(value, 2)} %`;
  }

  const log10 = (value) => (value > 0 ? fixed(Math.log10(value), 2) : "–");

  // Pieces of a token: bytes that are no whole character, spaces, controls and other invisible characters,
  // and plain text between them.
  const PIECES = new RegExp(
    "(?<bytes>(?:\\\\x[0-9a-f]{2})+)|(?<newline>\\r\\n|\\n)|(?<tab>\\t)|(?<space> )" +
    "|(?<hidden>[\\p{Cc}\\p{Cf}\\p{Zl}\\p{Zp}\\p{Cs}\\p{Co}\\p{Cn}]|(?! )\\p{Zs})", "gu");

  function hiddenName(character) {
    const code = character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    return `U+${code}`;
  }

  function plain(text) {
    // A combining mark with nothing before it gets the circle that Unicode charts draw it on.
    return /^\p{M}/u.test(text) ? `\u25cc${text}` : text;
  }

  function pieces(text) {
    const nodes = [];
    let end = 0;
    for (const match of text.matchAll(PIECES)) {
      if (match.index > end) nodes.push(plain(text.slice(end, match.index)));
      end = match.index + match[0].length;
      const groups = match.groups;
      if (groups.bytes) nodes.push(element("span", {class: "bytes"}, groups.bytes));
      else if (groups.space) nodes.push(element("span", {class: "space"}, " "));
      else if (groups.newline) nodes.push(element("span", {class: "mark"}, "↵"));
      else if (groups.tab) nodes.push(element("span", {class: "mark"}, "⇥"));
      else nodes.push(element("span", {class: "bytes"}, hiddenName(groups.hidden)));
    }
    if (end < text.length) nodes.push(plain(text.slice(end)));
    return nodes;
  }

  // A token. By itself it is kept apart from what stands beside it, and within a text it takes part in the text's
  // direction (style.css). Spaces stay spaces (CSS draws the dot).
  function token(text, attributes = {}) {
    const extra = attributes.class ? ` ${attributes.class}` : "";
    return element("span", {...attributes, class: `token${extra}`}, pieces(text));
  }

  // The token as one line of text, spaces as dots: what a search compares with.
  const visible = (text) => text.replace(/\r?\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "·");

  // A link, "#/..." for one of the site's pages. Inside of another page (see app.js) it opens the site beside that, and
  // of a feature that stands alone there is no site.
  function link(href, ...children) {
    const {embedded} = document.body.dataset;
    if (embedded === "alone") return element("span", {}, ...children);
    if (embedded === "site") {
      const site = location.href.split(/[?#]/)[0];
      return element("a", {href: new URL(href, site).href, target: "_blank"}, ...children);
    }
    return element("a", {href}, ...children);
  }

  // "a, b or c" for ["a", "b", "c"] and "or".
  function listing(names, last) {
    const [end, ...others] = [...names].reverse();
    return others.length ? `${others.reverse().join(", ")} ${last} ${end}` : end || "";
  }

  // A part of an address as it was before it was encoded, or as it is where that fails.
  function decoded(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  }

  return {element, svg, decoded, listing, isNumber, number, fixed, signed, percent, log10, token, visible, link};
})();
