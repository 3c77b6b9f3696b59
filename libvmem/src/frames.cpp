// SPDX-License-Identifier: MIT
#include "vmem/frames.hpp"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <utility>

#include "errors.hpp"
#include "kernel_release.hpp"

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
  std::array<Fd, sources.size()> files;
  std::array<std::array<std::uint64_t, batch>, sources.size()> values;
  std::array<std::size_t, sources.size()> counts;  ///< values there are; the rest is past the end
};

FrameReader::FrameReader(std::unique_ptr<State> state) : state_(std::move(state)) {}
FrameReader::FrameReader(FrameReader&&) noexcept = default;
FrameReader& FrameReader::operator=(FrameReader&&) noexcept = default;
FrameReader::~FrameReader() = default;

Result<FrameReader> FrameReader::open(const SysRoot& root, std::uint8_t wanted) {
  auto state = std::make_unique<State>();
  std::optional<Error> first_error;
  bool any = false;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    if ((sources[i].known & wanted) == 0) continue;
    auto fd = root.open_file(sources[i].file);
    if (fd) {
      state->files[i] = std::move(*fd);
      any = true;
    } else if (!first_error) {
      first_error = std::move(fd.error());
    }
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
