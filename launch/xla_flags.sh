# Settings of the compilers for accelerators, read by the launchers in this folder; by hand:
#   source launch/xla_flags.sh gpu     # or tpu
# Only what JAX 0.10 does not do by itself. What you have set before comes last, and wins.
# shellcheck shell=bash
case "${1:?name the accelerator: gpu or tpu}" in
gpu)
    flags=(
        # Start messages between GPUs early, and compute until they have arrived.
        --xla_gpu_enable_latency_hiding_scheduler=true
        # Fetch the parameters of the next layer during this one (mesh.fsdp): the scan over layers
        # is a loop, whose iterations the scheduler does not mix.
        --xla_gpu_enable_pipelined_all_gather=true
        # The same for sums over copies of the parameters (mesh.data).
        --xla_gpu_enable_pipelined_all_reduce=true
    )
    export XLA_FLAGS="${flags[*]} ${XLA_FLAGS:-}"
    # JAX takes 75 % of a GPU's memory at the start; a training process has the GPU to itself.
    export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
    ;;
tpu)
    flags=(
        # Between slices (mesh.data over SLICES in gke_xpk.sh): sum the gradients of a layer while
        # the next one is computed. Within a slice libtpu 0.0.42 compiles the same without, and it
        # fuses and starts collectives early by itself.
        --xla_tpu_enable_data_parallel_all_reduce_opt=true
        --xla_tpu_data_parallel_opt_different_sized_ops=true
    )
    export LIBTPU_INIT_ARGS="${flags[*]} ${LIBTPU_INIT_ARGS:-}"
    ;;
*)
    echo "xla_flags.sh: found '$1', expected gpu or tpu" >&2
    return 2
    ;;
esac
unset flags
