"""How tests and their subprocesses compile."""

# Compiling without LLVM's optimisations takes little more than half the time; without MLIR's way
# of writing kernels, and in one piece, half of that again. A version of XLA that has no such way
# passes over the option.
FAST = (
    "--xla_backend_optimization_level=0"
    " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
    " --xla_cpu_parallel_codegen_split_count=1"
)
