"""How tests and their subprocesses compile."""

# Compiling without LLVM's optimisations takes little more than half the time.
FAST = "--xla_backend_optimization_level=0"
