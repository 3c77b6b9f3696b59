// SPDX-License-Identifier: MIT
#include "vtop_session.hpp"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <string_view>
#include <utility>

#include "addresses.hpp"

namespace vmem::tools {
namespace {

constexpr int walk_attempts = 3;
constexpr const char* walk_takes_addresses = "--walk takes single addresses";

class Vtop {
 public:
  Vtop(const VtopOptions& options, Process& process, Translator& translator,
       std::vector<Column> columns)
      : columns_(std::move(columns)),
        options_(options),
        process_(process),
        translator_(translator),
        page_size_(process.root().page_size()),
        inspector_(inspector()),
        details_(inspector_),
        table_(out_, details_, page_size_, columns_, options.bytes, use_color(options.color)),
        page_bits_(needs_bits(columns_)) {}

  int run(const std::vector<std::string>& addresses) {
    process_.skip_odd_lines([this](const OddLine& line) { note(line); });
    listing_ = addresses.empty() && !options_.watch;
    if (listing_) look_afresh();
    if (options_.frames) open_frames();
    standing_error_ = document_error_;
    if (options_.walk && (options_.watch || addresses.empty())) {
      fail(options_.watch ? "--walk and --watch do not go together" : walk_takes_addresses,
           "see --help");
      return end(status_);
    }
    if (options_.watch) return end(watch(addresses));

    const bool block = addresses.size() == 1 && addresses[0] != "-" && options_.columns.empty();
    const bool batch = std::ranges::find(addresses, "-") != addresses.end();
    if (options_.json && !batch) begin_document(true);
    if (addresses.empty()) {
      heading();
      whole_process();
    }
    for (const std::string& text : addresses) {
      if (interrupted() || out_.failed()) break;
      if (text == "-")
        answer_stdin();
      else if (options_.json && batch)
        answer_document(text);
      else
        answer(text, block);
    }
    if (interrupted() && document_error_.empty()) document_error_ = "interrupted";
    tell_missing();
    if (options_.json && !batch) json_->end(document_error_);
    return end(status_);
  }

 private:
  // ---- messages and status

  void raise(Status status) { status_ = std::max(status_, status); }

  void fail(const Error& error) { fail(to_string(error), error.hint != nullptr ? error.hint : ""); }
  void fail(const std::string& text, std::string_view hint = {}) {
    out_.flush();  // what was answered comes before what was not
    messages_.error(text, hint);
    if (document_error_.empty()) document_error_ = text;
    raise(Status::unanswered);
  }

  // ---- lines of maps that were left out

  void note(const OddLine& line) {
    if (process_.odd_lines().size() > odd_lines_told) return;
    out_.flush();
    const std::string said = left_out_text(line);
    messages_.error(said);
    if (listing_ && document_error_.empty()) document_error_ = said;
  }

  /// The question ends here: nothing is known of what is asked. `before`: how many lines had been
  /// left out before; what was said of a new one need not be said again.
  void fail_left_out(VaRange asked, std::size_t before) {
    const std::string text =
        fmt::format("{:#x}-{:#x}: a line of maps that was left out may tell of it",
                    asked.start.value, asked.end.value);
    if (process_.odd_lines().size() == before) return fail(text);
    if (document_error_.empty()) document_error_ = text;
    raise(Status::unanswered);
  }

  /// "Nothing is mapped" is not known where a line was left out.
  Extent doubted(Extent extent) const {
    if (extent.state == PageState::unmapped && process_.may_be_left_out({extent.va, extent.end()}))
      extent.state = PageState::unseen;
    return extent;
  }

  // ---- numbers that cannot be meant

  /// Says so, and returns true, if no process can have the address that `text` begins with, and
  /// nothing is mapped in the range.
  bool questioned(std::string_view text, VaRange range) {
    const auto doubt =
        not_user_address(process_.root(), range.start, text.substr(0, text.find_first_of("+-")));
    if (!doubt || any_mapping(range)) return false;
    fail(fmt::format("{}: {}", text, doubt->reason), doubt->hint);
    return true;
  }

