"""The families of pretrained transformers: for each, who reads its config.json, and where its tensors belong.

Adding a family of this kind is one entry here, a function in `configurations.py` if its config.json is like no other,
and its test. `tensors.py` explains the rows.
"""

from collections.abc import Callable

from monojax.config import InputError
from monojax.subjects.pretrained import configurations
from monojax.subjects.pretrained.architecture import Architecture
from monojax.subjects.pretrained.configurations import Config
from monojax.subjects.pretrained.tensors import Family, Tensor

_GATED_LAYER = (
    Tensor("input_layernorm.weight", "gain_attn_D"),
    Tensor("self_attn.q_proj.weight", "W_qkv_HJAD", "hja,d -> h,j,a,d", "queries"),
    Tensor("self_attn.k_proj.weight", "W_qkv_HJAD", "ha,d -> h,a,d", "keys"),
    Tensor("self_attn.v_proj.weight", "W_qkv_HJAD", "ha,d -> h,a,d", "values"),
    Tensor("self_attn.q_proj.bias", "b_qkv_HJA", "hja -> h,j,a", "queries"),
    Tensor("self_attn.k_proj.bias", "b_qkv_HJA", "ha -> h,a", "keys"),
    Tensor("self_attn.v_proj.bias", "b_qkv_HJA", "ha -> h,a", "values"),
    Tensor("self_attn.o_proj.weight", "W_o_DE", "d,hja -> d,hja"),
    Tensor("self_attn.o_proj.bias", "b_o_D"),
    Tensor("mlp.gate_proj.weight", "W_in_JMD", "m,d -> m,d", "gate"),
    Tensor("mlp.up_proj.weight", "W_in_JMD", "m,d -> m,d", "up"),
    Tensor("mlp.gate_proj.bias", "b_in_JM", "m -> m", "gate"),
    Tensor("mlp.up_proj.bias", "b_in_JM", "m -> m", "up"),
    Tensor("mlp.down_proj.weight", "W_out_DM", "d,m -> d,m"),
    Tensor("mlp.down_proj.bias", "b_out_D"),
)
_MLP_NORM = (Tensor("post_attention_layernorm.weight", "gain_mlp_D"),)
_QK_NORMS = (Tensor("self_attn.q_norm.weight", "gain_q_A", "a -> a"),
             Tensor("self_attn.k_norm.weight", "gain_k_A", "a -> a"))
_GEMMA_NORMS = (
    Tensor("post_attention_layernorm.weight", "gain_attn_out_D"),
    Tensor("pre_feedforward_layernorm.weight", "gain_mlp_D"),
    Tensor("post_feedforward_layernorm.weight", "gain_mlp_out_D"),
)
_GATED_OUTER = (
    Tensor("embed_tokens.weight", "W_embed_VD", "v,d -> v,d"),
    Tensor("norm.weight", "gain_D"),
    Tensor("lm_head.weight", "W_unembed_VD", "v,d -> v,d"),
)
_PREFIXES = ("language_model.model.", "model.language_model.", "language_model.", "model.")
_BUFFERS = r"rotary_emb\.inv_freq$"


def _gated(model_types: tuple[str, ...], read: Callable[[Config], Architecture], *more: Tensor,
           ignored: str = _BUFFERS) -> Family:
  return Family(model_types, read, "layers.{i}", (*_GATED_LAYER, *more), _GATED_OUTER, _PREFIXES, ignored)


