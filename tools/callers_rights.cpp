// SPDX-License-Identifier: MIT
#include "callers_rights.hpp"

#include <fcntl.h>
#include <linux/capability.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace vmem::tools {
namespace {

struct Capabilities {
  std::uint64_t effective = 0, permitted = 0, inheritable = 0;
};

bool get(Capabilities& all) {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2];
  if (syscall(SYS_capget, &header, data) != 0) return false;
  const auto both = [&](__u32 __user_cap_data_struct::* set) {
    return std::uint64_t{data[1].*set} << 32 | data[0].*set;
  };
  all = {both(&__user_cap_data_struct::effective), both(&__user_cap_data_struct::permitted),
         both(&__user_cap_data_struct::inheritable)};
  return true;
}

bool set(const Capabilities& all) {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2];
  for (unsigned i = 0; i < 2; ++i) {
    data[i].effective = static_cast<__u32>(all.effective >> (32 * i));
    data[i].permitted = static_cast<__u32>(all.permitted >> (32 * i));
    data[i].inheritable = static_cast<__u32>(all.inheritable >> (32 * i));
  }
  return syscall(SYS_capset, &header, data) == 0;
}

}  // namespace

/// What the caller had itself, as it was at the start: root everything, others the ambient set,
/// which execve(2) clears where the file gives any.
std::uint64_t callers_capabilities() {
  static const std::uint64_t own = [] {
    if (getuid() == 0) return ~std::uint64_t{0};
    std::uint64_t ambient = 0;
    for (unsigned n = 0; n < 64; ++n) {
      if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, n, 0, 0) == 1)
        ambient |= std::uint64_t{1} << n;
    }
    return ambient;
  }();
  return own;
}

CallersRights::CallersRights() {
  Capabilities all;
  if (!get(all)) {
    had_ = false;
    return;
  }
  effective_ = all.effective;
  // Of set-user-ID and set-group-ID. The kernel takes root's capabilities for files away with its
  // user ID, and gives them back.
  if (geteuid() != getuid() || getegid() != getgid()) {
    lowered_ = true;
    setfsgid(getgid());
    setfsuid(getuid());
  }
  if ((all.effective & ~callers_capabilities()) == 0) return;
  lowered_ = true;
  all.effective &= callers_capabilities();
  had_ = set(all);
}

CallersRights::~CallersRights() {
  if (!lowered_) return;
  const int error = errno;
  setfsuid(geteuid());
  setfsgid(getegid());
  Capabilities all;
  if (get(all)) {
    all.effective = effective_;
    (void)set(all);
  }
  errno = error;
}

void CallersRights::keep() {
  Capabilities all;
  if (!lowered_ || !get(all)) return;
  lowered_ = false;
  all.permitted &= callers_capabilities();
  all.effective &= all.permitted;
  had_ = set(all) && had_;
}

int open_as_caller(const char* path, int flags, unsigned mode) {
  const CallersRights rights;
  return rights.had() ? open(path, flags, mode) : -1;
}

}  // namespace vmem::tools
