#!/usr/bin/env bash
# A workload on a GKE cluster of TPUs that XPK has made (pip install xpk; xpk cluster create ...):
#   export CLUSTER=my-cluster PROJECT=my-project ZONE=us-east5-a IMAGE=REGISTRY/b2b:tpu
#   docker build -f launch/Dockerfile --build-arg EXTRA=tpu -t "$IMAGE" . && docker push "$IMAGE"
#   launch/gke_xpk.sh configs/demo/source.yaml --run_dir /runs/source
# RUNS names a storage that XPK mounts (xpk storage create), so that every host sees the run and
# restarts find it. A host that is lost restarts the workload, and the run goes on from its newest
# checkpoint. A workload that has ended keeps its NAME: take another one to go on by hand.
set -euo pipefail
: "${CLUSTER:?}" "${PROJECT:?}" "${ZONE:?}" "${IMAGE:?an image built from launch/Dockerfile}"
: "${TYPE:=v5litepod-16}" "${SLICES:=1}" "${NAME:=b2b}" "${RESTARTS:=20}"

# shellcheck source=launch/xla_flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/xla_flags.sh" tpu

printf -v words '%q ' "$@"
exec xpk workload create \
    --cluster "$CLUSTER" --project "$PROJECT" --zone "$ZONE" \
    --workload "$NAME" --tpu-type "$TYPE" --num-slices "$SLICES" \
    --docker-image "$IMAGE" ${RUNS:+--storage "$RUNS"} \
    --max-restarts "$RESTARTS" --restart-on-exit-codes 75 --termination-grace-period-seconds 180 \
    --env "LIBTPU_INIT_ARGS=$LIBTPU_INIT_ARGS" \
    --command "b2b train $words"
