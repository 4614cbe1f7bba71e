# The image of every process of the fleet. Builds with the classic builder and with BuildKit.
# There is no lock file: pyproject's constraints pin what was tried together.

FROM python:3.12-slim AS build
ENV UV_PROJECT_ENVIRONMENT=/opt/prefmill UV_PYTHON=python3 UV_PYTHON_DOWNLOADS=never \
    UV_LINK_MODE=copy UV_NO_CACHE=1
RUN python3 -m pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore "uv>=0.9,<1"
WORKDIR /build
# Dependencies first: a change of our own code does not install them anew. Bytecode now, for the root
# file system of a container cannot be written.
COPY pyproject.toml LICENSE README.md ./
RUN uv sync --quiet --no-dev --no-install-project --extra local --extra postgres --extra flower \
 && cd /opt/prefmill/lib/python3*/site-packages \
 && rm -rf pandas/tests pyarrow/tests pyarrow/include \
 && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash .
COPY workers ./workers
COPY producer ./producer
# Not editable: the final stage needs no source.
RUN uv sync --quiet --no-dev --no-editable --extra local --extra postgres --extra flower \
 && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash \
    /opt/prefmill/lib/python3*/site-packages/workers /opt/prefmill/lib/python3*/site-packages/producer

FROM python:3.12-slim
# libgomp1 is what llama.cpp was linked with; slim images leave it out.
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends libgomp1 >/dev/null \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
 && groupadd --gid 10001 prefmill \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin prefmill \
 && install --directory --owner 10001 --group 10001 /data /var/cache/prefmill
COPY --from=build /opt/prefmill /opt/prefmill
ENV PATH=/opt/prefmill/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp HF_HOME=/var/cache/prefmill
ARG VERSION=0
LABEL org.opencontainers.image.title=prefmill org.opencontainers.image.version=$VERSION \
    org.opencontainers.image.licenses=Apache-2.0
USER 10001:10001
WORKDIR /data
ENTRYPOINT ["prefmill"]
CMD ["--help"]
# By progress: whether this container's workers get on, not whether a process exists. Services that
# are no workers have checks of their own in docker-compose.yml.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s --retries=3 CMD ["prefmill", "check", "--worker"]
