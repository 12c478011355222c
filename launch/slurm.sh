#!/usr/bin/env bash
# Starts one J-RAS run on several GPU nodes under Slurm, and starts it again until it is done:
#   sbatch launch/slurm.sh configs/acdc_segformer.py runs/acdc_segformer --config.dataset.manual_dir=/data/ACDC
# Each node runs one task: a single JAX process that uses all GPUs of the node. JAX reads host names and ranks from Slurm.
# The run's folder must be on a file system that all nodes share.
#SBATCH --job-name=jras
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
# Two minutes before the time limit Slurm sends SIGTERM to this script, which passes it on: the run saves itself and ends.
#SBATCH --signal=B:TERM@120
# Slurm may put the job back into the queue: when a node fails, when it is preempted, and when this script asks for it.
#SBATCH --requeue
#SBATCH --open-mode=append

set -uo pipefail
config=${1:?config file}; workdir=${2:?folder of the run}; shift 2
here=${SLURM_SUBMIT_DIR:-.}

"$here"/launch/resumable.sh srun --kill-on-bad-exit=1 \
  .venv/bin/python run.py --config="$config" --workdir="$workdir" "$@" &
trap 'kill -TERM $!' TERM
while :; do wait $!; status=$?; kill -0 $! 2>/dev/null || break; done

# 0 is done, 2 a mistake that another start does not mend. Anything else: the time was over, or a host was lost.
case $status in 0 | 2) exit "$status" ;; esac
if [ "${SLURM_RESTART_COUNT:-0}" -ge "${JRAS_MOST_RESTARTS:-20}" ]; then
  echo "error: restarted ${SLURM_RESTART_COUNT} times; the job is not put back into the queue" >&2
  exit "$status"
fi
echo "exit status $status: the job goes back into the queue and resumes from its last checkpoint" >&2
scontrol requeue "${SLURM_JOB_ID:?}"
