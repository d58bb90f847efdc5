# shellcheck shell=bash
# Set-up that the scripts share; sourced by them, from the top folder. Works on Debian 12 and Ubuntu 24.04.

# shellcheck disable=SC2034 # the scripts that source this use it
build_packages=(build-essential cmake ninja-build pkg-config ccache libcli11-dev nlohmann-json3-dev libspdlog-dev
  libfmt-dev libstb-dev catch2 libopenblas-dev libicu-dev libssl-dev libxxhash-dev libturbojpeg0-dev libwebp-dev
  libyaml-cpp-dev libtoml11-dev python3)

cuda_options=() # of the next configure_and_build

# Clones in different folders share what ccache keeps.
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1

say() { printf '\n== %s\n' "$*"; }

# Installs those of the named packages that are missing; does nothing, and needs no rights, where none is.
need_packages() {
  local package missing=()
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing ${missing[*]}"
  local as_root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "run this as root, or install sudo" >&2; return 1; }
    as_root=(sudo)
  fi
  # A lock held by the system's own updates is waited for.
  "${as_root[@]}" apt-get -o DPkg::Lock::Timeout=300 -qq update
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -o DPkg::Lock::Timeout=300 -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
}

# configure_and_build PRESET [TARGET...]: into build/PRESET. What CMake finds is shown only where it fails.
configure_and_build() {
  local preset=$1 log
  shift
  say "building $preset in build/$preset"
  log=$(cmake --preset "$preset" "${cuda_options[@]}" 2>&1) || { printf '%s\n' "$log"; return 1; }
  cmake --build "build/$preset" ${1:+--target "$@"}
}

# Says whether the CUDA backend is built, and sets the CMake options that decide it: for this machine's own GPU, or,
# where there is none, for one architecture, to see that the code compiles.
choose_cuda() {
  cuda_options=(-DSQUAREQ_CUDA=AUTO)
  if ! command -v nvcc >/dev/null && [ ! -x /usr/local/cuda/bin/nvcc ]; then
    echo "nvcc not found: built without the CUDA backend"
  elif nvidia-smi >/dev/null 2>&1; then
    echo "nvcc and a GPU found: built with the CUDA backend for this GPU"
    cuda_options+=(-DCMAKE_CUDA_ARCHITECTURES=native)
  else
    echo "nvcc found, but no GPU: the CUDA backend is compiled for sm_90a and its tests are skipped"
    cuda_options+=(-DCMAKE_CUDA_ARCHITECTURES=90a-real)
  fi
}
