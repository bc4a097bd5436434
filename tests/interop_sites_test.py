"""Names of sites in other tools' files, and of these files."""

import dataclasses
import json

import foreign_saes
import numpy as np
import pytest
from foreign_saes import MAKERS, rows

from monojax import InputError, interop
from monojax.interop.fitted import fitted
from monojax.interop.sites import hook_of, layer_of, site_of


def test_sites_that_are_given_or_kept(tmp_path):
  made = MAKERS["sparsify transcoder"](tmp_path)
  named = interop.read(made.path, sites=("layer.1.mid", "layer.2.resid"))
  assert named.sites == ("layer.1.mid", "layer.2.resid") and named.writes == ("layer.2.resid",)
  for format in ("sparsify", "monojax", "safetensors"):  # the folder's name says nothing here
    interop.write(named, tmp_path / f"{format} of no module", format)
    assert interop.read(tmp_path / f"{format} of no module").sites == named.sites
  assert interop.read(tmp_path / "monojax of no module", sites=("a", "b")).sites == ("a", "b")
  for path in (made.path, tmp_path / "monojax of no module"):
    with pytest.raises(InputError, match="sites='a': (name the sites read and written|this dictionary is of 2)"):
      interop.read(path, sites=("a",))
  transcoder = interop.read(MAKERS["circuit_tracer jump"](tmp_path / "ct").path)
  interop.write(transcoder, tmp_path / "npz", "gemma_scope")  # whose files do not say that it is one
  again = interop.read(tmp_path / "npz", sites=transcoder.sites)
  assert again.sites == transcoder.sites and not again.model.wiring.autoencodes
  np.testing.assert_array_equal(again.encode(rows()), transcoder.encode(rows()))
  with pytest.raises(InputError, match="name the one site of an autoencoder"):
    interop.read(MAKERS["openai"](tmp_path).path, sites=("a", "b"))


def test_a_modules_output_is_what_stands_before_the_norm_behind_it(tmp_path):
  plain = {f"layer.3.{name}": 12 for name in ("mlp.in", "mlp.out", "attn.out", "resid")}
  gemma = {**plain, "layer.3.mlp.out_raw": 12, "layer.3.attn.out_raw": 12}
  sae = interop.read(MAKERS["sparsify transcoder"](tmp_path).path)
  assert fitted(sae, gemma, False).sites == ("layer.3.mlp.in", "layer.3.mlp.out_raw")
  assert fitted(sae, plain, False).sites == sae.sites == ("layer.3.mlp.in", "layer.3.mlp.out")
  sites = ("layer.3.mlp.in", "layer.3.mlp.out")
  named = interop.read(MAKERS["sparsify transcoder"](tmp_path / "named").path, sites=sites)
  assert fitted(named, gemma, False).sites == named.sites
  interop.write(named, tmp_path / "own" / "layers.3.mlp", "sparsify")  # what monojax writes names sites
  assert fitted(interop.read(tmp_path / "own" / "layers.3.mlp"), gemma, False).sites == sites
  lens = interop.read(MAKERS["sae_lens standard"](tmp_path / "lens").path)
  assert fitted(lens, gemma, True) is lens


@pytest.mark.parametrize("name, pre_bias", [("standard", True), ("standard", False), ("gated", True), ("topk", True)])
def test_a_dictionary_of_centred_activations_reads_others(name, pre_bias, tmp_path):
  made = foreign_saes.sae_lens(tmp_path / "sae", name, pre_bias)
  path = tmp_path / "sae" / "cfg.json"
  said = json.loads(path.read_text())
  said["metadata"]["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
  path.write_text(json.dumps(said))
  sae = interop.read(tmp_path / "sae")
  x = rows() + 3
  centred = fitted(sae, {}, True)
  np.testing.assert_allclose(centred.encode(x), made.encode(x - x.mean(1, keepdims=True)), atol=2e-5)
  assert np.abs(sae.encode(x) - centred.encode(x)).max() > 0.1
  assert fitted(sae, {}, False) is sae  # RMSNorms do not subtract the mean, and so nothing was centred


def test_layers_of_transcoders_share_a_folder_if_their_hooks_do(tmp_path):
  sae = interop.read(MAKERS["circuit_tracer skip"](tmp_path).path)
  for layer in (0, 1):
    there = dataclasses.replace(sae, sites=(f"layer.{layer}.mlp.in", f"layer.{layer}.mlp.out"))
    interop.write(there, tmp_path / "all", "circuit_tracer", model_name="toy")
  assert {path.name for path in (tmp_path / "all").iterdir()} == {"layer_0.safetensors", "layer_1.safetensors",
                                                                  "config.yaml"}
  assert interop.read(tmp_path / "all" / "layer_1.safetensors").sites == ("layer.1.mlp.in", "layer.1.mlp.out")
  with pytest.raises(InputError, match="holds several files .layer_0.safetensors, layer_1.safetensors.: name one"):
    interop.read(tmp_path / "all")
  other = dataclasses.replace(sae, sites=("layer.2.mid", "layer.2.mlp.out"))
  with pytest.raises(InputError, match="transcoders from mlp.hook_in to hook_mlp_out.*choose another folder"):
    interop.write(other, tmp_path / "all", "circuit_tracer")
  with pytest.raises(InputError, match="needs a transcoder between two sites of one layer"):
    interop.write(dataclasses.replace(sae, sites=()), tmp_path / "none", "circuit_tracer")


def test_sites():
  pairs = {"blocks.3.hook_resid_post": "layer.3.resid", "blocks.3.mlp.hook_post": "layer.3.mlp.hidden",
           "blocks.3.hook_mlp_out": "layer.3.mlp.out", "blocks.3.attn.hook_z": "layer.3.attn.z",
           "blocks.12.mlp.hook_in": "layer.12.mlp.in", "blocks.0.hook_resid_pre": "embed",
           "blocks.3.hook_resid_mid": "layer.3.mid", "blocks.3.hook_attn_out": "layer.3.attn.out"}
  for hook, site in pairs.items():
    assert site_of(hook) == site and hook_of(site) == hook
  one_way = {"blocks.3.hook_resid_pre": "layer.2.resid", "blocks.3.mlp.hook_out": "layer.3.mlp.out",
             "layers.3": "layer.3.resid", "layers.3.mlp": "layer.3.mlp.out", "transformer.h.3.mlp": "layer.3.mlp.out",
             "gpt_neox.layers.3.attention": "layer.3.attn.out", "model.layers.3.output": "layer.3.resid",
             "model.layers.3.self_attn.o_proj.input": "layer.3.attn.z",
             "model.layers.3.pre_feedforward_layernorm.output": "layer.3.mlp.in",
             "model.layers.3.post_feedforward_layernorm.output": "layer.3.mlp.out",
             "model.layers.3.mlp.down_proj.input": "layer.3.mlp.hidden", "my.own.place": "my.own.place", "": ""}
  for name, site in one_way.items():
    assert site_of(name) == site, name
  assert hook_of("my.own.place") == "my.own.place" and site_of(None) == ""
  assert layer_of("layer.13.resid") == 13 and layer_of("blocks.4.odd") == 4 and layer_of("embed") is None


def test_the_names_of_formats_are_those_of_their_modules():
  from monojax.interop import circuit_tracer, convert, gemma_scope, sae_lens, single_file, sparsify
  own = {module.NAME for module in (circuit_tracer, gemma_scope, sae_lens, single_file, sparsify)} | {convert.MONOJAX}
  assert own == set(interop.WRITTEN) < set(interop.FORMATS)
