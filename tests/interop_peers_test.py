"""Other tools read what monojax writes, and monojax what they write: the same features (pip install 'monojax[peers]').

Features agree to 1e-5 of the largest, and fire at the same places, but where a pre-activation is within 1e-4 of the
largest from a threshold (or the k-th of a row from the next): there rounding decides. Such places are left out and
must be few.
"""

import json
import os

import foreign_saes as foreign
import numpy as np
import pytest
from foreign_saes import MAKERS, F, K, M, rows
from interop_test import own

from monojax import interop
from monojax.sae.form import form_of, thresholds

pytestmark = pytest.mark.slow
os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
torch = pytest.importorskip("torch")


def certain(sae, x_NM):
  """Bools (N, F): where rounding cannot decide whether a feature fires."""
  h = np.asarray(sae.model.apply({"params": sae.params}, x_NM, method="pre_activations"))
  margin, kind = 1e-4 * np.abs(h).max(), form_of(sae.model).nonlinearity
  if kind == "topk":
    falling = -np.sort(-h, axis=1)
    k = form_of(sae.model).k
    return np.broadcast_to((falling[:, k - 1] - falling[:, k] > margin)[:, None], h.shape)
  edge = np.maximum(np.asarray(thresholds(sae.model, sae.params)), 0) if kind == "threshold" else np.zeros(F)
  return np.abs(h - edge[None]) > margin


def assert_agree(sae, theirs_encode, theirs_decode, n_rows=512):
  """Our features and reconstructions are theirs; `theirs_decode` is None where they have none by itself."""
  x = rows(n_rows)
  with torch.no_grad():
    f = theirs_encode(torch.from_numpy(x)).numpy()
    ours, sure = sae.encode(x), certain(sae, x)
    assert sure.mean() > 0.99, f"{(~sure).sum()} places are left out"
    assert 0 < (f > 0).mean() < 0.9
    np.testing.assert_array_equal((ours > 0)[sure], (f > 0)[sure])
    np.testing.assert_allclose(ours[sure], f[sure], atol=1e-5 * max(1.0, np.abs(f).max()))
    y = theirs_decode(torch.from_numpy(f), torch.from_numpy(x)).numpy()
  np.testing.assert_allclose(sae.decode(f, x), y, atol=1e-5 * max(1.0, np.abs(y).max()))


def randomised(module, seed=0):
  """A module of PyTorch's whose parameters are random and no special case; thresholds are positive."""
  rng = np.random.default_rng(seed)
  with torch.no_grad():
    for name, parameter in module.named_parameters():
      value = rng.standard_normal(parameter.shape).astype(np.float32) * 0.5
      parameter.copy_(torch.from_numpy(np.abs(value) + 0.1 if "threshold" in name else value))
  return module


RECIPES = [("tm2023", {}), ("apr2024", {}), ("gated", {}), ("topk", {"k": K}), ("batchtopk", {"k": K}),
           ("matryoshka", {"k": K}), ("jumprelu", {"threshold": 0.5}), ("jan2025", {}), ("gemmascope2", {"k": K}),
           ("ortsae", {"k": K}), ("panneal", {})]


def opened_by_sae_lens(path):
  """(encode, decode) of a folder by SAELens, a skip included."""
  from sae_lens import SAE
  theirs = SAE.load_from_disk(str(path), device="cpu")

  def decode(f, x):
    if "skip" in theirs.cfg.architecture():
      return theirs.decode(f) + x @ theirs.W_skip.T
    if theirs.cfg.normalize_activations != "none":
      theirs.encode(x)  # which remembers what it did to the rows
    return theirs.decode(f)
  return theirs.encode, decode


@pytest.mark.parametrize("recipe, settings", RECIPES)
def test_sae_lens_loads_every_recipe(recipe, settings, tmp_path):
  pytest.importorskip("sae_lens")
  sae = own(recipe, **settings)
  interop.write(sae, tmp_path / "out", "sae_lens", model_name="toy")
  assert_agree(sae, *opened_by_sae_lens(tmp_path / "out"))


@pytest.mark.parametrize("name", [name for name in MAKERS if name.startswith("sae_lens")] + ["openai", "gemma_scope",
                                                                                           "gemma_scope_2 skip"])
def test_sae_lens_loads_what_was_read(name, tmp_path):
  """Every architecture; the normalisation of OpenAI's rows, which SAELens calls layer_norm; and Gemma Scope's."""
  pytest.importorskip("sae_lens")
  sae = interop.read(MAKERS[name](tmp_path).path)
  interop.write(sae, tmp_path / "out", "sae_lens", model_name="toy")
  assert_agree(sae, *opened_by_sae_lens(tmp_path / "out"))


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated", "transcoder", "skip_transcoder",
                                          "jumprelu_transcoder", "jumprelu_skip_transcoder"])
