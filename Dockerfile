# The image of head and workers. Build in this folder, and push to a registry of your own:
#
#     docker build --tag REGISTRY/llm-nas:0.1.0 .
#     docker build --build-arg BASE=nvidia/cuda:12.9.1-base-ubuntu24.04 --build-arg EXTRAS=quant --tag ... .
#
# It holds no secret. Tokens and passwords come from the environment of the pod or from mounted files.

# Needs Python 3.11 or newer as python3. Give a digest (@sha256:...) for builds that never change.
ARG BASE=nvidia/cuda:12.8.1-base-ubuntu24.04

FROM ${BASE} AS build
# Versions differ between base images, and a pinned one disappears from the archive with the next security fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
ARG PIP=26.0
ARG RAY=2.60.0
ARG TORCH=2.13.0
RUN python3 -m venv /opt/llm-nas \
    && /opt/llm-nas/bin/pip install --no-cache-dir "pip==${PIP}" \
    && /opt/llm-nas/bin/pip install --no-cache-dir "torch==${TORCH}" \
    && /opt/llm-nas/bin/pip install --no-cache-dir "ray[default,tune]==${RAY}"
COPY pyproject.toml README.md LICENSE /source/
COPY nas /source/nas
COPY trials /source/trials
COPY search_spaces /source/search_spaces
ARG EXTRAS=quant,lora
RUN /opt/llm-nas/bin/pip install --no-cache-dir "/source[${EXTRAS}]"

FROM ${BASE}
# wget: the probes of KubeRay use it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 wget \
    && rm -rf /var/lib/apt/lists/* \
    && (userdel --remove ubuntu 2> /dev/null || true) \
    && useradd --create-home --uid 1000 nas
COPY --from=build /opt/llm-nas /opt/llm-nas
ENV PATH=/opt/llm-nas/bin:$PATH RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /home/nas
CMD ["python", "-m", "nas.search", "--help"]
