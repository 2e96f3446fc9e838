#!/usr/bin/env bash
# Measurements on one GPU, each one command that needs no network: this checkout, and Python with its dependencies.
#
#   benchmarks/gpu.sh table    what every algorithm of dgpo bench takes to reach a score, in at most nine minutes
#   benchmarks/gpu.sh real     tests/gpu, then SD3.5-M and FLUX.1-dev at real size with random weights, then the demo,
#                              in at most nine minutes
#
# table runs `dgpo bench` with several runs at once. Its sizes are a fraction of the full benchmark's so that it fits:
# a grid of three learning rates, short searches, no halves of the best rate, two seeds. When the time is up the runs
# are asked to stop, and the page is made of those that are finished. The same command goes on where it was stopped.
#
# Results, at most eight files, go to $OUT: the page, all runs and all searches without their training logs, an archive
# of the raw results, and what was printed. Run folders stay in $WORK.
#
# real measures time and memory by phase, both against `dgpo plan`, images a second, the loop's overhead, and what
# deterministic kernels cost (gpu_real.py). Results are a JSON file for each part, page.md, the demo's page and what was
# printed. It takes DEVICE, OUT, WORK, LIMIT, PYTHON, and PARTS, a list of tests, sd35m, flux_dev and demo.
#
# Everything can be set from outside:
#   DEVICE=cuda|cpu   cpu: a tiny size, which shows that the script works
#   OUT, WORK         folders; by default runs/gpu-WORD-DEVICE of this checkout, and in it the folder WORD
#   LIMIT             seconds until the runs are stopped
#   JOBS, ONLY, SEEDS, FORWARDS, SEARCH_FORWARDS, RATES   as the options of dgpo bench
#   SEARCH=stored     take the rates from benchmarks/results/time_to_score/search; contenders that are not there search
#   PYTHON            by default .venv/bin/python of this checkout, or python3
set -euo pipefail

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

fail() {
  echo "gpu.sh: $*" >&2
  exit 2
}

python_of_checkout() {
  if [[ -x "$repo/.venv/bin/python" ]]; then echo "$repo/.venv/bin/python"; else command -v python3; fi
}

table() {
  local device="${DEVICE:-cuda}"
  case "$device" in
    cuda)
      : "${JOBS:=8}" "${SEEDS:=0 1}" "${FORWARDS:=86400}" "${SEARCH_FORWARDS:=19200}" "${RATES:=1e-3 2e-3 4e-3}"
      : "${ONLY:=}"
      ;;
    cpu)
      : "${JOBS:=2}" "${SEEDS:=0}" "${FORWARDS:=1}" "${SEARCH_FORWARDS:=1}" "${RATES:=2e-3}"
      : "${ONLY:=dgpo flow_grpo_fast}"
      ;;
    *) fail "DEVICE=$device is neither cuda nor cpu" ;;
  esac
  : "${LIMIT:=480}" "${WORK:=$repo/runs/gpu-table-$device}"
  : "${OUT:=$WORK/table}"
  mkdir -p "$WORK" "$OUT"
  if [[ "${SEARCH:-own}" == stored ]]; then
    SEARCH_FORWARDS=57600 RATES="5e-4 1e-3 2e-3 4e-3 8e-3"
    mkdir -p "$WORK/results/time_to_score/search"
    cp -n "$repo"/benchmarks/results/time_to_score/search/*.json "$WORK/results/time_to_score/search/"
  fi

  # words of a list are split on purpose
  # shellcheck disable=SC2086
  set -- --device "$device" --jobs "$JOBS" --seeds $SEEDS --forwards "$FORWARDS" \
    --search-forwards "$SEARCH_FORWARDS" --rates $RATES --halve False ${ONLY:+--only $ONLY} --out "$WORK"
  echo "dgpo bench $*, at most $LIMIT s" | tee "$OUT/bench.log"
  local code=0
  timeout --signal=TERM --kill-after=30 "$LIMIT" "$python" -m dgpo bench "$@" 2>&1 | tee -a "$OUT/bench.log" || code=$?
  [[ $code != 124 && $code != 137 ]] || echo "The time is up; what is finished stays." | tee -a "$OUT/bench.log"
  "$python" "$repo/benchmarks/condense.py" "$WORK" "$OUT" | tee -a "$OUT/bench.log"
  case "$code" in 0 | 124 | 130 | 137) ;; *) return "$code" ;; esac
}

real() {
  local device="${DEVICE:-cuda}"
  case "$device" in cuda | cpu) ;; *) fail "DEVICE=$device is neither cuda nor cpu" ;; esac
  : "${WORK:=$repo/runs/gpu-real-$device}"
  : "${OUT:=$WORK/real}"
  mkdir -p "$WORK" "$OUT"
  # words of a list are split on purpose
  # shellcheck disable=SC2086
  "$python" "$repo/benchmarks/gpu_real.py" --device "$device" --out "$OUT" --work "$WORK" --limit "${LIMIT:-530}" \
    ${PARTS:+--parts $PARTS} 2>&1 | tee "$OUT/real.log"
}

python="${PYTHON:-$(python_of_checkout)}"
export PYTHONPATH="$repo/src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
case "${1:-}" in
  table) table ;;
  real) real ;;
  *) fail "there is no measurement '${1:-}'. Known: table, real" ;;
esac
