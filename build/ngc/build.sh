#!/usr/bin/env bash
# Compile an engine in the TensorRT-LLM container. The arguments are those of `deepinfer build`:
#
#   build/ngc/build.sh --model meta-llama/Llama-3.1-8B-Instruct --target rtx5090
#   build/ngc/build.sh --recipe build/recipes/llama-3.1-8b-instruct.fp8.sm120.yaml
#   READ_DIR=$HOME/models build/ngc/build.sh --model "$HOME/models/my-llama"
#
#   ENGINES_DIR   where the engine goes                                    [./engines]
#   CACHE_DIR     checkpoints of the hub and TensorRT's timings            [~/.cache]
#   READ_DIR      a folder of yours that the arguments name, read only     [none]
#   HF_TOKEN      for gated models; handed on by name, never printed       [none]
#   VERBOSE       1 shows what the libraries say, and tracebacks           [none]
#
# host.sh has IMAGE, GPUS and RUN_AS.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=host.sh
source "$(dirname "${BASH_SOURCE[0]}")/host.sh"

ENGINES_DIR="${ENGINES_DIR:-${PWD}/engines}"
CACHE_DIR="${CACHE_DIR:-${XDG_CACHE_HOME:-${HOME}/.cache}}"

check_user
check_driver
ensure_image
# Docker would make missing folders itself, as root.
mkdir -p "${ENGINES_DIR}" "${CACHE_DIR}/huggingface" "${CACHE_DIR}/deepinfer"

mapfile -t flags < <(container_flags)
flags+=(
    --volume "$(realpath "${ENGINES_DIR}"):/srv/engines"
    --volume "$(realpath "${CACHE_DIR}")/huggingface:/srv/cache/huggingface"
    --volume "$(realpath "${CACHE_DIR}")/deepinfer:/srv/cache/deepinfer"
    --volume "${REPOSITORY}/build/recipes:/srv/build/recipes:ro"
)
if [[ -n "${READ_DIR:-}" ]]; then
    READ_DIR="$(realpath "${READ_DIR}")"
    flags+=(--volume "${READ_DIR}:${READ_DIR}:ro")
fi
if [[ -n "${HF_TOKEN:-}" ]]; then
    flags+=(--env HF_TOKEN)
fi
exec docker "${flags[@]}" "${IMAGE}" ${VERBOSE:+--verbose} build --output /srv/engines "$@"
