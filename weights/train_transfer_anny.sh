#!/usr/bin/env bash
# Make transfer_anny.safetensors from the folder of clips that its card names: the same clips and versions, on the same
# kind of machine, give the same bytes. About an hour on two cores; an interrupted run goes on where it stopped.
set -euo pipefail
clips=${1:?usage: weights/train_transfer_anny.sh FOLDER_OF_CLIPS [BUILD_FOLDER]}
build=${2:-build/transfer_anny}
expportrait data prepare "$clips" -o "$build/set"
expportrait train transfer "$build/set" -o "$build/transfer_anny.safetensors"
