// SPDX-License-Identifier: MIT
/// PROCMAP_QUERY: one VMA by address (Linux 6.11).
#pragma once

#include <cstdint>
#include <optional>

#include "vmem/maps.hpp"

namespace vmem {

enum class VmaQuery : std::uint8_t { found, none, failed };

/// `failed` covers everything but an answer: no such ioctl, a recorded file, an error.
/// `or_next`: where no VMA holds the address, the next one above it.
VmaQuery query_vma(const Fd& maps, VirtAddr address, Vma& vma,
                   std::optional<PageSize>& kernel_page_size, bool or_next = false);
/// With maps opened for this one question.
VmaQuery query_vma(const Process& process, VirtAddr address, Vma& vma,
                   std::optional<PageSize>& kernel_page_size, bool or_next = false);

}  // namespace vmem
