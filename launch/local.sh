#!/usr/bin/env bash
# Train on the devices of this machine, with the shell's python:
#   launch/local.sh --config configs/digits.py --workdir runs/digits
set -euo pipefail
command -v python >/dev/null || {
  echo "error: python=: expected the command python, got none. Fix: source .venv/bin/activate" >&2
  exit 2
}
exec python -m jaxdiff.train "$@"
