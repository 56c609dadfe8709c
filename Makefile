# `make verify` reads, `make fix` writes. Both stop at the first failure.
.PHONY: help verify lint test test-helm test-k8s test-image sbom fix pictures clean-tools

help: ## Lists the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 14

verify: ## Lint and all tests; fetches what they need into .tools, once
	@bash tools/verify

lint: ## Only format, what may be depended on, and clippy
	@bash tools/verify lint

test: ## Only build and tests
	@bash tools/verify test

test-helm: ## Only the chart: lint, schemas of Kubernetes, rules, a release run as processes
	@bash tools/fetch etcd etcdutl helm kubernetes
	@python3 -B helm/tests

test-k8s: ## The chart in a real API server with controllers; builds them once (ten minutes)
	@bash tools/fetch etcd helm kubernetes apiserver
	@python3 -B helm/tests cluster

test-image: ## The image, built and run without Docker; needs buildah and programs (TRANCHE_BIN, else target/release)
	@tools/test-image

sbom: ## What the programs of target/release are made of, into target/sbom (CycloneDX)
	@rm -rf target/sbom
	@tools/sbom target/release target/sbom

fix: ## Formats, and applies what clippy can mend by itself
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all

pictures: ## Draws examples/pictures again (needs python3)
	python3 -m venv target/pictures-venv
	target/pictures-venv/bin/python -m pip install --quiet pillow==12.0.0
	target/pictures-venv/bin/python examples/make_pictures.py

clean-tools: ## Forgets what was fetched into .tools
	rm -rf .tools
