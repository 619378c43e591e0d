# torchbeats serve on a CPU, with the built-in models: nothing is downloaded when it runs.
FROM python:3.12-slim

RUN useradd --create-home --uid 10001 torchbeats
WORKDIR /app
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src ./src
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
      -c constraints.txt '.[serve,plots,probe]'

USER torchbeats
ENV HF_HUB_OFFLINE=1 GRADIO_ANALYTICS_ENABLED=False PYTHONUNBUFFERED=1 MPLCONFIGDIR=/tmp/matplotlib
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# Another address than loopback needs TORCHBEATS_TOKEN, or --no-token.
ENTRYPOINT ["torchbeats", "serve", "--host", "0.0.0.0"]
