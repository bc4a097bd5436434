"""The names of the formats, apart from what reads and writes them, so that a command's help need not wait for jax."""

_READ_ONLY = ("dictionary_learning", "openai", "qwen_scope")
WRITTEN = ("sae_lens", "sparsify", "gemma_scope", "circuit_tracer", "safetensors", "monojax")
FORMATS = (*WRITTEN, *_READ_ONLY)
