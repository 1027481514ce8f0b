#!/usr/bin/env bash
# The first run on a card, all of it: makes the image, compiles engines, serves them, asks, measures,
# and writes one report to attach to an issue. docs/gpu-validation.md goes through the same by hand.
#
#   build/ngc/first_run.sh
#   read -rs HF_TOKEN && export HF_TOKEN   # for a gated model; no command line or history has it
#   MODELS='meta-llama/Llama-3.2-1B-Instruct --precision fp8' build/ngc/first_run.sh
#
#   MODELS            models to try, one per line or with `;` between them, each with options of
#                     `deepinfer build`
#                     [Qwen/Qwen3-0.6B in bf16, the same in fp8, Qwen/Qwen3-8B in fp8]
#   REPORT            the file that is written                          [./deepinfer-first-run.md]
#   ENGINES_DIR       where engines go, as `first-run-1` and so on                     [./engines]
#   FIRST_PORT        each server takes the next free port of this machine from here on     [8321]
#   LEVELS            requests at once when speed is measured                           [1 8 64]
#   EXPECTED          a word that the answer must have; empty: any answer will do          [Paris]
#   FORMAT            a `response_format` to ask for; empty: none is     [JSON by a small schema]
#   IMAGE_TIMEOUT_S, BUILD_TIMEOUT_S, START_TIMEOUT_S, STEP_TIMEOUT_S
#                     seconds for the image, a build, a server's start, anything else
#                                                                         [10800 3600 900 600]
#
# host.sh and build.sh have IMAGE, GPUS, RUN_AS, CACHE_DIR and HF_TOKEN. A step that fails is written
# down, and whatever can go on without it does. Exits with 0 only when every step passed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=host.sh
source "$(dirname "${BASH_SOURCE[0]}")/host.sh"

SCRIPTS="${REPOSITORY}/build/ngc"
# From the smallest step to the model that a card of 32 GB is for; none of them needs a token.
DEFAULT_MODELS='Qwen/Qwen3-0.6B --precision bf16
    Qwen/Qwen3-0.6B --precision fp8
    Qwen/Qwen3-8B --precision fp8'
MODELS="${MODELS:-${DEFAULT_MODELS}}"
REPORT="${REPORT:-${PWD}/deepinfer-first-run.md}"
FIRST_PORT="${FIRST_PORT:-8321}"
LEVELS="${LEVELS:-1 8 64}"
EXPECTED="${EXPECTED-Paris}"
IMAGE_TIMEOUT_S="${IMAGE_TIMEOUT_S:-10800}"
BUILD_TIMEOUT_S="${BUILD_TIMEOUT_S:-3600}"
START_TIMEOUT_S="${START_TIMEOUT_S:-900}"
STEP_TIMEOUT_S="${STEP_TIMEOUT_S:-600}"
KILL_AFTER_S=30
STOP_TIMEOUT_S=60 # as serve.sh gives the container
TAIL_LINES=60     # of what a step has written
QUESTION='What is the capital of France? Answer in one short sentence.'
DEFAULT_FORMAT='{"type": "json_schema", "json_schema": {"name": "city", "schema": {"type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}}}'
FORMAT="${FORMAT-${DEFAULT_FORMAT}}"
PACKAGES='^(tensorrt|torch|transformers|nvidia-modelopt|mpi4py|xgrammar|flashinfer|triton|deepinfer)'

export ENGINES_DIR="${ENGINES_DIR:-${PWD}/engines}"
export CONTAINER_NAME="deepinfer-first-run-$$"

WORK="$(mktemp -d)"
SECTIONS="${WORK}/sections"
RESULTS="${WORK}/results" # one line a step: outcome, name, remark
SPEEDS="${WORK}/speeds"   # one line a measurement: engine, requests at once, tokens a second
touch "${SECTIONS}" "${RESULTS}" "${SPEEDS}"
step_pid=''
server_pid=''
next_port="${FIRST_PORT}"

