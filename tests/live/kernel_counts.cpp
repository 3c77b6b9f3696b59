// SPDX-License-Identifier: MIT
// The kernel's own sums as a check: Rss and Swap of smaps against the bytes in extents.
#include <sys/swap.h>

#include "live/children.hpp"
#include "live/oracle.hpp"
#include "live/stats_oracle.hpp"
#include "vmem/frames.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

struct Sums {
  std::uint64_t resident = 0, swapped = 0;
};

bool is_zero_frame(FrameReader& reader, Pfn pfn) {
  bool zero = false;
  const auto result = reader.read(pfn, 1, [&](Pfn, std::uint64_t, const FrameFacts& f) {
    zero = (f.flags & (std::uint64_t{1} << 24)) != 0;
    return true;
  });
  REQUIRE(result);
  return zero;
}

/// As the kernel counts: the zero page belongs to nobody's Rss.
Sums sums_of(FrameReader& reader, const Answer& answer) {
  Sums s;
  for (const Extent& e : answer.extents) {
    if (e.state == PageState::swapped) s.swapped += e.bytes / 1024;
    if (e.state != PageState::resident) continue;
    for (std::uint64_t i = 0; i < e.bytes / base_page; ++i) {
      if (!is_zero_frame(reader, e.pfn + i)) s.resident += base_page / 1024;
    }
  }
  return s;
}

/// Checks each VMA that has ordinary pages; returns how much was resident in all.
Sums check_counts(pid_t pid) {
  const auto before = plain_smaps(pid);
  const auto answers = library_read(process_of(pid));
  const auto after = plain_smaps(pid);
  auto root = SysRoot::live();
  REQUIRE(root);
  auto reader = FrameReader::open(*root);
  REQUIRE(reader);
  REQUIRE(before.size() == answers.size());
  REQUIRE(after.size() == answers.size());
  Sums total;
  for (std::size_t i = 0; i < answers.size(); ++i) {
    const auto& kb = before[i].kilobytes;
    INFO(answers[i].vma.path << " " << hex(before[i].start));
    if (before[i].has("ht")) {
      CHECK(kb.at("Rss") == 0);
      continue;
    }
    if (kb != after[i].kilobytes) continue;  // The kernel reclaimed in between.
    const Sums s = sums_of(*reader, answers[i]);
    // Pages without a struct page of the ordinary kind (the vdso's) are in no Rss.
    if (!answers[i].vma.path.starts_with("[vdso]")) CHECK(s.resident == kb.at("Rss"));
    // smaps adds what shared memory has in swap, which no page table knows.
    const bool shared_memory = answers[i].classification.kind == VmaKind::shm ||
                               answers[i].classification.kind == VmaKind::memfd ||
                               answers[i].classification.kind == VmaKind::sysv;
    if (!shared_memory) CHECK(s.swapped == kb.at("Swap"));
    total.resident += s.resident;
    total.swapped += s.swapped;
  }
  return total;
}

/// A swap area of 64 MiB on zram: set up where nobody uses one, and taken away again.
class ZramSwap {
 public:
  ZramSwap() {
    const std::string sys = "/sys/block/zram0/";
    if (first_line(sys + "disksize") != "0") {
      why_ = "no unused /dev/zram0";
      return;
    }
    std::ifstream swaps("/proc/swaps");
    std::string line;
    std::getline(swaps, line);
    if (std::getline(swaps, line)) {
      why_ = "another swap area is in use";
      return;
    }
    if (!write_setting(sys + "disksize", "67108864")) {
      why_ = "zram0 cannot be sized";
      return;
    }
    sized_ = true;
    if (!write_header() || swapon(device, 0) != 0) {
      why_ = std::string("swapon: ") + std::strerror(errno);
      return;
    }
    on_ = true;
  }
  ~ZramSwap() {
    if (on_) (void)swapoff(device);
    if (sized_) (void)write_setting("/sys/block/zram0/reset", "1");
  }
  ZramSwap(const ZramSwap&) = delete;
  ZramSwap& operator=(const ZramSwap&) = delete;
  bool on() const { return on_; }
  const std::string& why() const { return why_; }

 private:
  /// What mkswap writes: a version, the last page, and a signature at the end of page 0.
  static bool write_header() {
    std::array<char, base_page> page{};
    const std::uint32_t version = 1, last = 67108864 / base_page - 1;
    std::memcpy(&page[1024], &version, 4);
    std::memcpy(&page[1028], &last, 4);
    std::memcpy(&page[base_page - 10], "SWAPSPACE2", 10);
    const int fd = open(device, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return false;
    const bool written = write(fd, page.data(), page.size()) == static_cast<ssize_t>(page.size());
    return fsync(fd) == 0 && close(fd) == 0 && written;
  }

  static constexpr const char* device = "/dev/zram0";
  MachineLock lock_;
  bool sized_ = false, on_ = false;
  std::string why_;
};

}  // namespace

TEST_CASE("resident bytes of every VMA are the Rss of smaps") {
  if (!shown_pfns()) return skip_or_fail("pfn", "frames are not shown");
  const HugePages huge_pages;
  const KindsChild child;
  stop(child.pid());
  const Sums total = check_counts(child.pid());
  CHECK(total.resident > 6000);
}

TEST_CASE("swapped pages: states, offsets and sums") {
  if (!shown_pfns()) return skip_or_fail("pfn", "swap fields are not shown");
  const ZramSwap swap;
  if (!swap.on()) return skip_or_fail("pfn", "swap: " + swap.why());
  const KindsChild child({"swap", "anon"});
  stop(child.pid());
  const auto plain = plain_read(child.pid());
  const auto answers = library_read(process_of(child.pid()));
  const Comparison c = compare(plain, plain_read(child.pid()), plain_smaps(child.pid()), answers);
  INFO(first_faults(c));
  CHECK(c.faults.empty());
  const Sums total = check_counts(child.pid());
  CHECK(total.swapped >= 64);  // of the 32 pages that were paged out, half at least

  check_stats(child.pid());  // what shared memory has in swap, too

  const Mapping& m = child.mapping("swap");
  unsigned swapped = 0;
  for (std::uint64_t va = m.start; va < m.end; va += base_page) {
    const Extent& e = extent_at(answers, va);
    const std::uint64_t i = (va - m.start) / base_page;
    INFO("page " << i << ": " << describe(e));
    if (i < 16 || i >= 48) CHECK(e.state == PageState::resident);
    if (e.state == PageState::swapped) {
      ++swapped;
      CHECK(e.swap_type < 23);
      CHECK(e.reason == Reason::none);
    }
  }
  CHECK(swapped > 0);
  // Shared memory leaves its page table entries empty.
  const Mapping& shared = child.mapping("swap-shm");
  for (std::uint64_t va = shared.start; va < shared.end; va += base_page) {
    CHECK(extent_at(answers, va).state != PageState::swapped);
  }

  // vtop of a swapped address: a negative answer that names the swap area.
  for (std::uint64_t va = m.start; va < m.end; va += base_page) {
    if (extent_at(answers, va).state != PageState::swapped) continue;
    const RunResult r = run({VMEM_TOOLS_PATH "/vtop", std::to_string(child.pid()), hex(va)});
    INFO(r.out << r.err);
    CHECK(r.status == 1);
    CHECK(r.out.find("swapped") != std::string::npos);
    break;
  }
}
