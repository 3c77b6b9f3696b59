// SPDX-License-Identifier: MIT
// Every page of every kind of memory of stopped processes: a plain reader of pagemap, and the
// library's pagemap, kmod and bpf say the same; and so they do of single addresses, wherever these
// lie.
//
// vmtest: machines=pc,pti
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "live/children.hpp"
#include "live/oracle.hpp"
#include "support/guest.hpp"
#include "support/window_view.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

/// Swap space, and a file system that is none of memory (on /var/tmp, where FileDir looks).
class SwapAndFiles {
 public:
  SwapAndFiles() {
    ready_ = command(
        "modprobe ext4 && modprobe zram num_devices=2 &&"
        " echo 256M >/sys/block/zram0/disksize && mkswap /dev/zram0 >/dev/null && swapon "
        "/dev/zram0 &&"
        " echo 64M >/sys/block/zram1/disksize && mke2fs -b 4096 /dev/zram1 >/dev/null && mkdir -p "
        "/var/tmp &&"
        " mount -t ext4 /dev/zram1 /var/tmp");
  }
  ~SwapAndFiles() { (void)command("swapoff /dev/zram0; umount /var/tmp; rmmod zram"); }
  SwapAndFiles(const SwapAndFiles&) = delete;
  SwapAndFiles& operator=(const SwapAndFiles&) = delete;
  bool ready() const { return ready_; }

 private:
  static bool command(const std::string& text) { return std::system(text.c_str()) == 0; }
  bool ready_;
};

/// One page of an extent.
Extent page_of(const Extent& extent, std::uint64_t va) {
  Extent one = extent;
  const std::uint64_t pages = (va - extent.va.value) / base_page;
  one.va = {va};
  one.bytes = base_page;
  if (extent.state == PageState::resident || names_frame(extent)) one.pfn = extent.pfn + pages;
  if (extent.state == PageState::swapped) one.swap_offset += pages;
  return one;
}

struct Tally {
  std::uint64_t pages = 0, resident = 0, swapped = 0, moved = 0, newly_seen = 0;
  std::vector<std::string> faults;
};

/// `answers` of a source that tells the bits `known`, made between the two plain readings. A page
/// that these two tell differently has moved.
void against_plain(const std::vector<PlainVma>& plain, const std::vector<PlainVma>& later,
                   const std::vector<PlainSmaps>& smaps, const std::vector<Answer>& answers,
                   const Translator& source, Tally& tally) {
  if (plain.size() != answers.size() || later.size() != plain.size() ||
      smaps.size() != plain.size()) {
    tally.faults.push_back("VMAs: plain " + std::to_string(plain.size()) + ", library " +
                           std::to_string(answers.size()));
    return;
  }
  for (std::size_t i = 0; i < plain.size(); ++i) {
    const Answer& answer = answers[i];
    check_tiling(answer, tally.faults);
    for (const Extent& extent : answer.extents) {
      for (std::uint64_t va = extent.va.value; va < extent.end().value;) {
        const PlainRun* const first = run_at(plain[i], va);
        const PlainRun* const second = run_at(later[i], va);
        if (first == nullptr || second == nullptr) {
          tally.faults.push_back("the plain reader has no page " + hex(va));
          break;
        }
        const std::uint64_t end = std::min({extent.end().value, first->end(), second->end()});
        const std::uint64_t pages = (end - va) / base_page;
        tally.pages += pages;
        tally.resident += extent.state == PageState::resident ? pages : 0;
        tally.swapped += extent.state == PageState::swapped ? pages : 0;
        const std::string where = " " + hex(va) + " of " + plain[i].rest + ": plain " +
                                  first->state + " " + hex(first->value_at(va)) + "; " +
                                  std::string(to_string(source.backend())) + " " + describe(extent);
        if (source.sees_pfnmap() && smaps[i].has("pf")) {
          // pagemap is blind here: these are held against each other below.
          tally.newly_seen += extent.state == PageState::resident ? pages : 0;
          if (extent.state != PageState::resident && extent.state != PageState::absent)
            tally.faults.push_back("pfnmap" + where);
        } else if (!agrees(*first, smaps[i], extent, va, source.known_bits())) {
          if (!first->agrees_at(va, *second)) {
            tally.moved += pages;
          } else {
            tally.faults.push_back("page" + where);
          }
        }
        va = end;
      }
    }
  }
}

