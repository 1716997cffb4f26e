#!/bin/sh
# Makes .venv with what is pinned for this machine: `install.sh` for running, `install.sh test` with the test tools too.
set -eu
cd "$(dirname "$0")/.."
want=${1:-run}
say() { printf '%s\n' "rlsys install: $*"; }
fail() { printf '%s\n' "rlsys install: $*" >&2; exit 1; }

python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3.12 python3.11 python3; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
fi
[ -n "$python" ] || fail "needs Python 3.11 or 3.12, found $(python3 --version 2>&1 || echo none); install one, or name it: make install PYTHON=/path/to/python3.12"
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null ||
    fail "needs Python 3.11 or 3.12, and $python is $("$python" --version 2>/dev/null || echo missing); name another: make install PYTHON=/path/to/python3.12"
command -v c++ >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 ||
    fail "needs a C++ compiler (DeepSpeed and vLLM compile small kernels) and found neither c++ nor g++; install g++ (Debian: apt-get install g++)"

kind=cpu
need_gib=6
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
    kind=gpu
    need_gib=20
fi
stamp=.venv/.installed-$want-$(cat requirements/$kind.txt requirements/test.txt requirements/*/pyproject.toml pyproject.toml "$0" | cksum | cut -d' ' -f1)
[ -f "$stamp" ] && exit 0

headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include", "posix_prefix"))')
[ -f "$headers/Python.h" ] ||
    fail "needs Python's headers (DeepSpeed and Triton compile against them) and found no $headers/Python.h; install them (Debian: apt-get install ${headers##*/}-dev)"
if [ $kind = gpu ]; then
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null || true)
    driver=${driver%%[!0-9.]*}
    # A version that is no number passes: some virtual GPUs tell none.
    ! [ "${driver%%.*}" -lt 580 ] 2>/dev/null ||
        fail "torch is built for CUDA 13, which needs NVIDIA driver 580 or newer, and nvidia-smi reports $driver; update the driver, or hide the GPUs for CPU: mkdir hidden && ln -s /bin/false hidden/nvidia-smi && export PATH=\$PWD/hidden:\$PATH CUDA_VISIBLE_DEVICES="
else
    "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
        fail "needs libnuma.so.1 (vLLM's CPU kernels are linked against it) and found none; install it (Debian: apt-get install libnuma1)"
fi
free_gib=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
[ "$free_gib" -ge "$need_gib" ] || [ -x .venv/bin/rlsys ] ||
    fail "needs $need_gib GiB of free disk in $(pwd) and found $free_gib GiB; free some, or clone to another disk"

say "installing the pinned $kind packages into .venv with $("$python" --version) (about 4 minutes the first time)"
# Not whether .venv/bin/python is there: a creation that was interrupted leaves it without pip.
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv ||
    fail "could not make .venv with $python; on Debian install python3-venv"
pip() { .venv/bin/python -m pip --quiet --disable-pip-version-check install "$@"; }
need() { pip "$@" || fail "pip could not install $*: see above (network? index?); then give the same command again"; }
if [ $kind = gpu ]; then
    need -r requirements/gpu.txt
    [ "$want" = run ] || need -c requirements/gpu.txt -r requirements/test.txt
else
    # The CPU build where the configured index has it, else the default build, which also runs without a GPU.
    pip torch==2.13.0+cpu 2>/dev/null || need torch==2.13.0
    need --no-deps -r requirements/cpu.txt
    need --no-deps --no-build-isolation requirements/vllm-alias
    [ "$want" = run ] || need --no-deps -r requirements/test.txt
fi
need --no-deps --no-build-isolation -e .
if [ $kind = cpu ]; then
    say "compiling DeepSpeed's CPU collectives (about 40 seconds the first time)"
    DS_ACCELERATOR=cpu .venv/bin/python -c 'from rlsys.models.extensions import load_cpu_collectives as load; load(timeout_s=600)' >/dev/null ||
        fail "DeepSpeed's CPU collectives did not compile; see above"
fi
rm -f .venv/.installed-"$want"-*
touch "$stamp"
say "done: .venv/bin/rlsys"
