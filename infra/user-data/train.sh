#!/bin/bash
# User data of a training machine. `launch-training` replaces the words between @ signs; the local cloud runs this very
# script as a process. It starts the trainer's container with one job and then powers the machine off, whatever happened:
# the launch template says "terminate on shutdown", so a powered-off machine costs nothing.
set -uo pipefail

image='@IMAGE@'
readonly job_uri='@JOB_URI@' gpu='@GPU@' region='@REGION@' attempt='@ATTEMPT@' max_seconds='@MAX_SECONDS@'

say() { echo "tunesmith $(date -u +%FT%TZ) attempt=$attempt $*"; }

power_off() {
    say "powering off"
    shutdown -h now
}
trap power_off EXIT

# The last line of defence, independent of the trainer, the network and AWS: this machine ends itself at its time limit.
# The trainer stops itself, checkpointed, well before; watch-costs and sweep-resources end the machine from outside.
shutdown -h "+$(((max_seconds + 59) / 60 + 5))" || say "no delayed shutdown on this machine"

retry() { # retry COUNT COMMAND…: with a growing pause
    local count=$1 try
    shift
    for ((try = 1; try <= count; try++)); do
        "$@" && return 0
        say "failed (try $try of $count): $1"
        sleep $((try * 5))
    done
    return 1
}

# A machine that was chosen for its GPU takes the image with CUDA's libraries, which lies beside the other one. Without a working
# GPU the trainer must end there: on the processor it would take a hundred times as long, at the price of the GPU.
gpus=()
if [[ $gpu == yes ]]; then
    image+=-cuda
    gpus=(--gpus all --env TUNESMITH_GPU=required)
fi

log_in() {
    aws ecr get-login-password --region "$region" | docker login --username AWS --password-stdin "${image%%/*}"
}

case $image in
    *.dkr.ecr.*) retry 5 log_in || exit 1 ;;
esac
retry 5 docker pull --quiet "$image" || exit 1

say "starting the trainer: $job_uri"
# --network host: the container reads the machine's metadata (spot notice, role) without an extra hop.
# On a spot notice the trainer itself checkpoints and reports; `docker stop` (SIGTERM) does the same.
docker run --rm --network host "${gpus[@]}" \
    --env AWS_REGION="$region" \
    --env TUNESMITH_ATTEMPT="$attempt" \
    --log-driver awslogs --log-opt awslogs-region="$region" \
    --log-opt awslogs-group=/tunesmith/trainer --log-opt awslogs-stream="$attempt" \
    "$image" train --job "$job_uri"
say "the trainer ended with status $?"
