"use strict";

// What runs the model of the page "Your text": in the page, from the site's files, or behind it, where `monojax serve`
// has sent the page (monojax/browser/serve.py). Where there is neither, the page shows some texts of the run, with what
// was found on them when the site was made. open() gives a promise of
//   texts, nContext, writes  [name, text] to choose from; tokens that are read at a time; whether the model predicts
//   isStored                 whether it reads these texts alone, which are then numbers
//   read(text)               a promise of {tokens, features, nAll}: the text's tokens as they are shown, {ids, values} of
//                            the features on each, and how many tokens there would be with more room
//   effects(feature)         a promise of how much worse, in nats, each token read last is predicted without a feature
//   sources(position, feature)  a promise of where a feature's pre-activation at a position of the text read last comes
//                            from: {whole, sources}, the pre-activation, and [position, by way of each head ..., past
//                            the heads] of each token up to there, a negative position being in front of the text; null
//                            where that is not known
//   write(feature, value, n, isWanted, show)  writes on, n tokens at most, as it is and with the feature held, and calls
//                            show(0 or 1, the continuation) as it goes, as long as isWanted() is true
const liveMachine = (() => {
  const TEMPERATURE = 0.8;
  const FRAME = 12;               // milliseconds of sampling between two drawings of the page
  const CHARACTERS_A_TOKEN = 40;  // more than these of a text are not looked at, for each token that is read

  async function inPage() {
    const [settings, lists, subject, encoder] = await Promise.all(
      ["settings", "tokenizer", "subject", "encoder"].map(liveFiles.load));
    const [tokenizer, model, {prefix}] = [liveTokenizer(lists), liveModel(settings, {...subject, ...encoder}), settings];
    const text = model.begin();
    const withOutput = async () => model.useOutput(await liveFiles.load("output"));

    async function read(given) {
      const ids = tokenizer.encode(given.slice(0, CHARACTERS_A_TOKEN * model.nContext));
      model.read(text, [...prefix, ...ids].slice(0, model.nContext));
      return {tokens: text.tokens.slice(prefix.length).map(tokenizer.text), nAll: ids.length,
              features: text.features.slice(prefix.length)};
    }

    async function effects(feature) {
      await withOutput();
      const without = model.losses(model.read(model.begin([[feature, 0]]), text.tokens.slice()));
      const before = model.losses(text);
      return without.map((loss, i) => loss - before[i]).slice(prefix.length - 1);
    }

    async function sources(position, feature) {
      const found = model.sources(text, position + prefix.length, feature);
      return found && {whole: found.whole, sources: found.sources.map((parts, i) => [i - prefix.length, ...parts])};
    }

    async function write(feature, value, nTokens, isWanted, show) {
      await withOutput();
      const half = (model.nContext >> 1) - prefix.length;  // room for as many tokens as half of a context
      const start = [...prefix, ...text.tokens.slice(prefix.length).slice(-half)];
      const both = [[], [[feature, value]]].map((changes) => (
        {tokens: start.slice(), text: model.read(model.begin(changes), start)}));
      const n = Math.min(nTokens, model.nContext - start.length);
      for (let i = 0; i < n;) {
        const until = performance.now() + FRAME;
        for (; i < n && performance.now() < until; i++) {
          for (const one of both) {
            one.tokens.push(model.draw(one.text, TEMPERATURE, Math.random(), lists.tokens.length));
            model.read(one.text, one.tokens);
          }
        }
        both.forEach(({tokens}, which) => show(which, tokenizer.decode(tokens.slice(start.length))));
        await new Promise((resolve) => { requestAnimationFrame(resolve); });
        if (!isWanted()) return;
      }
    }
    return {texts: settings.texts ?? [], nContext: model.nContext - prefix.length, writes: true, read, effects,
            sources, write};
  }

  async function stored() {
    const found = await liveFiles.load("texts");
    return {texts: found.map(({name}, i) => [name, i]), nContext: Infinity, writes: false, isStored: true,
            read: async (i) => ({...found[i], nAll: found[i].tokens.length})};
  }

  async function ask(question, given) {
    const answer = await fetch(`live/${question}`, {
      method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(given),
    });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error);
    return found;
  }

  async function served() {
    const {texts, n_context: nContext, writes} = await ask("settings", {});
    let text = "";

    async function read(given) {
      const wanted = given.slice(0, CHARACTERS_A_TOKEN * nContext);
      const {tokens, features, n_all: nAll} = await ask("read", {text: wanted});
      text = wanted;
      return {tokens, features, nAll};
    }

    async function write(feature, value, nTokens, isWanted, show) {
      const seed = Math.floor(Math.random() * 2 ** 31);
      const {texts: continuations} = await ask("write", {text, feature, value, n_tokens: nTokens, seed});
      if (isWanted()) continuations.forEach((continuation, which) => show(which, continuation));
    }
    return {texts, nContext, writes, read, write,
            effects: async (feature) => (await ask("effects", {text, feature})).effects,
            sources: (position, feature) => ask("sources", {text, position, feature})};
  }

  const KINDS = {
    model: [inPage, "The model and its dictionary run in this page, and what you type stays here."],
    served: [served, "The model and its dictionary run in the program that has sent this page, and what you type goes " +
      "there and nowhere else."],
    texts: [stored, "Texts of the run."],
  };
  const mark = () => document.querySelector('meta[name="monojax-live"]');  // which `monojax serve` adds
  const kind = () => (mark() ? "served" : data.index.live);
  let opened = null;

  function open() {
    opened ??= KINDS[kind()][0]().catch((error) => {
      opened = null;  // so that it can be tried again
      throw error;
    });
    return opened;
  }

  return {
    open,
    isThere: () => Boolean(kind()),
    canWrite: () => kind() === "model" || (kind() === "served" && mark().content === "writes"),
    title: () => (kind() === "texts" ? "Texts" : "Your text"),
    where: () => KINDS[kind()][1],
  };
})();
