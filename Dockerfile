# `finetune serve` in a container:
#     docker build -t finetune .
#     docker run --rm -p 8000:8000 -v "$PWD/runs/flowers-1:/model:ro" finetune
FROM python:3.11-slim

# Weights of the default network come with the package; nothing is downloaded at run time.
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 FINETUNE_OFFLINE=1 FINETUNE_CACHE=/tmp/finetune

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY finetune finetune
COPY configs configs
RUN pip install ".[serve]"

# Not root; the home folder is where matplotlib and others keep their files.
RUN useradd --create-home --uid 1000 finetune
USER finetune
WORKDIR /home/finetune

EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["finetune", "serve"]
CMD ["/model", "--host", "0.0.0.0"]
