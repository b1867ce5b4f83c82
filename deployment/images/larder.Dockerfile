# Image of everything of ours that runs in containers: API, workers, monitoring, commands. Never built where it was
# written; its steps were run by hand without Docker (docs/operations.md).
FROM python:3.11.17-slim-bookworm AS build
WORKDIR /src
RUN python -m venv --without-pip /opt/venv
COPY requirements-run.lock ./
# Wheels only: nothing is compiled, so no stage has a compiler. Python files are byte-compiled here: the container
# cannot write them.
RUN pip --python /opt/venv/bin/python install --no-cache-dir --require-hashes --no-deps --only-binary :all: \
  -r requirements-run.lock
COPY . .
# The wheel is built with the setuptools of the lock.
RUN PYTHONPATH=$(/opt/venv/bin/python -c "import site; print(site.getsitepackages()[0])") \
  pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
  && pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --no-index /wheels/*.whl
# Tests that libraries carry along, a tenth of all; by name, for in others a folder `tests` is part of the library.
RUN cd /opt/venv/lib/python3.11/site-packages \
  && find matplotlib numba numpy pandas pyarrow scipy sklearn statsmodels -type d -name tests -prune -exec rm -rf {} +

FROM python:3.11.17-slim-bookworm
# OpenMP, for CatBoost and implicit: the one library that comes in no wheel
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
# Volumes that are mounted here first take these directories' owner.
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/larder --shell /usr/sbin/nologin larder \
  && install -d -o larder -g larder /var/lib/larder /var/lib/larder/evidently /var/lib/larder/prometheus \
  /var/lib/larder/prometheus/targets
COPY --from=build /opt/venv /opt/venv
COPY --chmod=0755 deployment/images/entrypoint /usr/local/bin/entrypoint
# Compiled kernels are kept on the volume: the container's own disk is read-only.
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 DO_NOT_TRACK=1 MPLCONFIGDIR=/tmp \
  LARDER_HOME=/var/lib/larder NUMBA_CACHE_DIR=/var/lib/larder/.numba
USER 10001
WORKDIR /var/lib/larder
VOLUME /var/lib/larder
EXPOSE 8099
ENTRYPOINT ["entrypoint"]
HEALTHCHECK --interval=5s --timeout=5s --retries=24 \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8099/livez', timeout=2)"]
CMD ["larder", "serve"]
