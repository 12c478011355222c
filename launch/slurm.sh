#!/usr/bin/env bash
# Starts one J-RAS run on several GPU nodes under Slurm:
#   sbatch launch/slurm.sh configs/acdc_segformer.py runs/acdc_segformer --config.dataset.manual_dir=/data/ACDC
# Each node runs one task: a single JAX process that uses all GPUs of the node. JAX reads host names and ranks from Slurm.
# The run's folder must be on a file system that all nodes share.
#SBATCH --job-name=jras
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
# Slurm sends SIGTERM two minutes before the time limit: the run saves a checkpoint and exits, and the next start resumes.
#SBATCH --signal=TERM@120
# If a node dies, the others exit after about a minute without its heartbeat, and Slurm requeues the job.
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
config=${1:?config file}; workdir=${2:?folder of the run}; shift 2

srun --kill-on-bad-exit=1 .venv/bin/python run.py --config="$config" --workdir="$workdir" "$@"
