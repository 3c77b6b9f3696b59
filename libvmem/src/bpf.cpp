// SPDX-License-Identifier: MIT
/// The BPF backend: page tables, copied by a program in the kernel and decoded here.
#include <algorithm>
#include <cerrno>
#include <mutex>
#include <optional>
#include <span>
#include <utility>

#include "backends.hpp"
#include "bpf_program.hpp"
#include "direct_map.hpp"
#include "errors.hpp"
#include "extent_builder.hpp"
#include "page_table.hpp"
#include "vm_flags.hpp"

namespace vmem {
namespace {

using page_table::Format;
using page_table::Limits;

/// Loading a program takes some milliseconds, and it can serve one process after the other.
class IdleProgram {
 public:
  std::unique_ptr<BpfProgram> take() {
    const std::scoped_lock lock(mutex_);
    // After a fork the parent's goes on being the parent's.
    if (program_ && !program_->ours()) program_.reset();
    return std::move(program_);
  }
  void give(std::unique_ptr<BpfProgram> program) {
    const std::scoped_lock lock(mutex_);
    if (program->ours()) program_ = std::move(program);
  }

 private:
  std::mutex mutex_;
  std::unique_ptr<BpfProgram> program_;
};
IdleProgram& idle_program() {
  // Never destroyed: a translator may outlive what is.
  static auto* const idle = new IdleProgram;
  return *idle;
}

/// Decodes what one run has copied. Tables come in the order in which decoding meets them.
class Decoder {
 public:
  Decoder(const BpfProgram& program, ExtentBuilder& out)
      : program_(program), format_(program.direct_map().format), out_(out) {}

  /// Tiles [start, reached). False once the sink has had enough.
  bool decode(VirtAddr start, VirtAddr reached) {
    for (const vmem_cover& cover : program_.covers()) {
      if (!absent(start, {cover.start})) return false;
      next_ = cover.record;
      // As pagemap does: a new VMA is soft-dirty as a whole (pagemap_pmd_range() in
      // fs/proc/task_mmu.c).
      out_.mark(cover.soft_dirty != 0 ? page_bit::soft_dirty : 0);
      const VaRange range{{cover.start}, {cover.end}};
      const unsigned root = format_.levels - 1U;
      const vmem_record* const table = find(root, 0);
      if (table == nullptr || table->status != vmem_copied) {
        if (!(table != nullptr ? not_copied(*table, range) : changed(range))) return false;
      } else if (!decode_table(*table, range, {})) {
        return false;
      }
      start = range.end;
    }
    return absent(start, reached);
  }

 private:
  /// Where there is no VMA.
  bool absent(VirtAddr start, VirtAddr end) {
    if (start >= end) return true;
    out_.mark(0);
    return out_.add({.va = start, .bytes = end - start, .backend = Backend::bpf});
  }
  bool changed(VaRange range) {
    return out_.add({.va = range.start,
                     .bytes = range.bytes(),
                     .state = PageState::changed,
                     .backend = Backend::bpf});
  }

  /// What a table would have told that there is no copy of.
  bool not_copied(const vmem_record& table, VaRange range) {
    if (table.status != vmem_unreadable) return changed(range);
    return out_.add({.va = range.start,
                     .bytes = range.bytes(),
                     .state = PageState::unseen,
                     .reason = Reason::table_unreadable,
                     .backend = Backend::bpf});
  }

  /// The table of `level` for `va`: one that came just now, or one that an earlier cover has
  /// brought.
  const vmem_record* find(unsigned level, std::uint64_t va) {
    const auto records = program_.records();
    if (next_ < records.size() && records[next_].level == level && records[next_].va == va) {
      return path_[level] = &records[next_++];
    }
    const vmem_record* const record = path_[level];
    return record != nullptr && record->va == va ? record : nullptr;
  }