  bool any_mapping(VaRange range) const {
    auto reader = VmaReader::open(process_);
    if (!reader) return true;  // whoever asks on finds out what is wrong
    Vma vma;
    for (auto more = reader->next(vma); more && *more; more = reader->next(vma)) {
      if (vma.range.end > range.start) return vma.range.start < range.end;
    }
    return false;
  }

  /// Where nothing is mapped, digits may have been meant as a decimal number.
  void suggest_decimal(std::string_view text) {
    const auto decimal = decimal_reading(text.substr(0, text.find_first_of("+-")));
    if (!decimal || !any_mapping({*decimal, *decimal + 1})) return;
    out_.flush();
    messages_.error(
        fmt::format("{}: unmapped, but {:#x} is mapped, which is that number in decimal", text,
                    decimal->value),
        "addresses are hexadecimal");
  }

  /// Page tables show what pagemap does not: why they were of no use here.
  std::string unseen_hint() const {
    if (gate_asked_) return "[vsyscall] is the kernel's: no page table of the process holds it";
    const Error* const why = translator_.why_blind();
    if (process_.root().recorded() && why == nullptr)
      return "it was recorded through pagemap, and cannot be found out later";
    if (why == nullptr) return "page tables tell of such mappings: use --backend auto, bpf or kmod";
    return fmt::format("page tables cannot be read: {}{}{}", to_string(*why),
                       why->hint != nullptr ? "; " : "", why->hint != nullptr ? why->hint : "");
  }

  /// What was shown coarser than it might be, or not at all, because a file could not be read.
  void tell_missing() {
    if (const Error* const missing = inspector_.missing()) fail(*missing);
    if (inspector_.smaps_stalled()) messages_.error(smaps_stalled_text, smaps_stalled_hint);
  }

  std::string leaf_hint() const {
    const Error* const why = translator_.why_blind();
    return why != nullptr ? to_string(*why) : "use --backend auto, bpf or kmod";
  }

  int end(Status status) {
    if (listing_ && !process_.odd_lines().empty()) status = std::max(status, Status::unanswered);
    if (process_.odd_lines().size() > odd_lines_told)
      messages_.error(fmt::format("{} lines of maps were left out", process_.odd_lines().size()));
    if (hidden_seen_) {
      if (process_.root().recorded())
        messages_.error("PFNs are hidden in this recording", hidden_recorded_hint);
      else
        messages_.error("PFNs are hidden from this user", permission_hint(Privilege::pfns));
    }
    if (unseen_asked_)
      messages_.error("an address lies in a mapping that pagemap does not show", unseen_hint());
    if (unreadable_asked_) {
      messages_.error(
          "the page table of an address could not be read",
          "its memory is not known as RAM; ask again, or use --backend pagemap or kmod");
    }
    if (changed_asked_)
      messages_.error("an address kept changing while it was read",
                      "stop the process (SIGSTOP), or try again");
    if (leaf_untold_ && !options_.columns.empty() &&
        std::ranges::find(columns_, Column::leaf) != columns_.end()) {
      messages_.error("leaf sizes could not be told",
                      process_.root().recorded()
                          ? "the recording has no page tables"
                          : "this kernel tells them by page tables alone: " + leaf_hint());
      status = std::max(status, Status::unanswered);
    }
    status = finish_output(out_, status, messages_);
    if (interrupted()) end_by_signal();
    return static_cast<int>(status);
  }

  // ---- output

  void begin_document(bool lines) {
    if (!json_) access_ = pfn_access(process_, translator_);
    json_.emplace(out_, details_, page_size_, lines);
    document_error_ = standing_error_;
    const Translator& source =
        listing_ ? translator_.for_walk(UINT64_MAX, walk_options()) : translator_;
    json_->begin(json_prologue("vtop", process_.root(), access_, source.backend(),
                               flags_source_name(inspector_, process_.root())),
                 process_);
  }

  void heading() {
    if (options_.json || options_.no_headings || headed_) return;
    headed_ = true;
    table_.heading();
  }

