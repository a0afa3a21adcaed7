#!/usr/bin/env bash
# Train on the devices of this machine, with the python of the shell:
#   launch/local.sh --config configs/digits.py --workdir runs/digits
set -euo pipefail
exec python -m jaxdiff.train "$@"
