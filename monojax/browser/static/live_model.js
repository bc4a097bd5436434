"use strict";

// Runs a subject and its dictionary: liveModel(settings, weights) with what monojax/pipeline/stages/live.py has written.
// The subject is `PlainLayers` of monojax/subjects/plain_layers.py, the dictionary `PlainEncoder` of
// monojax/sae/plain.py. One position is computed at a time; keys and values of earlier ones are remembered.
const liveModel = (() => {
  // y += x W, of which the rows for zeros of x are skipped.
  function addProduct(x, W, y) {
    const m = y.length;
    for (let i = 0; i < x.length; i++) {
      const factor = x[i];
      if (factor === 0) continue;
      for (let j = 0, at = i * m; j < m; j++, at++) y[j] += factor * W[at];
    }
    return y;
  }

  function layerNorm(x, gain, bias, epsilon) {
    const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
    const variance = x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length;
    const scale = 1 / Math.sqrt(variance + epsilon);
    return x.map((value, i) => (value - mean) * scale * gain[i] + bias[i]);
  }

  // The gradient by x of a product y = x W, from that by y.
  function backwards(gradient, W) {
    const m = gradient.length;
    return Float64Array.from({length: W.length / m}, (_, i) => gradient.reduce((sum, value, j) => sum + value * W[i * m + j], 0));
  }

  // The gradient by x of `layerNorm`, from that by what it gives, with its scale held as it is.
  function normBackwards(x, gradient, gain, epsilon) {
    const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
    const variance = x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length;
    const scaled = gradient.map((value, i) => value * gain[i] / Math.sqrt(variance + epsilon));
    const common = scaled.reduce((sum, value) => sum + value, 0) / x.length;
    return scaled.map((value) => value - common);
  }

  // Rotates one head's query or key, which begins at `from` and is `width` long; numbers i and i + width / 2 together.
  function rotate(row, from, width, position) {
    const half = width / 2;
    for (let i = 0; i < half; i++) {
      const angle = position * 10000 ** (-2 * i / width);
      const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
      const [a, b] = [row[from + i], row[from + half + i]];
      row[from + i] = a * cos - b * sin;
      row[from + half + i] = b * cos + a * sin;
    }
  }

  return (settings, weights) => {
    const {n_layers: nLayers, n_heads: nHeads, n_context: nContext, epsilon} = settings;
    const width = weights["layer.0.attn.gain"].length;
    const headWidth = width / nHeads;

    // What has been read: a text's tokens, keys and values of each layer, and by position the features and the row that
    // the unembedding reads. `changes` are of the form [feature, value], the activation at which a feature is held.
    function begin(changes = []) {
      const room = () => Array.from({length: nLayers}, () => new Float64Array(nContext * width));
      return {tokens: [], keys: room(), values: room(), features: [], last: [], changes};
    }

    // The features of a row, as {ids, values}, rising ids.
    function encode(x) {
      const {encoder, bias, threshold, scale, magnitude_bias: magnitudeBias} = weights;
      const product = addProduct(x, encoder, new Float64Array(bias.length));
      let found = [];
      for (let i = 0; i < product.length; i++) {
        const h = product[i] + bias[i];
        if (h <= 0 || (threshold && h <= threshold[i])) continue;
        const value = scale ? scale[i] * product[i] + magnitudeBias[i] : h;
        if (value > 0) found.push([i, value]);
      }
      if (settings.nonlinearity === "topk" && found.length > settings.k) {
        found = found.sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, settings.k).sort((a, b) => a[0] - b[0]);
      }
      return {ids: found.map(([id]) => id), values: found.map(([, value]) => value)};
    }

    // What changed features add to the row that is written, or null where nothing is changed.
    function added(changes, features) {
      if (!changes.length) return null;
      const n = weights.directions.length / weights.bias.length;
      const sum = new Float64Array(n);
      for (const [feature, value] of changes) {
        const place = features.ids.indexOf(feature);
        const change = value - (place < 0 ? 0 : features.values[place]);
        for (let j = 0; j < n; j++) sum[j] += change * weights.directions[feature * n + j];
      }
      return sum;
    }

    // What the heads write side by side, and what share of each is from which position: {mixed, shares}, by head.
    function attention(keys, values, row, position) {
      const mixed = new Float64Array(width);
      const shares = Array.from({length: nHeads}, () => new Float64Array(position + 1));
      for (let head = 0; head < nHeads; head++) {
        const from = head * headWidth;
        const scores = shares[head];
        let largest = -Infinity;
        for (let t = 0; t <= position; t++) {
          let score = 0;
          for (let i = 0; i < headWidth; i++) score += row[from + i] * keys[t * width + from + i];
          scores[t] = score / Math.sqrt(headWidth);
          largest = Math.max(largest, scores[t]);
        }
        let total = 0;
        for (let t = 0; t <= position; t++) total += scores[t] = Math.exp(scores[t] - largest);
        for (let t = 0; t <= position; t++) {
          const share = scores[t] /= total;
          for (let i = 0; i < headWidth; i++) mixed[from + i] += share * values[t * width + from + i];
        }
      }
      return {mixed, shares};
    }

    // Reads one more token. What a layer computes on it goes into `trace`, by layer, if that is given.
    function readOne(text, token, trace = null) {
      const position = text.tokens.length;
      let change = null;
      const visit = (name, row) => {
        if (name === settings.reads) {
          if (trace) trace.encoded = Float64Array.from(row);
          const counts = position >= settings.first_position;
          text.features[position] = counts ? encode(row) : {ids: [], values: []};
          change = counts ? added(text.changes, text.features[position]) : null;
        }
        if (name === settings.writes && change) for (let i = 0; i < row.length; i++) row[i] += change[i];
        return row;
      };
      let x = visit("embed", Float64Array.from(weights.embed.subarray(token * width, (token + 1) * width)));
      for (let layer = 0; layer < nLayers; layer++) {
        const of = (name) => weights[`layer.${layer}.${name}`];
        const at = (name, row) => visit(`layer.${layer}.${name}`, row);
        const before = at("attn.in", layerNorm(x, of("attn.gain"), of("attn.bias"), epsilon));
        const qkv = addProduct(before, of("qkv"), new Float64Array(3 * width));
        for (let head = 0; head < 2 * nHeads; head++) rotate(qkv, head * headWidth, headWidth, position);
        text.keys[layer].set(qkv.subarray(width, 2 * width), position * width);
        text.values[layer].set(qkv.subarray(2 * width), position * width);
        const {mixed, shares} = attention(text.keys[layer], text.values[layer], qkv, position);
        const attended = at("attn.out", addProduct(at("attn.z", mixed), of("o"), new Float64Array(width)));
        const read = x;
        x = x.map((value, i) => value + attended[i]);
        const input = at("mlp.in", layerNorm(x, of("mlp.gain"), of("mlp.bias"), epsilon));
        const pre = addProduct(input, of("in"), Float64Array.from(of("in_bias")));
        const hidden = at("mlp.hidden", pre.map((value) => Math.max(value, 0)));
        if (trace) trace[layer] = {read, shares, middle: x, pre};
        const output = at("mlp.out", addProduct(hidden, of("out"), Float64Array.from(of("out_bias"))));
        x = at("resid", x.map((value, i) => value + output[i]));
      }
      text.last[position] = x;
      text.tokens.push(token);
    }

    // Reads tokens; what a text has in common with what was read before is not computed again.
    function read(text, tokens) {
      let same = 0;
      while (same < text.tokens.length && text.tokens[same] === tokens[same]) same++;
      text.tokens.length = text.features.length = text.last.length = same;
      for (const token of tokens.slice(same, nContext)) readOne(text, token);
      return text;
    }

    // The logits of the token after a position. They need the weights "output", which `useOutput` takes.
    function logits(text, position) {
      const row = layerNorm(text.last[position], weights["final.gain"], weights["final.bias"], epsilon);
      return addProduct(row, weights.unembed, new Float64Array(weights.unembed.length / width));
    }

    // The loss, in nats, of each token but the first.
    function losses(text) {
      return text.tokens.slice(1).map((token, position) => {
        const row = logits(text, position);
        const largest = row.reduce((a, b) => Math.max(a, b), -Infinity);
        return largest + Math.log(row.reduce((sum, value) => sum + Math.exp(value - largest), 0)) - row[token];
      });
    }

    // Where a feature's pre-activation at a position comes from: {whole, sources}, the pre-activation and for each token
    // up to there [what each head of the layer that the dictionary reads in has moved from it, ..., what comes past the
    // heads]. The shares of attention and the scales of norms are held as they are, and what goes through the MLP is
    // gradient times activation: as `Circuit` of monojax/analysis/circuits.py. Null where the dictionary reads no site
    // that lies behind a layer's heads.
    function sources(text, position, feature) {
      const [, number, site] = settings.reads.match(/^layer\.(\d+)\.(attn\.z|attn\.out|mlp\..*|resid)$/) ?? [];
      if (!site) return null;
      const layer = Number(number);
      const of = (name) => weights[`layer.${layer}.${name}`];
      const trace = [];
      // Keys and values of the position are written again, the same as they are.
      readOne({...text, tokens: text.tokens.slice(0, position), features: [], last: []}, text.tokens[position], trace);
      const {read, shares, middle, pre} = trace[layer];
      const nFeatures = weights.bias.length;
      let gradient = trace.encoded.map((_, i) => weights.encoder[i * nFeatures + feature]);
      const whole = trace.encoded.reduce((sum, value, i) => sum + value * gradient[i], weights.bias[feature]);
      let atMiddle = new Float64Array(width);  // the gradient by what the MLP's norm reads
      if (site === "resid") atMiddle.set(gradient);
      if (["resid", "mlp.out"].includes(site)) gradient = backwards(gradient, of("out"));
      if (["resid", "mlp.out", "mlp.hidden"].includes(site)) {
        gradient = backwards(gradient.map((value, i) => (pre[i] > 0 ? value : 0)), of("in"));
      }
      if (site === "resid" || site.startsWith("mlp.")) {
        const past = normBackwards(middle, gradient, of("mlp.gain"), epsilon);
        atMiddle = atMiddle.map((value, i) => value + past[i]);
        gradient = atMiddle;
      }
      if (site !== "attn.z") gradient = backwards(gradient, of("o"));
      // What the norm's bias adds to values is of no token.
      const fromBias = addProduct(of("attn.bias"), of("qkv"), new Float64Array(3 * width)).subarray(2 * width);
      const found = Array.from({length: position + 1}, (_, t) => [...shares.map((share, head) => {
        let value = 0;
        for (let i = head * headWidth; i < (head + 1) * headWidth; i++) {
          value += (text.values[layer][t * width + i] - fromBias[i]) * gradient[i];
        }
        return share[t] * value;
      }), 0]);
      found[position][nHeads] = read.reduce((sum, value, i) => sum + value * atMiddle[i], 0);
      return {whole, sources: found};
    }

    // A token drawn from the prediction at the last position; `uniform` is a random number from 0 to 1.
    function draw(text, temperature, uniform, nTokens) {
      const row = logits(text, text.tokens.length - 1).slice(0, nTokens);
      const largest = row.reduce((a, b) => Math.max(a, b), -Infinity);
      const weightsOf = row.map((value) => Math.exp((value - largest) / temperature));
      let left = uniform * weightsOf.reduce((a, b) => a + b, 0);
      for (let token = 0; token < row.length; token++) {
        left -= weightsOf[token];
        if (left <= 0) return token;
      }
      return row.length - 1;
    }

    return {begin, read, logits, losses, sources, draw, useOutput: (output) => Object.assign(weights, output), nContext};
  };
})();
