# slimdeploy on a Jetson with JetPack 6 (Orin), with the image's TensorRT and CUDA. From the checkout:
#   docker build -t slimdeploy -f docker/jetson.Dockerfile .
#   docker run --runtime nvidia -v slimdeploy:/var/lib/slimdeploy -v "$PWD":/bundles slimdeploy deploy /bundles/cats.slim.tar
#   docker run --runtime nvidia -v slimdeploy:/var/lib/slimdeploy -p 8080:8080 slimdeploy
FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ openssh-client python3-dev python3-libnvinfer python3-venv \
    && rm -rf /var/lib/apt/lists/*
# pycuda is compiled against the image's CUDA; TensorRT is the system's, which the environment lets in.
ENV PATH=/opt/slimdeploy/bin:/usr/local/cuda/bin:$PATH SLIMDEPLOY_HOME=/var/lib/slimdeploy
RUN python3 -m venv --system-site-packages /opt/slimdeploy
COPY . /tmp/slimdeploy
RUN pip install --no-cache-dir '/tmp/slimdeploy[device,cpu,cuda]' && rm -rf /tmp/slimdeploy
VOLUME /var/lib/slimdeploy
EXPOSE 8080
ENTRYPOINT ["slimdeploy"]
CMD ["serve", "--host", "0.0.0.0"]
