"use strict";

// The map of the features that the list's filters let through (map.js).
app.page({
  path: "map", nav: "Map", order: 5, keepsList: true, isAvailable: featureMap.isThere,
  show(main, route) {
    const {controls, note, canvas, legend} = featureMap.build(route.state);
    main.replaceChildren(dom.element("h1", {}, "Map"), controls, note, dom.element("div", {class: "panel"}, canvas, legend));
    return "Map";
  },
});