  bool decode_table(const vmem_record& table, VaRange range, Limits above) {
    const unsigned level = table.level;
    const unsigned first = format_.index(level, range.start);
    const unsigned last = format_.index(level, range.end - 1);
    const VirtAddr va{range.start.value >> format_.shift(level) << format_.shift(level)};
    const auto entries = program_.table(table).subspan(first, last - first + 1);
    const auto down = [&](VirtAddr at, std::uint64_t) { return descend(level, at, range, above); };
    if (level == 0) {
      return page_table::decode_entries(format_, 0, va, entries, above, Backend::bpf, out_, down);
    }
    return page_table::decode_entries(
        format_, level, va, entries, above, Backend::bpf,
        [&](const Extent& run) { return add_part(run, range); }, down);
  }

  /// An entry above the PTEs may map more than was asked, or than the VMA has.
  bool add_part(Extent run, VaRange range) {
    const PageSize page_size{std::uint64_t{1} << format_.page_shift};
    if (run.va < range.start) cut_front(run, range.start - run.va, page_size);
    if (run.end() > range.end) run.bytes = range.end - run.va;
    return out_.add(run);
  }

  bool descend(unsigned level, VirtAddr at, VaRange range, Limits above) {
    const VaRange part = intersect(range, {at, at + (std::uint64_t{1} << format_.shift(level))});
    const vmem_record* const below = find(level - 1, at.value);
    if (below == nullptr) return changed(part);
    switch (below->status) {
      case vmem_copied: {
        return decode_table(*below, part, page_table::limits(format_, level, above, below->raw));
      }
      case vmem_entry:
        return page_table::decode_entries(
            format_, level, at, {{below->raw}}, above, Backend::bpf,
            [&](const Extent& run) { return add_part(run, part); },
            [&](VirtAddr, std::uint64_t) { return changed(part); });
      default:
        return not_copied(*below, part);
    }
  }

  const BpfProgram& program_;
  const Format& format_;
  ExtentBuilder& out_;
  std::size_t next_ = 0;  ///< the first record that has not been met
  const vmem_record* path_[VMEM_LEVELS] = {};
};

class BpfTranslator final : public Translator {
 public:
  static Result<std::unique_ptr<BpfTranslator>> open(const Process& process) {
    auto program = idle_program().take();
    if (!program) {
      auto loaded = BpfProgram::load(process.root());
      if (!loaded) return std::unexpected(std::move(loaded.error()));
      if (auto proven = prove_direct_map(process.root(), **loaded); !proven) {
        return std::unexpected(std::move(proven.error()));
      }
      program = std::move(*loaded);
    }
    std::unique_ptr<BpfTranslator> translator(new BpfTranslator(process, std::move(program)));
    if (auto attached = translator->attach(); !attached) {
      return std::unexpected(std::move(attached.error()));
    }
    return translator;
  }
  BpfTranslator(const BpfTranslator&) = delete;
  BpfTranslator& operator=(const BpfTranslator&) = delete;
  ~BpfTranslator() override { idle_program().give(std::move(program_)); }

  Backend backend() const override { return Backend::bpf; }
  std::uint8_t known_bits() const override { return page_bit::soft_dirty | page_bit::uffd_wp; }
  bool sees_pfnmap() const override { return true; }

  Result<void> walk(VaRange range, const WalkOptions& options, ExtentSink sink) override {
    if (busy_) {
      // The sink of a walk asks for another: what the first one reads from must stay.
      auto other = open(process_);
      if (!other) return std::unexpected(std::move(other.error()));
      return (*other)->walk(range, options, sink);
    }
    const Busy busy{*this};
    ExtentBuilder builder{process_.root().page_size(), sink};
    auto result = read(range, options, builder);
    builder.flush();  // what was read before a failure is right
    return result;
  }

