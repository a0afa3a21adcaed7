#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Train on GPUs of a Slurm cluster, on one node or several, and continue after time limits and failed nodes.

  launch/gpu_slurm.sh --name digits --nodes 2 --gpus-per-node 8 --time 04:00:00 \
    --config configs/digits.py --workdir /shared/runs/digits -- --config.steps=2000

Submits launch/slurm_job.sh with sbatch, from this checkout, which all nodes must see. Each GPU has one process. Slurm
signals the job before its time limit. The run then saves its state, ends with status 75, and the job is requeued.
After the failure of a node Slurm requeues the job by itself. Both continue from the last checkpoint in --workdir.

  --name NAME                name of the job
  --nodes N                  number of nodes
  --gpus-per-node N          GPUs of each node
  --time LIMIT               time limit of a part of the run, in Slurm's form
  --config FILE              config of the run, a path in this repository
  --workdir FOLDER           folder of the run, on a disk that all nodes share
  --python FILE              interpreter with jaxdiff on the nodes (default: that of this shell)
  --env NAME=VALUE           a variable for the training command (repeatable), TFDS_DATA_DIR for example
  --max-restarts N           give up after N restarts (default: 20)
  --notice SECONDS           time between the signal and the time limit (default: 300)
  --partition, --account, --qos, --constraint, --cpus-per-gpu, --mem, --output  as for sbatch
  --dry-run                  print the command, and run none
  --                         pass all following arguments to jaxdiff.train

Exit status: 0 when the job is in the queue; 1 when sbatch refuses it; 2 for a mistake in these flags.
TEXT
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$root/launch/common.sh"

python="$(command -v python || command -v python3 || echo python3)"
# shellcheck disable=SC2034  # read by their names
{
  partition="" account="" qos="" constraint="" cpus_per_gpu="" mem="" output=slurm-%x-%j.out
}
max_restarts=20 notice=300
of_sbatch=(--partition --account --qos --constraint --cpus-per-gpu --mem --output)
required=(--name --nodes --gpus-per-node --time --config --workdir)
optional=(--python --max-restarts --notice "${of_sbatch[@]}") switches=(--dry-run)
parse "$@"

seconds_of() { # LIMIT: the seconds of a time limit in one of Slurm's forms, or nothing
  local days=0 clock="$1" a b c
  if [[ "$clock" =~ ^([0-9]{1,4})-([0-9:]+)$ ]]; then
    days="${BASH_REMATCH[1]}" clock="${BASH_REMATCH[2]}"
    [[ "$clock" =~ ^[0-9]+$ ]] && clock+=":00:00"
    [[ "$clock" =~ ^[0-9]+:[0-9]+$ ]] && clock+=":00"
  fi
  [[ "$clock" =~ ^[0-9]{1,6}$ ]] && clock="00:$clock:00"
  [[ "$clock" =~ ^[0-9]{1,6}:[0-9]{1,2}$ ]] && clock="00:$clock"
  [[ "$clock" =~ ^([0-9]{1,6}):([0-9]{1,6}):([0-9]{1,2})$ ]] || return 0
  a="${BASH_REMATCH[1]}" b="${BASH_REMATCH[2]}" c="${BASH_REMATCH[3]}"
  echo $((10#$days * 86400 + 10#$a * 3600 + 10#$b * 60 + 10#$c))
}

# shellcheck disable=SC2154  # parse sets them
{
  check_name "$name"
  nodes="$(whole --nodes "$nodes")"
  gpus="$(whole --gpus-per-node "$gpus_per_node")"
  ((nodes > 0)) || die "--nodes=$nodes: expected at least 1, got 0. Fix: --nodes 1"
  ((gpus > 0)) || die "--gpus-per-node=$gpus: expected at least 1, got 0. Fix: --gpus-per-node 1"
  max_restarts="$(whole --max-restarts "$max_restarts")"
  notice="$(whole --notice "$notice")"
  check_config "$root" "$config"
  [[ "$workdir" == /* || "$workdir" == *://* ]] ||
    die "--workdir=$workdir: expected an absolute path or a bucket, got $workdir. Fix: name a folder that all nodes share"
  limit="$time" seconds="$(seconds_of "$time")"
  [[ -n "$seconds" ]] || die "--time=$limit: expected a time limit in Slurm's form, got $limit. Fix: --time 04:00:00"
  ((notice < seconds && notice <= 65535)) ||
    die "--notice=$notice: expected less than --time, which has $seconds seconds, and at most 65535, got $notice. Fix: give fewer"
}
need sbatch "run this script on a login node of the cluster"

# --ntasks-per-node: JAX gives the i-th process of a node the i-th GPU. --open-mode: a requeued job keeps its log.
options=(--parsable --job-name="$name" --chdir="$root" --nodes="$nodes" --ntasks-per-node="$gpus" --gpus-per-node="$gpus"
  --time="$limit" --requeue --signal="B:USR1@$notice" --open-mode=append)
for flag in "${of_sbatch[@]}"; do
  variable="${flag#--}" && variable="${variable//-/_}"
  [[ -z "${!variable}" ]] || options+=("$flag=${!variable}")
done
run sbatch "${options[@]}" "$root/launch/slurm_job.sh" "$max_restarts" \
  env "${environment[@]}" "$python" -m jaxdiff.train --config "$config" --workdir "$workdir" ${rest[@]+"${rest[@]}"} ||
  die "the job was refused. Fix: see the message of sbatch above" 1
