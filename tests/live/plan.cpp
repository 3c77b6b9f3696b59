// SPDX-License-Identifier: MIT
// regaudit plan against the kernel's own answer: io_uring pins the buffers that are registered with
// it by the same means as RDMA (FOLL_LONGTERM, for writing).
#include <fcntl.h>
#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <array>

#include "live/children.hpp"
#include "live/oracle.hpp"
#include "support/tool.hpp"

using namespace vmem::test;

namespace {

constexpr std::size_t page = 4096, bytes = 4 * page;

/// What plan must call it, and how it is made; empty: it can be registered.
struct Kind {
  const char* name;
  const char* reason;
  void* (*make)();
};

void* map(int protection, int flags, int fd, std::size_t file_pages) {
  if (fd >= 0 && ftruncate(fd, static_cast<off_t>(file_pages * page)) != 0) _exit(1);
  void* const at = mmap(nullptr, bytes, protection, flags, fd, 0);
  if (at == MAP_FAILED) _exit(1);
  return at;
}

void* memory(int protection) { return map(protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }
int memfd() { return memfd_create("plan", MFD_CLOEXEC); }
int on_disk() { return open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600); }

constexpr int rw = PROT_READ | PROT_WRITE;

const std::array<Kind, 10> kinds = {{
    {"anonymous", "", [] { return memory(rw); }},
    {"no access", "not-registrable", [] { return memory(PROT_NONE); }},
    {"read-only", "not-registrable", [] { return memory(PROT_READ); }},
    {"with a hole", "unmapped",
     [] {
       void* const at = memory(rw);
       munmap(static_cast<char*>(at) + page, page);
       return at;
     }},
    {"memfd", "", [] { return map(rw, MAP_SHARED, memfd(), 4); }},
    {"memfd, too short", "beyond-eof", [] { return map(rw, MAP_SHARED, memfd(), 3); }},
    {"file", "no-longterm-pin", [] { return map(rw, MAP_SHARED, on_disk(), 4); }},
    {"file, private", "", [] { return map(rw, MAP_PRIVATE, on_disk(), 4); }},
    {"file, private, too short", "beyond-eof", [] { return map(rw, MAP_PRIVATE, on_disk(), 1); }},
    {"file, private, empty", "beyond-eof", [] { return map(rw, MAP_PRIVATE, on_disk(), 0); }},
}};

struct Told {
  int ring_error;
  struct {
    std::uint64_t address;  ///< of one that nobody has touched
    int error;  ///< of registering another like it
  } of[kinds.size()];
};

}  // namespace

TEST_CASE("plan: says beforehand, with the reason, what the kernel will not pin") {
  if (!shown_pfns() || geteuid() != 0) return skip_or_fail("pfn", "needs root");
  auto* const told = static_cast<Told*>(
      mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  const Child child = fork_child([&](const std::function<void()>& ready) {
    io_uring_params params{};
    const auto ring = static_cast<int>(syscall(SYS_io_uring_setup, 1, &params));
    told->ring_error = ring < 0 ? errno : 0;
    for (std::size_t i = 0; ring >= 0 && i < kinds.size(); ++i) {
      iovec buffer{kinds[i].make(), bytes};
      if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &buffer, 1) != 0)
        told->of[i].error = errno;
      else
        syscall(SYS_io_uring_register, ring, IORING_UNREGISTER_BUFFERS, nullptr, 0);
      told->of[i].address = reinterpret_cast<std::uint64_t>(kinds[i].make());
    }
    ready();
    wait_for_ever();
  });
  if (told->ring_error != 0) return skip_or_fail("io_uring", std::strerror(told->ring_error));
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    char range[64];
    (void)std::snprintf(range, sizeof range, "%llx+%zu",
                        static_cast<unsigned long long>(told->of[i].address), bytes);
    const RunResult result =
        run_tool("regaudit", {"plan", "-J", std::to_string(child.pid()), range});
    CAPTURE(kinds[i].name, told->of[i].error, result.out, result.err);
    const auto plan = nlohmann::ordered_json::parse(result.out)["plan"];
    std::string reason = kinds[i].reason;
    // Older kernels pin files, and a /var/tmp in memory is no file.
    if (reason == "no-longterm-pin" && told->of[i].error == 0) reason.clear();
    // The test's own list must be the kernel's, or it proves nothing.
    CHECK((told->of[i].error != 0) == !reason.empty());
    CHECK(result.status == (told->of[i].error != 0 ? 1 : 0));
    CHECK(plan["verdict"] == (told->of[i].error != 0 ? "would fail" : "would work"));
    const auto blockers =
        reason.empty() ? nlohmann::ordered_json::array() : nlohmann::ordered_json::array({reason});
    CHECK(plan["blockers"] == blockers);
  }
}
