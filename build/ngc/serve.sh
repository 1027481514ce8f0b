#!/usr/bin/env bash
# Serve an engine from the TensorRT-LLM container. The arguments are those of `deepinfer serve`:
#
#   build/ngc/serve.sh
#   PUBLISH=0.0.0.0:8000 KEY_FILE=/etc/deepinfer/keys build/ngc/serve.sh --model llama-3.1-8b
#
#   ENGINES_DIR   one engine, or a folder of engines, read only            [./engines]
#   PUBLISH       address and port of the host to listen on                [127.0.0.1:8000]
#   KEY_FILE      keys that clients must send, one per line; RUN_AS reads it [none]
#
# host.sh has IMAGE, GPUS and RUN_AS. NCCL_P2P_DISABLE is handed on, for cards that hang.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=host.sh
source "$(dirname "${BASH_SOURCE[0]}")/host.sh"

ENGINES_DIR="${ENGINES_DIR:-${PWD}/engines}"
PUBLISH="${PUBLISH:-127.0.0.1:8000}"

check_user
check_driver
if [[ ! -d "${ENGINES_DIR}" ]]; then
    fail "no folder of engines at ${ENGINES_DIR}" "make an engine with build/ngc/build.sh, or set ENGINES_DIR"
fi
ensure_image

mapfile -t flags < <(container_flags)
# Longer than the server gives running requests after SIGTERM.
flags+=(
    --stop-timeout 60
    --publish "${PUBLISH}:8000"
    --volume "$(realpath "${ENGINES_DIR}"):/srv/engines:ro"
)
arguments=(--engine-dir /srv/engines --host 0.0.0.0)
if [[ -n "${KEY_FILE:-}" ]]; then
    if [[ ! -r "${KEY_FILE}" ]]; then
        fail "the key file ${KEY_FILE} cannot be read" "make it, with one key per line"
    fi
    flags+=(--volume "$(realpath "${KEY_FILE}"):/run/secrets/keys:ro")
    arguments+=(--api-key-file /run/secrets/keys)
fi
if [[ -n "${NCCL_P2P_DISABLE:-}" ]]; then
    flags+=(--env NCCL_P2P_DISABLE)
fi
exec docker "${flags[@]}" "${IMAGE}" serve "${arguments[@]}" "$@"
