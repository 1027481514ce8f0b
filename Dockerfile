# The CPU image: serves the sample engine out of the box, and any engine mounted at /srv/engines.
#
#   docker build -t deepinfer .
#   docker run --rm -p 8000:8000 deepinfer
#   docker run --rm -p 8000:8000 -v "$PWD/engines:/srv/engines:ro" deepinfer
#
# The serving image has no torch; the stage that compiles the sample engine is left behind.

FROM python:3.12-slim AS builder
ARG PIP_ARGS=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY deepinfer ./deepinfer
RUN python -m venv /opt/deepinfer && /opt/deepinfer/bin/pip install ${PIP_ARGS} '.[openvino]'
RUN python -m venv /opt/compiler && /opt/compiler/bin/pip install ${PIP_ARGS} '.[openvino-build]' \
    && /opt/compiler/bin/deepinfer build --model sample --output /engines

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 deepinfer \
    && install --directory --owner deepinfer --group deepinfer /srv/engines
COPY --from=builder /opt/deepinfer /opt/deepinfer
COPY --from=builder --chown=deepinfer:deepinfer /engines /srv/engines
ENV PATH=/opt/deepinfer/bin:$PATH PYTHONUNBUFFERED=1
USER deepinfer
WORKDIR /srv
VOLUME /srv/engines
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["deepinfer"]
CMD ["serve", "--engine-dir", "/srv/engines", "--host", "0.0.0.0"]
