# Everything a person types. `make test` on a fresh clone needs Python 3.11+, g++, make and pip, nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
# Every pip call takes the constraints, so that nothing moves torch.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
CMAKE  := PATH="$(CURDIR)/$(BIN):$$PATH" cmake
CUDA   ?= AUTO
SECONDS ?= 240
WORKERS ?= 2
# Everything but Ray, whose wheels weigh more than all the others: `make conformance` installs it beside the programs of others.
EXTRAS ?= runtime,export,report,train,serve,grpc,sign
FOREIGN := build/conformance
LIBRARY := lipdeploy/custom_ops_lib/liblipdeploy_ops.so
NATIVE_SOURCES := CMakeLists.txt $(shell find custom_ops -type f)

.PHONY: build venv library wheel sanitize cross fuzz demo demo-fashion results reproduce zoo conformance conformance-ray test check bench docs abi-check clean

build: venv library   ## the virtual environment and the operator library, both where a plain checkout finds them

venv: $(VENV)/.installed

# The install is editable, and CMake stays out of it: the library is built below, straight into the checkout, so
# that `import lipdeploy` from the checkout and from the environment are the same files and the same library.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("lipdeploy needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing dependencies into $(VENV) (a few minutes the first time)"
	$(PIP_INSTALL) -C wheel.cmake=false -e ".[$(EXTRAS),dev]"
	touch $@

library: $(LIBRARY)

$(LIBRARY): $(NATIVE_SOURCES) | venv
	@mkdir -p build
	$(CMAKE) -S . -B build/checkout -G Ninja -DCMAKE_BUILD_TYPE=Release -DLIPDEPLOY_CUDA=$(CUDA) \
	    -DLIPDEPLOY_EMULATED=ON >build/cmake.log 2>&1 || { cat build/cmake.log; exit 1; }
	$(CMAKE) --build build/checkout
	$(CMAKE) --install build/checkout --prefix build/installed >/dev/null
	mkdir -p $(@D)
	mv build/installed/$@ $@  # in one step: somebody may be running the old one
	touch $@

demo: build           ## train, export, verify and certify both kinds of network on scikit-learn's digits
	$(BIN)/python tools/demo.py

demo-fashion: build   ## the same on 60,000 images (Debian's dataset-fashion-mnist, or LIPDEPLOY_DATA)
	$(BIN)/python tools/demo.py --data fashion

results: build        ## docs/results.md: train on MNIST and Fashion-MNIST, prove, certify; goes on where it was stopped
	OMP_NUM_THREADS=1 $(BIN)/python tools/train/results.py

reproduce: build      ## the experiments of the two papers, 1.5 hours of one core, resumable; QUICK=--quick takes minutes
	for words in functions.py "functions.py --published" dual.py classifiers.py denoising.py; do \
	    OMP_NUM_THREADS=1 $(BIN)/python tools/reproduce/$$words $(QUICK) || exit 1; done

zoo: build            ## small trained networks with certificates and cards into zoo/: those that are not there yet
	OMP_NUM_THREADS=1 $(BIN)/python tools/zoo/build.py

conformance-ray: build  ## certify over Ray Data for real, in an environment of its own (Ray's wheels are large)
	test -x build/ray-venv/bin/python || $(PYTHON) -m venv build/ray-venv
	build/ray-venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	    -C wheel.cmake=false -e ".[ray]" hypothesis pytest
	OMP_NUM_THREADS=1 build/ray-venv/bin/python -m pytest -q tests/conformance/ray

conformance: build conformance-ray $(addprefix $(FOREIGN)/,$(addsuffix /.installed,client kserve mlserver triton hosts))  ## others' clients and servers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/conformance --ignore=tests/conformance/ray

# Programs of others, each in an environment of its own: they pin versions that contradict one another.
$(FOREIGN)/%/.installed: tests/conformance/requirements/%.txt constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r $<
	touch $@

test: build $(FOREIGN)/client/.installed  ## the whole suite; the last line is pytest's count
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -q

wheel: venv           ## the wheel of this machine's kind in dist/, tried in a fresh environment without a compiler
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w dist \
	    -C cmake.define.LIPDEPLOY_CUDA=$(CUDA) .
	$(BIN)/python tools/check_wheel.py dist/lipdeploy-*.whl

