# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# Sourced by vmtest: the virtual machines, and one boot of one. Uses $arch, $work, $timeout, $environment and $run of its. Only
# software emulation: the same everywhere, and nothing of the host's processor shows.

# tests/vm/README.md says what each is for.
case $arch in
  amd64) machines=(fast pc pti iommu smp lockdown) ;;
  arm64) machines=(fast smp) ;;
esac

# What is never mapped by the kernel itself: the reference driver's two windows.
windows='memmap=128M$0x90000000'

# qemu_command KERNEL MACHINE: sets `qemu`.
qemu_command() {
  local root append='loglevel=2 panic=-1 oops=panic cryptomgr.notests rcupdate.rcu_cpu_stall_suppress=1'
  root=$(kernel_root "$1")
  append+=" vmtest.kernel=$1 vmtest.machine=$2"
  if [[ $arch == arm64 ]]; then
    # memmap= is x86's. The kernel leaves what is behind mem= alone.
    qemu=(qemu-system-aarch64 -machine virt -cpu cortex-a72 -accel tcg -m 2G
      -kernel "$root/lib/modules/$(kernel_release "$1")/vmlinuz" -append "$append console=ttyAMA0 mem=1280M")
  else
    qemu=(qemu-system-x86_64 -accel tcg -cpu max -m 3G -device "isa-debug-exit,iobase=0xf4,iosize=0x4")
    # Emulated timers come too late on a busy host for the kernel's trial of them.
    append+=" console=ttyS0 no_timer_check $windows"
    case $2 in
      fast | pti | smp | lockdown)
        # An ELF kernel starts without unpacking itself, but at a fixed address and with four levels.
        qemu+=(-machine pc -kernel "$root/vmlinux")
        # Two graphics cards whose drivers export buffers.
        [[ $2 != smp && $2 != lockdown ]] || qemu+=(-vga cirrus -device bochs-display)
        ;;
      pc)
        # Unpacks itself to a random address, and uses five levels where it was built for them.
        qemu+=(-machine pc -kernel "$root/lib/modules/$(kernel_release "$1")/vmlinuz"
          -object memory-backend-memfd,id=shared,size=16M,share=on -device ivshmem-plain,memdev=shared
          -device edu)
        ;;
      iommu)
        append+=' intel_iommu=on'
        qemu+=(-machine q35,kernel-irqchip=split -kernel "$root/lib/modules/$(kernel_release "$1")/vmlinuz"
          -device intel-iommu,intremap=on,caching-mode=on
          -object memory-backend-memfd,id=shared,size=16M,share=on -device ivshmem-plain,memdev=shared
          -device edu)
        ;;
    esac
    [[ $2 != lockdown ]] || append+=' lockdown=confidentiality'
    if [[ $2 == pti ]]; then append+=' pti=on'; else append+=' mitigations=off'; fi
    qemu+=(-append "$append")
  fi
  local processors=1
  [[ $2 != smp ]] || processors=2
  qemu+=(-smp "$processors" -display none -no-reboot -net none -serial stdio -monitor none)
}

# boot KERNEL MACHINE: one machine, from power-on to the end of its tests or of $run. Its console goes to
# $work/KERNEL-MACHINE.console, its result to .console.status and why to .console.why. Returns the result.
boot() {
  local console=$work/$1-$2.console tree=$work/$1-$2.extra status=0 why=ok result
  mkdir -p "$tree"
  # The kernel takes several archives, one after the other.
  if ((${#run[@]})); then
    printf '%q ' "${run[@]}" >"$tree/command"
  else
    tests_for "$2" "$1" >"$tree/tests"
  fi
  ((${#environment[@]} == 0)) || printf 'export %q\n' "${environment[@]}" >"$tree/environment"
  (cd "$tree" && find . -print0 | cpio --null --quiet -o -H newc -R 0:0) >"$tree.cpio"
  cat "$work/$1.cpio" "$tree.cpio" >"$tree.initramfs"
  qemu_command "$1" "$2"
  # In the background and waited for, so that a signal to vmtest is heard at once; it ends what .pid names.
  timeout --kill-after=5 "$timeout" "${qemu[@]}" -initrd "$tree.initramfs" </dev/null >"$console" 2>"$console.qemu" &
  printf '%s\n' $! >"$console.pid"
  wait $! || status=$?
  rm "$tree.initramfs" "$console.pid"

  # The guest says its result on the console and, on x86, through the debug-exit port: N is status 2N + 1. A kernel that is
  # locked down keeps it from the port.
  result=$(tr -d '\r' <"$console" | sed -n 's/^vmtest: result //p' | tail -n 1)
  if [[ $status == 124 || $status == 137 ]]; then
    why="hung: ended after $timeout s" status=2
  elif ! grep -aq '^vmtest: up ' "$console"; then
    why="did not come up: $(tail -n 3 "$console.qemu" | tr '\n' ' ')" status=2
  elif [[ ! $result ]]; then
    why='crashed, or was switched off' status=2
  elif [[ $arch == amd64 && $2 != lockdown && $status != $((2 * (result + 16) + 1)) ]]; then
    why="said $result, but QEMU ended with $status" status=2
  else
    status=$result
    ((status == 0)) || why="result $status"
  fi
  printf '%s\n' "$why" >"$console.why"
  printf '%s\n' "$status" >"$console.status"
  return "$status"
}

# What a console holds from the start of the guest's first program on; all of it if that never ran.
guest_output() {
  tr -d '\r' <"$1" | sed -n '/^vmtest: up /,$p' | grep -av '^vmtest: \(up\|result\)' ||
    tail -n 50 "$1" "$1.qemu"
}
