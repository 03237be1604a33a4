# SPDX-License-Identifier: Apache-2.0
# zpptool with vLLM for NVIDIA GPUs: the wheels bring the CUDA libraries, the container runtime brings the driver.
#   docker build -f docker/cuda.Dockerfile -t zpptool:cuda .
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/zpptool
COPY pyproject.toml README.md LICENSE /src/
COPY zpptool /src/zpptool
RUN /opt/zpptool/bin/pip install "/src[vllm,hub]" \
 && find /opt/zpptool -name __pycache__ -type d -prune -exec rm -rf {} +

FROM python:3.11-slim-bookworm
# gcc and libc6-dev: Triton compiles its launchers when vLLM starts.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --create-home zpptool \
 && install -d -o 1000 -g 1000 /models
COPY --from=build /opt/zpptool /opt/zpptool
ENV PATH=/opt/zpptool/bin:$PATH PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
WORKDIR /home/zpptool
CMD ["zpptool", "--help"]
