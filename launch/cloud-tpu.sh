#!/usr/bin/env bash
# Starts one J-RAS run on a Cloud TPU slice through a queued resource:
#   PROJECT=my-project ZONE=us-east5-a BUCKET=gs://my-bucket launch/cloud-tpu.sh configs/acdc_segformer.py acdc_segformer
# Every host of the slice runs the same command. On Cloud TPU, JAX discovers the other hosts.
# A spot slice can be preempted at any time. The run saves a checkpoint on SIGTERM, and the same run command resumes from it.
set -euo pipefail
config=${1:?config file}; name=${2:?name of the run}; shift 2
: "${PROJECT:?}" "${ZONE:?}" "${BUCKET:?}"
type=${TPU_TYPE:-v5litepod-16}

gcloud compute tpus queued-resources create "$name" --node-id="$name" --project="$PROJECT" --zone="$ZONE" \
  --accelerator-type="$type" --runtime-version="${TPU_RUNTIME:-v2-alpha-tpuv5-lite}" --spot
until [ "$(gcloud compute tpus queued-resources describe "$name" --project="$PROJECT" --zone="$ZONE" \
  --format='value(state.state)')" = ACTIVE ]; do sleep 30; done

on_all() { gcloud compute tpus tpu-vm ssh "$name" --project="$PROJECT" --zone="$ZONE" --worker=all --command="$1"; }
gcloud compute tpus tpu-vm scp --recurse --worker=all --project="$PROJECT" --zone="$ZONE" . "$name":jras_jax
on_all "cd jras_jax && python3 -m venv .venv && .venv/bin/pip install -q -r requirements-tpu.txt"
# The scans and the run's folder are in the bucket, which every host mounts.
on_all "mkdir -p ~/bucket && gcsfuse --implicit-dirs ${BUCKET#gs://} ~/bucket"
on_all "cd jras_jax && .venv/bin/python run.py --config=$config --workdir=\$HOME/bucket/runs/$name \
  --config.dataset.manual_dir=\$HOME/bucket/data $*"
