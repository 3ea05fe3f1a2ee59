"""Settings of every test: CPU, exact matrix products, short and repeatable property tests."""

import atexit
import os
import shutil
import tempfile

from hypothesis import HealthCheck, settings

# Most of the time goes into compiling programs that run for milliseconds. Set before JAX starts,
# for the processes that tests start as well.
FAST_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ.setdefault("XLA_FLAGS", FAST_COMPILE)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # One cache for all processes of this run: it is made by the first and goes with it.
    cache = tempfile.mkdtemp(prefix="b2b_jax_compiled_")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

os.environ["JAX_PLATFORMS"] = "cpu"  # of the processes that tests start, too

import jax  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_default_matmul_precision", "highest")

settings.register_profile(
    "b2b",
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("b2b")
