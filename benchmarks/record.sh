#!/usr/bin/env bash
# Ten seeds of configs/record.yaml on a GPU, one net each, then their ensemble. It writes lines in benchmarks/results and
# docs/results.md, and goes on after a stop.
#   benchmarks/record.sh [--section.key=VALUE]...    settings are those of training, such as --run.device=cuda
#   REHEARSE=1 benchmarks/record.sh                  on the CPU, small, to try this script; records nothing
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
seeds=10 record=--record out=runs/record
if [ -n "${REHEARSE:-}" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    seeds=2 record='' out=$work/record
    set -- --run.device=cpu --data.limit=512 --train.epochs=1 --train.compile=no --model.args.width=4 "$@"
elif ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "no GPU; REHEARSE=1 $0 tries this script on the CPU" >&2
    exit 2
fi
# shellcheck disable=SC2086
"$python" -m mnist_dist repeat --config record --seeds "$seeds" --target 0.998 --out "$out" $record "$@"
# shellcheck disable=SC2086
"$python" -m mnist_dist ensemble $record "$out"/seed-*/
[ -z "$record" ] || "$python" benchmarks/results_page.py
