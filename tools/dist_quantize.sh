#!/usr/bin/env bash
# Quantizes with several processes, one a GPU; on a machine without GPUs they share its cores.
#
#   tools/dist_quantize.sh CONFIG GPUS [arguments of tools/quantize.py]
#
# Environment, with what is taken when it is not set:
#   PYTHON           the interpreter (python)
#   NNODES           machines (1); start this script on each of them
#   NODE_RANK        number of this machine, from 0 (0)
#   MASTER_ADDR      address of machine 0 (127.0.0.1)
#   PORT             port of machine 0 (one machine: any free one; several: 29500)
#   OMP_NUM_THREADS  threads a process (the cores shared out)
set -euo pipefail

if [ $# -lt 2 ] || ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 CONFIG GPUS [arguments of tools/quantize.py], GPUS at least 1" >&2
    exit 2
fi
CONFIG=$1
GPUS=$2
shift 2
NNODES=${NNODES:-1}
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if [ "$NNODES" -eq 1 ] && [ -z "${PORT:-}" ]; then
    MEET=(--standalone --local-addr=127.0.0.1)  # two runs on one machine must not meet
else
    MEET=(--nnodes="$NNODES" --node-rank="${NODE_RANK:-0}"
          --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}")
fi
# torchrun and mmengine would both leave each process one thread.
if [ -z "${OMP_NUM_THREADS:-}" ]; then
    CORES=$(nproc)
    OMP_NUM_THREADS=$((CORES > GPUS ? CORES / GPUS : 1))
fi
export OMP_NUM_THREADS MKL_NUM_THREADS="${MKL_NUM_THREADS:-$OMP_NUM_THREADS}"
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"

exec "${PYTHON:-python}" -m torch.distributed.run "${MEET[@]}" --nproc-per-node="$GPUS" \
    "$TOOLS/quantize.py" "$CONFIG" "$@" --launcher pytorch