/// Two readings of the page tables by different means.
void against_each_other(const std::vector<Answer>& a, const std::vector<Answer>& b, Tally& tally) {
  if (a.size() != b.size()) {
    tally.faults.emplace_back("kmod and bpf saw different VMAs");
    return;
  }
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t other = 0;
    for (const Extent& extent : a[i].extents) {
      for (std::uint64_t va = extent.va.value; va < extent.end().value;) {
        while (b[i].extents[other].end().value <= va) ++other;
        const Extent& second = b[i].extents[other];
        const Extent x = page_of(extent, va), y = page_of(second, va);
        const bool same = x.state == y.state && x.reason == y.reason && x.bits == y.bits &&
                          x.leaf_shift == y.leaf_shift && x.pfn == y.pfn &&
                          ((x.pte ^ y.pte) & ~pte_bit::usage) == 0;
        if (!same)
          tally.faults.push_back("kmod " + describe(x) + " pte " + hex(x.pte) + "; bpf " +
                                 describe(y) + " pte " + hex(y.pte));
        va = std::min(extent.end().value, second.end().value);
      }
    }
  }
}

std::string first_faults(const Tally& tally) {
  std::string text = std::to_string(tally.faults.size()) + " faults";
  for (std::size_t i = 0; i < std::min<std::size_t>(tally.faults.size(), 12); ++i)
    text += "\n" + tally.faults[i];
  return text;
}

struct Source {
  std::unique_ptr<Translator> translator;
  std::vector<Answer> answers;
};

std::vector<Source> open_all(const Process& process) {
  std::vector<Source> all;
  for (const Backend backend : {Backend::pagemap, Backend::kmod, Backend::bpf}) {
    if (!works(backend)) continue;
    auto translator = open_translator(process, backend);
    if (!translator) FAIL(to_string(translator.error()));
    all.push_back({std::move(*translator), {}});
  }
  return all;
}

/// What is wrong about what `source` tells of the one byte at `va`.
std::string check_address(const Process& process, Source& source, std::uint64_t va,
                          const std::vector<PlainVma>& plain,
                          const std::vector<PlainSmaps>& smaps) {
  const auto owner = std::find_if(plain.begin(), plain.end(),
                                  [&](const PlainVma& v) { return v.start <= va && va < v.end; });
  VmaInspector inspector(process);
  const auto got = translate(process, *source.translator, inspector, VirtAddr{va});
  const std::string name(to_string(source.translator->backend()));
  if (!got) return name + " of " + hex(va) + ": " + to_string(got.error());
  const Extent& e = got->extent;
  const std::uint64_t page = va / base_page * base_page;
  bool good = e.va.value == page && e.bytes == base_page;
  if (owner == plain.end()) {
    good = good && e.state == PageState::unmapped && !got->vma;
  } else {
    const auto& flags = smaps[static_cast<std::size_t>(owner - plain.begin())];
    const PlainRun* const run = run_at(*owner, page);
    good = good && run != nullptr && got->vma && got->vma->range.start.value == owner->start;
    if (source.translator->sees_pfnmap() && flags.has("pf"))
      good = good && (e.state == PageState::resident || e.state == PageState::absent);
    else
      good = good && agrees(*run, flags, e, page, source.translator->known_bits());
  }
  return good ? "" : name + " of " + hex(va) + ": " + describe(e);
}

/// Whether two plain readings tell the same of the page at `va`.
bool same_page(const std::vector<PlainVma>& a, const std::vector<PlainVma>& b, std::uint64_t va) {
  const auto run = [&](const std::vector<PlainVma>& vmas) -> const PlainRun* {
    const auto vma = std::find_if(vmas.begin(), vmas.end(),
                                  [&](const PlainVma& v) { return v.start <= va && va < v.end; });
    return vma == vmas.end() ? nullptr : run_at(*vma, va / base_page * base_page);
  };
  const PlainRun* const x = run(a);
  const PlainRun* const y = run(b);
  return x == nullptr || y == nullptr ? x == y : x->agrees_at(va, *y);
}

