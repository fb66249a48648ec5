# mammoray with everything of requirements.lock, for CPU and GPU nodes alike: the wheels bring CUDA along, the host its
# driver. Research software, not a medical device.      docker build -t REGISTRY/mammoray:VERSION .
FROM python:3.11.14-slim-bookworm

# What Ray's launcher and KubeRay call inside of a container.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates openssh-client procps rsync wget \
    && rm -rf /var/lib/apt/lists/*

# The user of Ray's own images, whose home cluster.yaml mounts into; below by number, by which Kubernetes can tell that
# it is not root.
RUN useradd --create-home --uid 1000 --gid users --shell /bin/bash ray

# For the container runtime of NVIDIA: without them a container sees no GPU.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1

WORKDIR /home/ray/mammoray

# The lock alone first: this layer stays as long as the lock does. It is complete, so nothing is resolved anew.
COPY requirements.lock ./
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action ignore --no-deps -r requirements.lock \
    && pip check

COPY pyproject.toml README.md LICENSE ./
COPY mammoray ./mammoray
COPY jobs ./jobs
# A job's output folder is made here.
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action ignore --no-deps . && chown ray:users .

USER 1000:100
CMD ["mammoray", "--help"]