@pytest.mark.parametrize("variant", [{}, {"apply_b_dec_to_input": True}, {"rescale_acts_by_decoder_norm": True},
                                     {"normalize_activations": "layer_norm"},
                                     {"normalize_activations": "constant_norm_rescale"}, {"dtype": "bfloat16"}],
                         ids=lambda variant: " ".join(map(str, variant.values())) or "plain")
def test_sae_lens_writes_what_is_read(architecture, variant, tmp_path):
  pytest.importorskip("sae_lens")
  from sae_lens import SAE
  from sae_lens.registry import get_sae_class
  if "rescale_acts_by_decoder_norm" in variant and architecture != "topk" or (
      "transcoder" in architecture and variant.keys() & {"apply_b_dec_to_input", "normalize_activations"}):
    pytest.skip("SAELens has no such thing")
  kind, config = get_sae_class(architecture)
  more = {"k": K, "rescale_acts_by_decoder_norm": False} if architecture == "topk" else {}
  more |= {"d_out": 10} if "transcoder" in architecture else {}
  theirs = randomised(kind(config(**{"d_in": M, "d_sae": F, "apply_b_dec_to_input": False, **more, **variant})))
  theirs.save_model(str(tmp_path / "sae"))
  if "dtype" in variant:  # in float32, with the rounded weights
    theirs = SAE.load_from_disk(str(tmp_path / "sae"), dtype="float32")
  sae = interop.read(tmp_path / "sae")
  path = tmp_path / "out"
  interop.write(sae, path, "sae_lens")
  assert_agree(sae, *opened_by_sae_lens(path))
  encode = theirs.encode if "dtype" not in variant else theirs.float().encode
  f = encode(torch.from_numpy(rows(8))).detach().float().numpy()
  np.testing.assert_allclose(sae.encode(rows(8)), f, atol=1e-4)


def opened_by_sparsify(path):
  """(encode, decode) of a folder by sparsify."""
  from sparsify import SparseCoder
  theirs = SparseCoder.load_from_disk(path)

  def encode(x):
    found = theirs.encode(x)
    return torch.zeros(len(x), theirs.num_latents).scatter_(1, found.top_indices, found.top_acts)

  def decode(f, x):
    values, indices = f.topk(theirs.cfg.k)
    y = theirs.decode(values, indices)
    return y if theirs.W_skip is None else y + x @ theirs.W_skip.mT
  return encode, decode


@pytest.mark.parametrize("name", [name for name in MAKERS if name.startswith("sparsify")]
                         + ["recipe", "sae_lens topk by norm", "qwen_scope"])
def test_sparsify_loads_what_is_written(name, tmp_path):
  pytest.importorskip("sparsify")
  sae = own("topk", k=K) if name == "recipe" else interop.read(MAKERS[name](tmp_path).path)
  interop.write(sae, tmp_path / "out", "sparsify")
  assert_agree(sae, *opened_by_sparsify(tmp_path / "out"))


@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_sparsify_writes_what_is_read(transcode, skip, tmp_path):
  pytest.importorskip("sparsify")
  from sparsify import SparseCoder
  from sparsify.config import SparseCoderConfig
  config = SparseCoderConfig(num_latents=F, k=K, transcode=transcode, skip_connection=skip, normalize_decoder=False)
  randomised(SparseCoder(M, config)).save_to_disk(tmp_path / "layers.3.mlp")
  sae = interop.read(tmp_path / "layers.3.mlp")
  assert sae.writes == ("layer.3.mlp.out",) and sae.reads == ("layer.3.mlp.in" if transcode else "layer.3.mlp.out",)
  assert_agree(sae, *opened_by_sparsify(tmp_path / "layers.3.mlp"))


