// SPDX-License-Identifier: MIT
/// The kmod backend: page tables as /dev/vmem tells them (kmod/uapi/vmem.h is the protocol).
/// What the device says is checked like any other input: counts against buffers, order and
/// sizes against what was asked.
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <optional>
#include <utility>

#include "backends.hpp"
#include "errors.hpp"
#include "extent_builder.hpp"
#include "kmod/uapi/vmem.h"
#include "page_table.hpp"
#include "target_pace.hpp"

namespace vmem {
namespace {

constexpr char device[] = "/dev/vmem";

int call(const Fd& fd, unsigned long command, void* argument) {
  return ioctl(fd.get(), command, argument) == 0 ? 0 : errno;
}

std::unexpected<Error> nonsense(VirtAddr at) {
  return std::unexpected(Error{.code = Errc::malformed,
                               .what = "reading page tables",
                               .path = device,
                               .address = at.value,
                               .hint = "the loaded vmem.ko does not keep to its protocol"});
}

/// An error of an ioctl that names the process.
std::unexpected<Error> failed_call(const Process& process, int os_errno, VirtAddr at) {
  Error error = make_error(os_errno, "reading page tables", device);
  error.address = at.value;
  switch (os_errno) {
    case ESRCH:   // it ended
    case ENXIO:   // it is ending
    case ESTALE:  // it exec'ed
      error.code = Errc::process_changed;
      error.path = process.path("");
      break;
    case EPERM:
      error.hint = permission_hint(Privilege::page_tables);
      break;
    default:
      break;
  }
  return std::unexpected(std::move(error));
}

/// IA32_PAT: eight memory types (Intel SDM volume 3, 12.12.2).
std::array<CacheAttribute, 8> pat_of(std::uint64_t msr) {
  std::array<CacheAttribute, 8> pat{};
  for (CacheAttribute& entry : pat) {
    switch (msr & 7) {
      case 0:
        entry = CacheAttribute::uc;
        break;
      case 1:
        entry = CacheAttribute::wc;
        break;
      case 4:
        entry = CacheAttribute::wt;
        break;
      case 5:
        entry = CacheAttribute::wp;
        break;
      case 6:
        entry = CacheAttribute::wb;
        break;
      case 7:
        entry = CacheAttribute::uc_minus;
        break;
      default:
        entry = CacheAttribute::unknown;
    }
    msr >>= 8;
  }
  return pat;
}

/// Empty where the device says what cannot be.
std::optional<page_table::Format> format_of(const vmem_info& info) {
  page_table::Format format;
  switch (info.architecture) {
    case VMEM_ARCH_X86_64:
      if (info.page_shift != 12 || info.levels < 4) return std::nullopt;
      format.architecture = page_table::Architecture::x86_64;
      format.pat = pat_of(info.pat);
      format.saved_dirty = (info.features & VMEM_FEATURE_SAVED_DIRTY) != 0;
      break;
    case VMEM_ARCH_ARM64:
      if (info.page_shift != 12 && info.page_shift != 14 && info.page_shift != 16)
        return std::nullopt;
      format.architecture = page_table::Architecture::arm64;
      format.mair = info.mair;
      format.lpa2 = (info.features & VMEM_FEATURE_LPA2) != 0;
      if (info.swap_type_shift < 64)
        format.swap_type_shift = static_cast<std::uint8_t>(info.swap_type_shift);
      break;
    default:
      return std::nullopt;
  }
  if (info.levels < 2 || info.levels > VMEM_MAX_LEVELS) return std::nullopt;
  format.levels = static_cast<std::uint8_t>(info.levels);
  format.page_shift = static_cast<std::uint8_t>(info.page_shift);
  format.encryption_mask = info.encryption_mask;
  return format;
}

page_table::Limits limits_of(unsigned flags) {
  return {.writable = (flags & VMEM_RUN_TABLE_READ_ONLY) == 0,
          .user = (flags & VMEM_RUN_TABLE_NO_USER) == 0,
          .executable = (flags & VMEM_RUN_TABLE_NO_EXEC) == 0};
}

class KmodTranslator final : public Translator {
 public:
  KmodTranslator(const Process& process, Fd fd, const page_table::Format& format)
      : process_(process), fd_(std::move(fd)), format_(format) {}

  Backend backend() const override { return Backend::kmod; }
  std::uint8_t known_bits() const override { return page_bit::soft_dirty | page_bit::uffd_wp; }
  bool sees_pfnmap() const override { return true; }

