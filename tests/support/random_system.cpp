// SPDX-License-Identifier: MIT
#include "support/random_system.hpp"

#include <algorithm>
#include <cstdio>

namespace vmem::test {
namespace {

constexpr std::uint64_t field_mask = (1ULL << 55) - 1;

class Maker {
 public:
  Maker(std::mt19937_64& random, const RandomOptions& options)
      : random_(random), options_(options) {}

  RandomSystem make() {
    make_manifest();
    has_smaps_ = below(3) != 0;
    std::uint64_t at = below(2) != 0 ? below(50) * options_.page_size
                                     : (0x5500000000 + below(1 << 20)) * options_.page_size;
    const std::uint64_t count = below(options_.vmas + 1);
    for (std::uint64_t i = 0; i < count; ++i) {
      // Gaps of every sort: none, bridged by a reader, larger than any buffer.
      const std::uint64_t gaps[] = {0, 0, 1, 5, 127, 128, 129, 1000, options_.largest_gap};
      at += gaps[below(std::size(gaps))] * options_.page_size;
      at = make_vma(at);
    }
    if (below(4) == 0) {
      const TwinVma gate{0xffffffffff600000, 0xffffffffff600000 + options_.page_size,
                         TwinVma::Sight::gate};
      add_vma(gate, "--xp", "00:00", 0, "[vsyscall]", "ex");
    }
    process_.pid = 1;
    process_.files["comm"] = "random\n";
    process_.files["mountinfo"] =
        "27 1 254:0 / / rw - ext4 /dev/vda rw\n24 27 0:5 / /dev rw - devtmpfs devtmpfs rw\n";
    if (has_smaps_) process_.files["smaps"] = smaps_;
    result_.system.page_size = options_.page_size;
    result_.system.processes.push_back(std::move(process_));
    result_.twin.page_size = options_.page_size;
    return std::move(result_);
  }

 private:
  std::uint64_t below(std::uint64_t bound) { return random_() % bound; }

  void make_manifest() {
    std::string text = "vmem-tree 1\npage_size " + std::to_string(options_.page_size) + "\n";
    const std::uint64_t access = below(4);
    hidden_ = access == 0;
    result_.twin.proven = access >= 2;
    if (access >= 2) text += "pfn_access full\n";
    // A tree that does not say may be either.
    else if (below(2) == 0)
      text += "pfn_access hidden\n", hidden_ = true;
    else
      hidden_ = below(2) == 0;
    if (options_.page_size != 4096 || !text.ends_with("4096\n") || below(2) == 0)
      result_.system.manifest = text;
  }

  void add_vma(const TwinVma& vma, const char* perms, const char* device, unsigned inode,
               const std::string& name, const char* flags) {
    char head[160];
    std::snprintf(head, sizeof head, "%08llx-%08llx %s 00000000 %s %u ",
                  static_cast<unsigned long long>(vma.start),
                  static_cast<unsigned long long>(vma.end), perms, device, inode);
    const std::string line = head + name + "\n";
    process_.maps += line;
    smaps_ += line + "KernelPageSize:  " + std::to_string(options_.page_size / 1024) +
              " kB\nVmFlags: " + flags + " \n";
    result_.twin.vmas.push_back(vma);
  }

  std::uint64_t make_vma(std::uint64_t start) {
    const std::uint64_t pages = below(4) == 0 ? 1 + below(3) : 1 + below(options_.pages_per_vma);
    TwinVma vma{start, start + pages * options_.page_size, TwinVma::Sight::ordinary};
    const std::uint64_t sort = below(8);
    if (sort < 4) {
      add_vma(vma, "rw-p", "00:00", 0, "", "rd wr mr mw me ac");
    } else if (sort < 6) {
      add_vma(vma, "r-xp", "fe:00", 77, "/usr/lib/lib" + std::string(below(100), 'x') + ".so",
              "rd ex mr mw me");
    } else {
      const bool pf = sort == 6;
      vma.sight = !has_smaps_ ? TwinVma::Sight::maybe_blind
                  : pf        ? TwinVma::Sight::pfnmap
                              : TwinVma::Sight::ordinary;
      add_vma(vma, "rw-s", "00:05", 99, "/dev/window", pf ? "rd wr sh pf io" : "rd wr sh mm");
      if (pf || below(2) == 0) {
        // What pagemap shows of VM_PFNMAP: nothing, or bit 55 alone.
        if (below(2) == 0) process_.entries.push_back({vma.start, pages, entry::soft_dirty, 0});
        return vma.end;
      }
    }
    if (below(8) != 0) fill(vma);
    return vma.end;
  }

