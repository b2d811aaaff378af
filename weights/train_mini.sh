#!/usr/bin/env bash
# Make mini.safetensors from the folder of clips that its card names. About an hour on two cores; an interrupted run goes
# on where it stopped.
set -euo pipefail
clips=${1:?usage: weights/train_mini.sh FOLDER_OF_CLIPS [BUILD_FOLDER]}
build=${2:-build/mini}
expportrait data prepare "$clips" -o "$build/set"
expportrait train mini "$build/set" -o "$build/mini.safetensors" --photos 12 --steps 3000