  bool show(const Row& row, bool block = false) {
    if (row.extent.state == PageState::hidden) {
      hidden_seen_ = true;
      raise(Status::unanswered);
    }
    if (row.extent.state == PageState::resident && row.extent.leaf_shift == 0) leaf_untold_ = true;
    if (row.extent.reason == Reason::device_private && row.device == nullptr) {
      Row with = row;
      with.device = device_of(row.extent);
      if (with.device != nullptr) return show(with, block);
    }
    const bool more = json_ ? json_->row(row) : block ? table_.block(row) : table_.row(row);
    return more && !interrupted();
  }

  /// Shows an extent whole, or page by page, or by runs of frames with equal facts.
  bool show_run(const Vma* vma, const Extent& answer) {
    const Extent extent = doubted(answer);
    if (options_.frames && has_frame(extent)) return show_frames(vma, extent);
    if (!options_.pages) return show({vma, extent, extent.va});
    return show_pages(vma, extent, nullptr);
  }

  bool show_pages(const Vma* vma, const Extent& run, const FrameView* frame) {
    for (std::uint64_t done = 0; done < run.bytes; done += page_size_.bytes()) {
      if (!show({vma, page_of(run, done), run.va + done, frame})) return false;
    }
    return true;
  }

  Extent part_of(const Extent& run, std::uint64_t offset, std::uint64_t bytes) const {
    Extent part = run;
    part.va = run.va + offset;
    part.bytes = bytes;
    if (has_frame(run))
      part.pfn = run.pfn + page_size_.pages(offset);
    else if (run.state == PageState::swapped && run.reason == Reason::none)
      part.swap_offset += page_size_.pages(offset);
    return part;
  }
  Extent page_of(const Extent& run, std::uint64_t offset) const {
    return part_of(run, offset, page_size_.bytes());
  }

  // ---- frame facts

  /// One that is mapped, or that an entry names.
  static bool has_frame(const Extent& extent) {
    return extent.state == PageState::resident || names_frame(extent);
  }

  /// The device in whose memory a device-private page lies; null where it is not told.
  const std::string* device_of(const Extent& extent) {
    if (extent.reason != Reason::device_private) return nullptr;
    if (!device_regions_asked_) {
      device_regions_asked_ = true;
      if (auto iomem = Iomem::read(process_.root())) device_regions_ = std::move(*iomem);
    }
    if (!device_regions_) return nullptr;
    const PhysAddr first = page_size_.address(extent.pfn);
    const IomemRegion* const region = device_regions_->find(first);
    const bool whole = device_regions_->run_end(first) >= first + extent.bytes;
    return region != nullptr && whole ? &region->name : nullptr;
  }

  void open_frames() {
    if (auto reader = FrameReader::open(process_.root()))
      frames_.emplace(std::move(*reader));
    else
      fail(reader.error());
    if (const Error* const missing = frames_ ? frames_->missing() : nullptr) fail(*missing);
    if (auto iomem = Iomem::read(process_.root()))
      iomem_ = std::move(*iomem);
    else if (iomem.error().code != Errc::not_found &&
             (iomem.error().code != Errc::permission ||
              process_.root().pfn_access() == PfnAccess::full))  // else hidden PFNs are said
      fail(iomem.error());
    if (auto numa = NumaMap::read(process_.root()))
      numa_ = std::move(*numa);
    else if (numa.error().code != Errc::not_found)
      fail(numa.error());
  }

  /// The place of a frame: its node and region, and where either changes.
  PhysAddr locate(Pfn frame, FrameView& view) const {
    PhysAddr end{UINT64_MAX};
    const PhysAddr pa = page_size_.address(frame);
    if (page_size_.frame(pa) != frame) return end;  // 64 bits do not hold its address
    if (iomem_) {
      const IomemRegion* region = iomem_->find(pa);
      view.region = region != nullptr ? &region->name : nullptr;
      end = std::min(end, iomem_->run_end(pa));
    }
    if (numa_) {
      view.node = numa_->node(pa);
      end = std::min(end, numa_->run_end(pa));
    }
    return end;
  }

