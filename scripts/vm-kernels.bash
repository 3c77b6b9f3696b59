# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# Sourced by vmtest: kernels of Debian's suites, unpacked below $cache, and what is built for them. Uses $cache, $arch,
# $update, $build, $work and $top of its.

# Which suite has which kernel.
kernel_suite() {
  case $1 in
    5.10) echo bullseye ;;
    6.1) echo bookworm ;;
    6.12) echo trixie ;;
    newest) echo sid ;;
    *) die "no kernel '$1': 5.10, 6.1, 6.12 or newest" ;;
  esac
}

kernel_root() { printf '%s/kernels/%s-%s' "$cache" "$1" "$arch"; }
kernel_release() { cat "$(kernel_root "$1")/release"; }
kernel_headers() { printf '%s/usr/src/linux-headers-%s' "$(kernel_root "$1")" "$(kernel_release "$1")"; }

# private_apt SUITE PROGRAM ARGUMENT...: apt-get or apt-cache with lists and sources of its own, as if nothing were installed.
private_apt() {
  local suite=$1 program=$2 directory=$cache/apt/$1-$arch
  local mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
  local security=${DEBIAN_SECURITY_MIRROR:-http://deb.debian.org/debian-security}
  local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  shift 2
  if [[ ! -e $directory/sources.list ]]; then
    mkdir -p "$directory"/{state/lists/partial,cache/archives/partial,etc}
    : >"$directory/status"
    {
      printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$suite"
      [[ $suite == sid ]] || printf 'deb [signed-by=%s] %s %s-security main\n' "$keyring" "$security" "$suite"
    } >"$directory/sources.list"
  fi
  "$program" -q \
    -o Dir::State="$directory/state" -o Dir::State::status="$directory/status" -o Dir::Cache="$directory/cache" \
    -o Dir::Etc="$directory/etc" -o Dir::Etc::sourcelist="$directory/sources.list" \
    -o Dir::Etc::preferencesparts=/dev/null -o Dir::Etc::sourceparts=/dev/null \
    -o APT::Architecture="$arch" -o APT::Architectures::="$arch" -o APT::Architectures::="$(dpkg --print-architecture)" \
    -o APT::Sandbox::User=root -o Acquire::Languages=none -o APT::Get::List-Cleanup=0 "$@"
}

# download SUITE PACKAGE...: into the current folder.
download() {
  local suite=$1
  shift
  # A list may have grown older than what the mirror still has.
  private_apt "$suite" apt-get download "$@" >/dev/null 2>&1 || {
    private_apt "$suite" apt-get update >/dev/null
    private_apt "$suite" apt-get download "$@" >/dev/null
  }
}

# Prints the uncompressed kernel that a bzImage holds.
extract_vmlinux() {
  local image=$1 out=$2 magic program offset
  while read -r magic program; do
    while read -r offset; do
      tail -c +$((offset + 1)) "$image" | $program 2>/dev/null >"$out" || true
      [[ $(head -c 4 "$out" | od -An -c | tr -d ' ') == '177ELF' ]] && return
    done < <(LC_ALL=C grep -aboP "$magic" "$image" | LC_ALL=C cut -d: -f1)
  done <<'END'
\x28\xb5\x2f\xfd zstd -dc
\xfd7zXZ\x00 xz -dc
\x1f\x8b\x08 gzip -dc
END
  die "no kernel found in $image"
}

# use_own_libc SUITE ROOT: the programs of linux-kbuild that want a newer C library than this machine's get their suite's.
use_own_libc() {
  local suite=$1 root=$2 program loader
  while read -r program; do
    # A message of the loader's, in place of a list of libraries.
    [[ $(LC_ALL=C ldd "$program" 2>&1) == *"version \`GLIBC_"*"not found"* ]] || continue
    if [[ ! -e $root/libc ]]; then
      (
        mkdir "$root/libc"
        cd "$root/libc"
        download "$suite" "libc6:$(dpkg --print-architecture)"
        dpkg -x libc6_*.deb .
        rm libc6_*.deb
      )
    fi
    loader=$(find "$root/libc" -name 'ld-linux*.so.*' -type f -print -quit)
    [[ -e $program.program ]] || mv "$program" "$program.program"
    # shellcheck disable=SC2016
    printf '#!/bin/sh\nexec %s --library-path %s:%s "$0.program" "$@"\n' "$loader" "$(dirname "$loader")" \
      "/lib/$(gcc -print-multiarch)" >"$program"
    chmod +x "$program"
  done < <(find "$root/usr/lib/" -path '*/linux-kbuild-*' -type f -perm -u+x)
}

# get_kernel VERSION: image, modules and headers, in kernel_root.
get_kernel() {
  local version=$1 suite root packages package release host
  host=$(dpkg --print-architecture)
  suite=$(kernel_suite "$version")
  root=$(kernel_root "$version")
  if [[ -e $root/complete && ! $update ]]; then
    return
  fi
  [[ -e $cache/apt/$suite-$arch/sources.list && ! $update ]] || private_apt "$suite" apt-get update >/dev/null
  # The names hold the ABI's number, which changes: the meta packages lead to them.
  # linux-kbuild is programs: for this machine.
  mapfile -t packages < <(private_apt "$suite" apt-cache depends --recurse --no-pre-depends --no-recommends \
    --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "linux-image-$arch" "linux-headers-$arch" |
    sed -n "/-unsigned/d; s/^linux-kbuild-[0-9][^:]*\$/&:$host/p; /^linux-\(base\|image\|binary\|modules\|headers\)-[0-9]/p" |
    sort -u)
  ((${#packages[@]} > 2)) || die "$suite has no linux-image-$arch and linux-headers-$arch"
  if [[ $(cat "$root/complete" 2>/dev/null) == "${packages[*]}" ]]; then
    return
  fi

  printf 'getting %s\n' "${packages[*]}"
  rm -rf "$root"
  mkdir -p "$root/debs"
  (
    cd "$root/debs"
    download "$suite" "${packages[@]}"
    for package in *.deb; do dpkg -x "$package" ..; done
  )
  rm -r "$root/debs"
  # From 6.13 or so on all is below /usr.
  [[ ! -d $root/usr/lib/modules || -e $root/lib ]] || ln -s usr/lib "$root/lib"
  release=$(basename "$(echo "$root"/lib/modules/*)")
  printf '%s\n' "$release" >"$root/release"
  [[ -e $root/lib/modules/$release/vmlinuz ]] || ln -sr "$root/boot/vmlinuz-$release" "$root/lib/modules/$release/vmlinuz"
  depmod -b "$root" "$release"
  use_own_libc "$suite" "$root"
  sed -i "s,/usr/src/,$root&,g" "$(kernel_headers "$version")/Makefile"
  [[ $arch != amd64 ]] || extract_vmlinux "$root/lib/modules/$release/vmlinuz" "$root/vmlinux"
  printf '%s\n' "${packages[*]}" >"$root/complete"
}

# Where build_modules VERSION puts the modules of SOURCE (kmod, tests/vm/modules).
modules_folder() { printf '%s/build/%s-%s/%s' "$cache" "$1" "$arch" "$2"; }

# build_modules VERSION SOURCE: all that SOURCE/Kbuild names.
build_modules() {
  local source=$2 folder file options log=$work/$1.make
  folder=$(modules_folder "$1" "$source")
  mkdir -p "$folder"
  # Kbuild builds where the sources are. Only what differs is copied: what is not older than its object is built again.
  while read -r file; do
    cmp -s "$source/$file" "$folder/$file" || install -D -m 644 "$source/$file" "$folder/$file"
  done < <(cd "$source" && find . -type f \( -name '*.[ch]' -o -name Kbuild -o -name Makefile \))
  rm -f "$folder"/*.ko
  options=(-C "$(kernel_headers "$1")" "M=$folder" CONFIG_DEBUG_INFO_BTF_MODULES=)
  case $arch in
    amd64) options+=(CC=gcc) ;;
    arm64) options+=(ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- CC=aarch64-linux-gnu-gcc) ;;
  esac
  # The kernels of later suites were built by compilers with an option that GCC 12 has not.
  gcc -fmin-function-alignment=16 -E -x c /dev/null >/dev/null 2>&1 || options+=(CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=)
  # Sparse knows the headers of the kernel it is of an age with.
  [[ $1-$arch != 6.1-amd64 ]] || options+=(C=1)
  make "${options[@]}" modules >"$log" 2>&1 || {
    cat "$log" >&2
    die "the modules do not build for $(kernel_release "$1")"
  }
  # The headers' own warnings name them by absolute paths.
  if grep -E "^($folder/)?[a-z_]+\.[ch]:[0-9].*warning:" "$log" >&2; then
    die "warnings for $(kernel_release "$1")"
  fi
}

# The folders of our own modules: the project's, and those that only tests need.
module_sources=(kmod tests/vm/modules)

# Kernel modules that tests want, beside those they depend on: for PCI devices, swap, a file system, RDMA and DMA buffers.
guest_modules=(uio_pci_generic uio_cif vfio-pci zram lzo-rle ext4 crc32_generic rdma_rxe dummy vgem cirrus bochs)

# add_rdma TREE: into an initramfs, the programs and libraries of this machine's for soft RoCE. They are not static:
# libibverbs opens its drivers at run time.
add_rdma() {
  local tree=$1 program library folder file
  local programs=("$build/tests/support/planted")
  for program in ibv_rc_pingpong rdma; do
    file=$(PATH=$PATH:/usr/sbin:/sbin command -v "$program") || die "no $program: scripts/install-deps --vm"
    programs+=("$file")
  done
  folder=/usr/lib/$(gcc -print-multiarch)/libibverbs
  for program in "${programs[@]}"; do cp -L "$program" "$tree/bin/"; done
  for program in "${programs[@]}" "$folder"/librxe-*.so; do
    while read -r library; do
      mkdir -p "$tree$(dirname "$library")"
      cp -L "$library" "$tree$library"
    done < <(ldd "$program" | sed -n 's/.*\(\s\|=> \)\(\/[^ ]*\) (0x.*/\2/p')
  done
  mkdir -p "$tree$folder" "$tree/etc/libibverbs.d"
  cp -L "$folder"/librxe-*.so "$tree$folder/"
  cp /etc/libibverbs.d/rxe.driver "$tree/etc/libibverbs.d/"
}

# build_programs: the tests, what they start, and the tools, static.
build_programs() {
  local cross=() wanted=(vmem-tools)
  case $arch in
    amd64) build=${build:-build/dev} ;;
    arm64)
      # regaudit's libnl would have to be arm64's.
      wanted=(vtop mapcheck vmastat)
      build=${build:-build/arm64}
      # Of fmt only headers are used, which are the same for all.
      cross=("-Dfmt_DIR=/usr/lib/$(gcc -print-multiarch)/cmake/fmt" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
        -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++)
      ;;
  esac
  if [[ $build == build/dev ]]; then
    cmake --preset dev "${launcher[@]}" >/dev/null
  elif [[ ! -e $build/CMakeCache.txt ]]; then
    cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Debug "-DCMAKE_CXX_FLAGS_DEBUG=-O1 -g" "${launcher[@]}" "${cross[@]}" \
      >/dev/null
  fi
  [[ $arch != amd64 ]] || wanted+=(planted)
  cmake --build "$build" --target vmem-vm "${wanted[@]}" memory-kinds plain-pagemap
  local program tools strip=strip
  [[ $arch != arm64 ]] || strip=aarch64-linux-gnu-strip
  mkdir -p "$work/bin"
  mapfile -t tools < <(find "$build/tools" -maxdepth 1 -type f -perm -u+x)
  for program in "$build"/tests/{vmem-vm,support/memory-kinds,support/plain-pagemap} "${tools[@]}"; do
    "$strip" -o "$work/bin/$(basename "$program")" "$program"
  done
}

# make_initramfs VERSION: $work/VERSION.cpio.
make_initramfs() {
  local version=$1 release root tree module file
  root=$(kernel_root "$version")
  release=$(kernel_release "$version")
  tree=$work/$version.tree
  mkdir -p "$tree"/{bin,sbin,dev,proc,sys,tmp,etc,root} "$tree/lib/modules/$release/vmem"
  ln -s bin "$tree/usr-bin"
  if [[ ! -e $cache/busybox-$arch/bin/busybox ]]; then
    (
      mkdir -p "$cache/busybox-$arch"
      cd "$cache/busybox-$arch"
      download bookworm "busybox-static:$arch"
      dpkg -x busybox-static_*.deb .
      rm busybox-static_*.deb
    )
  fi
  cp "$cache/busybox-$arch/bin/busybox" "$tree/bin/"
  cp "$work"/bin/* "$tree/bin/"
  cp tests/vm/init "$tree/init"
  [[ $arch != amd64 ]] || add_rdma "$tree"
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n' >"$tree/etc/passwd"
  for module in "${module_sources[@]}"; do
    cp "$(modules_folder "$version" "$module")"/*.ko "$tree/lib/modules/$release/vmem/"
  done
  for module in "${guest_modules[@]}"; do
    # A kernel without it: the tests that want it say so.
    while read -r _ file _; do
      [[ $file == /* ]] || continue
      case $file in
        *.xz) xz -dc "$file" >"$tree/lib/modules/$release/$(basename "${file%.xz}")" ;;
        *.zst) zstd -qdc "$file" >"$tree/lib/modules/$release/$(basename "${file%.zst}")" ;;
        *) cp "$file" "$tree/lib/modules/$release/" ;;
      esac
    done < <(modprobe -d "$root" -S "$release" --show-depends "$module" 2>/dev/null || true)
  done
  cp "$root/lib/modules/$release"/modules.{builtin,builtin.modinfo,order} "$tree/lib/modules/$release/"
  depmod -b "$tree" "$release"
  rm "$tree/usr-bin"
  (cd "$tree" && find . -print0 | cpio --null --quiet -o -H newc -R 0:0) >"$work/$version.cpio"
}
