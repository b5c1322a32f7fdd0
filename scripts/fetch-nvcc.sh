#!/usr/bin/env bash
# Makes sure of an nvcc: $NVCC, $CUDA_HOME/bin/nvcc, one on PATH, or the pinned one of .nvcc/, which is fetched from PyPI
# (about 100 MB) where there is none. Without a network the build goes on without kernels for GPUs; under CI=true that
# is a failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-nvvm==13.0.88        # its optimiser and libdevice
    nvidia-cuda-crt==13.0.88    # headers
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
    nvidia-cuda-cuobjdump==13.2.86 # by which tests read the machine code
    nvidia-cuda-nvdisasm==13.2.86
)
stamp=.nvcc/fetched
wanted="${packages[*]}"

# build.rs takes them in this order, from release 12.8 on.
for nvcc in "${NVCC:-}" "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" nvcc; do
    if [ -n "$nvcc" ] && "$nvcc" --version 2>/dev/null | grep -qE 'release (12\.([89]|[1-9][0-9])|1[3-9]\.|[2-9][0-9])'; then
        exit 0
    fi
done
[ -f $stamp ] && [ "$(cat $stamp)" = "$wanted" ] && exit 0

echo "fetching nvcc from PyPI into .nvcc/"
rm -rf .nvcc
if ! python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --target .nvcc "${packages[@]}"; then
    rm -rf .nvcc
    echo "nvcc could not be fetched: the build will have no kernels for GPUs, and tests leave their machine code out" >&2
    [ -z "${CI:-}" ] || exit 1
    exit 0
fi
chmod +x .nvcc/nvidia/cu13/bin/* .nvcc/nvidia/cu13/nvvm/bin/*
echo "$wanted" >$stamp
# The next build looks for nvcc again.
touch build.rs