  bool show_frames(const Vma* vma, const Extent& extent, VirtAddr shown = {}, bool block = false) {
    bool more = true;
    const auto run_of_facts = [&](Pfn first, std::uint64_t frames, const FrameFacts& facts) {
      while (frames != 0 && more) {
        FrameView view{.facts = facts, .node = {}, .region = nullptr};
        const PhysAddr pa = page_size_.address(first);
        const PhysAddr end = locate(first, view);
        // A region can end within a page: the page goes with its first byte.
        const std::uint64_t here = std::clamp<std::uint64_t>(page_size_.pages(end - pa), 1, frames);
        const std::uint64_t offset = page_size_.address({first.value - extent.pfn.value}).value;
        const Extent part = part_of(extent, offset, here * page_size_.bytes());
        if (options_.pages)
          more = show_pages(vma, part, &view);
        else
          more = show({vma, part, block ? shown : part.va, &view}, block);
        first = first + here;
        frames -= here;
      }
      return more;
    };
    const std::uint64_t frames = page_size_.pages(extent.bytes);
    if (!frames_) return run_of_facts(extent.pfn, frames, {});
    if (auto read = frames_->read(extent.pfn, frames, run_of_facts); !read) {
      fail(read.error());
      return false;
    }
    return more;
  }

  // ---- questions

  VmaInspector inspector() const { return {process_, vm_flags_source(process_, translator_)}; }

  void look_afresh() {
    inspector_ = inspector();
    details_.forget();
  }

  WalkOptions walk_options() const {
    return {.threads = options_.threads != 0 ? options_.threads : usable_cpus(2),
            .every_page = options_.pages,
            .page_bits = page_bits_ || (options_.json && !listing_),
            .stop = interrupted};
  }

  void whole_process() {
    Progress progress{"vtop"};
    bool any = false;
    // Every process has [vvar], and opening page tables for it alone takes longer than all the
    // rest.
    WalkOptions options = walk_options();
    options.kernel_mappings = false;
    auto walked = translate_all(process_, translator_, inspector_, options,
                                [&](const Vma* vma, const Extent& extent) {
                                  any = true;
                                  progress.at(extent.va);
                                  return show_run(vma, extent);
                                });
    if (!walked)
      fail(walked.error());
    else if (!any && !interrupted())
      raise(Status::negative);
  }

  void range(VaRange asked, std::string_view text = {}) {
    heading();
    const std::size_t lines_before = process_.odd_lines().size();
    details_.in_order(true);
    Progress progress{"vtop"};
    bool mapped = false;
    auto walked = translate(process_, translator_, inspector_, asked, walk_options(),
                            [&](const Vma* vma, const Extent& extent) {
                              mapped = mapped || extent.state != PageState::unmapped;
                              progress.at(extent.va);
                              return show_run(vma, extent);
                            });
    if (!walked)
      fail(walked.error());
    else if (process_.may_be_left_out(asked))
      fail_left_out(asked, lines_before);
    else if (!mapped && !out_.failed() && !interrupted()) {
      raise(Status::negative);
      suggest_decimal(text);
    }
  }

  /// What a single address in this state answers.
  static Status status_of(PageState state) {
    switch (state) {
      case PageState::resident:
        return Status::good;
      case PageState::hidden:
      case PageState::unseen:
      case PageState::changed:
        return Status::unanswered;
      default:
        return Status::negative;
    }
  }

