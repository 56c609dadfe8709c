# All three programs in one image, without a shell and without root:
#
#   docker build -t tranche:0.1.0 .        (podman build, buildah build)
#
# /usr/local/bin has tranche (the entry point), tranche-coordinator and tranche-worker.

FROM rust:1.95-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends protobuf-compiler ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The caches keep downloaded crates and what was compiled, so a change of our own code compiles only that.
RUN --mount=type=cache,id=tranche-registry,target=/usr/local/cargo/registry \
    --mount=type=cache,id=tranche-target,target=/src/target \
    cargo build --locked --release -p tranche-coordinator -p tranche-worker -p tranche-cli \
    && tools/image target/release /image

# Only the programs, the libraries that they load, the roots of public CAs, and in /usr/share/sbom what the programs are made of. `make test-image` builds and runs this
# stage with programs that are there.
FROM scratch AS image
COPY --from=build /image /
# By number: Kubernetes' runAsNonRoot can't look up a name.
USER 65532:65532
WORKDIR /
ENTRYPOINT ["/usr/local/bin/tranche"]
LABEL org.opencontainers.image.title="Tranche" \
    org.opencontainers.image.description="Bulk imports, all or nothing" \
    org.opencontainers.image.licenses="Apache-2.0"
