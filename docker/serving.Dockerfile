# An image that serves the champion, without TensorFlow: docs/serving.md. Build it in the project's root:
#
#   docker build --file docker/serving.Dockerfile --tag fashion-mnist-serving .
#
# A test executes these steps without a container engine (tests/serving/e2e/test_image.py).
FROM python:3.11.11-slim-bookworm
WORKDIR /project
COPY requirements-serving.lock ./
RUN pip install --no-cache-dir uv==0.13.9 \
  && uv pip install --python python --no-cache --require-hashes --compile-bytecode -r requirements-serving.lock \
  && pip uninstall --yes uv
COPY pyproject.toml params.yaml dvc.yaml ./
COPY data/catalog/ data/catalog/
COPY pipeline/ pipeline/
RUN mkdir --mode=777 .pipeline
ENV HOME=/tmp PYTHONUNBUFFERED=1
USER 1000:1000
EXPOSE 5002
HEALTHCHECK --interval=10s --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5002/health/live')"]
ENTRYPOINT ["python", "-m", "pipeline.cli", "serve"]
CMD ["--host", "0.0.0.0", "--port", "5002"]