  /// `text`: what the user typed for just this address, or empty.
  void address(VirtAddr asked, bool block, std::string_view text = {}) {
    const std::size_t lines_before = process_.odd_lines().size();
    std::optional<PageWalk> walk;
    auto translated =
        options_.walk ? walked(asked, walk) : translate(process_, translator_, inspector_, asked);
    if (!translated) return fail(translated.error());
    // What page tables answered can be told down to the raw entry.
    const Backend backend = translated->extent.backend;
    if (json_ && !walk && backend != Backend::pagemap) {
      if (Translator* const tables = translator_.page_tables()) {
        if (auto agreeing = agreeing_walk(*tables, *translated)) walk = std::move(*agreeing);
      }
    }
    translated->extent = doubted(translated->extent);
    const Extent& extent = translated->extent;
    const Vma* vma = translated->vma ? &*translated->vma : nullptr;
    if (vma == nullptr && extent.state == PageState::unseen)
      return fail_left_out({asked, asked + 1}, lines_before);
    if (vma == nullptr && !text.empty()) {
      if (const auto doubt = not_user_address(process_.root(), asked, text))
        return fail(fmt::format("{}: {}", text, doubt->reason), doubt->hint);
    }
    const bool unreadable = extent.reason == Reason::table_unreadable;
    unreadable_asked_ = unreadable_asked_ || unreadable;
    unseen_asked_ = unseen_asked_ || (extent.state == PageState::unseen && !unreadable);
    gate_asked_ = gate_asked_ || extent.reason == Reason::gate_vma;
    changed_asked_ = changed_asked_ || extent.state == PageState::changed;
    raise(status_of(extent.state));
    if (!block) heading();
    details_.in_order(false);
    std::optional<std::string> vm_ops;
    if (options_.walk && vma != nullptr) {
      auto told = translator_.vm_ops(extent.va);
      if (told)
        vm_ops = std::move(*told);
      else if (told.error().code != Errc::not_supported && told.error().code != Errc::not_found)
        fail(told.error());
    }
    const Row row{.vma = vma,
                  .extent = extent,
                  .shown = asked,
                  .walk = walk ? &*walk : nullptr,
                  .every_level = options_.walk,
                  .vm_ops = vm_ops ? &*vm_ops : nullptr};
    if (options_.frames && has_frame(extent))
      show_one_frame(row, block);
    else
      show(row, block && !json_);
    if (vma == nullptr) suggest_decimal(text);
    if (options_.walk && walk && !json_) table_.walk(*walk);
  }

  /// The walk of the page; none if it does not say what the translation says.
  static Result<std::optional<PageWalk>> agreeing_walk(Translator& tables,
                                                       const Translation& translation) {
    const Extent& extent = translation.extent;
    auto walk = tables.page_walk(extent.va);
    if (!walk) return std::unexpected(std::move(walk.error()));
    if (walk->extent.state != extent.state || walk->extent.swap_offset != extent.swap_offset)
      return std::nullopt;
    return std::move(*walk);
  }

  /// A translation and the page-table walk behind it.
  Result<Translation> walked(VirtAddr asked, std::optional<PageWalk>& walk) {
    Translator* const tables = translator_.page_tables();
    if (tables == nullptr) {
      auto refused = translator_.page_walk(page_size_.floor(asked));
      if (!refused) return std::unexpected(std::move(refused.error()));
    }
    for (int left = walk_attempts; left > 0; --left) {
      auto translated = translate(process_, *tables, inspector_, asked);
      if (!translated || !translated->vma || translated->extent.state == PageState::unseen)
        return translated;
      auto agreeing = agreeing_walk(*tables, *translated);
      if (!agreeing) return std::unexpected(std::move(agreeing.error()));
      walk = std::move(*agreeing);
      if (walk) return translated;
    }
    auto translated = translate(process_, *tables, inspector_, asked);
    if (translated) {
      translated->extent.state = PageState::changed;
      translated->extent.reason = Reason::vma_changed;
    }
    return translated;
  }

  void show_one_frame(const Row& row, bool block) {
    FrameView view;
    if (frames_) {
      auto read =
          frames_->read(row.extent.pfn, 1, [&](Pfn, std::uint64_t, const FrameFacts& facts) {
            view.facts = facts;
            return true;
          });
      if (!read) return fail(read.error());
    }
    locate(row.extent.pfn, view);
    Row with = row;
    with.frame = &view;
    show(with, block && !json_);
  }