  /// Learns which address space the process has now.
  Result<void> attach() {
    vmem_resolve ask = question();
    const int error = call(fd_, VMEM_IOC_RESOLVE, &ask);
    if (error == 0) {
      address_space_ = ask.address_space;
      return {};
    }
    auto failure = failed_call(process_, error, {});
    if (error == ESRCH) failure.error().code = Errc::no_process;
    if (error == ENXIO) failure.error().code = Errc::no_user_memory;
    return failure;
  }

  Result<void> walk(VaRange range, const WalkOptions& options, ExtentSink sink) override {
    ExtentBuilder builder{process_.root().page_size(), sink};
    // The sink of a walk may ask for another, which must leave alone what this one reads from.
    auto runs = idle_runs_ ? std::move(idle_runs_) : std::make_unique_for_overwrite<Runs>();
    auto result = read(range, options, *runs, builder);
    builder.flush();  // what was read before a failure is right
    idle_runs_ = std::move(runs);
    return result;
  }

  Result<PageWalk> page_walk(VirtAddr page) override {
    vmem_walk ask{};
    ask.size = sizeof ask;
    ask.pid = process_.pid();
    ask.start_time = process_.start_time().value_or(0);
    ask.address_space = address_space_;
    ask.va = page.value;
    if (const int error = call(fd_, VMEM_IOC_WALK, &ask); error != 0) {
      return failed_call(process_, error, page);
    }
    // Levels are folded at the top only, so a walk starts at the root.
    if (ask.steps_count > format_.levels) return nonsense(page);
    PageWalk walk;
    walk.extent = {.va = page, .bytes = page_size().bytes(), .backend = Backend::kmod};
    for (unsigned i = 0; i < ask.steps_count; ++i) {
      const vmem_step& step = ask.steps[i];
      const unsigned level = format_.levels - 1U - i;
      if (step.level != level || step.shift != format_.shift(level)) return nonsense(page);
      const page_table::Entry entry = page_table::decode(format_, level, step.entry);
      walk.steps.push_back({.level = page_table::level_name(format_, level),
                            .table = {step.table},
                            .index = step.index,
                            .raw = step.entry,
                            .shift = step.shift,
                            .leaf = entry.kind == page_table::Kind::leaf,
                            .flags = page_table::flag_names(format_, level, step.entry)});
      if (i + 1 < ask.steps_count) {
        if (entry.kind != page_table::Kind::table) return nonsense(page);
        continue;
      }
      if (entry.kind == page_table::Kind::none) break;
      auto extent = decode(level, page, step.entry, step.flags);
      if (!extent) return nonsense(page);
      if (step_of(*extent) != 0) {
        extent->va = {page.value & ~((std::uint64_t{1} << step.shift) - 1)};
        cut_front(*extent, page - extent->va, page_size());
      }
      extent->va = page;
      extent->bytes = page_size().bytes();
      walk.extent = *extent;
    }
    return walk;
  }

 private:
  using Runs = std::array<vmem_run, 1024>;

  PageSize page_size() const { return process_.root().page_size(); }

  vmem_resolve question() const {
    vmem_resolve ask{};
    ask.size = sizeof ask;
    ask.pid = process_.pid();
    ask.start_time = process_.start_time().value_or(0);
    ask.address_space = address_space_;
    return ask;
  }

  /// What one entry maps or stands for; empty for a table.
  std::optional<Extent> decode(unsigned level, VirtAddr va, std::uint64_t raw,
                               unsigned flags) const {
    std::optional<Extent> extent;
    (void)page_table::decode_entries(
        format_, level, va, {&raw, 1}, limits_of(flags), Backend::kmod,
        [&](const Extent& run) {
          extent = run;
          if ((flags & VMEM_RUN_SOFT_DIRTY) != 0) extent->bits |= page_bit::soft_dirty;
          return true;
        },
        [](VirtAddr, std::uint64_t) { return false; });
    return extent;
  }

  Result<void> read(VaRange range, const WalkOptions& options, Runs& runs, ExtentBuilder& builder) {
    const std::uint64_t page = page_size().bytes();
    // A range may end at 2^64; the last page there is nobody's.
    const VirtAddr end = range.end.value == 0 ? VirtAddr{0} - page : range.end;
    VirtAddr at = range.start;
    bool open = true;
    while (open && at < end) {
      if (options.stopped()) return {};
      vmem_resolve ask = question();
      ask.start = at.value;
      ask.end = end.value;
      ask.runs = reinterpret_cast<std::uintptr_t>(runs.data());
      ask.runs_len =
          static_cast<std::uint32_t>(std::min<std::uint64_t>(runs.size(), (end - at) / page));
      int error = 0;
      {
        const auto turn = TargetPace::turn(process_);
        error = call(fd_, VMEM_IOC_RESOLVE, &ask);
      }
      if (error != 0) return failed_call(process_, error, at);
      const VirtAddr next{ask.next};
      if (ask.runs_count > ask.runs_len || next <= at || next > end) return nonsense(at);
      for (std::uint32_t i = 0; open && i < ask.runs_count; ++i) {
        auto reached = add_run(runs[i], at, next, builder, open);
        if (!reached) return std::unexpected(std::move(reached.error()));
        at = *reached;
      }
      if (open && at < next) open = builder.add(absent(at, next));
      at = next;
    }
    if (open && end != range.end) (void)builder.add(absent(end, range.end));
    return {};
  }

