# SPDX-License-Identifier: Apache-2.0
# Thin: the presets of CMakePresets.json do the work.
.PHONY: all demo test bench bundle kernels format tidy asan tsan fuzz clean help

all: ## build the programs (release) into build/bin
	cmake --preset release
	cmake --build --preset release
	ln -sfn release/bin build/bin

demo: ## install what is missing, build, start gemmd, run and check real products
	.ci/install-deps build
	$(MAKE) all
	deploy/demo

test: ## install what is missing; format and structure checks, build, every test
	.ci/install-deps test
	.ci/test format repository dev

bench: all ## measure the service and the CPU device (JSON in build/bench)
	cmake --build --preset release --target gemmd-service-bench gemmd-echo-server cpu_gemm_bench
	mkdir -p build/bench
	build/bin/gemmd-service-bench > build/bench/service.json
	build/bin/cpu_gemm_bench > build/bench/cpu_gemm.json

bundle: ## a folder in build/bundle that runs on another machine, with or without a GPU
	.ci/install-deps build
	cmake --preset release
	cmake --build --preset bundle
	deploy/bundle build/release build/bundle

kernels: ## compile every selectable kernel configuration with NVRTC; fails on spills (needs the CUDA toolkit, no GPU)
	.ci/install-deps build
	cmake --preset release
	cmake --build --preset release --target compile_kernels
	build/release/tests/bin/compile_kernels

format: ## format the sources
	.ci/format

tidy: ## clang-tidy over the sources (after make test)
	.ci/test tidy

asan: ## build and test under AddressSanitizer and UndefinedBehaviorSanitizer
	cmake --workflow --preset asan

tsan: ## build and test under ThreadSanitizer
	cmake --workflow --preset tsan

fuzz: ## build and run the fuzz targets (clang)
	cmake --workflow --preset fuzz

clean: ## remove build/
	rm -rf build

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile
