// SPDX-License-Identifier: MIT
#include "backends.hpp"

namespace vmem {

Result<std::unique_ptr<Translator>> open_kmod(const Process&) {
  return std::unexpected(Error{.code = Errc::not_supported,
                               .what = "backend kmod",
                               .path = {},
                               .hint = "this version has no kernel module"});
}

}  // namespace vmem
