// SPDX-License-Identifier: MIT
#include "vma_query.hpp"

#include <sys/ioctl.h>

#include <cerrno>
#include <climits>

namespace vmem {
namespace {

// struct procmap_query of include/uapi/linux/fs.h, which older headers lack.
struct ProcmapQuery {
  std::uint64_t size, query_flags, query_addr;
  std::uint64_t vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode;
  std::uint32_t dev_major, dev_minor, vma_name_size, build_id_size;
  std::uint64_t vma_name_addr, build_id_addr;
};
static_assert(sizeof(ProcmapQuery) == 104);
constexpr unsigned long procmap_query = _IOWR('f', 17, ProcmapQuery);
static_assert(procmap_query == 0xc0686611);

}  // namespace

VmaQuery query_vma(const Process& process, VirtAddr address, Vma& vma,
                   std::optional<PageSize>& kernel_page_size, bool or_next) {
  const auto maps = process.open_file("maps");
  if (maps) return query_vma(*maps, address, vma, kernel_page_size, or_next);
  kernel_page_size.reset();
  return VmaQuery::failed;
}

VmaQuery query_vma(const Fd& maps, VirtAddr address, Vma& vma,
                   std::optional<PageSize>& kernel_page_size, bool or_next) {
  kernel_page_size.reset();
  char name[PATH_MAX + 64];  // "[anon:...]" and " (deleted)" come on top of a path
  ProcmapQuery query{};
  query.size = sizeof query;
  query.query_flags = or_next ? 0x10 : 0;  // PROCMAP_QUERY_COVERING_OR_NEXT_VMA
  query.query_addr = address.value;
  query.vma_name_addr = reinterpret_cast<std::uintptr_t>(name);
  query.vma_name_size = sizeof name;
  if (ioctl(maps.get(), procmap_query, &query) != 0) {
    return errno == ENOENT ? VmaQuery::none : VmaQuery::failed;
  }
  if (PageSize::valid(query.vma_page_size)) kernel_page_size = PageSize{query.vma_page_size};
  vma.range = {{query.vma_start}, {query.vma_end}};
  vma.readable = (query.vma_flags & 1) != 0;
  vma.writable = (query.vma_flags & 2) != 0;
  vma.executable = (query.vma_flags & 4) != 0;
  vma.shared = (query.vma_flags & 8) != 0;
  vma.offset = query.vma_offset;
  vma.dev_major = query.dev_major;
  vma.dev_minor = query.dev_minor;
  vma.inode = query.inode;
  // The size counts the terminating NUL; the name is not escaped here.
  vma.path.assign(name, query.vma_name_size > 0 ? query.vma_name_size - 1 : 0);
  return VmaQuery::found;
}

}  // namespace vmem
