# Keepwarm without a page: the API alone, on port 7860. The page too: leave out --headless and set KEEPWARM_PASSWORD.
FROM python:3.12-slim

# A compiler, for the CPU kernels that are built at the first start; without one they are left out.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
# A volume belongs to whom its place in the image belongs to; one that is not there would be root's.
RUN useradd --create-home --uid 1000 keepwarm && \
    install -d -o keepwarm -g keepwarm /data /home/keepwarm/.cache /home/keepwarm/.cache/keepwarm
WORKDIR /srv/keepwarm
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app app
COPY sessions sessions
COPY model_runtime model_runtime
RUN pip install --no-cache-dir --constraint constraints.txt .

USER keepwarm
ENV PYTHONUNBUFFERED=1
VOLUME ["/data", "/home/keepwarm/.cache/keepwarm"]
EXPOSE 7860
HEALTHCHECK --interval=30s --start-period=10m --timeout=5s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["keepwarm"]
CMD ["serve", "--headless", "--host", "0.0.0.0", "--data-dir", "/data"]