/// Addresses one by one, of VMAs and between them, to the byte.
void check_addresses(const Process& process, std::vector<Source>& sources,
                     const std::vector<PlainVma>& plain, const std::vector<PlainSmaps>& smaps,
                     unsigned count, Tally& tally) {
  std::mt19937_64 random(42);
  for (unsigned i = 0; i < count; ++i) {
    const std::size_t n = random() % plain.size();
    const PlainVma& vma = plain[n];
    std::uint64_t va = vma.start + random() % (vma.end - vma.start);
    switch (random() % 8) {
      case 0:
        va = vma.end;
        break;        // the first byte behind
      case 1:
        va = vma.start - 1;
        break;  // the last before
      case 2:
        va = vma.end - 1;
        break;
      case 3:
        va = random() >> 17;
        break;  // anywhere in the lower half
      default:
        break;
    }
    for (Source& source : sources) {
      ++tally.pages;
      std::string fault = check_address(process, source, va, plain, smaps);
      // Where a plain read finds the page changed, too (another process that shared it has made its
      // own copy), it is asked about again.
      auto before = plain;
      for (int again = 0; again < 3 && !fault.empty(); ++again) {
        auto now = plain_read(process.pid());
        if (same_page(before, now, va)) break;
        fault = check_address(process, source, va, now, smaps);
        before = std::move(now);
      }
      if (!fault.empty()) tally.faults.push_back(fault);
    }
  }
}

Tally check_process(pid_t pid, unsigned addresses) {
  const Process process = process_of(pid);
  auto sources = open_all(process);
  Tally tally;
  const auto smaps = plain_smaps(pid);
  const auto plain = plain_read(pid);
  for (Source& source : sources)
    source.answers = library_read(process, *source.translator, {.every_page = true});
  const auto later = plain_read(pid);
  for (const Source& source : sources)
    against_plain(plain, later, smaps, source.answers, *source.translator, tally);
  if (sources.size() == 3) against_each_other(sources[1].answers, sources[2].answers, tally);
  check_addresses(process, sources, later, smaps, addresses, tally);
  for (const Source& source : sources) {
    if (source.translator->backend() != Backend::bpf) continue;
    FlagTally flags = check_flags(*source.translator, pid);
    std::ranges::move(flags.faults, std::back_inserter(tally.faults));
    if (flags.named == 0) tally.faults.emplace_back("no VMA's flags were named");
  }
  return tally;
}

}  // namespace

TEST_CASE("agreement: every kind of memory, each page and addresses at random") {
  if (!in_guest()) return;
  const Module reader("vmem");
  const SwapAndFiles machine;
  REQUIRE(machine.ready());
  const HugePages huge_pages;
  SECTION("all kinds") {
    const KindsChild child;
    stop(child.pid());
    for (const std::string& skip : child.skips()) std::printf("not made here: %s\n", skip.c_str());
    CHECK(child.mappings().size() > 30);
    const Tally tally = check_process(child.pid(), 500);
    INFO(first_faults(tally));
    CHECK(tally.faults.empty());
    CHECK(tally.resident > 6000);
    CHECK(tally.moved * 50 < tally.resident);
  }
  SECTION("in swap, merged") {
    const Setting run_ksm("/sys/kernel/mm/ksm/run", "1");
    const KindsChild child({"swap", "ksm", "anon"});
    // Two passes of ksmd over 16 equal pages.
    for (int i = 0; i < 500 && first_line("/sys/kernel/mm/ksm/pages_sharing") == "0"; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    CHECK(first_line("/sys/kernel/mm/ksm/pages_sharing") != "0");
    stop(child.pid());
    const Tally tally = check_process(child.pid(), 200);
    INFO(first_faults(tally));
    CHECK(tally.faults.empty());
    CHECK(tally.swapped > 0);
    CHECK(tally.moved * 50 < tally.resident);
  }
}

TEST_CASE("agreement: the first process, and one that maps a driver's window") {
  if (!in_guest()) return;
  const Module reader("vmem");
  const Module driver("mem_mmap");
  const Child mapper = fork_child([](const std::function<void()>& ready) {
    const MappedFile window = map_device("/dev/mem_mmap1", 0, 64 * base_page);
    if (window.error() == 0) ready();
    wait_for_ever();
  });
  stop(mapper.pid());
  for (const pid_t pid : {pid_t{1}, mapper.pid()}) {
    const Tally tally = check_process(pid, 100);
    INFO("process " << pid << ": " << first_faults(tally));
    CHECK(tally.faults.empty());
    CHECK(tally.resident > 100);
    if (pid == mapper.pid()) CHECK(tally.newly_seen >= 64);
  }
}
