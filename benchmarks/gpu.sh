#!/usr/bin/env bash
# Everything that only a GPU can show, in one run of at most nine minutes and without a network:
#
#   benchmarks/gpu.sh [OUT]      (default runs/gpu; fgaseg's dependencies with CUDA, pytest-benchmark and nvcc)
#   benchmarks/gpu.sh --plan     prints phase, step, limit in seconds and command, and runs nothing
#
# The first three minutes build, compile, check every op and the model against their references and time one shape of
# each op; then come compute-sanitizer and the tests of the ops, the full table, the baselines that have to be compiled,
# the model, and profiles. The steps of one phase run at the same time. A step that fails or runs out of time does not
# stop the next. OUT has at most eight files, written as results come: summary.txt (a line per step), log.txt (what the
# steps printed), tables, and a profile.
#
# Triton's cache is build/triton (FGASEG_TRITON_CACHE): what compile_ahead.py put there on another machine with the same
# Triton and Python is used. FGASEG_DRY_RUN=1 runs every step on a CPU, interpreted or emulated, on small shapes and one
# after another; it prints what a sanitizer or profiler would be started with, and runs the program without it. The
# limits are for 16 cores: in a dry run on fewer than 8 all steps get four times as long.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
dry=${FGASEG_DRY_RUN:-0}
cores=$(nproc --all) # plain nproc would tell OMP_NUM_THREADS, which is set below
arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
arch=${arch:-90}
first="S3,T=150,T=150 shift=6,T=150 48x48x64"
table="$first,S8,small,S7,S2,S1,S5,S6,T=150 shift=0,T=20,T=20 shift=6,T=847,T=150 96x96x32,T=20 48x48x64,T=20 96x96x32"
model=(--passes inference --batch 1 --classes 150 --seconds 2)
calls=benchmarks/small_calls.py types=float32,bfloat16 large="--shape S3"
tests=tests/kernels workers=(-n 8)
if [ "$dry" = 1 ]; then
    first="S8" table="S8" calls="$calls --op topk_classes" types=float32 large=
    model=(--passes inference --batch 1 --classes 5 --seconds 0) tests=tests/kernels/test_kernel_softmax.py workers=()
    export TRITON_INTERPRET=1
fi
"$python" -c "import xdist" 2>/dev/null || workers=()
[ -e fgaseg/kernels ] || ln -s ../kernels fgaseg/kernels
[ -e fgaseg/configs ] || ln -s ../configs fgaseg/configs

