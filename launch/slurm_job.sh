#!/usr/bin/env bash
set -euo pipefail

# The batch script of launch/gpu_slurm.sh: runs a command on all tasks, and requeues the job when it ends with 75.
# It is copied to the first node, so it sources no other file. Arguments: MAX_RESTARTS COMMAND...
max_restarts="$1" restarts="${SLURM_RESTART_COUNT:-0}" child="" signalled=false stopping=false
shift
if ((restarts > max_restarts)); then
  echo "error: not finished after $max_restarts restarts. Fix: submit the same command again to continue" >&2
  exit 75
fi

# shellcheck disable=SC2329  # called by the trap
stop() { # a return without a number would be that of the interrupted command, and end the script
  signalled=true
  $stopping && return 0
  stopping=true
  echo "job $SLURM_JOB_ID: stopping; the run saves its state" >&2
  # scancel reaches the tasks alone. SIGTERM to srun kills them 30 seconds later, perhaps within the save.
  for _ in 1 2 3; do
    scancel --signal=TERM "$SLURM_JOB_ID" && return 0
  done
  kill -TERM "$child"
}
trap stop USR1 TERM

# A task that ends first must not end the others while they save, whatever the cluster's own default is.
srun --kill-on-bad-exit=0 --wait=120 --label "$@" &
child=$!
while true; do # a signal ends the wait with a status above 128, and the trap runs
  status=0 signalled=false
  wait "$child" || status=$?
  if ! $signalled || ((status <= 128)); then break; fi
done

if ((status == 75 && restarts >= max_restarts)); then
  echo "error: not finished after $max_restarts restarts. Fix: submit the same command again to continue" >&2
elif ((status == 75)); then
  echo "job $SLURM_JOB_ID: restart $((restarts + 1)) of at most $max_restarts" >&2
  scontrol requeue "$SLURM_JOB_ID" ||
    echo "error: the job could not be requeued. Fix: submit the same command again to continue" >&2
fi
exit "$status"