@pytest.mark.parametrize("kind", ["AutoEncoder", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK",
                                  "BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_dictionary_learning_writes_what_is_read(kind, tmp_path):
  pytest.importorskip("dictionary_learning")
  from dictionary_learning import dictionary
  from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k
  make = {"AutoEncoder": lambda: dictionary.AutoEncoder(M, F), "GatedAutoEncoder": lambda: dictionary.GatedAutoEncoder(
      M, F), "JumpReluAutoEncoder": lambda: dictionary.JumpReluAutoEncoder(M, F),
      "AutoEncoderTopK": lambda: top_k.AutoEncoderTopK(M, F, K), "BatchTopKSAE": lambda: batch_top_k.BatchTopKSAE(
          M, F, K), "MatryoshkaBatchTopKSAE": lambda: matryoshka_batch_top_k.MatryoshkaBatchTopKSAE(
          M, F, K, [8, 12, 20])}[kind]
  made = randomised(make())
  if "BatchTopK" in kind:
    made.threshold.fill_(0.4)
  (tmp_path / "a").mkdir()
  torch.save(made.state_dict(), tmp_path / "a" / "ae.pt")
  theirs = type(made).from_pretrained(str(tmp_path / "a" / "ae.pt"))
  for config in (None, {"trainer": {"dict_class": kind, "k": K}}):  # the tensors tell the class, too
    if config:
      (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    elif kind == "BatchTopKSAE":
      continue  # its tensors are those of AutoEncoderTopK
    sae = interop.read(tmp_path / "a")
    assert_agree(sae, theirs.encode, lambda f, x: theirs.decode(f))


@pytest.mark.parametrize("name", ["gemma_scope", "gemma_scope_2", "gemma_scope_2 skip", "qwen_scope"])
def test_the_scopes_are_read_as_sae_lens_reads_them(name, tmp_path, monkeypatch):
  pytest.importorskip("sae_lens")
  from sae_lens.loading import pretrained_sae_loaders as loaders
  from sae_lens.registry import get_sae_class
  made = MAKERS[name](tmp_path)
  folder = made.path if made.path.is_dir() else made.path.parent
  monkeypatch.setattr(loaders, "hf_hub_download", lambda *_, filename="config.json", **__: str(folder / filename))
  shapes = {"w_enc": [M, F], "w_dec": [F, foreign.O]}
  monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", lambda *_: shapes)
  if name == "gemma_scope":
    found = loaders.gemma_2_sae_huggingface_loader("google/gemma-scope-2b-pt-res", "layer_7/width_16k/average_l0_82")
  elif name == "qwen_scope":
    found = loaders.qwen_scope_sae_huggingface_loader("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", made.path.name)
  else:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_name": "gemma-v3-270m-pt"}))
    found = loaders.gemma_3_sae_huggingface_loader("google/gemma-scope-2-270m-pt", f"transcoder/{folder.name}")
  cfg, tensors, _ = found
  architecture = cfg["architecture"]
  kind, config = get_sae_class(architecture)
  more = {"k": K} if architecture == "topk" else {"d_out": foreign.O} if "transcoder" in architecture else {}
  theirs = kind(config(d_in=M, d_sae=F, apply_b_dec_to_input=cfg["apply_b_dec_to_input"], **more,
                       **({"rescale_acts_by_decoder_norm": False} if architecture == "topk" else {})))
  theirs.load_state_dict(tensors)
  assert cfg.get("k", cfg.get("activation_fn_kwargs", {}).get("k", K)) in (K, 50)
  decode = lambda f, x: theirs.decode(f) + (x @ theirs.W_skip.T if "skip" in architecture else 0)
  assert_agree(interop.read(made.path), theirs.encode, decode)


@pytest.mark.parametrize("name", [name for name in MAKERS if name.startswith("circuit_tracer")] + ["gemma_scope_2"])
def test_circuit_tracer_loads_what_is_written(name, tmp_path, monkeypatch):
  """Its module of transcoders alone: the package as a whole wants versions that the others do not."""
  module = pytest.importorskip("circuit_tracer.transcoder.single_layer_transcoder")
  if name == "gemma_scope_2":
    monkeypatch.setattr(foreign, "O", M)
    monkeypatch.setattr(foreign, "arrays", lambda seed=0, n_out=M, made=foreign.arrays: made(seed, M))
  sae = interop.read(MAKERS[name](tmp_path).path)
  interop.write(sae, tmp_path / "out", "circuit_tracer", model_name="toy")
  path = next((tmp_path / "out").glob("layer_*.safetensors"))
  theirs = module.load_relu_transcoder(str(path), 3, device=torch.device("cpu"), lazy_encoder=False, lazy_decoder=False)
  assert_agree(sae, theirs.encode, theirs.decode)
  theirs.to_safetensors(str(tmp_path / "layer_3.safetensors"))
  again = interop.read(tmp_path / "layer_3.safetensors")
  np.testing.assert_array_equal(again.encode(rows()), sae.encode(rows()))
  said = dict(line.split(": ") for line in (tmp_path / "out" / "config.yaml").read_text().splitlines())
  assert said["feature_input_hook"] == '"mlp.hook_in"' and said["feature_output_hook"] == '"hook_mlp_out"'


def test_files_of_torch_are_read_as_torch_reads_them(tmp_path):
  """Views, shared storages, scalars, half precision, parameters and nested containers."""
  base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
  state = {"view": base[1:, ::2], "turned": base.T, "one": torch.tensor(-1.0), "half": base.half(),
           "brain": base.bfloat16(), "ids": torch.arange(3), "parameter": torch.nn.Parameter(base), "empty": base[:0],
           "more": [1, "a", None, {"b": (True, 2.5)}], **torch.nn.Linear(3, 2).state_dict()}
  torch.save(state, tmp_path / "a.pt")
  from monojax.interop.torch_file import read
  found = read(tmp_path / "a.pt")
  assert set(found) == set(state) and found["more"] == state["more"]
  for name, value in state.items():
    if isinstance(value, torch.Tensor):
      expected = value.detach().float().numpy() if value.is_floating_point() else value.numpy()
      assert found[name].shape == expected.shape, name
      np.testing.assert_array_equal(found[name].astype(expected.dtype), expected, err_msg=name)
  assert found["view"].tolist() == base[1:, ::2].tolist()
