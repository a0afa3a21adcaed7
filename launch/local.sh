#!/usr/bin/env bash
# Train on the devices of this machine, with the shell's python:
#   launch/local.sh --config configs/digits.py --workdir runs/digits
set -euo pipefail
exec python -m jaxdiff.train "$@"