note() { # OUTCOME NAME REMARK [FILE]: one step's end, with the last lines of what it wrote
    printf '%s\t%s\t%s\n' "$1" "$2" "$3" >>"${RESULTS}"
    printf '%-8s%s: %s\n' "$1" "$2" "$3" >&2
    {
        printf '\n### %s\n\n%s: %s\n' "$2" "$1" "$3"
        if [[ -s "${4:-}" ]]; then
            # A progress bar is one line that writes over itself: what it said last counts.
            printf '\n~~~text\n'
            tail -n "${TAIL_LINES}" "$4" | sed -e 's/\r$//' -e 's/.*\r//' | cut -c 1-2000
            printf '\n~~~\n'
        fi
    } >>"${SECTIONS}"
}

run_step() { # NAME SECONDS COMMAND...: run it for so long at most; its output is in ${log} then
    local name="$1" seconds="$2" started="${SECONDS}" code=0
    shift 2
    log="${WORK}/log"
    printf '%-8s%s\n' begins "${name}" >&2
    # In the background, so that this script can be interrupted meanwhile.
    timeout --kill-after="${KILL_AFTER_S}" "${seconds}" "$@" >"${log}" 2>&1 </dev/null &
    step_pid=$!
    wait "${step_pid}" || code=$?
    step_pid=''
    if ((code == 124 || code == 137)); then
        remove_container
        note failed "${name}" "not done within ${seconds} s" "${log}"
    elif ((code != 0)); then
        note failed "${name}" "exit code ${code} after $((SECONDS - started)) s" "${log}"
    else
        note passed "${name}" "$((SECONDS - started)) s" "${log}"
    fi
    return "${code}"
}

remove_container() { # which a client of Docker leaves behind when it is killed; not the server's
    if [[ -z "${server_pid}" ]]; then
        docker rm --force "${CONTAINER_NAME}" >/dev/null 2>&1 || true
    fi
}

skip() { # NAME REASON
    note skipped "$1" "$2"
}

