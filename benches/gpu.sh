#!/bin/bash
# The GPU's half of the engine on the first NVIDIA card: every kernel and ten training steps against the processor, then speed beside PEFT.
#   benches/gpu.sh build FOLDER     the programs, where cargo is; no card and no CUDA toolkit needed
#   benches/gpu.sh run FOLDER [gpu.py's options]    where the card is: its driver, a C++ compiler, and Python with requirements-gpu.txt
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { sed -n 2,4p benches/gpu.sh; exit 2; }
what=$1 folder=$2
shift 2
python=${PYTHON:-python3}

# cargo names test programs with a hash: its messages say which one it is
program() {
    cargo "$@" --features cuda --message-format json \
        | "$python" -c 'import json, sys
made = [line["executable"] for line in map(json.loads, sys.stdin) if line.get("executable")]
print(made[-1])'
}

case $what in
build)
    mkdir -p "$folder"
    cp "$(program test --no-run --package tunesmith-model --lib)" "$folder/model-tests"
    cp "$(program test --no-run --package tunesmith-training --test gpu)" "$folder/training-tests"
    # the profile of the tests, in which all that computes is optimised: what the host does in a step is small
    cp "$(program build --package tunesmith-training --example gpu-steps)" "$folder/gpu-steps"
    strip --strip-debug "$folder"/{model-tests,training-tests,gpu-steps}
    ;;
run)
    # PyTorch's wheels bring cuBLAS and the runtime compiler. A library is asked for without its version first, which only a system's
    # own has, and that may be of another CUDA: so links of that name to the wheels' files come before all else.
    libraries=$("$python" -c 'import glob, site
print(":".join(f for p in site.getsitepackages() for f in glob.glob(p + "/nvidia/*/lib")))' || true)
    links=$(realpath "$folder")/cuda
    rm -rf "$links"
    mkdir "$links"
    IFS=: read -ra places <<< "$libraries"
    for place in "${places[@]}"; do
        for file in "$place"/lib{nvrtc,nvrtc-builtins,cublas,cublasLt}.so.*; do
            [ -e "$file" ] || continue
            ln -sf "$file" "$links/"
            name=${file##*/}
            ln -sf "$file" "$links/${name%%.so.*}.so"
        done
    done
    export LD_LIBRARY_PATH="$links:$libraries:${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/usr/local/cuda/lib64"
    # the ignored tests are those that want a card; one of them fails where the others would be skipped
    export TUNESMITH_GOLDENS=$PWD/tests/parity/goldens
    "$folder/model-tests" --test-threads 1 --include-ignored cuda::
    "$folder/training-tests" --test-threads 1 --include-ignored --nocapture
    "$python" benches/gpu.py --binary "$folder/gpu-steps" "$@"
    ;;
*)
    sed -n 2,4p benches/gpu.sh
    exit 2
    ;;
esac
