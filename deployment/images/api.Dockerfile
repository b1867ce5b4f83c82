# Image of everything of ours that runs in containers: API, ingest, jobs. Never built where it was written.
FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /opt/venv
COPY requirements.lock ./
RUN /opt/venv/bin/pip install --no-cache-dir --require-hashes --no-deps -r requirements.lock
COPY . .
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11-slim
# OpenMP, for CatBoost and implicit
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home larder && install -d -o larder -g larder /var/lib/larder
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 NUMBA_CACHE_DIR=/tmp LARDER_HOME=/var/lib/larder
USER 10001
WORKDIR /var/lib/larder
VOLUME /var/lib/larder
EXPOSE 8099
HEALTHCHECK --interval=5s --timeout=5s --retries=24 \
  CMD python -c "import urllib.request as u; u.urlopen('http://localhost:8099/livez', timeout=2)"
CMD ["larder", "serve"]