ops=() # those with a backend for GPUs
for file in kernels/*/triton.py; do
    ops+=("benchmarks/$(basename "$(dirname "$file")").py")
done
bench=("$python" -m pytest -q --tb=short -p no:cacheprovider --benchmark-max-time=0.02 --benchmark-min-rounds=3
    --benchmark-disable-gc --benchmark-columns=median "${ops[@]}")
[ "$dry" = 1 ] && bench+=(--benchmark-max-time=0.001 --benchmark-min-rounds=1 --benchmark-warmup=off)

# In a copy, so that the libraries of this folder that the GPU does not need stay as they are.
build='rm -rf "$work/copy" && mkdir "$work/copy" && cp -r setup.py pyproject.toml README.md csrc "$work/copy" &&
    cp -rL fgaseg kernels configs "$work/copy" && cd "$work/copy" && rm -rf fgaseg/kernels fgaseg/configs kernels/*.so &&
    FGASEG_CPU=0 FGASEG_CUDA=1 FGASEG_CUDA_ARCHS=$arch "$python" setup.py build_ext --inplace && ls -l kernels/*.so &&
    if [ "$dry" != 1 ]; then cp kernels/_C_cuda*.so "$OLDPWD/kernels/"; fi'
versions='import importlib.util, sys, torch, triton
needed = ["pytest_benchmark", "rich", "einops", "timm", "open_clip", "pydantic", "safetensors", "huggingface_hub"]
missing = " ".join(name for name in needed if importlib.util.find_spec(name) is None)
print("Python", sys.version.split()[0], "torch", torch.__version__, "Triton", triton.__version__,
    torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU", "MISSING: " + missing if missing else "")
sys.exit(bool(missing))'
ours="regex:^_(lcs|cosine|kernel_softmax|topk|upsample|window|class|mlp)|^(attend|upsample|convolve|kernel_grad|product|project|inverse_lengths"
ours+="|softmax_(taps|columns)|mark_(best|ranked)|compact|gather|scatter)"

# step PHASE NAME SECONDS [-t TOOL...] -- COMMAND...
plan() {
    step 1 machine 10 -- bash -c 'nvidia-smi; nvcc --version | tail -n 1; "$python" -c "$versions"'
    step 2 build 60 -- bash -c "$build"
    step 2 compile_ahead 60 -- "$python" benchmarks/compile_ahead.py --arch "$arch" --shapes "$first"
    for backend in triton cuda; do
        step 3 "check $backend" 40 -- "$python" benchmarks/small_calls.py --check --backend $backend --dtype $types
    done
    step 4 "model check" 35 -- "$python" benchmarks/model.py --check --csv "$out/model_check.csv"
    step 5 table 35 -- "${bench[@]}" -k "not compile and not Flex and not backward" --shapes "$first" --csv "$out/first.csv"
    for tool in memcheck racecheck synccheck initcheck; do
        for backend in triton cuda; do
            step 6 "$tool $backend" 90 -t compute-sanitizer --tool $tool --error-exitcode 1 -- \
                env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$python" $calls --backend $backend --dtype ${types#float32,}
        done
    done
    step 6 tests 90 -- "$python" -m pytest -q --tb=short -p no:cacheprovider "${workers[@]}" "$tests" \
        -k "(triton or cuda) and not test_aot and not test_benchmarks" --maxfail=20
    step 7 "full table" 110 -- "${bench[@]}" -k "not compile and not Flex" --shapes "$table" --csv "$out/full.csv"
    step 8 "compiled baselines" 50 -- "${bench[@]}" -k "(compile or Flex) and not backward" --shapes "$first" --csv "$out/compiled.csv"
    step 9 "model table" 55 -- "$python" benchmarks/model.py --csv "$out/model.csv" "${model[@]}" \
        --forms "plain,accelerated,bfloat16,compiled plain"
    step 10 kernels 35 -t ncu --clock-control none --section SpeedOfLight --section MemoryWorkloadAnalysis \
        --section WarpStateStats --section Occupancy --section LaunchStats --kernel-name "$ours" --launch-count 60 -- \
        "$python" $calls $large --dtype ${types#float32,}
    step 11 timeline 20 -t nsys profile --trace cuda --force-overwrite true --output "$out/model" -- \
        "$python" benchmarks/model.py --check --csv "$work/check.csv"
}

show() { # the same arguments as `run`
    local phase=$1 name=$2 seconds=$3
    shift 3
    printf '%s|%s|%s|%s\n' "$phase" "$name" "$seconds" "$(printf '%q ' "$@")"
}

run() {
    local name=$2 seconds=$3 tool=() began=$SECONDS log="$work/$1 $2"
    shift 3
    if [ "$dry" = 1 ] && [ "$cores" -lt 8 ]; then seconds=$((4 * seconds)); fi
    if [ "$1" = -t ]; then
        while [ "$2" != -- ]; do tool+=("$2") && shift; done
        shift
    fi
    shift
    if [ "${#tool[@]}" -gt 0 ] && [ "$dry" = 1 ]; then
        echo "without its tool: ${tool[*]} $*" >"$log"
    elif [ "${#tool[@]}" -gt 0 ] && ! command -v "${tool[0]}" >/dev/null; then
        echo "$name: not run, there is no ${tool[0]}" >>"$out/summary.txt"
        return
    elif [ "${#tool[@]}" -gt 0 ]; then
        set -- "${tool[@]}" "$@"
    fi
    timeout -s INT -k 5 "$seconds" env --default-signal=INT "$@" >>"$log" 2>&1
    local status=$?
    { flock 9; echo "== $name: $*"; cat "$log"; } 9>>"$work/lock" >>"$out/log.txt"
    printf '%-20s status %-4s %4s of %3s s   %s\n' "$name" "$status" "$((SECONDS - began))" "$seconds" \
        "$(grep -v '^$' "$log" | tail -n 1 | cut -c 1-160)" >>"$out/summary.txt"
}

phase=0
step() {
    [ "$1" = "$phase" ] || wait
    phase=$1
    if [ "$dry" = 1 ]; then run "$@"; else run "$@" & fi
}

if [ "${1:-}" = --plan ]; then
    out=OUT work=WORK
    step() { show "$@"; }
    plan
    exit
fi
out=$(realpath -m "${1:-runs/gpu}")
mkdir -p "$out"
rm -f "$out/summary.txt" "$out/log.txt"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# fgaseg without an installation. Not by the repository's folder on the path: kernels/ would shadow Hugging Face's package.
mkdir "$work/site"
ln -s "$PWD/fgaseg" "$work/site/fgaseg"
export PYTHONPATH="$work/site:$PWD/tests:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}" PATH="$PATH:/usr/local/cuda/bin"
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores < 8 ? cores : 8))}
export TRITON_CACHE_DIR=${FGASEG_TRITON_CACHE:-$PWD/build/triton} python dry work versions arch
if [ "$dry" = 1 ]; then # a GPU needs no emulator
    "$python" -c "import accuracy" >"$out/log.txt" 2>&1 || cat "$out/log.txt"
fi
plan
wait
cat "$out/summary.txt"