is_free() { # PORT: whether nobody on this machine answers there
    ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

take_port() { # a port that no earlier server of this run had
    while ! is_free "${next_port}"; do
        ((next_port += 1))
    done
    port="${next_port}"
    ((next_port += 1))
}

start_server() { # NAME ENGINE: returns once it is healthy; its output is in ${server_log}
    local started="${SECONDS}"
    take_port
    server_log="${WORK}/server"
    printf '%-8s%s\n' begins "$1" >&2
    PUBLISH="127.0.0.1:${port}" "${SCRIPTS}/serve.sh" --model "$2" >"${server_log}" 2>&1 </dev/null &
    server_pid=$!
    while ((SECONDS - started < START_TIMEOUT_S)); do
        if curl --silent --fail --max-time 5 "http://127.0.0.1:${port}/health" >"${WORK}/health"; then
            note passed "$1" "$((SECONDS - started)) s" "${WORK}/health"
            return 0
        fi
        if ! kill -0 "${server_pid}" 2>/dev/null; then
            note failed "$1" "it ended after $((SECONDS - started)) s" "${server_log}"
            return 1
        fi
        sleep 1
    done
    note failed "$1" "not ready within ${START_TIMEOUT_S} s" "${server_log}"
    return 1
}

stop_server() {
    local pid="${server_pid}" started="${SECONDS}"
    server_pid=''
    if [[ -z "${pid}" ]]; then
        return 0
    fi
    kill -TERM "${pid}" 2>/dev/null || true
    while kill -0 "${pid}" 2>/dev/null && ((SECONDS - started < STOP_TIMEOUT_S)); do
        sleep 1
    done
    remove_container
    kill -KILL "${pid}" 2>/dev/null || true
    wait "${pid}" 2>/dev/null || true
}

ask() { # NAME FIELDS [WORD]: the question, with further fields of the body; the answer has the word
    local message="{\"role\": \"user\", \"content\": \"${QUESTION}\"}"
    run_step "$1" "${STEP_TIMEOUT_S}" curl --silent --show-error --fail-with-body \
        --header 'Content-Type: application/json' --data "{\"messages\": [${message}], $2}" \
        "http://127.0.0.1:${port}/v1/chat/completions" || return 0
    if [[ -n "${3:-}" ]] && ! grep --quiet --fixed-strings -- "$3" "${log}"; then
        note failed "$1, its sense" "the answer has no \`$3\` in it"
    fi
}

measure() { # ENGINE LEVEL: tokens a second of so many requests at once
    local name="$1, speed of $2 at once" rate
    run_step "${name}" "${STEP_TIMEOUT_S}" docker run --rm --network host \
        --name "${CONTAINER_NAME}-client" --user "${RUN_AS}" --env HOME=/tmp --env USER=deepinfer \
        "${IMAGE}" bench serve --url "http://127.0.0.1:${port}" --concurrency "$2" \
        --num-requests $((4 * $2)) --warm-up "$2" --ignore-eos || {
        docker rm --force "${CONTAINER_NAME}-client" >/dev/null 2>&1 || true
        return 0
    }
    rate="$(sed -n 's/^output tokens\/s  *//p' "${log}" | head -n 1)"
    printf '%s\t%s\t%s\n' "$1" "$2" "${rate:-?}" >>"${SPEEDS}"
}

try_model() { # NUMBER MODEL OPTIONS...
    local engine="first-run-$1" level
    shift
    local wish=(--model "$@" --name "${engine}")
    if ! TAIL_LINES=100 run_step "${engine}, plan of $*" "${STEP_TIMEOUT_S}" "${SCRIPTS}/build.sh" "${wish[@]}" --dry-run; then
        skip "${engine}, build" 'there is no plan'
        return 0
    fi
    if ! VERBOSE=1 TAIL_LINES=150 run_step "${engine}, build" "${BUILD_TIMEOUT_S}" \
        "${SCRIPTS}/build.sh" "${wish[@]}"; then
        skip "${engine}, server" 'there is no engine'
        return 0
    fi
    if start_server "${engine}, server" "${engine}"; then
        ask "${engine}, an answer" '"temperature": 0, "max_tokens": 1024' "${EXPECTED}"
        ask "${engine}, log probabilities in a stream" \
            '"stream": true, "logprobs": true, "max_tokens": 8'
        if [[ -n "${FORMAT}" ]]; then
            ask "${engine}, JSON by a schema" "\"max_tokens\": 256, \"response_format\": ${FORMAT}"
        fi
        for level in ${LEVELS}; do
            measure "${engine}" "${level}"
        done
        if grep --quiet 'the engine process ended\|engine process [0-9]* hangs' "${server_log}"; then
            note failed "${engine}, one life" 'the engine process ended and was started again'
        fi
        stop_server
        grep --invert-match ' /[a-z0-9/]* 200 ' "${server_log}" >"${WORK}/words" || true
        TAIL_LINES=120 note log "${engine}, the server's log" 'but for requests that went well' \
            "${WORK}/words"
    fi
    stop_server
}

mask() { # stdin without tokens and without the path of this user's home
    local text home_sign='~'
    text="$(cat)"
    if [[ -n "${HF_TOKEN:-}" ]]; then
        text="${text//"${HF_TOKEN}"/<token>}"
    fi
    if [[ "${HOME}" != / ]]; then
        text="${text//"${HOME}"/"${home_sign}"}"
    fi
    printf '%s\n' "${text}" | sed -E 's/hf_[A-Za-z0-9]{8,}/<token>/g'
}

write_report() {
    {
        printf '# The first run of DeepInfer on a card\n\n'
        printf '%s, DeepInfer %s\n' "$(date --utc +%Y-%m-%dT%H:%MZ)" \
            "$(git -C "${REPOSITORY}" rev-parse --short HEAD 2>/dev/null || echo 'of an unknown commit')"
        printf '\n## Steps\n\n| outcome | step | |\n|---|---|---|\n'
        sed -e 's/|/\\|/g' -e 's/\t/ | /g' -e 's/^/| /' -e 's/$/ |/' "${RESULTS}"
        printf '\n## Tokens a second\n\n| engine | requests at once | output tokens/s |\n|---|---|---|\n'
        sed -e 's/\t/ | /g' -e 's/^/| /' -e 's/$/ |/' "${SPEEDS}"
        printf '\n## What each step said\n'
        cat "${SECTIONS}"
    } | mask >"${REPORT}"
}

finish() {
    if [[ -n "${step_pid}" ]]; then
        # A process that was just forked may lose a signal.
        while kill -TERM "${step_pid}" 2>/dev/null; do
            sleep 0.2
        done
        remove_container
    fi
    stop_server
    write_report
    rm -rf "${WORK}"
    printf '\nThe report is %s. Read it before you send it: it names your card.\n' "${REPORT}" >&2
}

trap finish EXIT
trap 'exit 130' INT TERM

has_driver=true
has_image=true
run_step 'programs' 60 bash -c 'docker --version; curl --version | head -n 1; timeout --version | head -n 1' ||
    true
# shellcheck disable=SC2016
run_step 'machine' 60 bash -c 'uname --kernel-release --machine; . /etc/os-release; echo "${PRETTY_NAME}"
    grep -m 1 "model name" /proc/cpuinfo; grep -E "MemTotal|MemAvailable" /proc/meminfo
    df --human-readable --output=avail,target "$1" /var/lib/docker 2>/dev/null || true' - "${PWD}" || true
# shellcheck disable=SC2016
run_step 'driver' 60 bash -c 'source "$1"; check_user; check_driver
    nvidia-smi --query-gpu=name,driver_version,memory.total,memory.used,power.limit,clocks.max.sm --format=csv' \
    - "${SCRIPTS}/host.sh" || has_driver=false
# shellcheck disable=SC2016
run_step 'image' "${IMAGE_TIMEOUT_S}" bash -c 'source "$1"; ensure_image
    docker image inspect --format "{{.Id}} {{.Size}} bytes" "${IMAGE}"' - "${SCRIPTS}/host.sh" ||
    has_image=false
if [[ "${has_image}" == false ]]; then
    skip 'everything else' 'there is no image'
    exit 1
fi
TAIL_LINES=200 run_step 'versions' "${STEP_TIMEOUT_S}" docker run --rm --name "${CONTAINER_NAME}" --entrypoint grep \
    "${IMAGE}" --extended-regexp --ignore-case "${PACKAGES}" /opt/deepinfer/all.txt || true
if [[ "${has_driver}" == false ]]; then
    skip 'everything else' 'there is no driver that the image can use'
    exit 1
fi
mapfile -t gpu_flags < <(container_flags)
run_step 'doctor' "${STEP_TIMEOUT_S}" docker "${gpu_flags[@]}" "${IMAGE}" doctor || true
# Some differences are expected, and none of them is a failure by itself: exit code 1 says "some".
TAIL_LINES=400 run_step 'interface' "${STEP_TIMEOUT_S}" bash -c '"$@" || (( $? == 1 ))' - docker "${gpu_flags[@]}" \
    --volume "${REPOSITORY}:/repository:ro" --entrypoint python "${IMAGE}" \
    /repository/tools/trtllm_introspect.py || true

number=0
while IFS= read -r line; do
    read -r -a words <<<"${line}"
    if ((${#words[@]} == 0)); then
        continue
    fi
    ((number += 1))
    try_model "${number}" "${words[@]}"
done < <(tr ';' '\n' <<<"${MODELS}")

if grep --quiet '^failed\|^skipped' "${RESULTS}"; then
    exit 1
fi