  Result<PageWalk> page_walk(VirtAddr page) override {
    if (busy_) {
      auto other = open(process_);
      if (!other) return std::unexpected(std::move(other.error()));
      return (*other)->page_walk(page);
    }
    const Busy busy{*this};
    PageWalk walk;
    walk.extent = {
        .va = page, .bytes = process_.root().page_size().bytes(), .backend = Backend::bpf};
    const VaRange range{page, walk.extent.end()};
    // A run may end before it gets there, at one of very many VMAs.
    Result<VirtAddr> reached = page;
    while (*reached != range.end) {
      reached = run(range);
      if (!reached) return std::unexpected(std::move(reached.error()));
    }
    const auto keep = [&](const Extent& extent) {
      walk.extent = extent;
      return true;
    };
    ExtentBuilder builder{process_.root().page_size(), keep};
    Decoder{*program_, builder}.decode(range.start, *reached);
    builder.flush();
    add_steps(walk);
    return walk;
  }

  Result<std::string> vm_ops(VirtAddr address) override {
    if (busy_) {
      auto other = open(process_);
      if (!other) return std::unexpected(std::move(other.error()));
      return (*other)->vm_ops(address);
    }
    if (auto ours = check_ours(); !ours) return std::unexpected(std::move(ours.error()));
    const Busy busy{*this};
    const auto not_found = [&](const char* path) {
      return std::unexpected(Error{.code = Errc::not_found,
                                   .what = "asking for the operations of a mapping",
                                   .path = path,
                                   .address = address.value});
    };
    iterator_ = Fd{};
    auto iterator = program_->iterate(link_);
    if (!iterator) return std::unexpected(std::move(iterator.error()));
    const auto operations = program_->read_vm_ops(*iterator, address);
    if (!operations) return std::unexpected(operations.error());
    if (identity(program_->run()) != identity_)
      return fail(Errc::process_changed, "reading page tables", process_.path(""));
    if (operations->empty()) return not_found("");
    if (operations->front() == 0) return std::string();
    const auto kallsyms = process_.root().read_file("proc/kallsyms", std::size_t{64} << 20);
    if (!kallsyms) return std::unexpected(kallsyms.error());
    if (std::string name = symbol_at(*kallsyms, operations->front()); !name.empty()) return name;
    // Without CONFIG_KALLSYMS_ALL it lists functions alone.
    for (const std::uint64_t function : std::span(*operations).subspan(1)) {
      const std::string name = function != 0 ? symbol_at(*kallsyms, function) : "";
      if (!name.empty()) return "function=" + name;
    }
    return not_found("/proc/kallsyms");
  }

  /// Has a place of its own in the program's memory, so that the sink of a walk may ask.
  Result<std::vector<FlaggedVma>> vm_flags(VirtAddr from) override {
    if (auto ours = check_ours(); !ours) return std::unexpected(std::move(ours.error()));
    const BpfProgram::KeptRun kept{*program_};
    if (!flag_names_) {
      auto names = learn_flag_names();
      if (!names) return std::unexpected(std::move(names.error()));
      flag_names_ = std::move(*names);
    }
    const auto read = read_vmas(from);
    if (!read) return std::unexpected(read.error());
    std::vector<FlaggedVma> vmas;
    vmas.reserve(read->size());
    for (const VmaWord& vma : *read) vmas.push_back({vma.range, flag_names_->of(vma.flags)});
    return vmas;
  }

 private:
  BpfTranslator(const Process& process, std::unique_ptr<BpfProgram> program)
      : process_(process), program_(std::move(program)) {}

  struct Busy {
    BpfTranslator& translator;
    explicit Busy(BpfTranslator& t) : translator(t) { t.busy_ = true; }
    Busy(const Busy&) = delete;
    Busy& operator=(const Busy&) = delete;
    ~Busy() { translator.busy_ = false; }
  };

  /// Which address space of which process; kernels do not use a start time to the nanosecond twice.
  struct Identity {
    std::uint64_t mm = 0, exec_id = 0, start_boottime = 0;
    friend bool operator==(const Identity&, const Identity&) = default;
  };
  static Identity identity(const vmem_run& run) {
    return {run.mm, run.exec_id, run.start_boottime};
  }

  Result<void> read(VaRange range, const WalkOptions& options, ExtentBuilder& builder) {
    while (!range.empty() && !options.stopped()) {
      auto reached = run(range);
      if (!reached) return std::unexpected(std::move(reached.error()));
      if (!Decoder{*program_, builder}.decode(range.start, *reached)) return {};
      range.start = *reached;
    }
    return {};
  }