# The sanitizers must be there before Python is. Leaks are Python's own, and stacks of fibers (the emulator) are not theirs.
# That they would notice: 64 floats out of 16.
READS_TOO_MUCH := 'import ctypes, os; x, y = (ctypes.c_float * 16)(), (ctypes.c_float * 64)(); \
    ctypes.CDLL(os.environ["LIPDEPLOY_OPS_LIBRARY"]).lipdeploy_group_sort_f32_cpu(x, y, *map(ctypes.c_int64, (1, 64, 1, 2, 0, 0)))'
SANITIZED_TESTS := test_cpu or table_of_cases or every_remainder or every_number_of_vectors or addresses_that_no_vector_likes or next_to_every_knot or reach_to_infinity
SANITIZED := LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 PYTHONMALLOC=malloc OMP_NUM_THREADS=1 \
    LIPDEPLOY_OPS_LIBRARY=$(CURDIR)/build/sanitize/liblipdeploy_ops.so

sanitize: venv        ## the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, every instruction set
	@mkdir -p build
	$(CMAKE) -S . -B build/sanitize -G Ninja -DCMAKE_BUILD_TYPE=None -DLIPDEPLOY_CUDA=OFF -DLIPDEPLOY_SANITIZE=ON \
	    >build/cmake.log 2>&1 || { cat build/cmake.log; exit 1; }
	$(CMAKE) --build build/sanitize
	! $(SANITIZED) $(BIN)/python -c $(READS_TOO_MUCH) 2>build/sanitize/expected.txt
	grep -q heap-buffer-overflow build/sanitize/expected.txt
	$(SANITIZED) $(BIN)/python -m pytest -q -p no:cacheprovider tests/ops/test_semantics.py \
	    tests/custom_ops/test_instruction_sets.py tests/custom_ops/test_spline_training.py -k "$(SANITIZED_TESTS)"

# Debian: g++-aarch64-linux-gnu, qemu-user-static. Clang here: make cross CROSS_CXX=clang++ PROCESSOR=x86_64 EMULATOR=
PROCESSOR ?= aarch64
CROSS_CXX ?= aarch64-linux-gnu-g++
EMULATOR  ?= qemu-aarch64-static -L /usr/aarch64-linux-gnu
cross: venv           ## the CPU kernels by another compiler, for another processor, run by its emulator
	@mkdir -p build
	$(CMAKE) -S . -B build/cross/$(PROCESSOR) -G Ninja -DCMAKE_BUILD_TYPE=Release -DLIPDEPLOY_CUDA=OFF -DLIPDEPLOY_PROXY=ON \
	    -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=$(PROCESSOR) -DCMAKE_CXX_COMPILER=$(CROSS_CXX) \
	    >build/cmake.log 2>&1 || { cat build/cmake.log; exit 1; }
	$(CMAKE) --build build/cross/$(PROCESSOR)
	LIPDEPLOY_PROXY="$(EMULATOR) $(CURDIR)/build/cross/$(PROCESSOR)/lipdeploy_ops_proxy" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q \
	    tests/ops/test_semantics.py tests/custom_ops/test_instruction_sets.py tests/custom_ops/test_kernels.py \
	    tests/custom_ops/test_spline_training.py -k "not emulat and not onnxruntime" \
	    --deselect tests/custom_ops/test_spline_training.py::test_no_result_depends_on_the_instruction_set

fuzz: venv            ## coverage-guided fuzzing of the verifier: make fuzz SECONDS=240 (atheris, in an environment of its own)
	test -x build/fuzz-venv/bin/python || $(PYTHON) -m venv build/fuzz-venv
	build/fuzz-venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	    -C wheel.cmake=false -e . atheris
	OMP_NUM_THREADS=1 build/fuzz-venv/bin/python tools/fuzz/verify.py build/fuzz-corpus \
	    -max_total_time=$(SECONDS) -artifact_prefix=build/fuzz-found-

check: venv           ## lint, format, types: under a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/docs.py --check

bench: build          ## every measurement in tools/bench
	for script in tools/bench/*.py; do OMP_NUM_THREADS=1 $(BIN)/python $$script || exit 1; done

docs: build           ## the generated pages
	$(BIN)/python tools/docs.py

abi-check: build      ## the own ABI header against the official one: make abi-check ORT_HEADERS=DIR
	LIPDEPLOY_ORT_HEADERS="$(ORT_HEADERS)" $(BIN)/python -m pytest -q tests/custom_ops/test_abi.py

clean:
	rm -rf build dist out $(VENV) lipdeploy/custom_ops_lib .pytest_cache .mypy_cache .ruff_cache .hypothesis