  static Extent absent(VirtAddr start, VirtAddr end) {
    return {.va = start, .bytes = end - start, .backend = Backend::kmod};
  }

  /// Adds a run, cut to [at, end), and what is empty before it. Returns where it ends.
  Result<VirtAddr> add_run(const vmem_run& run, VirtAddr at, VirtAddr end, ExtentBuilder& builder,
                           bool& open) {
    if (run.level >= format_.levels || run.shift != format_.shift(run.level)) return nonsense(at);
    const std::uint64_t leaf = std::uint64_t{1} << run.shift;
    // A leaf may begin before the range and end after it.
    const std::uint64_t last_leaf = (end.value - 1) & ~(leaf - 1);
    if (run.count == 0 || run.va % leaf != 0 || run.va > last_leaf ||
        run.count > (last_leaf - run.va) / leaf + 1 || run.va + run.count * leaf <= at.value) {
      return nonsense(at);
    }
    if (at.value < run.va) {
      open = builder.add(absent(at, {run.va}));
      if (!open) return at;
      at = {run.va};
    }
    std::uint64_t step = 0;
    if ((run.flags & VMEM_RUN_UP) != 0) step = leaf;
    if ((run.flags & VMEM_RUN_DOWN) != 0) step = 0 - leaf;
    for (std::uint64_t i = 0; open && i < run.count;) {
      const VirtAddr va{run.va + i * leaf};
      auto extent = decode(run.level, va, run.entry + i * step, run.flags);
      if (!extent) return nonsense(va);
      // Pages in memory lie in consecutive frames; entries of other states go one by one.
      if (step != 0 && extent->state == PageState::resident) {
        const std::uint64_t rest = (run.count - 1) * leaf;
        const auto last =
            decode(run.level, {run.va + rest}, run.entry + (run.count - 1) * step, run.flags);
        if (!last || last->state != PageState::resident ||
            last->pfn != extent->pfn + page_size().pages(rest)) {
          return nonsense(va);
        }
        extent->bytes += rest;
      }
      i += extent->bytes / leaf;
      if (extent->va < at) (void)cut_front(*extent, at - extent->va, page_size());
      extent->bytes = std::min(extent->bytes, end - extent->va);
      at = extent->end();
      open = builder.add(*extent);
    }
    return at;
  }

  const Process& process_;
  Fd fd_;
  const page_table::Format format_;
  std::uint64_t address_space_ = 0;
  std::unique_ptr<Runs> idle_runs_;
};

}  // namespace

Result<std::unique_ptr<Translator>> open_kmod(const Process& process) {
  auto fd = process.root().open_file(device + 1);
  if (!fd) {
    Error& error = fd.error();
    if (error.code == Errc::not_found) {
      error.hint = "load the module: make -C kmod && insmod kmod/vmem.ko (modprobe vmem by DKMS)";
    } else if (error.code == Errc::permission) {
      error.hint = permission_hint(Privilege::page_tables);
    }
    return std::unexpected(std::move(error));
  }
  vmem_info info{};
  info.size = sizeof info;
  const int error = call(*fd, VMEM_IOC_INFO, &info);
  if (error == EPERM) return failed_call(process, error, {});
  const auto format = error == 0 && info.protocol == VMEM_PROTOCOL ? format_of(info) : std::nullopt;
  if (!format || info.page_shift != process.root().page_size().shift()) {
    return std::unexpected(
        Error{.code = Errc::not_supported,
              .os_errno = error,
              .what = "speaking the protocol of",
              .path = device,
              .hint = "the loaded vmem.ko is of another version: load the one of this"});
  }
  auto translator = std::make_unique<KmodTranslator>(process, std::move(*fd), *format);
  if (auto attached = translator->attach(); !attached) {
    return std::unexpected(std::move(attached.error()));
  }
  return translator;
}

}  // namespace vmem