  /// Mappings of the file or name, in order; `found` gets each. False if there is none.
  Result<bool> for_each_named(const AddressExpression& e, FunctionRef<bool(const Vma&)> found) {
    const bool file = e.form == AddressExpression::Form::file_offset;
    const bool by_path = file && e.name.find('/') != std::string::npos;
    auto reader = VmaReader::open(process_);
    if (!reader) return std::unexpected(std::move(reader.error()));
    bool any = false;
    Vma vma;
    for (;;) {
      auto more = reader->next(vma);
      if (!more) return more;
      if (!*more) break;
      std::string_view name = vma.path;
      if (file) {
        if (vma.inode == 0 || name.empty()) continue;
        if (!by_path) name.remove_prefix(name.rfind('/') + 1);
        constexpr std::string_view deleted = " (deleted)";
        if (name != e.name && name.ends_with(deleted)) name.remove_suffix(deleted.size());
        if (name != e.name || e.offset < vma.offset || e.offset - vma.offset >= vma.range.bytes())
          continue;
      } else if (name != e.name) {
        continue;
      }
      any = true;
      if (!found(vma)) return true;
    }
    // It may have ended, or execute another program now, which has other mappings.
    if (!any) {
      if (auto alive = process_.check_alive(); !alive)
        return std::unexpected(std::move(alive.error()));
    }
    return any;
  }

  void answer(const std::string& text, bool block) {
    const auto parsed = parse_address(text);
    if (!parsed) {
      return fail(text.empty() ? parsed.error() : fmt::format("{}: {}", text, parsed.error()),
                  "a file takes an offset (libc.so.6+0); see ADDRESSES in vtop(1)");
    }
    const AddressExpression& e = *parsed;
    Result<bool> found = true;
    bool inside = true;
    switch (e.form) {
      case AddressExpression::Form::address:
        return address(e.start, block, text);
      case AddressExpression::Form::range:
        if (options_.walk) return fail(fmt::format("{}: {}", text, walk_takes_addresses));
        if (questioned(text, {e.start, e.end})) return;
        return range({e.start, e.end}, text);
      case AddressExpression::Form::name:
        if (options_.walk) {
          return fail(fmt::format("{}: {}", text, walk_takes_addresses),
                      fmt::format("{}+0 is the first byte", text));
        }
        found = for_each_named(e, [&](const Vma& vma) {
          range(vma.range);
          return !out_.failed() && !interrupted();
        });
        break;
      case AddressExpression::Form::name_offset:
        found = for_each_named(e, [&](const Vma& vma) {
          inside = e.offset < vma.range.bytes();
          if (inside) address(vma.range.start + e.offset, block);
          return false;
        });
        if (found) found = *found && inside;
        break;
      case AddressExpression::Form::file_offset:
        found = for_each_named(e, [&](const Vma& vma) {
          address(vma.range.start + (e.offset - vma.offset), false);
          return !out_.failed() && !interrupted();
        });
        break;
    }
    if (!found) return fail(found.error());
    if (!*found) {
      out_.flush();
      messages_.error(fmt::format("{}: not mapped by process {}", text, process_.pid()));
      raise(Status::negative);
    }
  }

  void answer_document(const std::string& text) {
    begin_document(false);
    answer(text, false);
    json_->end(document_error_);
    out_.flush();
  }

  /// Reads a line without its newline. False at the end. Bytes beyond `longest` are dropped.
  bool read_line(std::string& line, bool& too_long) {
    constexpr std::size_t longest = 8192;
    line.clear();
    too_long = false;
    int c = EOF;
    while ((c = std::getc(stdin)) != EOF && c != '\n') {
      if (line.size() < longest)
        line.push_back(static_cast<char>(c));
      else
        too_long = true;
    }
    return (c == '\n' || !line.empty()) && !interrupted();
  }

  void answer_stdin() {
    heading();
    out_.flush();
    std::string line;
    bool too_long = false;
    while (!out_.failed() && read_line(line, too_long)) {
      look_afresh();  // the last answer may be long ago
      if (line.ends_with('\r')) line.pop_back();
      if (too_long) line = "(a line of over 8192 bytes)";
      if (options_.json)
        answer_document(line);
      else
        answer(line, false);
      out_.flush();
    }
    if (std::ferror(stdin) != 0 && !interrupted()) fail("reading stdin failed");
  }

