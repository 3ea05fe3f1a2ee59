#!/usr/bin/env bash
# Several nodes of GPUs under SLURM, one process per GPU:
#   sbatch --nodes=2 launch/slurm.sh configs/pretrain/bert_base.yaml --mesh.preset fsdp
# Shortly before the time limit the run saves and ends with 75; the job is queued again and goes on,
# as it does when a process was killed (128 and more). RESTARTS times at most, since the others of a
# process that meets an error end so as well.
#SBATCH --job-name=b2b
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=b2b-%j.log
set -euo pipefail

# The environment that b2b is installed in, on a disk that all nodes see.
: "${B2B_VENV:=$PWD/.venv}"
export PATH="$B2B_VENV/bin:$PATH"

# sbatch runs a copy of this file, from the folder in which it was called.
here=$(dirname "${BASH_SOURCE[0]}")
[[ -f $here/xla_flags.sh ]] || here=$PWD/launch
# shellcheck source=launch/xla_flags.sh
source "$here/xla_flags.sh" gpu

# srun does not take it over from sbatch by itself.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
status=0
srun --kill-on-bad-exit=0 --wait=120 b2b train "$@" || status=$?
again=$((status == 75 || (status >= 128 && status != 130))) # 130: Ctrl-C
if ((again && ${SLURM_RESTART_COUNT:-0} < ${RESTARTS:-20})); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
