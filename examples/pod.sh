#!/usr/bin/env bash
# A pod: one run in several processes.
#
# Every process runs the same command with `--pod`, and every batch is split over the devices of
# all. On Slurm and on TPU pods JAX finds the other processes by itself:
#
#     srun okdph train --config=imagenet --workdir=/shared/run --pod
#
# Elsewhere three variables tell each process where the first one listens, how many there are,
# and which one it is. This script does so for two processes on one machine; on two machines
# start one on each, with the first one's address and a `--workdir` that both can see.
#
#     bash examples/pod.sh
#
# A signal to any of the processes stops all of them after the same step, and the same command
# resumes the run.

set -euo pipefail

OPTIONS="--config=digits --config.devices=1 --workdir=runs/pod"
export JAX_COORDINATOR_ADDRESS=localhost:12345 JAX_NUM_PROCESSES=2

JAX_PROCESS_ID=1 okdph train $OPTIONS --pod &
JAX_PROCESS_ID=0 okdph train $OPTIONS --pod
wait $!