  /// Learns who it is that the PID names.
  Result<void> attach() {
    if (auto linked = link(vmem_filter_task); !linked) return linked;
    const VaRange nothing{{0}, {0}};
    auto seen = read_once(iterator_, [&](const Fd& iterator, bool continued) {
      return program_->read(iterator, nothing, continued);
    });
    if (!seen) return std::unexpected(std::move(seen.error()));
    const vmem_run& run = program_->run();
    if (!*seen) {
      if (auto alive = process_.check_alive(); !alive) return alive;
      return fail(Errc::no_user_memory, "reading page tables", process_.path(""));
    }
    identity_ = identity(run);
    const auto start_time = process_.start_time();
    if (!start_time || !started_at(process_.root(), run.start_boottime, *start_time)) {
      if (auto alive = process_.check_alive(); !alive) return alive;
      return std::unexpected(
          Error{.code = Errc::not_supported,
                .what = "reading page tables",
                .path = process_.path(""),
                .hint = "/proc shows another PID namespace than this process's"});
    }
    return {};
  }

  Result<void> link(vmem_filter filter) {
    iterator_ = Fd{};
    auto link = program_->link(process_.pid(), filter);
    if (!link) {
      if (auto alive = process_.check_alive(); !alive) return alive;
      return std::unexpected(std::move(link.error()));
    }
    link_ = std::move(*link);
    filter_ = filter;
    return {};
  }

  /// One run: read(iterator, whether it goes on where the last one stopped), with a new iterator
  /// where the last one does not serve. False if it saw no VMA at all.
  using Read = FunctionRef<Result<void>(const Fd&, bool)>;
  Result<bool> read_once(Fd& iterator, Read read) {
    const vmem_run& run = program_->run();
    for (;;) {
      const bool continued = iterator.valid();
      if (!continued) {
        auto fresh = program_->iterate(link_);
        if (!fresh) return std::unexpected(std::move(fresh.error()));
        iterator = std::move(*fresh);
      }
      if (auto done = read(iterator, continued); !done) {
        iterator = Fd{};
        return std::unexpected(std::move(done.error()));
      }
      if (run.ended != 0 || run.lost != 0 || run.seen == 0) iterator = Fd{};
      if (continued && (run.lost != 0 || run.seen == 0)) continue;
      if (run.seen != 0) return true;
      // The iterator looks at the first thread, which may have ended before the others.
      if (filter_ != vmem_filter_task) return false;
      if (auto linked = link(vmem_filter_group); !linked) {
        return std::unexpected(std::move(linked.error()));
      }
    }
  }

  /// Before anything touches the program's memory.
  Result<void> check_ours() const {
    if (program_->ours()) return {};
    return fail(Errc::invalid_argument, "reading page tables after a fork", process_.path(""));
  }

  /// The same, of the process that was opened.
  Result<void> read_process(Fd& iterator, Read read) {
    if (auto ours = check_ours(); !ours) return ours;
    const auto seen = read_once(iterator, read);
    if (!seen) return std::unexpected(seen.error());
    if (!*seen || identity(program_->run()) != identity_) {
      if (auto alive = process_.check_alive(); !alive) return alive;
      return fail(Errc::process_changed, "reading page tables", process_.path(""));
    }
    return {};
  }

  /// Reads from the start of `range` on. Returns how far: all below is in the program's memory.
  Result<VirtAddr> run(VaRange range) {
    const auto read_tables = [&] {
      return read_process(iterator_, [&](const Fd& iterator, bool continued) {
        return program_->read(iterator, range, continued);
      });
    };
    auto read = read_tables();
    if (!read) return std::unexpected(std::move(read.error()));
    // A table that does not lie in RAM may lie in memory that was added after the list was read.
    const bool refused = std::ranges::any_of(
        program_->records(), [](const vmem_record& r) { return r.status == vmem_unreadable; });
    if (refused && program_->refresh_ram(process_.root())) {
      iterator_ = Fd{};
      read = read_tables();
      if (!read) return std::unexpected(std::move(read.error()));
    }
    const vmem_run& run = program_->run();
    return run.ended != 0 ? range.end : std::min(range.end, VirtAddr{run.cursor});
  }

