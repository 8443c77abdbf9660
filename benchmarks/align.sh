#!/usr/bin/env bash
# Aligns the starter with translations, then trains it on AfriQA's pairs, and measures each step (docs/measurements.md).
#
#   benchmarks/align.sh DATA WORK
#
# DATA holds afriqa/, tatoeba/, xquad-r/, ntrex/ (https://github.com/MicrosoftTranslator/NTREX), lafand-mt/
# (https://github.com/masakhane-io/lafand-mt, CC BY-NC 4.0) and afriqa-repository/ (https://github.com/masakhane-io/afriqa,
# whose data/queries has every train question with its translation). A day of two cores would do more; this is an hour.
# Nothing is trained on AfriQA's dev questions, of which those that stand in train as well are left out. STEPS="align"
# leaves out the training on pairs; BASE=CHECKPOINT aligns another encoder, and TRAIN="--max-steps 2" tries everything.
set -euo pipefail
if [ $# -ne 2 ] || [ ! -d "$1/afriqa-repository" ] || [ ! -d "$1/lafand-mt" ] || [ ! -d "$1/ntrex" ]; then
  sed -n '2,10p' "$0" >&2
  exit 2
fi
data=$(realpath "$1")
mkdir -p "$2/models" "$2/trained"
cd "$2"

if [ ! -f tatoeba.tsv ]; then
  python - "$data" >afriqa.tsv <<'PYTHON'
import glob, json, sys
def text(value):
    return " ".join(value.split()) if isinstance(value, str) else ""
asked = {text(json.loads(line).get("question_lang")) for name in glob.glob(f"{sys.argv[1]}/afriqa/*.dev.json") for line in open(name)}
for lang in "bem hau ibo kin twi yor zul".split():
    for line in open(f"{sys.argv[1]}/afriqa-repository/data/queries/{lang}/queries.afriqa.{lang}.en.train.json"):
        record = json.loads(line)
        question, translation = text(record["question"]), text(record.get("translated_question"))
        if question and translation and question not in asked:
            print(question, translation, lang, sep="\t")
PYTHON
  for pair in hau/train ibo/train twi/train zul/train kin/dev; do
    tail -n +2 "$data/lafand-mt/data/tsv_files/en-$pair.tsv" | awk -F'\t' -v OFS='\t' -v l="${pair%/*}" 'NF==2{print $2,$1,l}'
  done >news.all
  for lang in bem kin; do
    paste <(tr -d '\r' <"$data/ntrex/NTREX-128/newstest2019-ref.$lang.txt") \
      <(tr -d '\r' <"$data/ntrex/NTREX-128/newstest2019-src.eng.txt") | sed "s/\$/\t$lang/"
  done >>news.all
  awk -F'\t' '{n=split($2,a," ")} n>=4&&n<=14&&c[$3]++<900' news.all >news.tsv # short, at most 900 of a language
  for pair in ar/ara de/deu el/ell es/spa hi/hin ru/rus th/tha tr/tur vi/vie zh/cmn; do
    code=${pair#*/}
    paste "$data/tatoeba/tatoeba.$code-eng."{"$code",eng} | head -250 | sed "s/\$/\t${pair%/*}/"
  done >tatoeba.tsv
fi

[ -f trained/aligned/training.json ] || xqg-vdb train encoder "${BASE:-starter:encoder}" trained/aligned --align --pairs afriqa.tsv \
  --pairs afriqa.tsv --pairs news.tsv --pairs tatoeba.tsv --epochs 1 --batch-size 64 --query-tokens 32 --align-passages 0.2 \
  --learning-rate 1e-4 --threads 1 --bf16 ${TRAIN:-}
models=(aligned)
if [ "${STEPS:-all}" != align ]; then
  [ -f trained/relevant/training.json ] || xqg-vdb train encoder trained/aligned trained/relevant --pairs afriqa --dev afriqa \
    --data-dir "$data" --drop-leaks --dev-limit 8 --max-steps 48 --batch-size 64 --query-tokens 32 --passage-tokens 80 \
    --learning-rate 8e-5 --threads 1 --bf16 ${TRAIN:-}
  models+=(relevant)
fi
for model in "${models[@]}"; do
  [ -f "models/$model/model.onnx" ] || xqg-vdb export "trained/$model" "models/$model" --precision fp32
  for dataset in afriqa xquad-r; do
    xqg-vdb bench "$dataset" --data-dir "$data" --encoder "models/$model" --search memory --out "report-$model-$dataset"
  done
done
