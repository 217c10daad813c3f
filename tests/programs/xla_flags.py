"""How tests compile for XLA: quickly. Their programs run for milliseconds, and most of their time is the compiler's.

`tests/conftest.py` sets the flags for every process of the tests. The demo compiles as users do.
"""

QUICK_COMPILES = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
