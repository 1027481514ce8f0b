# Two images; the last target is what `docker build .` makes.
#
#   cpu            serves the sample engine out of the box, and any engine mounted at /srv/engines
#   tensorrt-llm   builds and serves engines for NVIDIA GPUs, on NVIDIA's own image (about 60 GB)
#
#   docker build -t deepinfer .
#   docker run --rm -p 8000:8000 deepinfer
#   docker run --rm -p 8000:8000 -v "$PWD/engines:/srv/engines:ro" deepinfer
#
#   docker build --target tensorrt-llm -t deepinfer:tensorrt-llm .
#   build/ngc/build.sh --model Qwen/Qwen3-8B --target rtx5090; build/ngc/serve.sh
#
# The serving image for the CPU has no torch; the stage that compiles the sample engine is left behind.

FROM python:3.12-slim AS source
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY deepinfer ./deepinfer

FROM source AS wheel
ARG PIP_ARGS=
RUN pip wheel ${PIP_ARGS} --no-deps --wheel-dir /wheels .

FROM nvcr.io/nvidia/tensorrt-llm/release:1.2.1 AS tensorrt-llm
ARG PIP_ARGS=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
SHELL ["/bin/bash", "-o", "errexit", "-o", "pipefail", "-c"]
# NVIDIA's image puts these folders on LD_LIBRARY_PATH in /etc/shinit_v2, which only shells read, and
# no shell starts `deepinfer`. ldconfig registers them for every process, in the same order and before
# all others. The file stays: the NVIDIA Container Toolkit runs ldconfig again.
RUN printf '%s\n' \
        "/opt/nvidia/nvda_nixl/lib/$(uname --machine)-linux-gnu" \
        /opt/nvidia/nvda_nixl/lib64 \
        /usr/local/ucx/lib \
        /usr/local/tensorrt/lib \
        /usr/local/cuda/lib64 \
        > /etc/ld.so.conf.d/00-deepinfer.conf \
    && ldconfig
COPY --from=wheel /wheels /wheels
# DeepInfer goes into an environment of its own that sees the image's packages. What the image has is
# the constraint, so that pip adds the few libraries that are missing; a torch, transformers or
# tensorrt of another version would take the engines with it, so a change of any stops the build.
# NVIDIA's own PIP_CONSTRAINT names the base image's versions, some of which are no longer there.
RUN python3 -m venv --system-site-packages --without-pip /opt/deepinfer \
    && python3 -m pip list --format=freeze | sort > /opt/deepinfer/image.txt \
    && PIP_CONSTRAINT='' /opt/deepinfer/bin/python -m pip install ${PIP_ARGS} \
        --constraint /opt/deepinfer/image.txt /wheels/*.whl \
    && /opt/deepinfer/bin/python -m pip list --format=freeze | sort > /opt/deepinfer/all.txt \
    && changed="$(comm -23 /opt/deepinfer/image.txt /opt/deepinfer/all.txt)" \
    && if [[ -n "${changed}" ]]; then echo "error: pip replaced ${changed}" >&2; exit 1; fi
# An image in which CUDA's runtime, TensorRT or MPI does not load is never made. This shell has an
# LD_LIBRARY_PATH that a container's first process has not.
RUN env --unset=LD_LIBRARY_PATH /opt/deepinfer/bin/python -m deepinfer.trtllm_libraries
# Whoever runs the container under another number needs the cache too: torch compiles ModelOpt's CUDA
# code into it.
RUN useradd --create-home --uid 10001 deepinfer \
    && install --directory --owner deepinfer --group deepinfer /srv/engines \
    && install --directory --owner deepinfer --group deepinfer --mode 1777 /srv/cache
# torch asks for the user's name, which the image does not know for any number but its own.
# UCC breaks MPI's collectives here. TensorRT-LLM disables it as well, but MPI may be imported first.
ENV PATH=/opt/deepinfer/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    USER=deepinfer \
    OMPI_MCA_coll_ucc_enable=0 \
    XDG_CACHE_HOME=/srv/cache \
    HF_HOME=/srv/cache/huggingface
USER 10001:10001
WORKDIR /srv
VOLUME ["/srv/engines", "/srv/cache"]
EXPOSE 8000
# An engine of many gigabytes takes minutes to load from a slow disk.
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# In place of NVIDIA's entrypoint. It prints banners, and puts CUDA's compatibility libraries before
# a driver that is older than the image's CUDA, which works on data-centre cards only.
ENTRYPOINT ["deepinfer"]
CMD ["serve", "--engine-dir", "/srv/engines", "--host", "0.0.0.0"]

FROM source AS cpu-builder
ARG PIP_ARGS=
RUN python -m venv /opt/deepinfer && /opt/deepinfer/bin/pip install ${PIP_ARGS} '.[openvino]'
RUN python -m venv /opt/compiler && /opt/compiler/bin/pip install ${PIP_ARGS} '.[openvino-build]' \
    && /opt/compiler/bin/deepinfer build --model sample --output /engines

FROM python:3.12-slim AS cpu
RUN useradd --create-home --uid 10001 deepinfer \
    && install --directory --owner deepinfer --group deepinfer /srv/engines
COPY --from=cpu-builder /opt/deepinfer /opt/deepinfer
COPY --from=cpu-builder --chown=deepinfer:deepinfer /engines /srv/engines
ENV PATH=/opt/deepinfer/bin:$PATH PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /srv
VOLUME /srv/engines
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["deepinfer"]
CMD ["serve", "--engine-dir", "/srv/engines", "--host", "0.0.0.0"]
