# slimdeploy on an x86 machine with an NVIDIA GPU and NVIDIA's container toolkit. From the checkout:
#   docker build -t slimdeploy -f docker/x86.Dockerfile .
#   docker run --gpus all -v slimdeploy:/var/lib/slimdeploy -v "$PWD":/bundles slimdeploy deploy /bundles/cats.slim.tar
#   docker run --gpus all -v slimdeploy:/var/lib/slimdeploy -p 8080:8080 slimdeploy
FROM nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/slimdeploy/bin:$PATH SLIMDEPLOY_HOME=/var/lib/slimdeploy
RUN python3 -m venv /opt/slimdeploy
COPY . /tmp/slimdeploy
RUN pip install --no-cache-dir '/tmp/slimdeploy[device,gpu]' && rm -rf /tmp/slimdeploy
VOLUME /var/lib/slimdeploy
EXPOSE 8080
ENTRYPOINT ["slimdeploy"]
CMD ["serve", "--host", "0.0.0.0"]
