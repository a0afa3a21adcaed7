#!/usr/bin/env bash
set -euo pipefail

usage() {
  cat <<'TEXT'
Train on TPU slices of a GKE cluster as a JobSet, which restarts all pods after a preemption until the run is finished.

  launch/gke_jobset.sh --name digits --accelerator v6e --topology 4x4 --image us-docker.pkg.dev/my-project/my/jaxdiff \
    --config configs/digits.py --workdir gs://my-bucket/digits -- --config.steps=2000

Fills launch/gke_jobset.yaml and creates it with kubectl. The image has this repository as its working directory, and
python with the extra "tpu". The cluster needs the JobSet controller and a node pool of this slice.

  --name NAME                name of the JobSet
  --accelerator v5e|v6e      generation of the TPU
  --topology AxB             chips of a slice: 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 or 16x16
  --image IMAGE              container image
  --config FILE              config of the run, a path in this repository
  --workdir gs://...         folder of the run, in a bucket that outlives the pods
  --slices N                 number of slices (default: 1)
  --chips-per-host N         chips of a node (default: 8 for 2x4, else up to 4)
  --spot                     use cheaper nodes, which may be preempted
  --namespace NAME           namespace of the JobSet (default: default)
  --service-account NAME     Kubernetes account that may write to the bucket (default: default)
  --env NAME=VALUE           a variable for the training command (repeatable), TFDS_DATA_DIR for example
  --max-restarts N           give up after N restarts (default: 20)
  --dry-run                  print the command with the manifest, and run none
  --                         pass all following arguments to jaxdiff.train

Exit status: 0 when the JobSet is created; 1 when the cluster refuses it; 2 for a mistake in these flags.
TEXT
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$root/launch/common.sh"

spot=false slices=1 chips_per_host="" namespace=default service_account=default max_restarts=20
required=(--name --accelerator --topology --image --config --workdir)
optional=(--slices --chips-per-host --namespace --service-account --max-restarts) switches=(--spot --dry-run)
parse "$@"

# shellcheck disable=SC2154  # parse sets them
{
  check_name "$name"
  ((${#name} <= 40)) || # the names of its pods add the numbers of slice and host, within 63
    die "--name=$name: expected at most 40 characters, got ${#name}. Fix: use a shorter name"
  case "$accelerator" in
    v5e) selector=tpu-v5-lite-podslice ;;
    v6e) selector=tpu-v6e-slice ;;
    *) die "--accelerator=$accelerator: expected v5e or v6e, got $accelerator. Fix: use one of them" ;;
  esac
  is_one_of "$topology" 1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16 ||
    die "--topology=$topology: expected a topology of v5e and v6e, got $topology. Fix: use one of --help, such as 4x4"
  [[ "$workdir" == gs://?* ]] || die "--workdir=$workdir: expected a gs:// folder, which outlives the pods. Fix: give one"
  check_config "$root" "$config"
}
slices="$(whole --slices "$slices")"
((slices > 0)) || die "--slices=$slices: expected at least 1, got 0. Fix: --slices 1"
max_restarts="$(whole --max-restarts "$max_restarts")"
chips=$((${topology%x*} * ${topology#*x}))
if [[ -z "$chips_per_host" ]]; then
  chips_per_host=$((chips < 4 ? chips : 4))
  [[ "$topology" != 2x4 ]] || chips_per_host=8
fi
chips_per_host="$(whole --chips-per-host "$chips_per_host")"
if ! is_one_of "$chips_per_host" 1 4 8 || ((chips % chips_per_host)); then
  die "--chips-per-host=$chips_per_host: expected 1, 4 or 8, a divisor of $chips, got $chips_per_host. Fix: leave it out"
fi
hosts=$((chips / chips_per_host))
need kubectl "install kubectl, and get the credentials of the cluster"

# shellcheck disable=SC2154  # parse sets `image`
for word in "$namespace" "$service_account" "$image" "$config" "$workdir" "${environment[@]}" ${rest[@]+"${rest[@]}"}; do
  [[ "${word//[$'\n\t']/}" != *[[:cntrl:]]* ]] || die "$word: expected text, got a control character. Fix: leave it out"
done

json() { # the argument as a JSON string
  local text="$1"
  text="${text//\\/\\\\}" && text="${text//\"/\\\"}" && text="${text//$'\n'/\\n}" && text="${text//$'\t'/\\t}"
  printf '"%s"' "$text"
}

literal() { # as `json`; Kubernetes replaces $(NAME), and makes one dollar of two
  json "${1//\$/\$\$}"
}

list() { # the arguments as a JSON list of strings
  local each text=""
  for each; do text+="$(literal "$each"), "; done
  printf '[%s]' "${text%, }"
}

variables() { # NAME=VALUE... as Kubernetes lists them
  local each text=""
  for each; do text+="{\"name\": \"${each%%=*}\", \"value\": $(literal "${each#*=}")}, "; done
  printf '[%s]' "${text%, }"
}

if ((hosts * slices == 1)); then environment=("${environment[@]:1}"); fi # one pod has nobody to find

# shellcheck disable=SC2154  # parse sets `image`
value_of() { # NAME: the JSON value of a place in the template
  case "$1" in
    NAME) json "$name" ;;
    NAMESPACE) json "$namespace" ;;
    MAX_RESTARTS) echo "$max_restarts" ;;
    SLICES) echo "$slices" ;;
    HOSTS) echo "$hosts" ;;
    SERVICE_ACCOUNT) json "$service_account" ;;
    NODE_SELECTOR)
      printf '{"cloud.google.com/gke-tpu-accelerator": "%s", "cloud.google.com/gke-tpu-topology": "%s"' "$selector" "$topology"
      if $spot; then printf ', "cloud.google.com/gke-spot": "true"'; fi
      echo '}'
      ;;
    IMAGE) json "$image" ;;
    COMMAND) list python -m jaxdiff.train --config "$config" --workdir "$workdir" ${rest[@]+"${rest[@]}"} ;;
    ENVIRONMENT) variables ${environment[@]+"${environment[@]}"} ;;
    LIMITS) echo "{\"google.com/tpu\": $chips_per_host}" ;;
  esac
}

manifest() { # each line has at most one place, so that no value is searched for places
  local line value
  while IFS= read -r line; do
    if [[ "$line" =~ ^([^#@]*)@([A-Z_]+)@(.*)$ ]]; then
      value="$(value_of "${BASH_REMATCH[2]}")"
      line="${BASH_REMATCH[1]}$value${BASH_REMATCH[3]}"
    fi
    printf '%s\n' "$line"
  done <"$root/launch/gke_jobset.yaml"
}

filled="$(manifest)"
if $dry_run; then
  printf "kubectl create --filename=- <<'YAML'\n%s\nYAML\n" "$filled"
else
  kubectl create --filename=- <<<"$filled" || die "the JobSet was not created. Fix: see the message of kubectl above" 1
fi