  /// VMAs that end above `from`; none if there are no more. The run before it is forgotten.
  Result<std::vector<VmaWord>> read_vmas(VirtAddr from) {
    do {
      auto read = read_process(vmas_iterator_, [&](const Fd& iterator, bool continued) {
        return program_->read_vmas(iterator, from, continued);
      });
      if (!read) return std::unexpected(std::move(read.error()));
      // A run may end before the first that it could bring, and goes on at that.
      from = {program_->run().cursor};
    } while (program_->vmas().empty() && program_->run().ended == 0);
    return words(program_->vmas());
  }

  static std::vector<VmaWord> words(std::span<const vmem_vma> vmas) {
    std::vector<VmaWord> words;
    words.reserve(vmas.size());
    for (const vmem_vma& vma : vmas) words.push_back({{{vma.start}, {vma.end}}, vma.flags});
    return words;
  }

  /// The run before it is forgotten.
  Result<VmFlagNames> learn_flag_names() const {
    const auto self = process_.root().self();
    if (!self) return std::unexpected(self.error());
    const auto link = program_->link(self->pid(), vmem_filter_task);
    if (!link) return std::unexpected(link.error());
    const auto iterator = program_->iterate(*link);
    if (!iterator) return std::unexpected(iterator.error());
    if (auto read = program_->read_vmas(*iterator, {0}, false); !read)
      return std::unexpected(std::move(read.error()));
    return VmFlagNames::learn(*self, words(program_->vmas()));
  }

  void add_steps(PageWalk& walk) const {
    const Format& format = program_->direct_map().format;
    for (const vmem_record& record : program_->records()) {
      if (record.status == vmem_copied) {
        const unsigned index = format.index(record.level, walk.extent.va);
        walk.steps.push_back({.level = page_table::level_name(format, record.level),
                              .table = {record.pa},
                              .index = index,
                              .raw = program_->table(record)[index],
                              .shift = format.shift(record.level),
                              .leaf = false,
                              .flags = {}});
      }
      // What the entry above was when it was followed.
      const std::size_t above = format.levels - 2U - record.level;
      if (record.level + 1U < format.levels && above < walk.steps.size()) {
        walk.steps[above].raw = record.raw;
      }
    }
    for (std::size_t i = 0; i < walk.steps.size(); ++i) {
      WalkStep& step = walk.steps[i];
      const auto level = static_cast<unsigned>(format.levels - 1U - i);
      step.leaf = page_table::decode(format, level, step.raw).kind == page_table::Kind::leaf;
      step.flags = page_table::flag_names(format, level, step.raw);
    }
  }

  const Process& process_;
  std::unique_ptr<BpfProgram> program_;
  Fd link_;
  Fd iterator_;
  Fd vmas_iterator_;
  std::optional<VmFlagNames> flag_names_;
  vmem_filter filter_ = vmem_filter_task;
  Identity identity_;
  bool busy_ = false;
};

}  // namespace

Result<std::unique_ptr<Translator>> open_bpf(const Process& process) {
#if defined(__x86_64__)
  if (process.root().pfn_access() != PfnAccess::full) {
    return std::unexpected(
        Error{.code = Errc::permission,
              .what = "backend bpf",
              .path = {},
              .hint = "it proves itself on a page whose PFN it is shown: needs CAP_SYS_ADMIN"});
  }
  auto translator = BpfTranslator::open(process);
  if (!translator) return std::unexpected(std::move(translator.error()));
  return std::move(*translator);
#else
  return std::unexpected(
      Error{.code = Errc::not_supported,
            .what = "backend bpf",
            .path = process.path(""),
            .hint = "reading page tables through BPF works on x86-64: use --backend kmod"});
#endif
}

}  // namespace vmem
