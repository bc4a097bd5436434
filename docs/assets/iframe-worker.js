"use strict";

// Browsers start no web worker on a page that was opened from a disk (file://). The site's search runs in one, so
// there a hidden frame takes its place: it loads the worker's script, and messages go back and forth as with a worker.
(() => {
  if (location.protocol !== "file:") return;

  class FrameWorker extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      this.inside = this.frame.contentWindow;
      addEventListener("message", (event) => {
        if (event.source !== this.inside) return;
        this.dispatchEvent(new MessageEvent("message", {data: event.data}));
        if (this.onmessage) this.onmessage(event);
      });
      const prelude = "postMessage = (data) => parent.postMessage(data, '*');" +
        "importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise((loaded) => {" +
        "const script = document.createElement('script'); script.src = url; script.onload = loaded;" +
        "document.body.append(script); })), Promise.resolve());";
      const page = this.inside.document;
      page.open();
      page.write(`<body><script>${prelude}</` + `script><script src="${url}"></` + "script></body>");
      page.close();
      this.ready = new Promise((loaded) => { this.inside.onload = loaded; });
    }

    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", {data})));
    }

    terminate() {
      this.frame.remove();
    }
  }

  window.Worker = FrameWorker;
})();
