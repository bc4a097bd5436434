"""Tiny pretrained models of every family, as Hugging Face folders, for tests."""

import json

import numpy as np
from safetensors.numpy import save_file

LLAMA = dict(model_type="llama", num_hidden_layers=3, hidden_size=64, intermediate_size=48, num_attention_heads=4,
             num_key_value_heads=2, vocab_size=96, max_position_embeddings=128, rms_norm_eps=1e-5,
             tie_word_embeddings=False, hidden_act="silu")
_SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 16}
_GEMMA = dict(LLAMA, model_type="gemma2", head_dim=32, query_pre_attn_scalar=24, sliding_window=16,
              attn_logit_softcapping=5.0, final_logit_softcapping=3.0, tie_word_embeddings=True,
              hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6)
_GEMMA3 = dict(_GEMMA, model_type="gemma3_text", num_hidden_layers=7, rope_theta=1e6, rope_local_base_freq=1e4,
               final_logit_softcapping=None)
_NEOX = dict(model_type="gpt_neox", num_hidden_layers=3, hidden_size=64, intermediate_size=96, num_attention_heads=4,
             vocab_size=96, max_position_embeddings=128, layer_norm_eps=1e-5, hidden_act="gelu", rotary_pct=0.25,
             rotary_emb_base=10000, use_parallel_residual=True, tie_word_embeddings=False)
_GPT2 = dict(model_type="gpt2", n_layer=3, n_embd=64, n_head=4, vocab_size=96, n_positions=128,
             layer_norm_epsilon=1e-5, activation_function="gelu_new", bos_token_id=0, eos_token_id=0)
_QWEN2 = dict(LLAMA, model_type="qwen2", use_sliding_window=False, sliding_window=16, max_window_layers=1)
BERT = dict(model_type="bert", num_hidden_layers=3, hidden_size=64, intermediate_size=96, num_attention_heads=4,
            vocab_size=96, max_position_embeddings=128, type_vocab_size=2, layer_norm_eps=1e-12, hidden_act="gelu",
            pad_token_id=0)

# Every family, and every switch of it that a configuration can set.
CONFIGS = {
    "gpt2": _GPT2,
    "gpt2 wide": dict(_GPT2, n_inner=80, tie_word_embeddings=False, scale_attn_weights=False),
    "neox": _NEOX,
    "neox sequential": dict(_NEOX, use_parallel_residual=False, rotary_pct=1.0),
    "neox without attention bias": dict(_NEOX, attention_bias=False),
    "llama": LLAMA,
    "llama3 scaling, old keys": dict(LLAMA, rope_theta=5e5, rope_scaling=_SCALED),
    "llama3 scaling, new keys": dict(LLAMA, rope_parameters={**_SCALED, "rope_theta": 5e5}),
    "llama wide heads, biases, tied": dict(LLAMA, head_dim=32, attention_bias=True, mlp_bias=True,
                                           tie_word_embeddings=True),
    "llama linear": dict(LLAMA, rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "llama dynamic": dict(LLAMA, max_position_embeddings=32, rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
    "llama yarn": dict(LLAMA, rope_scaling={"rope_type": "yarn", "factor": 4.0,
                                            "original_max_position_embeddings": 32}),
    "llama longrope": dict(LLAMA, rope_scaling={
        "rope_type": "longrope", "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [2.0 + i for i in range(8)], "factor": 4.0, "original_max_position_embeddings": 32}),
    "mistral": dict(LLAMA, model_type="mistral", sliding_window=16, head_dim=24),
    "mistral without window": dict(LLAMA, model_type="mistral", sliding_window=None),
    "qwen2": _QWEN2,
    "qwen2 with window": dict(_QWEN2, use_sliding_window=True),
    "qwen3": dict(LLAMA, model_type="qwen3", head_dim=32, use_sliding_window=False),
    "gemma2": _GEMMA,
    "gemma2 caps 50 and 30": dict(_GEMMA, attn_logit_softcapping=50.0, final_logit_softcapping=30.0),
    "gemma3": _GEMMA3,
    "gemma3 linear": dict(_GEMMA3, rope_scaling={"rope_type": "linear", "factor": 8.0}),
    "gemma3 pattern 3, new keys": dict(_GEMMA3, layer_types=[
        "full_attention" if i % 3 == 2 else "sliding_attention" for i in range(7)], rope_parameters={
            "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}),
    "bert": BERT,
}


def write(folder, config, seed=0):
  """A folder with a model of random weights, none of which is at a value that would hide a mistake: its tensors."""
  from monojax.subjects.pretrained.families import read_config
  from monojax.subjects.pretrained.tensors import sizes_of
  family, a = read_config(config, "test")
  rng, tensors = np.random.default_rng(seed), {}
  for _, name, tensor in family.tensors(a, a.n_layers):
    shape = tensor.shape(sizes_of(a))
    near_1 = len(shape) == 1 and name.endswith("weight") and not a.norm_offset
    tensors[name] = (near_1 + rng.normal(0, 0.2 if len(shape) == 1 else shape[-1] ** -0.5, shape)).astype(np.float32)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config))
  prefix = {"gpt2": "transformer.", "gpt_neox": "gpt_neox.", "bert": ""}.get(config["model_type"], "model.")
  heads = ("lm_head.weight", "embed_out.weight")
  named = {name if name in heads else prefix + name: value for name, value in tensors.items()}
  save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
  return named
