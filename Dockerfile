# An image that makes films. On a CPU:
#     docker build -t expportrait:cpu .
#     docker run --rm -v "$PWD:/work" expportrait:cpu generate photo.png clip.mp4
# On CUDA, with the painters of Wan (run with `--gpus all`):
#     docker build -t expportrait:cuda --build-arg TORCH_INDEX=https://pypi.org/simple --build-arg EXTRAS='[normals,wan]' .
# docs/container.md says under which licences its contents are.
FROM python:3.12-slim-bookworm
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=
# What the wheels of OpenCV and mediapipe leave to the system.
RUN apt-get update && apt-get install --yes --no-install-recommends libegl1 libgl1 libgles2 libglib2.0-0 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/expportrait
COPY pyproject.toml constraints.txt README.md LICENSE CHANGELOG.md CITATION.cff ./
COPY expportrait_cli expportrait_cli
COPY weights weights
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" -c constraints.txt torch
RUN pip install --no-cache-dir -c constraints.txt ".$EXTRAS"
RUN expportrait doctor
# Films belong to whoever runs the image with `--user`; compiled kernels and fetched weights need a place that anybody can write.
ENV HOME=/tmp XDG_CACHE_HOME=/tmp/cache
WORKDIR /work
ENTRYPOINT ["expportrait"]
