"""JAX as every test runs it: exact products, and compiled programs kept between runs. And one tiny run that many tests read."""

import os
import shutil
from pathlib import Path

# Compiling is most of the suite's time, and its models are tiny: programs that are compiled fast beat programs that run fast.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false".strip()
)

import jax
import pytest
from filelock import FileLock

CACHE = Path(__file__).parent.parent / "runs" / ".jax_cache"

jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_default_matmul_precision", "highest")
# Subprocesses compute what this process does.
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"


@pytest.fixture(scope="session")
def debug_run(tmp_path_factory) -> Path:
    """A folder laid out as the demo's: corpus/patrol, two_rate and rows.jsonl, made by the commands at the `debug` size.

    Made once, whichever of the processes that share the tests needs it first. Not to be written to; see `own_run`.
    """
    from tests.experiments.debug_run import make

    own = tmp_path_factory.getbasetemp()
    shared = own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own
    folder, made = shared / "debug", shared / "debug.made"
    with FileLock(shared / "debug.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            made.touch()
    return folder


@pytest.fixture
def own_run(debug_run, tmp_path) -> Path:
    """A copy of the debug run's two_rate, for a test to damage."""
    return Path(shutil.copytree(debug_run / "two_rate", tmp_path / "two_rate"))
