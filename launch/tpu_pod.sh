#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Train on a Cloud TPU slice of any size, and continue after preemptions until the run is finished.

  launch/tpu_pod.sh --name digits --project my-project --zone us-east5-a \
    --accelerator-type v6e-16 --runtime-version v2-alpha-tpuv6e --spot \
    --config configs/digits.py --workdir gs://my-bucket/digits -- --config.steps=2000

Requests a queued resource, waits until it is ACTIVE, copies this checkout to every worker, installs it, and
starts jaxdiff.train on all workers. A preempted slice is deleted and requested again, and the same command
continues from the last checkpoint in --workdir. The slice is always deleted when this script ends. Needs gcloud,
logged in; keep the script running (in tmux, or on a small VM).

  --name NAME                name of the queued resource and of its node
  --project PROJECT          Google Cloud project
  --zone ZONE                zone with TPUs
  --accelerator-type TYPE    size of the slice, v6e-16 for example
  --runtime-version VERSION  TPU software version, v2-alpha-tpuv6e for example
  --config FILE              config of the run, a path in this repository
  --workdir gs://...         folder of the run, in a bucket that outlives the slice
  --spot                     use cheaper capacity, which may be preempted
  --env NAME=VALUE           a variable for the training command (repeatable), TFDS_DATA_DIR for example
  --max-restarts N           give up after N new slices (default: 20)
  --poll SECONDS             time between checks of the queued resource (default: 30)
  --keep                     do not delete the slice at the end (it continues to cost money)
  --dry-run                  print the commands in order, and run none
  --                         pass all following arguments to jaxdiff.train

Exit status: that of the training command; 2 for a mistake in these flags; 75 when --max-restarts is reached.
TEXT
}

die() {
  echo "error: $1" >&2
  exit "${2:-2}"
}

name="" project="" zone="" accelerator_type="" runtime_version="" config="" workdir=""
spot=() environment=(JAXDIFF_DISTRIBUTED=1) max_restarts=20 poll=30 keep=false dry_run=false

while (($#)); do
  case "$1" in
    --help | -h) usage && exit 0 ;;
    --spot) spot=(--spot) && shift && continue ;;
    --keep) keep=true && shift && continue ;;
    --dry-run) dry_run=true && shift && continue ;;
    --) shift && break ;;
  esac
  flag="${1%%=*}"
  case "$flag" in
    --name | --project | --zone | --accelerator-type | --runtime-version | --config | --workdir) ;;
    --env | --max-restarts | --poll) ;;
    *) die "$1: expected a flag of this script, got $1. Fix: see --help; flags of jaxdiff.train come after --" ;;
  esac
  if [[ "$1" == *=* ]]; then
    value="${1#*=}" && shift
  else
    (($# > 1)) || die "$flag: expected a value, got none. Fix: $flag VALUE"
    value="$2" && shift 2
  fi
  case "$flag" in
    --env) environment+=("$value") ;;
    *) variable="${flag#--}" && printf -v "${variable//-/_}" '%s' "$value" ;;
  esac
done

for variable in name project zone accelerator_type runtime_version config workdir; do
  [[ -n "${!variable}" ]] || die "--${variable//_/-}=: expected a value, got none. Fix: see --help"
done
[[ "$workdir" == gs://* ]] || die "--workdir=$workdir: expected a gs:// folder, which outlives the slice. Fix: give one"
[[ "$max_restarts" =~ ^[0-9]+$ ]] || die "--max-restarts=$max_restarts: expected an integer >= 0. Fix: give one"
[[ "$poll" =~ ^[0-9]+$ ]] || die "--poll=$poll: expected an integer number of seconds >= 0. Fix: give one"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[[ -f "$root/${config%%:*}" ]] || die "--config=$config: expected a file in $root, got none. Fix: check the path"

quoted() { # the arguments in shell syntax, with quotes only where needed
  local argument text="" quote="'\\''"
  for argument; do
    case "$argument" in
      "" | *[!A-Za-z0-9_./:=@%+,-]*) text+="'${argument//\'/$quote}' " ;;
      *) text+="$argument " ;;
    esac
  done
  printf '%s' "${text% }"
}

run() {
  if $dry_run; then
    quoted "$@" && echo
  else
    "$@"
  fi
}

where=(--project="$project" --zone="$zone")
archive="$(mktemp -d)/jaxdiff.tar.gz"
created=false

create() {
  run gcloud compute tpus queued-resources create "$name" "${where[@]}" --node-id="$name" \
    --accelerator-type="$accelerator_type" --runtime-version="$runtime_version" ${spot[@]+"${spot[@]}"} &&
    created=true
}

delete() {
  if run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet; then
    created=false
  else
    echo "$name could not be deleted; see: gcloud compute tpus queued-resources list" >&2
  fi
}

state() { # state of the queued resource; GONE if it cannot be described
  run gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' || echo GONE
}

wait_until_active() { # fails if the request can no longer be fulfilled
  if $dry_run; then
    state
    return
  fi
  local now before=""
  while true; do
    now="$(state)"
    [[ "$now" == "$before" ]] || echo "$name is $now" >&2
    before="$now"
    case "$now" in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED | GONE) return 1 ;;
    esac
    sleep "$poll"
  done
}

on_all_workers() { run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"; }

copy() { # a new slice may refuse ssh for its first minute
  for _ in 1 2 3 4 5; do
    run gcloud compute tpus tpu-vm scp "$archive" "$name:jaxdiff.tar.gz" "${where[@]}" --worker=all && return 0
    sleep "$poll"
  done
  return 255
}

install='rm -rf jaxdiff && mkdir jaxdiff && tar -xzf jaxdiff.tar.gz -C jaxdiff && cd jaxdiff && '
install+='if python3 -c "import sys; sys.exit(sys.version_info < (3, 11))"; then python3 -m venv .venv; '
install+='else python3 -m pip install uv && python3 -m uv venv --seed --python 3.12 .venv; fi && '
install+=".venv/bin/pip install -e '.[tpu]'"
train="cd jaxdiff && $(quoted env "${environment[@]}" .venv/bin/python -m jaxdiff.train \
  --config "$config" --workdir "$workdir" "$@")"

work() { copy && on_all_workers "$install" && on_all_workers "$train"; }

# shellcheck disable=SC2329  # called by the trap
clean_up() {
  rm -rf "$(dirname "$archive")"
  if $created && ! $keep; then delete; fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

run tar -czf "$archive" -C "$root" jaxdiff configs pyproject.toml README.md LICENSE
for ((restarts = 0; restarts <= max_restarts; restarts++)); do
  ((restarts == 0)) || echo "restart $restarts of at most $max_restarts" >&2
  if ! create; then
    ((restarts > 0)) || die "the queued resource could not be requested. Fix: see gcloud's message above" 1
    sleep "$poll"
    continue
  fi
  if wait_until_active; then
    status=0
    work || status=$?
    ((status != 0)) || exit 0
    $dry_run || sleep "$poll" # the state shows a preemption shortly after the connection breaks
    # 75: stopped and saved; 255: ssh lost its worker. Any other failure on a live slice is one of the run itself.
    if [[ "$status" != 75 && "$status" != 255 && "$(state)" == ACTIVE ]]; then
      die "the command failed with status $status on a live slice. Fix: see its output above" "$status"
    fi
  fi
  delete
done
die "still not finished after $max_restarts restarts. Fix: run the same command again to continue" 75
