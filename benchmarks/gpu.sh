#!/usr/bin/env bash
# Everything that only a GPU can show, in one run of under ten minutes and without a network:
#
#   benchmarks/gpu.sh [OUT]      (default runs/gpu; needs torch >= 2.11 with CUDA, Triton, pytest, nvcc)
#
# Builds the CUDA kernels in place, runs the tests of the ops on the GPU, compute-sanitizer's memcheck and racecheck on
# small shapes, the benchmarks, and a profile. Each step leaves a log in OUT; if one fails or runs out of time, the next
# one still runs, and the last lines say how each ended. FGASEG_DRY_RUN=1 runs the steps that need no GPU and prints the
# others.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-runs/gpu}")
mkdir -p "$out"
python=${PYTHON:-python3}
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 MAX_JOBS=${MAX_JOBS:-$(nproc)}
# fgaseg without an installation. Not by the repository's folder on the path: kernels/ would shadow Hugging Face's package.
# The build links fgaseg/kernels.
site=$(mktemp -d)
ln -s "$PWD/fgaseg" "$site/fgaseg"
export PYTHONPATH="$site:$PWD/tests:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
summary=()

step() { # name, seconds, command...
    local name=$1 seconds=$2 began=$SECONDS
    shift 2
    echo "== $name: $*"
    timeout -s INT -k 10 "$seconds" "$@" >"$out/$name.log" 2>&1
    summary+=("$(printf '%-12s status %-4s %4s s   %s' "$name" "$?" "$((SECONDS - began))" "$(tail -n 1 "$out/$name.log")")")
}

gpu_step() {
    if [ "${FGASEG_DRY_RUN:-0}" = 1 ]; then
        summary+=("$(printf '%-12s not run: %s' "$1" "${*:3}")")
    else
        step "$@"
    fi
}

ops=() # those that need only torch
for folder in kernels/*/; do
    [ -f "benchmarks/$(basename "$folder").py" ] && ops+=("benchmarks/$(basename "$folder").py")
done
gpu_step machine 20 nvidia-smi
step build 60 "$python" setup.py build_ext --inplace
step tests 120 "$python" -m pytest -q --maxfail=20 -p no:cacheprovider -k "${FGASEG_GPU_TESTS:-triton or cuda}" tests/kernels \
    --ignore tests/kernels/test_aot.py --ignore tests/kernels/test_benchmarks.py
gpu_step memcheck 45 compute-sanitizer --tool memcheck --error-exitcode 1 "$python" benchmarks/small_calls.py
gpu_step racecheck 45 compute-sanitizer --tool racecheck --error-exitcode 1 "$python" benchmarks/small_calls.py cuda
gpu_step bench 240 "$python" -m pytest -q -p no:cacheprovider "${ops[@]}" --csv "$out/gpu.csv" \
    --shapes S1,S2,S3,S4,S5,S6,S7,S8 --benchmark-max-time=0.05 --benchmark-min-rounds=3 --benchmark-disable-gc
gpu_step profile 45 ncu --set full --kernel-name "regex:convolve|kernel_grad|product|softmax|mark|_lcs|_cosine|_kernel|_upsample|_window|_class" --launch-count 12 \
    --export "$out/profile" --force-overwrite "$python" benchmarks/small_calls.py S3
rm -rf "$site"
printf '%s\n' "${summary[@]}" | tee "$out/summary.txt"
