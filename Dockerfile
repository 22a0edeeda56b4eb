# Sluicegate in a small image. The builder has what a source build needs; what runs has the binary and nothing else.
#
#   docker build -t sluicegate .
#   docker run -p 8080:8080 -v ./sluicegate.yaml:/etc/sluicegate/sluicegate.yaml:ro sluicegate
#
# 8080 is for the traffic and 9901 for the administration, as the configuration binds them. SIGTERM drains: give the
# container at least as long to stop as `shutdown` in the configuration takes (`docker stop -t 60`).

FROM rust:1.95-slim-bookworm AS builder
# cmake, make and the compilers are for zlib-ng and zstd, which Pingora links statically.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends cmake g++ make \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release --bin sluicegate \
 && cp target/release/sluicegate /usr/local/bin/sluicegate

FROM debian:bookworm-slim
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 65532 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin sluicegate \
 && install -d /etc/sluicegate \
 && install -d -o sluicegate -g sluicegate /run/sluicegate
COPY --from=builder /usr/local/bin/sluicegate /usr/local/bin/sluicegate
COPY rules /etc/sluicegate/rules
USER 65532:65532
EXPOSE 8080 9901
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/sluicegate"]
CMD ["run", "-c", "/etc/sluicegate/sluicegate.yaml"]
