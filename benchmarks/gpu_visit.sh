#!/usr/bin/env bash
# All that is to be measured on a GPU, most valuable first: benchmarks/gpu_visit.sh KERNELS OUT
#
# KERNELS is what `python benchmarks/suite.py --out KERNELS` wrote, beforehand and elsewhere; OUT
# gets the results. From a plain checkout: torch, triton, numpy, sympy, typer, rich and pytest are
# needed. Each step has a share of LIMIT seconds (1200), or what is left. What is written is whole
# or not there: it may be cut at any moment, and run again with the same OUT takes up what is left.
# OUT/manifest.jsonl has a line for each step that ran.
#
# --rehearse as the third argument: every step on the CPU at toy sizes; nothing is measured.
set -u
[ $# -ge 2 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p "$2"
KERNELS=$(realpath "$1") OUT=$(realpath "$2")
cd "$(dirname "$0")/.."
FLAG=${3:-} PYTHON=${PYTHON:-python3} LIMIT=${LIMIT:-1200}
MANIFEST=$OUT/manifest.jsonl LOG=$OUT/visit.log END=$((SECONDS + LIMIT))
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 SUPEROPT_KERNELS=$KERNELS
export TRITON_INTERPRET=0 KIND=measured
if [ "$FLAG" = --rehearse ]; then
    export TRITON_INTERPRET=1 KIND=rehearsed SUPEROPT_REHEARSE=1
fi
TARGET=h200
bad=0

record() { # step exit seconds
    printf '{"step": "%s", "exit": %d, "seconds": %d, "kind": "%s", "commit": "%s", "at": "%s"}\n' \
        "$1" "$2" "$3" "$KIND" "$(git rev-parse --short HEAD 2>/dev/null)" \
        "$(date -u +%FT%TZ)" >>"$MANIFEST"
}

box() { echo $((LIMIT * $1 / 100)); } # seconds, of a share in percent

step() { # name, share, command: its output into the log, its outcome into the manifest
    local name=$1 box=$(box "$2") start=$SECONDS code
    shift 2
    if grep -qs "\"step\": \"$name\", \"exit\": 0,.*\"kind\": \"$KIND\"" "$MANIFEST"; then
        echo "$name: done before"
        return
    fi
    [ $((END - SECONDS)) -lt "$box" ] && box=$((END - SECONDS))
    if [ "$box" -lt 5 ]; then
        echo "$name: left out, no time is left"
        bad=1
        return
    fi
    echo "== $name, at most $box s" >>"$LOG"
    timeout -k 5 "$box" "$@" >>"$LOG" 2>&1
    code=$?
    record "$name" "$code" $((SECONDS - start))
    echo "$name: exit $code after $((SECONDS - start)) s$([ $code = 124 ] && echo ', cut')"
    [ $code = 0 ] || bad=1
}

# the seconds of a share within which a command may begin something, so that it ends by itself
within() { echo $(($(box "$1") * 5 / 6)); }

superopt() { echo "$PYTHON" -m superopt.cli "$@"; }

# those with a goal against torch.compile's long search come first
FOLDERS=$(ls -d "$KERNELS"/suite/{qk_norm_gqa,rmsnorm_linear,gated_mlp,lora,*}/ 2>/dev/null |
    awk '!seen[$0]++')
SIDE_BY_SIDE=
[ -z "$FLAG" ] && "$PYTHON" -c 'import xdist' 2>/dev/null && SIDE_BY_SIDE="-n 12"

step tests 16 "$PYTHON" -m pytest -q $SIDE_BY_SIDE -p no:cacheprovider -m gpu \
    tests/test_gpu.py --junitxml="$OUT/tests.xml"
step profile 12 $(superopt profile --out "$OUT/profile.json" --base $TARGET $FLAG)
for again in "" " again"; do # a second try, where a kernel has taken the GPU away
    grep -qs '"step": "bench", "exit": 0' "$MANIFEST" && [ -n "$again" ] && continue
    step "bench$again" 38 $(superopt bench $FOLDERS --out "$OUT" \
        --peers benchmarks/suite.py --seconds $(within 38) --each 0.3 $FLAG)
done
step regret 25 "$PYTHON" benchmarks/regret.py "$KERNELS"/suite/*/ --out "$OUT/regret.json" \
    --profile $TARGET --seconds $(within 25) $FLAG
if command -v compute-sanitizer >/dev/null; then
    step sanitizer 10 compute-sanitizer --tool memcheck --error-exitcode 9 "$PYTHON" -m pytest \
        -q -p no:cacheprovider -m gpu tests/test_gpu.py -k "(softmax or attention_64) and 17"
else
    echo "sanitizer: left out, compute-sanitizer is not installed" | tee -a "$LOG"
fi
tail -n 60 "$LOG"
exit $bad
