// SPDX-License-Identifier: MIT
/// Paths under which drivers offer memory to map.
#pragma once

#include <cstdint>
#include <string_view>

#include "vmem/maps.hpp"

namespace vmem {

enum class DevicePath : std::uint8_t { none, pci, uio, vfio, mem, gpu, rdma, dax, other };

inline DevicePath device_path(std::string_view path) {
  // sysfs resourceN and resourceN_wc (Documentation/PCI/sysfs-pci.rst), and the older
  // /proc/bus/pci/BUS/DEV.FN.
  if (path.starts_with("/sys/")) {
    const std::string_view file = path.substr(path.rfind('/') + 1);
    if (file.starts_with("resource") && file.size() > 8 && file[8] >= '0' && file[8] <= '9') {
      return DevicePath::pci;
    }
    return DevicePath::none;
  }
  if (path.starts_with("/proc/bus/pci/")) return DevicePath::pci;
  if (!path.starts_with("/dev/")) return DevicePath::none;
  const std::string_view name = path.substr(5);
  if (name.starts_with("uio")) return DevicePath::uio;
  if (name.starts_with("vfio/")) return DevicePath::vfio;
  if (name == "mem" || name == "kmem" || name == "mem (deleted)") return DevicePath::mem;
  if (name.starts_with("dri/") || name.starts_with("nvidia") || name == "kfd" ||
      name.starts_with("mali") || name.starts_with("kgsl") || name.starts_with("pvr")) {
    return DevicePath::gpu;
  }
  if (name.starts_with("infiniband/")) return DevicePath::rdma;
  if (name.starts_with("dax")) return DevicePath::dax;
  return DevicePath::other;
}

/// Whether path and filesystem say that a driver is behind the mapping, where the file
/// itself could not be looked at. What is mounted below /dev for files is not a device.
inline bool looks_like_device(const Vma& vma, const VmaFacts& facts) {
  const DevicePath kind = device_path(vma.path);
  if (kind == DevicePath::none) return facts.filesystem == "devtmpfs";
  if (kind == DevicePath::pci) {
    return !facts.filesystem || facts.filesystem == "sysfs" || facts.filesystem == "proc";
  }
  if (vma.path.starts_with("/dev/shm/") || vma.path.starts_with("/dev/hugepages/") ||
      vma.path.starts_with("/dev/mqueue/") || vma.path.starts_with("/dev/__properties__/")) {
    return false;  // the last: Android's property files, on a tmpfs
  }
  // /dev is a devtmpfs, or a tmpfs in a container.
  return !facts.filesystem || facts.filesystem == "devtmpfs" || facts.filesystem == "tmpfs";
}

/// Whether no file is mapped: memory that nobody but the kernel has given a name, if it has one.
inline bool without_file(const Vma& vma) {
  return vma.inode == 0 && (vma.path.empty() || vma.path == "[heap]" ||
                            vma.path.starts_with("[stack") || vma.path.starts_with("[anon"));
}

}  // namespace vmem
