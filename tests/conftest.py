"""JAX as every test runs it: exact products, and compiled programs kept between runs."""

from pathlib import Path

import jax

CACHE = Path(__file__).parent.parent / "runs" / ".jax_cache"

jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_default_matmul_precision", "highest")
