#!/usr/bin/env bash
# A Cloud TPU slice of virtual machines, used from this clone:
#   export NAME=b2b ZONE=us-west4-a TYPE=v5litepod-16 BUCKET=my-bucket
#   launch/tpu_vm.sh create                  # asks for the slice
#   launch/tpu_vm.sh install                 # copies the last commit to every host, installs it
#   launch/tpu_vm.sh train CONFIG [FLAGS]    # starts b2b train on every host, in the background
#   launch/tpu_vm.sh logs                    # follows what the first host says
#   launch/tpu_vm.sh stop                    # saves and ends the run; train continues it
#   launch/tpu_vm.sh delete
# VERSION is the system of the machines, for other TYPEs another one (v2-alpha-tpuv5, -tpuv6e).
# After a preemption: delete, create, install, train. The bucket is mounted as runs/, so that every
# host sees the run; give it a hierarchical namespace, in which folders are renamed at once.
set -euo pipefail
: "${NAME:?set it to a name for the slice}" "${ZONE:?set it to a zone, such as us-west4-a}"
: "${TYPE:=v5litepod-16}" "${VERSION:=v2-alpha-tpuv5-lite}" "${BUCKET:=}"

tpu() { gcloud compute tpus tpu-vm "$@" --zone "$ZONE"; }
on_hosts() { tpu ssh "$NAME" --worker "$1" --command "$2"; }

case "${1:-}" in
create)
    tpu create "$NAME" --accelerator-type "$TYPE" --version "$VERSION" "${@:2}"
    ;;
install)
    archive=$(mktemp --suffix .tgz)
    git archive --output "$archive" HEAD
    tpu scp "$archive" "$NAME:b2b_jax.tgz" --worker all
    rm "$archive"
    # These machines may have an older Python than is needed, which uv brings.
    on_hosts all "mkdir -p b2b_jax && tar -xzf b2b_jax.tgz -C b2b_jax && cd b2b_jax &&
        python3 -m pip install -q --user uv && python3 -m uv venv -q --clear --python 3.12 .venv &&
        python3 -m uv pip install -q -p .venv -c constraints.txt '.[tpu,tfds]' &&
        mkdir -p runs &&
        { test -z '$BUCKET' || mountpoint -q runs || gcsfuse --implicit-dirs '$BUCKET' runs; }"
    ;;
train)
    printf -v words '%q ' "${@:2}"
    # Nothing on these machines says that there are others: JAX finds them when told to join.
    on_hosts all "cd b2b_jax && source launch/xla_flags.sh tpu &&
        { B2B_JAX_JOIN=auto nohup .venv/bin/b2b train $words >>b2b.log 2>&1 </dev/null & }"
    ;;
logs)
    on_hosts 0 "tail -n 50 -f b2b_jax/b2b.log"
    ;;
stop)
    on_hosts all "pkill -TERM -f '[b]2b train'"
    ;;
delete)
    tpu delete "$NAME" --quiet
    ;;
*)
    echo "usage: $0 create|install|train CONFIG [FLAGS]|logs|stop|delete" >&2
    exit 2
    ;;
esac
