#!/usr/bin/env bash
# Functions that the launchers share: flags, checks, quoting and dry runs. The launchers source this file.
# shellcheck disable=SC2154  # the launchers set `switches`, `required` and `optional`
set -euo pipefail

dry_run=false environment=(JAXDIFF_DISTRIBUTED=1)

die() { # MESSAGE [STATUS]
  echo "error: ${1//[[:cntrl:]]/?}" >&2
  exit "${2:-2}"
}

quoted() { # the arguments in shell syntax, with quotes only where needed
  local LC_ALL=C argument text="" quote="'\\''" # in other locales A-Z has letters with accents
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

is_one_of() { # VALUE CHOICES...
  local each value="$1"
  for each in "${@:2}"; do
    [[ "$each" != "$value" ]] || return 0
  done
  return 1
}

# Sets a variable for each flag that the arrays `switches`, `required` and `optional` name. --env adds to
# `environment`. The words after -- become `rest`.
parse() {
  local flag value variable
  while (($#)); do
    case "$1" in
      --help | -h) usage && exit 0 ;;
      --) shift && break ;;
    esac
    flag="${1%%=*}" && variable="${flag#--}" && variable="${variable//-/_}"
    if is_one_of "$1" "${switches[@]}"; then
      printf -v "$variable" true && shift && continue
    fi
    is_one_of "$flag" "${required[@]}" "${optional[@]}" --env ||
      die "$1: expected a flag of this script, got $1. Fix: see --help; flags of jaxdiff.train come after --"
    if [[ "$1" == *=* ]]; then
      value="${1#*=}" && shift
    else
      (($# > 1)) && [[ "$2" != --* ]] || die "$flag: expected a value, got none. Fix: $flag VALUE"
      value="$2" && shift 2
    fi
    case "$flag" in
      --env) check_assignment "$value" && environment+=("$value") ;;
      *) printf -v "$variable" '%s' "$value" ;;
    esac
  done
  for flag in "${required[@]}"; do
    variable="${flag#--}" && variable="${variable//-/_}"
    [[ -n "${!variable:-}" ]] || die "$flag=: expected a value, got none. Fix: see --help"
  done
  rest=("$@")
}

check_assignment() { # NAME=VALUE; without a name, env would run the text as a program
  [[ "$1" =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || die "--env=$1: expected NAME=VALUE, got $1. Fix: --env NAME=VALUE"
}

whole() { # FLAG VALUE: the number without leading zeros, which bash would read as octal
  [[ "$2" =~ ^[0-9]{1,9}$ ]] || die "$1=$2: expected an integer from 0 to 999999999, got $2. Fix: give one"
  echo "$((10#$2))"
}

check_name() { # the rule of Google Cloud and Kubernetes; other names fail there minutes later
  [[ "$1" =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
    die "--name=$1: expected at most 63 small letters, digits and hyphens, got $1. Fix: use a name like digits-1"
}

check_config() { # ROOT CONFIG: a file below configs/, which is what other machines have
  local file="$1/${2%%:*}" folder fix="move it to configs/, and give its path from $1"
  [[ "$2" == configs/* && -f "$file" && ! -L "$file" ]] && folder="$(cd "$(dirname "$file")" && pwd -P)" &&
    [[ "$folder/" == "$(cd "$1" && pwd -P)/configs/"* ]] ||
    die "--config=$2: expected a file in $1/configs, got none. Fix: $fix"
}

need() { # TOOL FIX
  $dry_run || command -v "$1" >/dev/null || die "$1=: expected the command $1, got none. Fix: $2"
}
