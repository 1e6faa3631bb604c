#!/usr/bin/env bash
# From text to what a run reads: tokenizer, token store, word counts, alignment table. Start again to continue.
#
#   bash examples/pretraining/prepare.sh TEXT DICTIONARIES OUT
#
# TEXT: a folder in the CulturaX layout, LANGUAGE/LANGUAGE_part_*.parquet. DICTIONARIES: a folder of MUSE's files,
# en-LANGUAGE.txt. OUT gets tokenizer.json, store, counts and table.parquet. Variables, with their defaults:
set -euo pipefail
text=$1 dictionaries=$2 out=$3
: "${LANGUAGES:=en=10e9,de=500e6}"   # with tokens or all; the first is the one that the dictionaries start from
: "${VOCAB_SIZE:=32000}"
: "${SAMPLE_MEGABYTES:=500}"         # of each language, for the tokenizer
: "${VALID_FRACTION:=0.001}"         # of the documents, held out
: "${MIN_COUNT:=100}"                # rarer words are not aligned
: "${WORKERS:=$(nproc)}"
: "${PYTHON:=python}"
tools=$(cd "$(dirname "$0")/../../tools" && pwd)

names=$(sed -E 's/=[^,]*//g' <<<"$LANGUAGES")
source=${names%%,*}
mkdir -p "$out"
if [[ ! -e $out/tokenizer.json ]]; then
    "$PYTHON" "$tools/train_tokenizer.py" --input "$text" --languages "$names" --vocab-size "$VOCAB_SIZE" \
        --megabytes "$SAMPLE_MEGABYTES" --output "$out/tokenizer.json"
fi
"$PYTHON" "$tools/preprocess_culturax.py" --input "$text" --languages "$LANGUAGES" --tokenizer "$out/tokenizer.json" \
    --valid-fraction "$VALID_FRACTION" --deduplicate --on-bad-row skip --workers "$WORKERS" --output "$out/store"
"$PYTHON" "$tools/check_store.py" "$out/store"
if [[ ! -e $out/table.parquet ]]; then
    "$PYTHON" "$tools/count_words.py" --input "$text" --languages "$names" --workers "$WORKERS" --output "$out/counts"
    table=(--counts "$out/counts/$source.tsv" --source "$source" --min-count "$MIN_COUNT")
    counts=()
    for language in ${names//,/ }; do
        counts+=(--counts "$language=$out/counts/$language.tsv")
        table+=(--case "$language=$out/counts/$language.tsv")
        if [[ $language != "$source" ]]; then
            table+=(--muse "$language=$dictionaries/$source-$language.txt")
        fi
    done
    "$PYTHON" "$tools/build_table.py" "${table[@]}" --out "$out/table.parquet"
    "$PYTHON" "$tools/inspect_table.py" "$out/table.parquet" "${counts[@]}"
fi
