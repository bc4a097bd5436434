"""circuit-tracer's cross-layer transcoders, in and out, against its formula written layer by layer."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from monojax import interop
from monojax.config import InputError
from monojax.sae.config import SAEConfig
from monojax.sae.dictionary import SAE
from monojax.sae.model import Wiring

L, C, M = 3, 8, 5


def files_of(directory, jump=True, seed=0):
  """A folder as circuit-tracer has it, and its tensors by name."""
  rng = np.random.default_rng(seed)
  directory.mkdir()
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  found = {}
  for i in range(L):
    encoder = {f"W_enc_{i}": draw(C, M), f"b_enc_{i}": draw(C), f"b_dec_{i}": draw(M),
               **({f"threshold_{i}": np.abs(draw(C))} if jump else {})}
    decoder = {f"W_dec_{i}": draw(C, L - i, M)}
    save_file(encoder, directory / f"W_enc_{i}.safetensors")
    save_file(decoder, directory / f"W_dec_{i}.safetensors")
    found |= encoder | decoder
  (directory / "config.yaml").write_text('model_name: "toy"\nmodel_kind: "cross_layer_transcoder"\n'
                                         'feature_input_hook: "hook_resid_mid"\nfeature_output_hook: "hook_mlp_out"\n')
  return found


def published(tensors, x_NLM):
  """(features (N, L, C), outputs (N, L, M)): y of layer j is the sum over i <= j of f_i W_dec_i[:, j - i] + b_dec_j."""
  f = []
  for i in range(L):
    h = x_NLM[:, i] @ tensors[f"W_enc_{i}"].T + tensors[f"b_enc_{i}"]
    f.append(np.maximum(h, 0) * (h > tensors.get(f"threshold_{i}", 0)))
  y = [sum(f[i] @ tensors[f"W_dec_{i}"][:, j - i] for i in range(j + 1)) + tensors[f"b_dec_{j}"] for j in range(L)]
  return np.stack(f, 1), np.stack(y, 1)


@pytest.mark.parametrize("jump", [True, False], ids=["jumprelu", "relu"])
def test_what_is_read_computes_what_the_files_say_and_is_written_again_bit_for_bit(jump, tmp_path):
  tensors = files_of(tmp_path / "clt", jump)
  sae = interop.read(tmp_path / "clt")
  assert sae.reads == tuple(f"layer.{i}.mid" for i in range(L))
  assert sae.writes == tuple(f"layer.{i}.mlp.out" for i in range(L)) and sae.config.causal
  x_NLM = np.random.default_rng(1).normal(size=(50, L, M)).astype(np.float32)
  f, y = published(tensors, x_NLM)
  ours = sae.encode(x_NLM.reshape(50, -1))
  np.testing.assert_allclose(ours, f.reshape(50, -1), atol=1e-5)
  np.testing.assert_allclose(sae.decode(ours), y.reshape(50, -1), atol=1e-4)
  interop.write(sae, tmp_path / "again", "circuit_tracer", model_name="toy")
  for i in range(L):
    for kind in ("enc", "dec"):
      for name, value in load_file(tmp_path / "again" / f"W_{kind}_{i}.safetensors").items():
        np.testing.assert_array_equal(value, tensors[name], err_msg=name)
  assert (tmp_path / "again" / "config.yaml").read_text() == (tmp_path / "clt" / "config.yaml").read_text()


def test_a_trained_one_is_written(tmp_path):
  import jax
  import jax.numpy as jnp

  from monojax.sae.recipes import make_recipe
  config = SAEConfig(recipe="batchtopk", n_features=L * C, k=4, causal=True)
  wiring = Wiring((M,) * 2 * L, tuple(range(L)), tuple(range(L, 2 * L)))
  model = make_recipe(config, wiring, jnp.float32).model
  params = {**model.init(jax.random.key(0), jnp.zeros((1, L * M)))["params"], "threshold": jnp.float32(0.1)}
  sites = (*(f"layer.{i}.mlp.in" for i in range(L)), *(f"layer.{i}.mlp.out" for i in range(L)))
  sae = SAE(config, model, params, sites)
  interop.write(sae, tmp_path / "out", "circuit_tracer")
  again = interop.read(tmp_path / "out")
  x = np.random.default_rng(1).normal(size=(50, L * M)).astype(np.float32)
  np.testing.assert_allclose(again.encode(x), sae.encode(x), atol=1e-6)
  np.testing.assert_allclose(again.decode(again.encode(x)), sae.decode(sae.encode(x)), atol=1e-5)
  assert again.sites == sites
  crosscoder = SAE(SAEConfig(recipe="batchtopk", n_features=L * C, k=4), model, params, sites)
  with pytest.raises(InputError, match="sae.causal"):
    interop.write(crosscoder, tmp_path / "none", "circuit_tracer")
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "W_enc_3.safetensors").touch()
  with pytest.raises(InputError, match="of another dictionary"):
    interop.write(sae, tmp_path / "full", "circuit_tracer")
  swapped = SAE(config, model, params, (sites[1], sites[0], *sites[2:]))
  with pytest.raises(InputError, match="the same site of every layer"):
    interop.write(swapped, tmp_path / "none", "circuit_tracer")


def damaged(change, tmp_path):
  files_of(tmp_path / "clt")
  change(tmp_path / "clt")
  return tmp_path / "clt"


@pytest.mark.parametrize("change, message", [
    (lambda d: (d / "W_dec_1.safetensors").unlink(), "W_dec_1"),
    (lambda d: save_file({"W_skip_0": np.zeros(3, np.float32), **load_file(d / "W_enc_0.safetensors")},
                         d / "W_enc_0.safetensors"), "has W_skip_0, which"),
    (lambda d: save_file({**load_file(d / "W_enc_1.safetensors"), "threshold_1": np.zeros(3, np.float32)},
                         d / "W_enc_1.safetensors"), "threshold_1 of shape"),
    (lambda d: save_file({"W_enc_3": np.zeros((C, M), np.float32)}, d / "W_enc_3.safetensors"), "is there besides"),
    (lambda d: save_file({"W_dec_1": np.zeros((C, 1, M), np.float32)}, d / "W_dec_1.safetensors"), "1 of 3 needs"),
    (lambda d: (d / "W_enc_2.safetensors").write_bytes(b"short"), "damaged"),
    (lambda d: save_file({"W_enc_0": np.zeros(3, np.float32)}, d / "W_enc_0.safetensors"), "no matrix W_enc_0"),
    (lambda d: (d / "W_enc_1.safetensors").unlink(), "W_enc_1.safetensors is missing")])
def test_damaged_folders_are_one_line(change, message, tmp_path):
  with pytest.raises(InputError, match=message):
    interop.read(damaged(change, tmp_path))
