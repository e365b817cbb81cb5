#!/usr/bin/env bash
# Run once on a machine with a GPU: trains in every precision and mode, and writes docs/gpu.md.
#   benchmarks/gpu_checks.sh                    all GPUs of this machine
#   REHEARSE=1 benchmarks/gpu_checks.sh FILE    on the CPU, to try this script; writes FILE instead
set -u
cd "$(dirname "$0")/.." || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
device=cuda gpus=$(python -c 'import torch; print(torch.cuda.device_count())') out=docs/gpu.md failed=0
[ -z "${REHEARSE:-}" ] || { device=cpu gpus=2 out=${1:?the file to write}; }
[ "$gpus" -gt 0 ] || { echo "no GPU; REHEARSE=1 $0 FILE tries this script on the CPU" >&2; exit 2; }
common="--run.device=$device --tracking.mode=disabled --run.quiet=true --train.epochs=1"
[ "$device" = cuda ] || common="$common --config debug"
rows=""

field() { python -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$1/summary.json" "$2" 2>/dev/null || echo -; }

check() {  # check NAME PROCESSES OPTIONS...: train, and add a row to the table
    local name=$1 processes=$2 code=0 launch="python" dir="$work/${1// /-}"
    shift 2
    [ "$processes" = 1 ] || launch="torchrun --standalone --nproc_per_node=$processes"
    # shellcheck disable=SC2086
    $launch -m mnist_dist.train $common --run.dir="$dir" "$@" >"$work/log" 2>&1 || code=$?
    [ "$code" = 0 ] || { failed=1; echo "$name: exit code $code"; tail -n 5 "$work/log"; }
    rows+="| $name | $processes | \`$*\` | $code | $(field "$dir" test.accuracy) | $(field "$dir" train.images_per_second) |"$'\n'
    echo "$name: exit code $code"
}

check fp32 1 --train.precision=no
check bf16 1 --train.precision=bf16
[ "$device" = cpu ] || check fp16 1 --train.precision=fp16
check "fp32 again" 1 --train.precision=no --run.deterministic=true
check compile 1 --train.precision=bf16 --train.compile=default
check "CUDA graphs" 1 --train.precision=bf16 --train.compile=reduce-overhead
check profile 1 --train.profile=5
check "stopped" 1 --train.max_steps=3 --train.checkpoint_steps=1
if [ "$gpus" -gt 1 ]; then
    check "all GPUs" "$gpus" --train.shards=0
    ACCELERATE_USE_FSDP=true FSDP_VERSION=2 check FSDP2 "$gpus"
fi

# Kill: SIGKILL at the first checkpoint. Then the same command resumes; its weights must be those of a run left alone.
killed="$work/killed" options="--train.checkpoint_steps=2 --run.deterministic=true"
# shellcheck disable=SC2086
python -m mnist_dist.train $common $options --run.dir="$killed" >"$work/log" 2>&1 &
until compgen -G "$killed/checkpoints/step-*" >/dev/null || ! kill -0 $! 2>/dev/null; do sleep 0.1; done
kill -KILL $! 2>/dev/null
wait $! 2>/dev/null
# shellcheck disable=SC2086
check "undisturbed" 1 $options
# shellcheck disable=SC2086
check killed 1 $options
same=no
[ "$(field "$killed" resumed_from)" != None ] && [ "$(field "$killed" weights_sha256)" = "$(field "$work/undisturbed" weights_sha256)" ] && same=yes || failed=1

{
    echo "# What was run on a GPU"
    echo
    echo "Written by \`benchmarks/gpu_checks.sh\`."
    echo
    python -c 'import torch, accelerate; d = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu (rehearsal)"
print(f"- device: {d}\n- torch {torch.__version__}, CUDA {torch.version.cuda}, accelerate {accelerate.__version__}")'
    echo "- a killed run that was resumed has the weights of an undisturbed one: $same"
    echo
    echo "| run | processes | options | exit code | test accuracy | images per second |"
    echo "|---|---|---|---|---|---|"
    printf '%s' "$rows"
} >"$out"
echo "wrote $out"
exit "$failed"
