# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2034
# Sourced by the scripts beside it, after `set -euo pipefail`.

top=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
name=$(basename -- "$0")
jobs=$(nproc)
export CMAKE_BUILD_PARALLEL_LEVEL=$jobs

die() {
  printf '%s: %s\n' "$name" "$*" >&2
  exit 2
}

step() { printf '\n== %s\n' "$*"; }

# The comment at the head of the script is its help.
help() {
  sed -n '4,/^[^#]/ { s/^# \{0,1\}//p; }' "$0"
  exit 0
}

# ccache where there is one; of another clone it knows what it has compiled here.
export CCACHE_BASEDIR=$top CCACHE_NOHASHDIR=1
launcher=()
if command -v ccache >/dev/null; then
  launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
fi

# Whether this user is shown page frame numbers: one present page of our own, asked of the kernel.
sees_pfns() {
  local page_size end entry
  page_size=$(getconf PAGESIZE)
  end=$(sed -n 's/^[0-9a-f]*-\([0-9a-f]*\) .*\[stack\]$/\1/p' /proc/$$/maps)
  # dd seeks; od -j would read its way there, for hours: a file of /proc says its size is 0.
  entry=$(dd if=/proc/$$/pagemap bs=8 skip=$((0x$end / page_size - 1)) count=1 status=none 2>/dev/null |
    od -An -v -t u8)
  [[ $entry ]] || return 1
  ((entry & 0x7fffffffffffff))
}
