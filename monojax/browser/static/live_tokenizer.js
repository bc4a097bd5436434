"use strict";

// A byte-level BPE tokenizer that splits text by GPT-2's pattern, from the lists of `Tokenizer.byte_pairs`.
// liveTokenizer({tokens, merges}) gives {encode: (text) => ids, text: (id) => the token as the pages show it,
// decode: (ids) => text}. The library @huggingface/tokenizers is not used: its pattern has JavaScript's white space, and
// it reads the names of special tokens in a text, which monojax does not.
const liveTokenizer = (() => {
  // Python's and Rust's white space; JavaScript's \s has U+FEFF besides and lacks U+0085.
  const SPACE = "\\t-\\r \\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
  const WORD = new RegExp("'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" + SPACE + "\\p{L}\\p{N}]+|[" + SPACE +
    "]+(?![^" + SPACE + "])|[" + SPACE + "]+", "gu");

  // The 256 characters that stand for bytes: those that can be printed for themselves, further ones for the others.
  function byteCharacters() {
    const isPlain = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte < 173) || byte > 173;
    let next = 256;
    return Array.from({length: 256}, (_, byte) => String.fromCharCode(isPlain(byte) ? byte : next++));
  }

  return ({tokens, merges}) => {
    const characters = byteCharacters();
    const bytes = new Map(characters.map((character, byte) => [character, byte]));
    const ids = new Map(tokens.map((token, id) => [token, id]).filter(([token]) => token));
    const ranks = new Map(merges.map(([left, right], rank) => [`${left} ${right}`, rank]));
    const known = new Map();  // word -> ids

    function encodeWord(word) {
      let parts = [...new TextEncoder().encode(word)].map((byte) => characters[byte]);
      while (parts.length > 1) {
        let best = Infinity;
        for (let i = 0; i + 1 < parts.length; i++) best = Math.min(best, ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? best);
        if (best === Infinity) break;
        const [left, right] = merges[best];
        const merged = [];
        for (let i = 0; i < parts.length; i++) {
          const isPair = parts[i] === left && parts[i + 1] === right;
          merged.push(isPair ? left + right : parts[i]);
          if (isPair) i++;
        }
        parts = merged;
      }
      return parts.filter((part) => ids.has(part)).map((part) => ids.get(part));
    }

    function encode(text) {
      return (text.match(WORD) || []).flatMap((word) => {
        if (!known.has(word)) known.set(word, encodeWord(word));
        return known.get(word);
      });
    }

    // Bytes that are no whole character read like \xd8, as in the other pages.
    function text(id) {
      const token = tokens[id];
      if (![...token].every((character) => bytes.has(character))) return token;
      const values = Uint8Array.from(token, (character) => bytes.get(character));
      let shown = "";
      for (let start = 0; start < values.length;) {
        const first = values[start];
        const length = first < 128 ? 1 : first >= 240 ? 4 : first >= 224 ? 3 : first >= 192 ? 2 : 1;
        try {
          shown += new TextDecoder("utf-8", {fatal: true, ignoreBOM: true}).decode(values.slice(start, start + length));
          start += length;
        } catch {
          shown += `\\x${first.toString(16).padStart(2, "0")}`;
          start += 1;
        }
      }
      return shown;
    }

    // The text of several tokens; bytes that are no whole character become U+FFFD.
    function decode(some) {
      const values = some.flatMap((id) => [...tokens[id]].flatMap((character) =>
        (bytes.has(character) ? [bytes.get(character)] : [...new TextEncoder().encode(character)])));
      return new TextDecoder("utf-8", {ignoreBOM: true}).decode(Uint8Array.from(values));
    }

    return {encode, text, decode};
  };
})();