  // ---- --watch

  struct Watched {
    std::optional<Vma> vma;
    Extent extent;
    VirtAddr shown;
  };

  /// What is asked for, as it is now: in address order within each question.
  std::optional<std::vector<Watched>> look(const std::vector<AddressExpression>& questions) {
    std::vector<Watched> now;
    const auto collect = [&](const Vma* vma, const Extent& extent) {
      now.push_back({vma != nullptr ? std::optional(*vma) : std::nullopt, extent, extent.va});
      return !interrupted();
    };
    const auto check = [&](const Result<void>& result) {
      if (!result) fail(result.error());
      return result.has_value();
    };
    if (questions.empty() &&
        !check(translate_all(process_, translator_, inspector_, walk_options(), collect)))
      return {};
    for (const AddressExpression& e : questions) {
      const auto one = [&](VirtAddr va) {
        auto translated = translate(process_, translator_, inspector_, va);
        if (!translated) return check(std::unexpected(std::move(translated.error())));
        now.push_back({std::move(translated->vma), translated->extent, va});
        watched_ = std::max(watched_, status_of(translated->extent.state));
        return true;
      };
      const auto many = [&](VaRange r) {
        return check(translate(process_, translator_, inspector_, r, walk_options(), collect));
      };
      bool good = true;
      Result<bool> found = true;
      switch (e.form) {
        case AddressExpression::Form::address:
          good = one(e.start);
          break;
        case AddressExpression::Form::range:
          good = many({e.start, e.end});
          break;
        case AddressExpression::Form::name:
          found = for_each_named(e, [&](const Vma& vma) { return good = many(vma.range); });
          break;
        default:
          found = for_each_named(e, [&](const Vma& vma) {
            const bool file = e.form == AddressExpression::Form::file_offset;
            if (!file && e.offset >= vma.range.bytes()) return false;
            return good = one(vma.range.start + (file ? e.offset - vma.offset : e.offset));
          });
          break;
      }
      if (!good || interrupted()) return {};
      if (!found) {
        fail(found.error());
        return {};
      }
      if (!*found) watched_ = std::max(watched_, Status::negative);
    }
    return now;
  }

  Status watch(const std::vector<std::string>& addresses) {
    std::vector<AddressExpression> questions;
    for (const std::string& text : addresses) {
      auto parsed = text == "-" ? std::unexpected(std::string("stdin cannot be watched"))
                                : parse_address(text);
      if (!parsed) {
        fail(fmt::format("{}: {}", text, parsed.error()));
        return status_;
      }
      if (parsed->form == AddressExpression::Form::address &&
          questioned(text, {parsed->start, parsed->start + 1}))
        return status_;
      if (parsed->form == AddressExpression::Form::range &&
          questioned(text, {parsed->start, parsed->end}))
        return status_;
      questions.push_back(std::move(*parsed));
    }
    std::vector<Watched> before;
    if (!options_.json && !options_.no_headings) {
      out_.print("{:<12}  ", "TIME");
      heading();
    }
    if (options_.frames) {
      fail("--frames and --watch do not go together");
      return status_;
    }
    for (std::uint64_t round = 0; !interrupted() && !out_.failed(); ++round) {
      look_afresh();
      watched_ = Status::good;
      auto now = look(questions);
      if (!now) return status_;
      compare(before, *now);
      before = std::move(*now);
      out_.flush();
      if (options_.count != 0 && round + 1 >= options_.count) break;
      const auto wait = std::chrono::duration<double>(*options_.watch);
      poll(nullptr, 0, static_cast<int>(std::min(wait.count() * 1000, 2e9)));
    }
    return std::max(status_, watched_);
  }