  std::uint64_t bits() {
    std::uint64_t b = 0;
    if (below(6) == 0) b |= entry::soft_dirty;
    if (below(2) == 0) b |= entry::exclusive;
    if (below(12) == 0) b |= entry::uffd_wp;
    if (below(3) == 0) b |= entry::file;
    return b;
  }

  /// One run of random sort, of at most `room` pages.
  EntryRun make_run(std::uint64_t va, std::uint64_t room, const EntryRun& previous) {
    EntryRun run{.va = va,
                 .pages = std::min(room, 1 + below(below(4) == 0 ? options_.pages_per_run : 4)),
                 .first = 0,
                 .step = 0};
    const std::uint64_t page = va / options_.page_size;
    const std::uint64_t leaf = options_.page_size / 8;
    switch (below(14)) {
      case 0:
      case 1:
        break;  // absent
      case 2:  // goes on where the last one ended, perhaps with one bit changed
      case 3:
        run.first = previous.first + previous.step * previous.pages;
        run.step = previous.step;
        if (below(3) == 0) run.first ^= 1ULL << (55 + below(9));
        break;
      case 4:
        run.first = entry::present | bits() | (1 + below(1 << 28));
        break;  // the same frame again and again: the zero page
      case 5:
        run.first = entry::present | bits() | below(3);
        run.step = 1;
        break;
      case 6:
        run.first = entry::swapped(below(24), below(1 << 20)) | bits();
        run.step = entry::swap_step;
        break;
      case 7:
        run.first = entry::swapped(below(32), below(6)) | bits();
        break;
      case 8:
        run.first = below(2) == 0 ? entry::guard_page : 0x400000000000009f;
        break;
      case 9:
        run.first = random_();
        run.step = below(3) == 0 ? 1 : 0;
        break;
      case 10:  // frames that lie like those of a huge leaf, often a whole one
        run.first = entry::present | bits() | (((1 + below(1000)) * leaf) + page % leaf);
        run.step = 1;
        if (below(2) == 0) run.pages = std::min(room, leaf * (1 + below(2)));
        break;
      case 11:
        run.first = entry::present | bits() | (field_mask - below(4));
        run.step = 0;
        break;
      default:
        run.first = entry::present | bits() | below(1ULL << 36);
        run.step = 1;
        break;
    }
    // A frame number never overflows into the flags: the kernel has no such frame.
    if ((run.first & field_mask) + run.step * run.pages > field_mask) run.step = 0;
    return run;
  }

  void fill(const TwinVma& vma) {
    EntryRun previous;
    for (std::uint64_t va = vma.start; va < vma.end;) {
      EntryRun run = make_run(va, (vma.end - va) / options_.page_size, previous);
      previous = run;
      if (hidden_) {
        // What the kernel does for a reader without CAP_SYS_ADMIN: flags only.
        run.first &= ~field_mask;
        run.step = 0;
      }
      if (run.first != 0) process_.entries.push_back(run);
      va += run.pages * options_.page_size;
    }
  }

  std::mt19937_64& random_;
  const RandomOptions& options_;
  RandomSystem result_;
  ProcessModel process_;
  std::string smaps_;
  bool has_smaps_ = true;
  bool hidden_ = false;
};

}  // namespace

RandomSystem random_system(std::mt19937_64& random, const RandomOptions& options) {
  return Maker(random, options).make();
}

}  // namespace vmem::test
