"use strict";

// Loads the files that the page "Your text" needs: data/live.js, live-tokenizer.js and the weights, live-NAME.js. What
// is in them: monojax/browser/live.py. Weights are a string with a byte in each character, in the encoding
// windows-1252. From disk a script is loaded with that encoding. A server may announce another one for scripts, so
// from there the bytes are fetched and decoded here.
const liveFiles = (() => {
  const ENCODING = "windows-1252";
  const characters = new TextDecoder(ENCODING).decode(Uint8Array.from({length: 256}, (_, byte) => byte));
  const byteOf = new Int16Array(65536).fill(-1);
  [...characters].forEach((character, byte) => { byteOf[character.charCodeAt(0)] = byte; });
  const arrived = {};         // what the scripts have registered, by the names of the files
  const waiting = new Map();  // name of a file -> promise of its content

  function run(url, name) {
    const problem = (what) => new Error(`data of this page (${name}) ${what}: build the site again`);
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.charset = url.startsWith("blob:") ? "utf-8" : ENCODING;
      script.src = url;
      script.onload = () => (name in arrived ? resolve(arrived[name]) : reject(problem("is damaged")));
      script.onerror = () => reject(problem("could not be read"));
      document.head.append(script);
    });
  }

  async function decoded(url) {
    const answer = await fetch(url);
    const text = new TextDecoder(ENCODING).decode(answer.ok ? await answer.arrayBuffer() : new ArrayBuffer(0));
    return URL.createObjectURL(new Blob([text], {type: "text/javascript"}));
  }

  // A promise of a file's content: "settings", "tokenizer", "texts", or the name of weights.
  function load(name) {
    if (!waiting.has(name)) {
      const url = name === "settings" ? "data/live.js" : `data/live-${name}.js`;
      const content = location.protocol === "file:" ? run(url, name) : decoded(url).then((blob) => run(blob, name));
      waiting.set(name, content);
      content.catch(() => waiting.delete(name));  // so that it can be tried again
    }
    return waiting.get(name);
  }

  // Arrays by name: vectors as they are; of a matrix, each row is its scale times integers.
  function unpacked(text, described) {
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) {
      const byte = byteOf[text.charCodeAt(i)];
      if (byte < 0) throw new Error("the weights were changed on their way here: build the site again");
      bytes[i] = byte;
    }
    return Object.fromEntries(described.map(({name, shape: [n, m], at}) => {
      if (m === undefined) return [name, new Float32Array(bytes.buffer, at, n)];
      const scales = new Float32Array(bytes.buffer, at, n);
      const integers = new Int16Array(bytes.buffer, at + 4 * n, n * m);
      const matrix = new Float32Array(n * m);
      for (let row = 0, i = 0; row < n; row++) {
        for (let column = 0; column < m; column++, i++) matrix[i] = scales[row] * integers[i];
      }
      return [name, matrix];
    }));
  }

  return {
    load,
    registerSettings: (settings) => { arrived.settings = settings; },
    registerTexts: (texts) => { arrived.texts = texts; },
    registerTokenizer: (tokenizer) => { arrived.tokenizer = tokenizer; },
    registerWeights: (name, described, text) => { arrived[name] = unpacked(text, described); },
  };
})();
