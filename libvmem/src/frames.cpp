// SPDX-License-Identifier: MIT
#include "vmem/frames.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <utility>

#include "errors.hpp"
#include "kernel_release.hpp"
#include "pagemap_bits.hpp"

namespace vmem {
namespace {

// KPF_* of include/uapi/linux/kernel-page-flags.h and, from 32 on, of
// include/linux/kernel-page-flags.h (internal: names may change between kernels).
constexpr std::array<std::string_view, 64> names = [] {
  std::array<std::string_view, 64> table{};
  constexpr std::array<std::string_view, 27> stable = {
      "locked",      "error",     "referenced", "uptodate",      "dirty",         "lru",
      "active",      "slab",      "writeback",  "reclaim",       "buddy",         "mmap",
      "anon",        "swapcache", "swapbacked", "compound_head", "compound_tail", "huge",
      "unevictable", "hwpoison",  "nopage",     "ksm",           "thp",           "offline",
      "zero_page",   "idle",      "pgtable"};
  std::ranges::copy(stable, table.begin());
  constexpr std::array<std::string_view, 11> internal = {
      "reserved", "mlocked",  "owner_2",   "private", "private_2", "owner_private",
      "arch",     "uncached", "softdirty", "arch_2",  "arch_3"};
  std::ranges::copy(internal, table.begin() + 32);
  return table;
}();

constexpr std::size_t batch = 4096;  // frames read at a time: 32 KiB a file

struct Source {
  const char* file;
  std::uint8_t known;
  std::uint64_t FrameFacts::* field;
};
constexpr std::array<Source, 3> sources = {{
    {"proc/kpageflags", FrameFacts::has_flags, &FrameFacts::flags},
    {"proc/kpagecount", FrameFacts::has_mapcount, &FrameFacts::mapcount},
    {"proc/kpagecgroup", FrameFacts::has_memcg, &FrameFacts::memcg_inode},
}};

constexpr std::uint64_t kpf(unsigned bit) { return std::uint64_t{1} << bit; }
constexpr std::uint64_t kpf_anon = kpf(12), kpf_ksm = kpf(21);
/// The kernel's own memory, by types that exclude each other and a process's (include/linux/
/// page-flags.h, PGTY_*): what stands in their `mapping` is no mapping.
constexpr std::uint64_t kernel_memory = kpf(7) | kpf(10) | kpf(23) | kpf(26);
/// Only single pages are merged: compound_head, compound_tail, huge, thp.
constexpr std::uint64_t large = kpf(15) | kpf(16) | kpf(17) | kpf(22);

/// Whether the kernel says "ksm" of a page that it cannot have merged: one that was written just
/// now. Empty: that could not be tried.
std::optional<bool> fresh_page_is_ksm(const SysRoot& root, const Fd& kpageflags) {
  if (root.pfn_access() != PfnAccess::full) return {};
  const auto self = root.self();
  if (!self) return {};
  const auto pagemap = self->open_file("pagemap");
  if (!pagemap) return {};
  const PageSize page_size = root.page_size();
  void* const page =
      mmap(nullptr, page_size.bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return {};
  *static_cast<volatile char*>(page) = 1;
  const auto at = page_size.pages(reinterpret_cast<std::uintptr_t>(page)) * 8;
  const auto word = [](const Fd& file, std::uint64_t offset) -> std::uint64_t {
    std::uint64_t value = 0;
    const auto got = read_at(file, &value, sizeof value, offset);
    return got && *got == sizeof value ? value : 0;
  };
  const std::uint64_t before = word(*pagemap, at);
  const std::uint64_t flags = word(kpageflags, pagemap::pfn(before).value * 8);
  const bool same = pagemap::present(before) && before == word(*pagemap, at);
  munmap(page, page_size.bytes());
  if (!same || (flags & kpf_anon) == 0) return {};
  return (flags & kpf_ksm) != 0;
}

/// Whether no page was ever merged: ksmd does not run and has looked at none (6.8). Its count
/// leaves out what a pass over all memory ends with, which counts as a full scan.
bool never_merged(const SysRoot& root) {
  for (const char* const file : {"sys/kernel/mm/ksm/run", "sys/kernel/mm/ksm/pages_scanned",
                                 "sys/kernel/mm/ksm/full_scans"}) {
    const auto text = root.read_file(file, 4096);
    if (!text || *text != "0\n") return false;
  }
  return true;
}

/// What is to be believed of the flags "anon" and "ksm".
class Doubts {
 public:
  explicit Doubts(SysRoot root) : root_(std::move(root)) {}

  void judge(FrameFacts& facts, const Fd& kpageflags) {
    constexpr std::uint64_t both = kpf_anon | kpf_ksm;
    if ((facts.flags & both) == 0) return;
    std::uint64_t untrue = 0, unsure = 0;
    if ((facts.flags & kernel_memory) != 0)
      untrue = facts.flags & both;
    else if ((facts.flags & kpf_ksm) != 0 && says_it_of_all(kpageflags))
      ((facts.flags & large) != 0 || nothing_merged() ? untrue : unsure) = kpf_ksm;
    facts.flags &= ~(untrue | unsure);
    facts.disproved = untrue;
    facts.doubtful = unsure;
  }

 private:
  bool says_it_of_all(const Fd& kpageflags) {
    if (!says_it_of_all_) {
      std::optional<bool> tried;
      if (!root_.recorded()) tried = fresh_page_is_ksm(root_, kpageflags);
      says_it_of_all_ = tried.value_or(!tells_ksm(root_.kernel_release()));
    }
    return *says_it_of_all_;
  }
  bool nothing_merged() {
    if (!nothing_merged_) nothing_merged_ = never_merged(root_);
    return *nothing_merged_;
  }

  SysRoot root_;
  std::optional<bool> says_it_of_all_;
  std::optional<bool> nothing_merged_;
};

}  // namespace

bool tells_ksm(std::string_view kernel_release) {
  const unsigned kernel = kernel_number(kernel_release).value_or(0);
  return kernel < 610 || kernel > 616;
}

std::string frame_flag_name(unsigned bit) {
  if (bit < names.size() && !names[bit].empty()) return std::string(names[bit]);
  return "bit" + std::to_string(bit);
}

std::vector<std::string> frame_flag_names(std::uint64_t flags) {
  std::vector<std::string> list;
  for (unsigned bit = 0; bit < 64; ++bit) {
    if ((flags >> bit & 1) != 0) list.push_back(frame_flag_name(bit));
  }
  return list;
}

struct FrameReader::State {
  explicit State(const SysRoot& root) : doubts(root) {}
  Doubts doubts;
  std::optional<Error> missing;
  std::array<Fd, sources.size()> files;
  std::array<std::array<std::uint64_t, batch>, sources.size()> values;
  std::array<std::size_t, sources.size()> counts;  ///< values there are; the rest is past the end
};

FrameReader::FrameReader(std::unique_ptr<State> state) : state_(std::move(state)) {}
FrameReader::FrameReader(FrameReader&&) noexcept = default;
FrameReader& FrameReader::operator=(FrameReader&&) noexcept = default;
FrameReader::~FrameReader() = default;

Result<FrameReader> FrameReader::open(const SysRoot& root, std::uint8_t wanted) {
  auto state = std::make_unique<State>(root);
  std::optional<Error> first_error;
  bool any = false;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    if ((sources[i].known & wanted) == 0) continue;
    auto fd = root.open_file(sources[i].file);
    if (fd) {
      state->files[i] = std::move(*fd);
      any = true;
      continue;
    }
    if (!state->missing && fd.error().code != Errc::not_found) {
      state->missing = fd.error();
      if (fd.error().code == Errc::permission)
        state->missing->hint = permission_hint(Privilege::frames);
    }
    if (!first_error) first_error = std::move(fd.error());
  }
  if (!any) {
    if (!first_error) first_error = Error{.code = Errc::invalid_argument, .what = "no frame facts"};
    if (first_error->code == Errc::permission) {
      first_error->hint = permission_hint(Privilege::frames);
    }
    return std::unexpected(std::move(*first_error));
  }
  return FrameReader{std::move(state)};
}

const Error* FrameReader::missing() const { return state_->missing ? &*state_->missing : nullptr; }

Result<void> FrameReader::read(Pfn first, std::uint64_t frames,
                               FunctionRef<bool(Pfn, std::uint64_t, const FrameFacts&)> sink) {
  State& s = *state_;
  Pfn run_start = first;
  std::uint64_t run = 0;
  FrameFacts facts;
  while (frames != 0) {
    const std::size_t count = std::min<std::uint64_t>(frames, batch);
    for (std::size_t i = 0; i < sources.size(); ++i) {
      s.counts[i] = 0;
      // A PFN so large that its offset overflows is past the end of any file.
      if (!s.files[i].valid() || first.value > (UINT64_MAX >> 5)) continue;
      auto got = read_at(s.files[i], s.values[i].data(), count * 8, first.value * 8);
      if (!got) {
        got.error().path = std::string("/") + sources[i].file;
        return std::unexpected(std::move(got.error()));
      }
      s.counts[i] = *got / 8;
    }
    for (std::size_t frame = 0; frame < count;) {
      FrameFacts here;
      std::size_t end = count;  // of what is like this frame
      for (std::size_t i = 0; i < sources.size(); ++i) {
        if (frame >= s.counts[i]) continue;
        const std::uint64_t value = s.values[i][frame];
        here.*sources[i].field = value;
        here.known |= sources[i].known;
        end = std::min(end, s.counts[i]);
        std::size_t like = frame + 1;
        while (like < end && s.values[i][like] == value) ++like;
        end = like;
      }
      s.doubts.judge(here, s.files[0]);
      if (run != 0 && here != facts) {
        if (!sink(run_start, run, facts)) return {};
        run_start = run_start + run;
        run = 0;
      }
      facts = here;
      run += end - frame;
      frame = end;
    }
    first = first + count;
    frames -= count;
  }
  if (run != 0) sink(run_start, run, facts);
  return {};
}

}  // namespace vmem
