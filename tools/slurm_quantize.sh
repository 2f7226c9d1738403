#!/usr/bin/env bash
# Quantizes with several processes of a slurm cluster, one a GPU.
#
#   tools/slurm_quantize.sh PARTITION JOB_NAME CONFIG [arguments of tools/quantize.py]
#
# Environment, with what is taken when it is not set:
#   PYTHON         the interpreter (python)
#   GPUS           processes in all (8)
#   GPUS_PER_NODE  processes a machine (8, or GPUS where that is less)
#   CPUS_PER_TASK  cores, and threads, a process (5)
#   GRES           what a machine must have (gpu:$GPUS_PER_NODE); set it empty to run on CPUs
#   SRUN_ARGS      more arguments of srun, such as "--time=60 --quotatype=auto"
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG [arguments of tools/quantize.py]" >&2
    exit 2
fi
PARTITION=$1
JOB_NAME=$2
CONFIG=$3
shift 3
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}
CPUS_PER_TASK=${CPUS_PER_TASK:-5}
GRES=${GRES-gpu:$GPUS_PER_NODE}
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

read -ra MORE <<<"${SRUN_ARGS:-}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$CPUS_PER_TASK}"
export MKL_NUM_THREADS="${MKL_NUM_THREADS:-$OMP_NUM_THREADS}"
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"

# --kill-on-bad-exit: when a process ends badly, slurm ends the others.
exec srun --partition="$PARTITION" --job-name="$JOB_NAME" ${GRES:+--gres="$GRES"} \
    --ntasks="$GPUS" --ntasks-per-node="$GPUS_PER_NODE" --cpus-per-task="$CPUS_PER_TASK" \
    --kill-on-bad-exit=1 ${MORE[@]+"${MORE[@]}"} \
    "${PYTHON:-python}" -u "$TOOLS/quantize.py" "$CONFIG" "$@" --launcher slurm