  static bool same(const Watched& a, const Watched& b) {
    return a.extent.va == b.extent.va && a.extent.bytes == b.extent.bytes &&
           a.extent.state == b.extent.state && a.extent.swap_offset == b.extent.swap_offset &&
           a.extent.swap_type == b.extent.swap_type && a.extent.leaf_shift == b.extent.leaf_shift;
  }

  using Index = std::vector<const Watched*>;
  static Index by_address(const std::vector<Watched>& list) {
    Index index;
    for (const Watched& w : list) index.push_back(&w);
    std::ranges::sort(index, {}, [](const Watched* w) { return w->extent.va; });
    return index;
  }
  /// The extent that holds `va`; null if none does.
  static const Watched* holder(const Index& index, VirtAddr va) {
    const auto after =
        std::ranges::upper_bound(index, va, {}, [](const Watched* w) { return w->extent.va; });
    if (after == index.begin() || (*std::prev(after))->extent.end() <= va) return nullptr;
    return *std::prev(after);
  }

  /// A line for each extent that was not there before, just so, and for each that is in no
  /// mapping any more. The first look is shown whole.
  void compare(const std::vector<Watched>& before, const std::vector<Watched>& now) {
    const Index old_index = by_address(before);
    const Index new_index = by_address(now);
    for (const Watched& w : now) {
      const Watched* old = holder(old_index, w.extent.va);
      if (old == nullptr || !same(*old, w)) show_watched(w);
      if (interrupted() || out_.failed()) return;
    }
    for (const Watched& w : before) {
      if (holder(new_index, w.extent.va) != nullptr) continue;
      Watched gone{std::nullopt,
                   {.va = w.extent.va,
                    .bytes = w.extent.bytes,
                    .state = PageState::unmapped,
                    .backend = w.extent.backend},
                   w.shown};
      show_watched(gone);
      if (interrupted() || out_.failed()) return;
    }
  }

  void show_watched(const Watched& w) {
    const Row row{w.vma ? &*w.vma : nullptr, w.extent, w.shown};
    if (w.extent.state == PageState::hidden) {
      hidden_seen_ = true;
      raise(Status::unanswered);
    }
    if (options_.json) {
      begin_document(false);
      json_->row(row);
      json_->end({});
      return;
    }
    std::timespec now{};
    std::timespec_get(&now, TIME_UTC);
    std::tm local{};
    localtime_r(&now.tv_sec, &local);
    char stamp[32];
    std::strftime(stamp, sizeof stamp, "%H:%M:%S", &local);
    out_.print("{}.{:03}  ", stamp, now.tv_nsec / 1000000);
    table_.row(row);
  }

  const std::vector<Column> columns_;
  const VtopOptions& options_;
  Process& process_;
  Translator& translator_;
  const PageSize page_size_;
  const Messages messages_{"vtop"};
  VmaInspector inspector_;
  VmaDetails details_;
  Output out_{interrupted};
  Table table_;
  const bool page_bits_;  ///< they are a column
  bool listing_ = false;  ///< all of the process, once
  std::optional<JsonResults> json_;
  std::optional<FrameReader> frames_;
  std::optional<Iomem> iomem_;
  std::optional<Iomem> device_regions_;
  bool device_regions_asked_ = false;
  std::optional<NumaMap> numa_;
  PfnAccess access_ = PfnAccess::unknown;
  Status status_ = Status::good;
  std::string document_error_;  ///< the first error since the JSON document began
  std::string standing_error_;  ///< what is wrong with every document
  Status watched_ = Status::good;  ///< of the single addresses at the last look
  static constexpr std::size_t odd_lines_told = 16;
  bool headed_ = false;
  bool hidden_seen_ = false;
  bool unseen_asked_ = false;
  bool unreadable_asked_ = false;
  bool leaf_untold_ = false;
  bool gate_asked_ = false;
  bool changed_asked_ = false;
};

}  // namespace

int run_vtop(const VtopOptions& options, Process& process, Translator& translator,
             std::vector<Column> columns, const std::vector<std::string>& addresses) {
  return Vtop{options, process, translator, std::move(columns)}.run(addresses);
}

}  // namespace vmem::tools
