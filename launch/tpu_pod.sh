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

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$root/launch/common.sh"

spot=false keep=false max_restarts=20 poll=30
required=(--name --project --zone --accelerator-type --runtime-version --config --workdir)
optional=(--max-restarts --poll) switches=(--spot --keep --dry-run)
parse "$@"

# shellcheck disable=SC2154  # parse sets them
{
  check_name "$name"
  [[ "$workdir" == gs://?* ]] || die "--workdir=$workdir: expected a gs:// folder, which outlives the slice. Fix: give one"
  max_restarts="$(whole --max-restarts "$max_restarts")"
  poll="$(whole --poll "$poll")"
  check_config "$root" "$config"
  need gcloud "install the Google Cloud CLI, and log in with gcloud auth login"
  where=(--project="$project" --zone="$zone")
  size=(--accelerator-type="$accelerator_type" --runtime-version="$runtime_version")
}
if $spot; then size+=(--spot); fi
scratch="$(mktemp -d)"
archive="$scratch/jaxdiff.tar.gz" said="$scratch/said"
created=false child="" patience=20

resource() { # VERB ARGUMENTS...: a command on the queued resource, whose errors are kept for `reason`
  local verb="$1" status=0
  run gcloud compute tpus queued-resources "$verb" "$name" "${where[@]}" "${@:2}" 2>"$said" || status=$?
  cat "$said" >&2
  return "$status"
}

reason() { # of the last failure: LOGIN and GONE, or UNKNOWN, which may pass
  case "$(tr '[:upper:]' '[:lower:]' <"$said")" in
    *reauthentication* | *"gcloud auth login"* | *unauthenticated* | *permission_denied*) echo LOGIN ;;
    *not_found* | *"not found"*) echo GONE ;;
    *) echo UNKNOWN ;;
  esac
}

logged_in() {
  [[ "$1" != LOGIN ]] || die "gcloud is not logged in or lacks a permission. Fix: see its message above, and run again" 1
}

create() {
  if resource create --node-id="$name" "${size[@]}"; then
    created=true
    return
  fi
  logged_in "$(reason)"
  return 1
}

delete() {
  if resource delete --force --quiet || [[ "$(reason)" == GONE ]]; then
    created=false
  else
    echo "$name could not be deleted; see: gcloud compute tpus queued-resources list" >&2
  fi
}

# Sets `state` to that of the queued resource, or to GONE. gcloud may fail for a while without a change of the slice.
describe() {
  local tries
  for ((tries = 0; tries < patience; tries++)); do
    resource describe --format='value(state.state)' >"$scratch/state" || reason >"$scratch/state"
    state="$(cat "$scratch/state")"
    logged_in "$state"
    [[ "$state" == UNKNOWN ]] || return 0
    sleep "$poll"
  done
  die "the state of $name is unknown after $patience tries. Fix: see gcloud's message above, and run again" 1
}

wait_until_active() { # fails if the request can no longer be fulfilled
  if $dry_run; then
    resource describe --format='value(state.state)'
    return
  fi
  local before=""
  while true; do
    describe
    [[ "$state" == "$before" ]] || echo "$name is $state" >&2
    before="$state"
    case "$state" in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED | GONE) return 1 ;;
    esac
    sleep "$poll"
  done
}

on_all_workers() { # in the background, since bash answers signals only while it waits
  local status=0 ssh=(gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1")
  if $dry_run; then
    run "${ssh[@]}"
    return
  fi
  "${ssh[@]}" </dev/null &
  child=$!
  wait "$child" || status=$?
  child=""
  return "$status"
}

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
  --config "$config" --workdir "$workdir" ${rest[@]+"${rest[@]}"})"

work() { copy && on_all_workers "$install" && on_all_workers "$train"; }

# shellcheck disable=SC2329  # called by the trap
clean_up() {
  [[ -z "$child" ]] || kill "$child" 2>/dev/null || true
  if $created && ! $keep; then delete; fi
  rm -rf "$scratch"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

run tar -czf "$archive" -C "$root" jaxdiff configs pyproject.toml README.md LICENSE
for ((restarts = 0; restarts <= max_restarts; restarts++)); do
  ((restarts == 0)) || echo "restart $restarts of at most $max_restarts" >&2
  if $created; then delete; fi # the last try failed
  if ! create; then
    ((restarts > 0)) || die "the queued resource could not be requested. Fix: see gcloud's message above" 1
    sleep "$poll"
    continue
  fi
  if wait_until_active; then
    status=0
    work || status=$?
    ((status != 0)) || exit 0
    sleep "$poll" # the state shows a preemption shortly after the connection breaks
    # 75: stopped and saved; 255: ssh lost its worker. Any other failure on a live slice is one of the run itself.
    if [[ "$status" != 75 && "$status" != 255 ]]; then
      describe
      [[ "$state" != ACTIVE ]] || die "the command failed with status $status on a live slice. Fix: see its output above" "$status"
    fi
  fi
  delete
done
die "still not finished after $max_restarts restarts. Fix: run the same command again to continue" 75
