# shellcheck shell=bash
# What build.sh, serve.sh and first_run.sh share: whether this host can run the container, and the
# flags that a container with a GPU needs. Sourced, never run.
#
#   IMAGE     what to run; made from this repository when it is absent  [deepinfer:tensorrt-llm]
#   GPUS      which GPUs: "all", a number of them, or '"device=0,1"'    [all]
#   RUN_AS    UID:GID of the processes and of what they write           [whoever calls]
#   CONTAINER_NAME   what Docker calls the container                    [a name that it makes up]

IMAGE="${IMAGE:-deepinfer:tensorrt-llm}"
GPUS="${GPUS:-all}"
RUN_AS="${RUN_AS:-$(id -u):$(id -g)}"
REPOSITORY="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
MIN_DRIVER_VERSION=580 # the first for the CUDA 13 of TensorRT-LLM 1.2.1

fail() {
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 1
}

check_user() {
    if [[ "${RUN_AS%%:*}" == 0 || "${RUN_AS%%:*}" == root ]]; then
        fail "the container does not run as root" \
            "run this as another user, or give one: RUN_AS=UID:GID $0"
    fi
}

check_driver() {
    local version
    version="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null || true)"
    version="${version%%$'\n'*}"
    if [[ ! "${version}" =~ ^[0-9]+\. ]]; then
        fail "no NVIDIA driver answers on this machine" \
            "install driver ${MIN_DRIVER_VERSION} or later, with its open kernel modules for an RTX 5090"
    fi
    if ((${version%%.*} < MIN_DRIVER_VERSION)); then
        fail "NVIDIA driver ${version} is too old: CUDA 13 in the image needs ${MIN_DRIVER_VERSION} or later" \
            "install driver ${MIN_DRIVER_VERSION} or later and restart; GeForce cards have no compatibility package"
    fi
}

ensure_image() {
    docker image inspect "${IMAGE}" >/dev/null 2>&1 ||
        docker build --target tensorrt-llm --tag "${IMAGE}" "${REPOSITORY}" ||
        fail "the image ${IMAGE} cannot be made" \
            "nvcr.io needs about 60 GB of disk; IMAGE=... names one that you have"
}

# Shared memory of the host and unlimited locked memory are what NCCL and MPI ask for. Whoever has
# no entry in the image's list of users still needs a home, and a name: torch asks for it.
container_flags() {
    printf '%s\n' run --rm --init \
        --gpus "${GPUS}" --ipc=host --ulimit memlock=-1 --ulimit stack=67108864 \
        --user "${RUN_AS}" --env HOME=/tmp --env USER=deepinfer
    if [[ -n "${CONTAINER_NAME:-}" ]]; then
        printf '%s\n' --name "${CONTAINER_NAME}"
    fi
}