FAMILIES: tuple[Family, ...] = (
    _gated(("llama",), configurations.llama, *_MLP_NORM),
    _gated(("mistral",), configurations.mistral, *_MLP_NORM),
    _gated(("qwen2",), configurations.qwen2, *_MLP_NORM),
    _gated(("qwen3",), configurations.qwen3, *_MLP_NORM, *_QK_NORMS),
    _gated(("gemma2",), configurations.gemma2, *_GEMMA_NORMS),
    _gated(("gemma3_text", "gemma3"), configurations.gemma3, *_GEMMA_NORMS, *_QK_NORMS,
           ignored=rf"^vision_tower\.|^multi_modal_projector\.|{_BUFFERS}"),
    Family(
        ("gpt2",), configurations.gpt2, "h.{i}",
        (Tensor("ln_1.weight", "gain_attn_D"), Tensor("ln_1.bias", "bias_attn_D"),
         Tensor("attn.c_attn.weight", "W_qkv_HJAD", "d,3ha -> h,3,a,d"),
         Tensor("attn.c_attn.bias", "b_qkv_HJA", "3ha -> h,3,a"),
         Tensor("attn.c_proj.weight", "W_o_DE", "ha,d -> d,ha"), Tensor("attn.c_proj.bias", "b_o_D"),
         Tensor("ln_2.weight", "gain_mlp_D"), Tensor("ln_2.bias", "bias_mlp_D"),
         Tensor("mlp.c_fc.weight", "W_in_JMD", "d,1m -> 1,m,d"), Tensor("mlp.c_fc.bias", "b_in_JM", "1m -> 1,m"),
         Tensor("mlp.c_proj.weight", "W_out_DM", "m,d -> d,m"), Tensor("mlp.c_proj.bias", "b_out_D")),
        (Tensor("wte.weight", "W_embed_VD", "v,d -> v,d"), Tensor("wpe.weight", "W_position_TD", "t,d -> t,d"),
         Tensor("ln_f.weight", "gain_D"), Tensor("ln_f.bias", "bias_D"),
         Tensor("lm_head.weight", "W_unembed_VD", "v,d -> v,d")),
        ("transformer.",), r"\.attn\.(bias|masked_bias)$"),
    Family(
        ("gpt_neox",), configurations.gpt_neox, "layers.{i}",
        (Tensor("input_layernorm.weight", "gain_attn_D"), Tensor("input_layernorm.bias", "bias_attn_D"),
         Tensor("attention.query_key_value.weight", "W_qkv_HJAD", "h3a,d -> h,3,a,d"),
         Tensor("attention.query_key_value.bias", "b_qkv_HJA", "h3a -> h,3,a"),
         Tensor("attention.dense.weight", "W_o_DE", "d,ha -> d,ha"), Tensor("attention.dense.bias", "b_o_D"),
         Tensor("post_attention_layernorm.weight", "gain_mlp_D"), Tensor("post_attention_layernorm.bias", "bias_mlp_D"),
         Tensor("mlp.dense_h_to_4h.weight", "W_in_JMD", "1m,d -> 1,m,d"),
         Tensor("mlp.dense_h_to_4h.bias", "b_in_JM", "1m -> 1,m"),
         Tensor("mlp.dense_4h_to_h.weight", "W_out_DM", "d,m -> d,m"), Tensor("mlp.dense_4h_to_h.bias", "b_out_D")),
        (Tensor("embed_in.weight", "W_embed_VD", "v,d -> v,d"), Tensor("final_layer_norm.weight", "gain_D"),
         Tensor("final_layer_norm.bias", "bias_D"), Tensor("embed_out.weight", "W_unembed_VD", "v,d -> v,d")),
        ("gpt_neox.",), r"\.attention\.(bias|masked_bias)$|rotary_emb\.inv_freq$",
        {"lm_head.weight": "embed_out.weight"}),
    Family(
        ("bert",), configurations.bert, "encoder.layer.{i}",
        (Tensor("attention.self.query.weight", "W_qkv_HJAD", "h1a,d -> h,1,a,d", "queries"),
         Tensor("attention.self.query.bias", "b_qkv_HJA", "h1a -> h,1,a", "queries"),
         Tensor("attention.self.key.weight", "W_qkv_HJAD", "ha,d -> h,a,d", "keys"),
         Tensor("attention.self.key.bias", "b_qkv_HJA", "ha -> h,a", "keys"),
         Tensor("attention.self.value.weight", "W_qkv_HJAD", "ha,d -> h,a,d", "values"),
         Tensor("attention.self.value.bias", "b_qkv_HJA", "ha -> h,a", "values"),
         Tensor("attention.output.dense.weight", "W_o_DE", "d,ha -> d,ha"),
         Tensor("attention.output.dense.bias", "b_o_D"),
         Tensor("attention.output.LayerNorm.weight", "gain_attn_D"),
         Tensor("attention.output.LayerNorm.bias", "bias_attn_D"),
         Tensor("intermediate.dense.weight", "W_in_JMD", "1m,d -> 1,m,d"),
         Tensor("intermediate.dense.bias", "b_in_JM", "1m -> 1,m"),
         Tensor("output.dense.weight", "W_out_DM", "d,m -> d,m"), Tensor("output.dense.bias", "b_out_D"),
         Tensor("output.LayerNorm.weight", "gain_mlp_D"), Tensor("output.LayerNorm.bias", "bias_mlp_D")),
        (Tensor("embeddings.word_embeddings.weight", "W_embed_VD", "v,d -> v,d"),
         Tensor("embeddings.position_embeddings.weight", "W_position_TD", "t,d -> t,d"),
         Tensor("embeddings.token_type_embeddings.weight", "W_type_SD", "s,d -> s,d"),
         Tensor("embeddings.LayerNorm.weight", "gain_embed_D"), Tensor("embeddings.LayerNorm.bias", "bias_embed_D")),
        ("bert.",), r"position_ids$|^pooler\.|^cls\."),
)


def read_config(config: Config, name: str) -> tuple[Family, Architecture]:
  """The family and the architecture that a config.json describes.

  Raises:
    InputError: it is of no family that is known here, lacks a field, or asks for something that is not known.
  """
  kind = config.get("model_type")
  family = next((family for family in FAMILIES if kind in family.model_types), None)
  if family is None:
    known = ", ".join(kind for family in FAMILIES for kind in family.model_types)
    raise InputError(f"subject.weights={name!r}: its config.json says model_type={kind!r}, which is not supported: "
                     f"known are {known}")
  if "quantization_config" in config:
    raise InputError(f"subject.weights={name!r}: its tensors are quantised ({config['quantization_config']}): give "
                     "the unquantised model, or a .gguf file")
  try:
    return family, family.read(config)
  except InputError:
    raise
  except KeyError as error:
    raise InputError(f"subject.weights={name!r}: its config.json lacks {error}, which {kind} needs") from error
  except (TypeError, AttributeError, ValueError, ArithmeticError) as error:
    raise InputError(f"subject.weights={name!r}: its config.json cannot be used: {error}") from error
