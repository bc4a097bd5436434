"use strict";

// Small charts as inline SVG, coloured by the style sheet.
const charts = (() => {
  const {svg} = dom;
  const WIDTH = 360;
  const HEIGHT = 170;
  const BOX = {left: 44, right: 350, top: 10, bottom: 128};

  // Round values that cover [low, high] in about `count` steps.
  function ticks(low, high, count = 4) {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
    const values = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) values.push(i * step);
    return values;
  }

  function scale(low, high, from, to) {
    return (value) => from + (to - from) * (value - low) / (high - low || 1);
  }

  function axes(x, y, xTicks, yTicks, labels) {
    const text = (attributes, content) => svg("text", attributes, content);
    const middle = (BOX.top + BOX.bottom) / 2;
    return svg("g", {class: "axes", "aria-hidden": "true"},
      yTicks.map(([value, name]) => svg("g", {},
        svg("line", {class: "grid", x1: BOX.left, x2: BOX.right, y1: y(value), y2: y(value)}),
        text({x: BOX.left - 5, y: y(value) + 3.5, "text-anchor": "end"}, name))),
      xTicks.map((value) => svg("g", {},
        svg("line", {x1: x(value), x2: x(value), y1: BOX.bottom, y2: BOX.bottom + 4}),
        text({x: x(value), y: BOX.bottom + 16, "text-anchor": "middle"}, dom.number(value)))),
      svg("line", {x1: BOX.left, x2: BOX.right, y1: BOX.bottom, y2: BOX.bottom}),
      text({class: "label", x: (BOX.left + BOX.right) / 2, y: HEIGHT - 8, "text-anchor": "middle"}, labels.x),
      text({class: "label", x: 11, y: middle, "text-anchor": "middle",
            transform: `rotate(-90 11 ${middle})`}, labels.y));
  }

  function frame(title, ...content) {
    return svg("svg", {class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title},
      ...content);
  }

  const powerName = (power) => (power < 2 ? String(10 ** power) : `10${"⁰¹²³⁴⁵⁶⁷⁸⁹"[power]}`);

  // A count axis: linear, or logarithmic with half a count below its 1 so that single counts are seen.
  function countAxis(largest, logarithmic) {
    if (!logarithmic) {
      const y = scale(0, largest, BOX.bottom, BOX.top);
      return {y, yTicks: ticks(0, largest, 3).map((value) => [value, dom.number(value)])};
    }
    const low = Math.log10(0.5);
    const inner = scale(low, Math.log10(Math.max(largest, 10)), BOX.bottom, BOX.top);
    const powers = [];
    for (let power = 0; power <= Math.log10(Math.max(largest, 10)); power++) powers.push(power);
    const shown = powers.length > 5 ? powers.filter((power) => power % 2 === 0) : powers;
    return {
      y: (count) => (count > 0 ? inner(Math.log10(count)) : BOX.bottom),
      yTicks: shown.map((power) => [10 ** power, powerName(power)]),
    };
  }

  // Bars for the counts between `edges` (one more than counts). `tint` gives a bar's opacity from its middle; `shares`
  // has for each bar how much of it is of one kind, which its colour says.
  function histogram({edges, counts, title, xLabel, yLabel, logarithmic = false, tint = null, shares = null}) {
    const [low, high] = [edges[0], edges[edges.length - 1]];
    const x = scale(low, high, BOX.left, BOX.right);
    const {y, yTicks} = countAxis(Math.max(...counts, 1), logarithmic);
    const bars = counts.map((count, i) => {
      if (!count) return null;
      const opacity = tint ? tint((edges[i] + edges[i + 1]) / 2) : 1;
      return svg("rect", {
        class: tint ? "bar heat-bar" : "bar", x: x(edges[i]) + 0.5, y: y(count),
        width: Math.max(x(edges[i + 1]) - x(edges[i]) - 1, 0.5), height: BOX.bottom - y(count),
        "fill-opacity": opacity,
        style: shares ? `fill:color-mix(in srgb, rgb(var(--heat-colour)) ${Math.round(100 * shares[i])}%, var(--bar))` : null,
      }, svg("title", {}, `${dom.number(edges[i])} to ${dom.number(edges[i + 1])}: ${dom.number(count)}` +
        (shares ? `, ${dom.percent(shares[i])} of the top domain` : "")));
    });
    return frame(title, axes(x, y, ticks(low, high), yTicks, {x: xLabel, y: yLabel}), bars);
  }

  // Bars for the counts of several series {name, counts} between `edges`, on top of one another; the style sheet has a
  // colour for each name.
  function stacked({edges, series, title, xLabel, yLabel}) {
    const [low, high] = [edges[0], edges[edges.length - 1]];
    const x = scale(low, high, BOX.left, BOX.right);
    const totals = edges.slice(1).map((_, i) => series.reduce((sum, {counts}) => sum + counts[i], 0));
    const {y, yTicks} = countAxis(Math.max(...totals, 1), false);
    const below = totals.map(() => 0);
    const bars = series.flatMap(({name, counts}) => counts.map((count, i) => {
      if (!count) return null;
      const [from, to] = [below[i], below[i] += count];
      return svg("rect", {
        class: `bar ${name}`, x: x(edges[i]) + 0.5, y: y(to), width: Math.max(x(edges[i + 1]) - x(edges[i]) - 1, 0.5),
        height: y(from) - y(to), style: `fill:var(--${name})`,
      }, svg("title", {}, `${name}, ${dom.number(edges[i])} to ${dom.number(edges[i + 1])}: ${dom.number(count)}`));
    }));
    return frame(title, axes(x, y, ticks(low, high), yTicks, {x: xLabel, y: yLabel}), bars);
  }

  // Equal bins over [low, high].
  function equalEdges(low, high, count) {
    return Array.from({length: count + 1}, (_, i) => low + (high - low) * i / count);
  }

  // Points {x, y, name, kind}; those of kind "run" are joined in the order of x.
  function scatter({points, title, xLabel, yLabel}) {
    const padded = (values, floor) => {
      const [low, high] = [Math.min(...values), Math.max(...values)];
      const pad = (high - low || Math.abs(high) || 1) * 0.15;
      return [Math.max(low - pad, floor), high + pad];
    };
    const [xLow, xHigh] = padded(points.map((point) => point.x), 0);
    const [yLow, yHigh] = padded(points.map((point) => point.y), -Infinity);
    const x = scale(xLow, xHigh, BOX.left, BOX.right);
    const y = scale(yLow, yHigh, BOX.bottom, BOX.top);
    const run = points.filter((point) => point.kind === "run").sort((a, b) => a.x - b.x);
    const path = run.map((point, i) => `${i ? "L" : "M"}${x(point.x)} ${y(point.y)}`).join("");
    const marks = points.map((point) => svg("g", {class: `point ${point.kind}`},
      svg("circle", {cx: x(point.x), cy: y(point.y), r: 4}, svg("title", {}, point.name)),
      point.label ? svg("text", {
        x: x(point.x) + (point.kind === "run" ? -6 : 8), y: y(point.y) + (point.kind === "run" ? -6 : 4),
        "text-anchor": point.kind === "run" ? "end" : "start",
      }, point.label) : null));
    return frame(title,
      axes(x, y, ticks(xLow, xHigh), ticks(yLow, yHigh).map((value) => [value, dom.number(value)]),
        {x: xLabel, y: yLabel}),
      path ? svg("path", {class: "joined", d: path}) : null, marks);
  }

  // One curve through points [x, y].
  function line({points, title, xLabel, yLabel}) {
    const [xs, ys] = [0, 1].map((i) => points.map((point) => point[i]));
    const [low, high] = [Math.min(...ys), Math.max(...ys)];
    const x = scale(Math.min(...xs), Math.max(...xs), BOX.left, BOX.right);
    const y = scale(low, high, BOX.bottom, BOX.top);
    const path = points.map((point, i) => `${i ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`).join("");
    return frame(title,
      axes(x, y, ticks(Math.min(...xs), Math.max(...xs)), ticks(low, high).map((value) => [value, dom.number(value, 3)]),
        {x: xLabel, y: yLabel}),
      svg("path", {class: "joined", d: path}));
  }

  // The index's small activation histogram from its digits 0 to 9.
  function sparkline(digits) {
    if (!digits) return "";
    const path = [...digits].map((digit, i) =>
      (digit === "0" ? "" : `M${i * 4} 18v-${digit * 2}h3v${digit * 2}z`));
    return svg("svg", {class: "spark", viewBox: `0 0 ${digits.length * 4} 18`, "aria-hidden": "true"},
      svg("path", {d: path.join("")}));
  }

  return {histogram, stacked, equalEdges, scatter, line, sparkline};
})();
