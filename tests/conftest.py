"""Every test sees eight CPU devices and strict ranks, and takes programs that another has compiled."""

import tempfile

import jax

_CACHE = tempfile.TemporaryDirectory()
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", _CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
