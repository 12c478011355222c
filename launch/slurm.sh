#!/usr/bin/env bash
# One J-RAS run on several GPU nodes under Slurm:
#   sbatch launch/slurm.sh configs/acdc_segformer.py runs/acdc_segformer --config.dataset.manual_dir=/data/ACDC
# One task per node, all GPUs of the node in one JAX process; JAX reads host names and ranks from Slurm itself.
# The folder of the run must lie on a file system that all nodes share.
#SBATCH --job-name=jras
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
# A notice two minutes before the time limit: the run saves a checkpoint and ends; the next start goes on from it.
#SBATCH --signal=TERM@120
# When a node dies, the others end within about a minute (heartbeat) and Slurm starts the job again.
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
config=${1:?config file}; workdir=${2:?folder of the run}; shift 2

srun --kill-on-bad-exit=1 .venv/bin/python run.py --config="$config" --workdir="$workdir" "$@"
