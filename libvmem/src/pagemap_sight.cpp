// SPDX-License-Identifier: MIT
#include "pagemap_sight.hpp"

#include <sys/ioctl.h>

#include <utility>

#include "pagemap_scan.hpp"

namespace vmem {

PagemapSight::Answer PagemapSight::ask(const Process& process, VirtAddr page) {
  if (refused_ || process.root().recorded()) return Answer::cannot_tell;
  if (!pagemap_.valid()) {
    auto opened = process.open_file("pagemap");
    if (!opened) {
      refused_ = true;
      return Answer::cannot_tell;
    }
    pagemap_ = std::move(*opened);
  }
  pagemap::ScanRegion region{};
  pagemap::ScanArgument argument{};
  argument.size = sizeof argument;
  argument.start = page.value;
  argument.end = page.value + process.root().page_size().bytes();
  argument.vec = reinterpret_cast<std::uintptr_t>(&region);
  argument.vec_len = 1;
  argument.return_mask = pagemap::page_is_present;
  const int regions = ioctl(pagemap_.get(), pagemap::scan_request, &argument);
  if (regions < 0) {
    refused_ = true;
    return Answer::cannot_tell;
  }
  return regions == 0 ? Answer::blind : Answer::sighted;
}

}  // namespace vmem
