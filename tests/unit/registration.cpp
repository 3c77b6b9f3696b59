// SPDX-License-Identifier: MIT
// Every finding of an audit, on systems made for it. What must come out follows from how the
// entries were written, not from the library.
#include "vmem/registration.hpp"

#include "support/catch.hpp"
#include "support/recorded.hpp"
#include "support/temp_dir.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

constexpr std::uint64_t mine = entry::present | entry::exclusive;
constexpr std::uint64_t base = 0x7f0000000000;
constexpr std::uint64_t two_megabytes = 2 << 20;

struct Setup {
  std::string perms = "rw-p";
  std::string flags = "rd wr mr mw me ac dc";
  std::uint64_t bytes = 4 << 20;
  std::string name;
  std::string file = "00:00 0";  ///< device and inode
  std::vector<EntryRun> entries;
  std::vector<FrameRun> frames = {{.first = 0, .frames = 1 << 20, .flags = 0x1000}};
  std::map<std::string, std::string> process_files, files;
  std::string manifest = "vmem-tree 1\npage_size 4096\npfn_access full\n";
};

class System {
 public:
  explicit System(const Setup& setup) : recorded_(model(setup)), process_(recorded_.process(1)) {}

  std::vector<Audit> audit_all(const std::vector<Registration>& all, bool planned = false) {
    auto translator = open_translator(process_);
    REQUIRE(translator);
    AuditOptions options;
    options.planned = planned;
    auto audits = audit(process_, **translator, all, options);
    if (!audits) FAIL(to_string(audits.error()));
    REQUIRE(audits->size() == all.size());
    return std::move(*audits);
  }
  Audit audit_one(const Registration& r, bool planned = false) {
    return audit_all({r}, planned).front();
  }
  const Process& process() const { return process_; }
  const std::filesystem::path& directory() const { return recorded_.directory().path(); }

 private:
  static SystemModel model(const Setup& setup) {
    char range[64];
    (void)std::snprintf(range, sizeof range, "%llx-%llx", static_cast<unsigned long long>(base),
                        static_cast<unsigned long long>(base + setup.bytes));
    const std::string line =
        std::string(range) + " " + setup.perms + " 00000000 " + setup.file + " ";
    SystemModel system = one_process(line + setup.name + "\n", setup.entries, setup.manifest);
    system.frames = setup.frames;
    system.files = setup.files;
    auto& files = system.processes.front().files;
    files = setup.process_files;
    system.processes.front().has_pagemap = !files.contains("extents");
    files["comm"] = "test\n";
    if (!setup.flags.empty())
      files["smaps"] = line + "\nKernelPageSize:        4 kB\nVmFlags: " + setup.flags + " \n";
    return system;
  }

  Recorded recorded_;
  Process process_;
};

Registration range(std::uint64_t offset, std::uint64_t bytes) {
  return {.range = {{base + offset}, {base + offset + bytes}}};
}

/// Of an audit that lives on: not of a temporary beyond its expression.
const AuditFinding* find(const Audit& audit, AuditFindingKind kind) {
  for (const AuditFinding& f : audit.findings) {
    if (f.kind == kind) return &f;
  }
  return nullptr;
}

/// The kinds found, for comparing at a glance.
std::string kinds(const Audit& audit) {
  std::string all;
  for (const AuditFinding& f : audit.findings) {
    all += (all.empty() ? "" : " ") + std::string(to_string(f.kind)) + ":" +
           std::string(to_string(f.severity));
  }
  return all;
}

}  // namespace

TEST_CASE("registration: memory that is as it should be has no findings") {
  System system({.entries = {{base, 1024, mine | 0x400, 1}}});
  const Audit a = system.audit_one(range(0, 4 << 20));
  CHECK(kinds(a) == "");
  CHECK_FALSE(a.worst());
  CHECK(a.complete);
  CHECK(a.resident_bytes == 4 << 20);
  CHECK(a.extents == 1);
  CHECK(a.largest_extent == 4 << 20);
  CHECK(a.best_page_size == two_megabytes);  // frame 0x400 and the address agree below 2 MiB
  CHECK(a.entries == 2);
  CHECK(a.ideal_entries == 2);
}

TEST_CASE("registration: frame 0 is a frame") {
  System system({.bytes = 4096, .entries = {{base, 1, mine, 0}}});
  Registration r = range(0, 4096);
  r.iova_known = true;
  r.iova_rule = IovaRule::physical;
  const Audit a = system.audit_one(r);
  CHECK(kinds(a) == "");
  CHECK(a.extents == 1);
}

TEST_CASE("registration: what is not resident, swapped, guarded or not mapped") {
  System system({.bytes = 16 * 4096,
                 .entries = {{base, 4, mine | 0x100, 1},
                             {base + 4 * 4096, 2, entry::swapped(0, 7), entry::swap_step},
                             {base + 6 * 4096, 1, entry::guard_page, 0},
                             {base + 8 * 4096, 1, mine | 0x200, 0}}});
  const Audit a = system.audit_one(range(0, 32 * 4096));
  CHECK_FALSE(a.complete);
  CHECK(a.worst() == Severity::error);
  CHECK(a.resident_bytes == 5 * 4096);
  REQUIRE(find(a, AuditFindingKind::swapped));
  CHECK(find(a, AuditFindingKind::swapped)->bytes == 2 * 4096);
  CHECK(find(a, AuditFindingKind::swapped)->where.front().va == VirtAddr{base + 4 * 4096});
  REQUIRE(find(a, AuditFindingKind::not_registrable));
  CHECK(find(a, AuditFindingKind::not_registrable)->bytes == 4096);
  const AuditFinding* const absent = find(a, AuditFindingKind::not_resident);
  REQUIRE(absent);
  CHECK(absent->bytes == 8 * 4096);
  REQUIRE(absent->runs == 2);
  CHECK(absent->where[0].bytes == 4096);
  CHECK(absent->where[1].va == VirtAddr{base + 9 * 4096});
  CHECK(absent->where[1].bytes == 7 * 4096);
  REQUIRE(find(a, AuditFindingKind::unmapped));
  CHECK(find(a, AuditFindingKind::unmapped)->bytes == 16 * 4096);

  // To be registered, they are brought in: no trouble, but for guards and holes.
  const Audit plan = system.audit_one(range(0, 6 * 4096), true);
  CHECK(plan.worst() != Severity::error);
  CHECK(find(plan, AuditFindingKind::swapped)->severity == Severity::info);
}

TEST_CASE("registration: bytes that are not whole pages count as bytes") {
  System system({.bytes = 8 * 4096, .entries = {{base, 2, mine | 0x100, 1}}});
  const Audit a = system.audit_one(range(100, 2 * 4096));
  CHECK(a.resident_bytes == 2 * 4096 - 100);
  CHECK(find(a, AuditFindingKind::not_resident)->bytes == 100);
}

TEST_CASE("registration: an IOVA that is not the physical address, to the page") {
  System system({.entries = {{base, 512, mine | 0x400, 1},
                             {base + two_megabytes, 256, mine | 0x1000, 1},
                             {base + 3 * (1 << 20), 256, mine | 0x5100, 1}}});
  Registration r = range(0, two_megabytes);
  r.iova_known = true;
  r.iova_rule = IovaRule::physical;
  r.iova = 0x400 << 12;
  CHECK(kinds(system.audit_one(r)) == "");
  r.iova += 4096;
  const Audit wrong = system.audit_one(r);
  REQUIRE(find(wrong, AuditFindingKind::iova_mismatch));
  const AuditFinding& f = *find(wrong, AuditFindingKind::iova_mismatch);
  CHECK(f.severity == Severity::error);
  CHECK(f.bytes == two_megabytes);
  CHECK(f.where.front().expected == 0x401000);
  CHECK(f.where.front().actual == 0x400000);
  CHECK(f.where.front().pfn == Pfn{0x400});

  // Only the half that has gone elsewhere is named.
  Registration second = range(two_megabytes, two_megabytes);
  second.iova_known = true;
  second.iova_rule = IovaRule::physical;
  second.iova = 0x1000 << 12;
  const Audit half = system.audit_one(second);
  REQUIRE(find(half, AuditFindingKind::iova_mismatch));
  CHECK(find(half, AuditFindingKind::iova_mismatch)->bytes == 1 << 20);
  CHECK(find(half, AuditFindingKind::iova_mismatch)->where.front().va ==
        VirtAddr{base + 3 * (1 << 20)});

  r.iova_rule = IovaRule::virt;
  r.iova = base;
  CHECK(kinds(system.audit_one(r)) == "");
  r.iova = base + 4096;
  CHECK(find(system.audit_one(r), AuditFindingKind::iova_mismatch));
}

TEST_CASE("registration: beyond the DMA mask") {
  System system({.bytes = 8192, .entries = {{base, 2, mine | 0x100, 1}}});
  Registration r = range(0, 8192);
  r.iova_known = true;
  r.iova = (std::uint64_t{1} << 32) - 8192;
  r.dma_mask_bits = 32;
  CHECK_FALSE(find(system.audit_one(r), AuditFindingKind::dma_mask));
  r.iova += 1;
  CHECK(find(system.audit_one(r), AuditFindingKind::dma_mask));
}

TEST_CASE("registration: IOVAs at the top of 64 bits end there, or do not wrap to small ones") {
  System system({.entries = {{base, 1024, mine | 0x400, 1}}});
  Registration r = range(0, 4 << 20);
  r.iova_known = true;
  for (const unsigned bits : {0U, 32U, 48U, 64U}) {
    r.dma_mask_bits = static_cast<std::uint8_t>(bits);
    r.iova = UINT64_MAX - (4 << 20) + 1;  // the last byte has the last address
    const Audit last = system.audit_one(r);
    CHECK((find(last, AuditFindingKind::dma_mask) != nullptr) == (bits == 32 || bits == 48));
    CHECK(last.ideal_entries == 2);
    CHECK(last.entries == 2);
    for (const std::uint64_t beyond : {std::uint64_t{4096}, std::uint64_t{2} << 20}) {
      r.iova = UINT64_MAX - (4 << 20) + 1 + beyond;
      const Audit wrapped = system.audit_one(r);
      const AuditFinding* const found = find(wrapped, AuditFindingKind::dma_mask);
      REQUIRE(found);
      CHECK(found->severity == Severity::error);
      CHECK(found->flag == "the IOVAs end above 2^64");
      CHECK(wrapped.ideal_entries == 2);
      CHECK(wrapped.entries >= wrapped.ideal_entries);
    }
  }
  // PA mode: what would be the address of frame 0 is none.
  System low({.bytes = 8192, .entries = {{base, 1, mine | 0x100, 0}, {base + 4096, 1, mine, 0}}});
  Registration physical = range(0, 8192);
  physical.iova_known = true;
  physical.iova_rule = IovaRule::physical;
  physical.iova = UINT64_MAX - 4095;
  const Audit a = low.audit_one(physical);
  REQUIRE(find(a, AuditFindingKind::iova_mismatch));
  CHECK(find(a, AuditFindingKind::iova_mismatch)->bytes == 8192);
}

TEST_CASE("registration: fork and copy-on-write") {
  const std::vector<EntryRun> entries = {{base, 4, mine | 0x100, 1},
                                         {base + 4 * 4096, 2, entry::present | 0x200, 1},
                                         {base + 6 * 4096, 2, mine | entry::file | 0x300, 1}};
  System system({.flags = "rd wr mr mw me ac", .bytes = 8 * 4096, .entries = entries});
  const Audit a = system.audit_one(range(0, 4 * 4096));
  CHECK(kinds(a) == "fork-hazard:warning");
  // Not this process's alone, or still the file's: the next write moves them.
  const Audit moved = system.audit_one(range(0, 8 * 4096));
  REQUIRE(find(moved, AuditFindingKind::shared_cow));
  CHECK(find(moved, AuditFindingKind::shared_cow)->bytes == 4 * 4096);
  CHECK(find(moved, AuditFindingKind::shared_cow)->where.front().va == VirtAddr{base + 4 * 4096});
  CHECK(moved.worst() == Severity::error);

  System marked({.bytes = 8 * 4096, .entries = entries});
  CHECK(kinds(marked.audit_one(range(0, 4 * 4096))) == "");
  System shared({.perms = "rw-s",
                 .flags = "rd wr sh mr mw me ms",
                 .bytes = 8 * 4096,
                 .name = "/dev/zero (deleted)",
                 .entries = entries});
  CHECK(kinds(shared.audit_one(range(0, 8 * 4096))).find("cow") == std::string::npos);
  CHECK(kinds(shared.audit_one(range(0, 8 * 4096))).find("fork") == std::string::npos);
}

TEST_CASE("registration: what fork does not copy is no fork hazard, whichever flag says so") {
  const auto hazard = [](const std::string& perms, const std::string& flags) {
    System system(
        {.perms = perms, .flags = flags, .bytes = 8192, .entries = {{base, 2, mine | 0x100, 1}}});
    Registration r = range(0, 8192);
    r.device_writes = false;
    const Audit a = system.audit_one(r);
    return find(a, AuditFindingKind::fork_hazard) != nullptr;
  };
  CHECK(hazard("rw-p", "rd wr mr mw me ac"));
  CHECK_FALSE(hazard("rw-p", "rd wr mr mw me ac dc"));
  CHECK_FALSE(hazard("rw-p", "rd wr mr mw me ac wf"));
  CHECK_FALSE(hazard("rw-p", "rd wr mr mw me ac dc wf"));
  CHECK_FALSE(hazard("rw-p", "rd wr mr mw me pf io"));
  CHECK_FALSE(hazard("rw-p", "rd wr mr mw me io"));  // cannot be registered
  CHECK_FALSE(hazard("rw-s", "rd wr sh mr mw me ms"));
  CHECK_FALSE(hazard("r--p", "rd mr mw me ac"));
  CHECK(hazard("rw-p", "rd wr mr mw me de ht"));  // huge pages are copied as others are
}

TEST_CASE("registration: another mapping at the same range is another VMA") {
  System system({.flags = "rd wr mr mw me ac",
                 .bytes = 16 << 20,
                 .entries = {{base, 4096, mine | 0x400, 1}}});
  /// Walks as pagemap does; after the first walk another mapping takes the place.
  class Replacing : public Translator {
   public:
    Replacing(std::unique_ptr<Translator> real, std::filesystem::path process)
        : real_(std::move(real)), process_(std::move(process)) {}
    Backend backend() const override { return real_->backend(); }
    std::uint8_t known_bits() const override { return real_->known_bits(); }
    bool sees_pfnmap() const override { return real_->sees_pfnmap(); }
    Result<void> walk(VaRange range, const WalkOptions& options, ExtentSink sink) override {
      auto walked = real_->walk(range, options, sink);
      if (++walks_ == 1) {
        const std::string line =
            "7f0000000000-7f0001000000 rw-s 00000000 00:01 9 /dev/zero (deleted)\n";
        write_file(process_ / "new", line);  // who reads the old one goes on
        std::filesystem::rename(process_ / "new", process_ / "maps");
        write_file(process_ / "new", line + "VmFlags: rd wr sh mr mw me ms \n");
        std::filesystem::rename(process_ / "new", process_ / "smaps");
      }
      return walked;
    }

   private:
    std::unique_ptr<Translator> real_;
    std::filesystem::path process_;
    int walks_ = 0;
  };
  auto real = open_translator(system.process(), Backend::pagemap);
  REQUIRE(real);
  Replacing translator{std::move(*real), system.directory() / "proc/1"};
  // Far apart, so that each is walked by itself.
  const std::vector<Registration> all = {range(0, 4096), range(8 << 20, 4096)};
  const auto audits = audit(system.process(), translator, all, {});
  if (!audits) FAIL(to_string(audits.error()));
  CHECK(kinds((*audits)[0]) == "fork-hazard:warning");
  CHECK(kinds((*audits)[1]) == "");
}

TEST_CASE("registration: what a stopped walk did not reach is unknown") {
  System system({.bytes = 16 << 20, .entries = {{base, 4096, mine | 0x400, 1}}});
  auto translator = open_translator(system.process());
  REQUIRE(translator);
  AuditOptions options;
  options.walk.stop = [] { return true; };
  const std::vector<Registration> all = {range(0, 4096), range(8 << 20, 4096)};
  const auto audits = audit(system.process(), **translator, all, options);
  REQUIRE(audits);
  for (const Audit& a : *audits) CHECK(a.worst() == Severity::unknown);
}

TEST_CASE("registration: frame flags name KSM, the zero page and poison") {
  System system({.bytes = 8 * 4096,
                 .entries = {{base, 8, mine | 0x100, 1}},
                 .frames = {{.first = 0x100, .frames = 2, .flags = 0x1000},
                            {.first = 0x102, .frames = 2, .flags = 1ULL << 21 | 0x1000},
                            {.first = 0x104, .frames = 1, .flags = 1ULL << 24},
                            {.first = 0x105, .frames = 1, .flags = 1ULL << 19},
                            {.first = 0x106, .frames = 2, .flags = 0x1000}}});
  const Audit a = system.audit_one(range(0, 8 * 4096));
  CHECK(kinds(a) == "ksm:error zero-page:error hwpoison:error");
  CHECK(find(a, AuditFindingKind::ksm)->bytes == 2 * 4096);
  CHECK(find(a, AuditFindingKind::ksm)->where.front().va == VirtAddr{base + 2 * 4096});
  CHECK(find(a, AuditFindingKind::ksm)->where.front().pfn == Pfn{0x102});
  CHECK(find(a, AuditFindingKind::hwpoison)->where.front().pfn == Pfn{0x105});
}

TEST_CASE("registration: of a huge leaf each page is judged by its own frame") {
  // By page tables, which tell no more than the frames.
  Setup setup{.frames = {{.first = 0x400, .frames = 1024, .flags = 0x1000, .mapcount = 1}}};
  setup.process_files["extents"] =
      "vmem-extents 1 kmod\n7f0000000000 1024 pfn=0x400 leaf=2097152\nend\n";
  CHECK(kinds(System(setup).audit_one(range(0, 4 << 20))) == "");
  // A child that maps two pages in the midst of one of them.
  setup.frames = {{.first = 0x400, .frames = 100, .flags = 0x1000, .mapcount = 1},
                  {.first = 0x464, .frames = 2, .flags = 0x1000, .mapcount = 2},
                  {.first = 0x466, .frames = 1024 - 102, .flags = 0x1000, .mapcount = 1}};
  for (const char* const poisoned : {"", "HardwareCorrupted:     0 kB\n"}) {
    setup.files["proc/meminfo"] = poisoned;
    const Audit a = System(setup).audit_one(range(4096, (4 << 20) - 4096));
    CHECK(kinds(a) == "shared-cow:error");
    REQUIRE(find(a, AuditFindingKind::shared_cow));
    CHECK(find(a, AuditFindingKind::shared_cow)->bytes == 8192);
    CHECK(find(a, AuditFindingKind::shared_cow)->where.front().pfn == Pfn{0x464});
  }
  // One poisoned page of a transparent huge page, also in a recording.
  setup.files.clear();
  setup.frames = {{.first = 0x400, .frames = 700, .flags = 0x1000, .mapcount = 1},
                  {.first = 0x6bc, .frames = 1, .flags = 0x81000, .mapcount = 1},
                  {.first = 0x6bd, .frames = 1024 - 701, .flags = 0x1000, .mapcount = 1}};
  const Audit a = System(setup).audit_one(range(0, 4 << 20));
  CHECK(kinds(a) == "hwpoison:error");
  REQUIRE(find(a, AuditFindingKind::hwpoison));
  CHECK(find(a, AuditFindingKind::hwpoison)->bytes == 4096);
}

TEST_CASE("registration: a page that is lost, and one on its way, by their frames") {
  System system({.bytes = 3 * 4096,
                 .entries = {{base, 1, entry::swapped(26, 0x433c), 0},
                             {base + 4096, 1, entry::swapped(28, 0x5000), 0},
                             {base + 8192, 1, mine | 0x100, 1}},
                 .frames = {{.first = 0x100, .frames = 1, .flags = 0x1000},
                            {.first = 0x433c, .frames = 1, .flags = 1ULL << 19},
                            {.first = 0x5000, .frames = 1, .flags = 0x1000}}});
  const Audit a = system.audit_one(range(0, 3 * 4096));
  CHECK(kinds(a) == "hwpoison:error special-entry:unknown");
  CHECK(find(a, AuditFindingKind::hwpoison)->where.front().pfn == Pfn{0x433c});
  CHECK(find(a, AuditFindingKind::special_entry)->where.front().pfn == Pfn{0x5000});
  CHECK(advice(AuditFindingKind::hwpoison).starts_with("the page is lost: unmap it"));
  CHECK(a.worst() == Severity::error);
}

TEST_CASE(
    "registration: kernels that say KSM of all anonymous memory are believed where it can be") {
  const auto said = [](const std::string& release, const std::string& flags) {
    Setup setup{.flags = "rd wr mr mw me ac dc" + flags,
                .bytes = 8192,
                .entries = {{base, 2, mine | 0x100, 1}},
                .frames = {{.first = 0x100, .frames = 2, .flags = 1ULL << 21 | 0x1000}}};
    if (!release.empty()) setup.files["proc/sys/kernel/osrelease"] = release + "\n";
    return kinds(System(setup).audit_one(range(0, 8192)));
  };
  CHECK(said("6.12.118+deb13-amd64", "") == "");
  CHECK(said("6.12.118+deb13-amd64", " mg") == "frames-unknown:unknown");
  CHECK(said("6.1.0-50-amd64", "") == "ksm:error");
  CHECK(said("6.18.0", "") == "ksm:error");
  CHECK(said("", "") == "ksm:error");
}

TEST_CASE("registration: what get_user_pages() refuses") {
  const std::vector<EntryRun> entries = {{base, 2, mine | 0x100, 1}};
  const auto refused = [&](const std::string& perms, const std::string& flags, bool writes) {
    System system({.perms = perms, .flags = flags, .bytes = 8192, .entries = entries});
    Registration r = range(0, 8192);
    r.device_writes = writes;
    const Audit a = system.audit_one(r, true);
    const AuditFinding* const found = find(a, AuditFindingKind::not_registrable);
    if (found == nullptr) return std::string();
    return std::string(found->flag);
  };
  CHECK(refused("rw-s", "rd wr sh mr mw me ms pf io de dd", true) == "VmFlags pf (VM_PFNMAP)");
  CHECK(refused("rw-s", "rd wr sh mr mw me ms io", true) == "VmFlags io (VM_IO)");
  CHECK(refused("rw-s", "rd wr sh mr mw me ms mm", true).empty());
  CHECK(refused("r--p", "rd mr mw me", true) == "not writable");
  CHECK(refused("r--p", "rd mr mw me", false).empty());
  CHECK(refused("---p", "mr mw me", false) == "no access (PROT_NONE)");
  CHECK(refused("rw-p", "rd wr mr mw me ac ss", true) == "VmFlags ss (shadow stack)");
  CHECK(refused("rw-p", "rd wr mr mw me ac ss", false).empty());
}

TEST_CASE("registration: a device mapping that pagemap cannot show is refused, not unknown") {
  System system(
      {.perms = "rw-s", .flags = "rd wr sh mr mw me ms pf io", .bytes = 8192, .name = "/dev/uio0"});
  const Audit a = system.audit_one(range(0, 8192));
  CHECK(find(a, AuditFindingKind::not_registrable));
  CHECK_FALSE(find(a, AuditFindingKind::unseen));
  // Where the kernel does not register it, not seeing it is all that can be said.
  Registration dpdk = range(0, 8192);
  dpdk.through_kernel = false;
  const Audit unseen = system.audit_one(dpdk);
  CHECK(find(unseen, AuditFindingKind::unseen));
  CHECK(unseen.worst() == Severity::unknown);
}

TEST_CASE("registration: unknown is never clean") {
  const std::vector<EntryRun> hidden = {{base, 2, mine, 0}};
  System blind({.bytes = 8192,
                .entries = hidden,
                .manifest = "vmem-tree 1\npage_size 4096\npfn_access hidden\n"});
  const Audit a = blind.audit_one(range(0, 8192));
  CHECK(find(a, AuditFindingKind::hidden));
  CHECK(a.worst() == Severity::unknown);
  CHECK_FALSE(a.complete);
  CHECK(a.extents == 0);

  const std::vector<EntryRun> entries = {{base, 2, mine | 0x100, 1}};
  System no_flags({.flags = "", .bytes = 8192, .entries = entries});
  CHECK(kinds(no_flags.audit_one(range(0, 8192))) == "flags-unknown:unknown");
  System no_frames({.bytes = 8192, .entries = entries, .frames = {}});
  CHECK(kinds(no_frames.audit_one(range(0, 8192))) == "frames-unknown:unknown");
}

TEST_CASE("registration: fragmentation against the ideal") {
  // Every other frame, then 2 MiB in one run that starts where the address does not.
  System system(
      {.entries = {{base, 512, mine | 0x1000, 2}, {base + two_megabytes, 512, mine | 0x9001, 1}}});
  const Audit scattered = system.audit_one(range(0, two_megabytes));
  CHECK(scattered.extents == 512);
  CHECK(scattered.largest_extent == 4096);
  CHECK(scattered.best_page_size == 4096);
  CHECK(scattered.entries == 512);
  CHECK(scattered.ideal_entries == 1);
  CHECK(kinds(scattered) == "fragmented:warning");
  const Audit shifted = system.audit_one(range(two_megabytes, two_megabytes));
  CHECK(shifted.extents == 1);
  CHECK(shifted.best_page_size == 4096);
  CHECK(shifted.entries == 512);
  // With an IOVA of the same offset the run serves as one huge page.
  Registration r = range(two_megabytes, two_megabytes);
  r.iova_known = true;
  r.iova = 0x9001 << 12;
  CHECK(system.audit_one(r).best_page_size == 4096);  // 2 MiB, but not one aligned page
  CHECK(system.audit_one(r).ideal_page_size == 4096);
}

TEST_CASE("registration: nodes") {
  const std::map<std::string, std::string> files = {
      {"sys/devices/system/memory/block_size_bytes", "8000000\n"},
      {"sys/devices/system/node/online", "0-1\n"},
      {"sys/devices/system/node/node0/memory0/online", "1\n"},
      {"sys/devices/system/node/node1/memory1/online", "1\n"}};
  System system({.bytes = 8192,
                 .entries = {{base, 1, mine | 0x7fff, 0}, {base + 4096, 1, mine | 0x8000, 0}},
                 .files = files});
  Registration r = range(0, 8192);
  r.node = 1;
  const Audit a = system.audit_one(r);
  CHECK(kinds(a) == "remote-node:warning spans-nodes:warning");
  CHECK(a.nodes == std::vector<std::pair<unsigned, std::uint64_t>>{{0, 4096}, {1, 4096}});
  CHECK(find(a, AuditFindingKind::remote_node)->bytes == 4096);
  CHECK(find(a, AuditFindingKind::remote_node)->where.front().actual == 0);
}

TEST_CASE("registration: a node that cannot be told is unknown, not clean") {
  const std::vector<EntryRun> entries = {{base, 1, mine | 0x7fff, 0},
                                         {base + 4096, 1, mine | 0x8000, 0}};
  Registration r = range(0, 8192);
  r.node = 1;
  System none({.bytes = 8192, .entries = entries});
  const Audit expected = none.audit_one(r);
  CHECK(kinds(expected) == "node-unknown:unknown");
  CHECK(expected.node_unknown_bytes == 8192);
  REQUIRE(find(expected, AuditFindingKind::node_unknown));
  CHECK(find(expected, AuditFindingKind::node_unknown)->where.front().expected == 1);
  // A recording without nodes, of which nobody expects one: said, but no finding.
  const Audit nobody = none.audit_one(range(0, 8192));
  CHECK(kinds(nobody) == "");
  CHECK(nobody.node_unknown_bytes == 8192);
  CHECK(nobody.nodes.empty());

  // Of a machine that tells nodes, a frame of none of them, whoever asks.
  const std::map<std::string, std::string> half = {
      {"sys/devices/system/memory/block_size_bytes", "8000000\n"},
      {"sys/devices/system/node/node1/memory1/online", "1\n"}};
  System part({.bytes = 8192, .entries = entries, .files = half});
  const Audit a = part.audit_one(range(0, 8192));
  CHECK(kinds(a) == "node-unknown:unknown");
  CHECK(find(a, AuditFindingKind::node_unknown)->bytes == 4096);
  CHECK(a.nodes == std::vector<std::pair<unsigned, std::uint64_t>>{{1, 4096}});
  CHECK(a.node_unknown_bytes == 4096);
}

TEST_CASE("registration: zones that cannot be told are unknown; of those not recorded it is said") {
  const auto zones = [](const std::map<std::string, std::string>& files) {
    System system({.bytes = 8192, .entries = {{base, 2, mine | 0x100, 1}}, .files = files});
    return system.audit_one(range(0, 8192));
  };
  const Audit nothing = zones({});
  CHECK(kinds(nothing) == "");
  CHECK_FALSE(nothing.movable_known);
  CHECK_FALSE(nothing.cma_known);
  CHECK_FALSE(nothing.limits_known);
  const std::string normal = "Node 0, zone   Normal\n        spanned  65536\n";
  const Audit all = zones({{"proc/zoneinfo", normal}, {"proc/meminfo", "CmaTotal:   0 kB\n"}});
  CHECK(kinds(all) == "");
  CHECK(all.movable_known);
  CHECK(all.cma_known);
  for (const char* const text :
       {"", "junk\n", "Node 0, zone  Movable\n        spanned  x\n  start_pfn:  1\n"}) {
    const Audit bad = zones({{"proc/zoneinfo", text}});
    CHECK(kinds(bad) == "zone-unknown:unknown");
    CHECK_FALSE(bad.movable_known);
  }
  CHECK(kinds(zones({{"sys/kernel/debug/cma/a/base_pfn", "1\n"}})) == "zone-unknown:unknown");
  CHECK(kinds(zones({{"sys/kernel/debug/cma/a/base_pfn", "1\n"},
                     {"sys/kernel/debug/cma/a/count", "x\n"}})) == "zone-unknown:unknown");
  CHECK_FALSE(zones({{"proc/meminfo", "CmaTotal:   65536 kB\n"}}).cma_known);
}

TEST_CASE("registration: ZONE_MOVABLE by its span, and by the block where zones overlap") {
  const std::string zones =
      "Node 0, zone   Normal\n  pages free     1\n        spanned  65536\n  start_pfn:           "
      "0\n"
      "Node 0, zone  Movable\n  pages free     1\n        spanned  32768\n  start_pfn:           "
      "32768\n";
  const std::vector<EntryRun> entries = {{base, 1, mine | 0x7fff, 0},
                                         {base + 4096, 1, mine | 0x8000, 0}};
  System system({.bytes = 8192, .entries = entries, .files = {{"proc/zoneinfo", zones}}});
  const Audit a = system.audit_one(range(0, 8192));
  CHECK(kinds(a) == "movable:warning");
  CHECK(find(a, AuditFindingKind::movable)->bytes == 4096);
  CHECK(find(a, AuditFindingKind::movable)->where.front().pfn == Pfn{0x8000});
  System overlap({.bytes = 8192,
                  .entries = entries,
                  .files = {{"proc/zoneinfo", zones},
                            {"sys/devices/system/memory/block_size_bytes", "8000000\n"},
                            {"sys/devices/system/memory/memory1/valid_zones", "Normal\n"}}});
  CHECK(kinds(overlap.audit_one(range(0, 8192))) == "");
  System cma({.bytes = 8192,
              .entries = entries,
              .files = {{"sys/kernel/debug/cma/reserved/base_pfn", "32768\n"},
                        {"sys/kernel/debug/cma/reserved/count", "1\n"}}});
  CHECK(kinds(cma.audit_one(range(0, 8192))) == "cma:warning");
}

TEST_CASE("registration: RLIMIT_MEMLOCK counts every registration, also the same again") {
  const auto system = [](const std::string& limit, const std::string& capabilities,
                         const std::string& pinned) {
    Setup setup{.bytes = 16 * 4096, .entries = {{base, 16, mine | 0x100, 1}}};
    setup.process_files = {
        {"limits", "Limit    Soft Limit  Hard Limit  Units\nMax locked memory         " + limit +
                       "                65536                bytes     \n"},
        {"status",
         "VmLck:\t       0 kB\nVmPin:\t      " + pinned + " kB\nCapEff:\t" + capabilities + "\n"}};
    return setup;
  };
  const std::vector<Registration> three = {range(0, 4 * 4096), range(0, 4 * 4096), range(0, 1)};
  System limited(system("32768", "0000000000000000", "0"));
  auto audits = limited.audit_all(three);
  CHECK(kinds(audits[0]) == "");
  CHECK(kinds(audits[1]) == "");
  CHECK(kinds(audits[2]) == "over-memlock:error");
  CHECK(find(audits[2], AuditFindingKind::over_memlock)->where.front().expected == 32768);
  CHECK(find(audits[2], AuditFindingKind::over_memlock)->where.front().actual == 36864);
  // What is pinned already counts for what is planned.
  System pinned(system("32768", "0000000000000000", "16"));
  audits = pinned.audit_all({range(0, 4 * 4096), range(0, 4 * 4096)}, true);
  CHECK(kinds(audits[0]) == "");
  CHECK(kinds(audits[1]) == "over-memlock:error");
  System root(system("32768", "0000000000004000", "0"));
  CHECK(kinds(root.audit_all(three)[2]) == "");
  System unlimited(system("unlimited", "0000000000000000", "0"));
  CHECK(kinds(unlimited.audit_all(three)[2]) == "");
  // A list that is audited in parts: the limit holds for all of it.
  {
    auto translator = open_translator(limited.process());
    REQUIRE(translator);
    AuditOptions options;
    options.pinned_before = pinned_bytes(std::span(three).first(2), PageSize{4096});
    CHECK(options.pinned_before == 32768);
    const auto last = audit(limited.process(), **translator, std::span(three).last(1), options);
    REQUIRE(last);
    CHECK(kinds(last->front()) == "over-memlock:error");
    CHECK(find(last->front(), AuditFindingKind::over_memlock)->where.front().actual == 36864);
    const std::vector<Registration> huge(3, {.range = {{0}, {UINT64_MAX}}});
    CHECK(pinned_bytes(huge, PageSize{4096}) == UINT64_MAX);
  }
  // What was not recorded is not 0.
  const auto without = [&](const std::string& field, const char* limit, std::string capabilities) {
    Setup setup = system(limit, capabilities, "0");
    std::string& status = setup.process_files.at("status");
    const std::size_t at = status.find(field);
    status.erase(at, status.find('\n', at) + 1 - at);
    return kinds(System(setup).audit_all({range(0, 4 * 4096), range(0, 8 * 4096)}, true)[1]);
  };
  const std::string nobody = "0000000000000000", root_s = "0000000000004000";
  CHECK(without("VmLck", "32768", nobody) == "over-memlock:error");
  CHECK(without("VmPin", "32768", nobody) == "limits-unknown:unknown");
  CHECK(without("VmPin", "65536", nobody) == "limits-unknown:unknown");
  CHECK(without("VmPin", "32768", root_s) == "");
  CHECK(without("VmPin", "unlimited", nobody) == "");
  CHECK(without("CapEff", "32768", nobody) == "limits-unknown:unknown");
  CHECK(without("CapEff", "65536", nobody) == "");
  System silent({.bytes = 8192, .entries = {{base, 2, mine | 0x100, 1}}});
  CHECK(kinds(silent.audit_one(range(0, 8192), true)) == "limits-unknown:unknown");
}

TEST_CASE("registration: many, in any order, overlapping, far apart: as each alone") {
  Setup setup{.bytes = 64 << 20};
  for (std::uint64_t page = 0; page < (64 << 20) / 4096; page += 3)
    setup.entries.push_back({base + page * 4096, 2, mine | (0x1000 + page * 7 % 65536), 1});
  setup.frames = {{.first = 0, .frames = 1 << 18, .flags = 0x1000}};
  System system(setup);
  std::vector<Registration> all;
  std::uint64_t random = 12345;
  for (int i = 0; i < 200; ++i) {
    random = random * 6364136223846793005ULL + 1442695040888963407ULL;
    all.push_back(range((random >> 33) % (60 << 20), 1 + (random >> 20) % 70000));
  }
  const auto together = system.audit_all(all);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Audit alone = system.audit_one(all[i]);
    CHECK(kinds(together[i]) == kinds(alone));
    CHECK(together[i].resident_bytes == alone.resident_bytes);
    CHECK(together[i].extents == alone.extents);
    CHECK(together[i].complete == alone.complete);
  }
}

TEST_CASE("registration: a finding keeps its first runs and the sum of all") {
  Setup setup{.bytes = 64 * 4096};
  for (std::uint64_t page = 0; page < 64; page += 2)
    setup.entries.push_back({base + page * 4096, 1, mine | (0x100 + page), 0});
  System system(setup);
  const Audit a = system.audit_one(range(0, 64 * 4096));
  const AuditFinding* const absent = find(a, AuditFindingKind::not_resident);
  REQUIRE(absent);
  CHECK(absent->runs == 32);
  CHECK(absent->bytes == 32 * 4096);
  CHECK(absent->where.size() == AuditFinding::kept_runs);
  CHECK(absent->where.back().bytes == 4096);
}

TEST_CASE("registration: an empty range is refused") {
  System system({.bytes = 8192, .entries = {{base, 2, mine | 0x100, 1}}});
  auto translator = open_translator(system.process(), Backend::pagemap);
  REQUIRE(translator);
  const std::vector<Registration> all = {range(0, 0)};
  const auto audits = audit(system.process(), **translator, all, {});
  REQUIRE_FALSE(audits);
  CHECK(audits.error().code == Errc::invalid_argument);
}

TEST_CASE("registration: no IOVA where there must be one") {
  System system({.bytes = 8192, .entries = {{base, 2, mine | 0x100, 1}}});
  Registration r = range(0, 8192);
  CHECK(kinds(system.audit_one(r)) == "");
  r.no_iova = Severity::error;
  CHECK(kinds(system.audit_one(r)) == "no-iova:error");
  r.iova_known = true;
  CHECK(kinds(system.audit_one(r)) == "");
}

TEST_CASE("registration: an IOVA that holds for the first bytes only") {
  System system({.bytes = 4 * 4096,
                 .entries = {{base, 2, mine | 0x100, 1}, {base + 8192, 1, mine | 0x300, 1}}});
  Registration r = range(0, 4 * 4096);
  r.through_kernel = false;
  r.iova_known = true;
  r.iova_rule = IovaRule::physical;
  r.iova = 0x100000;
  const Audit whole = system.audit_one(r);
  REQUIRE(find(whole, AuditFindingKind::iova_mismatch));
  CHECK(find(whole, AuditFindingKind::iova_mismatch)->bytes == 4096);
  // Every page is looked at all the same: the last is not there.
  r.iova_bytes = 8192;
  CHECK(kinds(system.audit_one(r)) == "not-resident:error");
  r.iova += 4096;
  const Audit first = system.audit_one(r);
  REQUIRE(find(first, AuditFindingKind::iova_mismatch));
  CHECK(find(first, AuditFindingKind::iova_mismatch)->bytes == 8192);
}

TEST_CASE("plan: a shared mapping of a file, by the kernel's release and the file system") {
  const auto plan = [](const std::string& release, const std::string& filesystem, bool writes,
                       const std::string& perms = "rw-s") {
    Setup setup{.perms = perms,
                .flags = "rd wr sh mr mw me ms",
                .bytes = 8192,
                .name = "/data/file",
                .file = "08:01 12",
                .entries = {{base, 2, mine | entry::file | 0x100, 1}}};
    if (!filesystem.empty())
      setup.process_files["mountinfo"] = "30 20 8:1 / /data rw - " + filesystem + " /dev/sda1 rw\n";
    if (!release.empty()) setup.files["proc/sys/kernel/osrelease"] = release + "\n";
    System system(setup);
    Registration r = range(0, 8192);
    r.device_writes = writes;
    return kinds(system.audit_one(r, true));
  };
  const std::string limits = " limits-unknown:unknown";
  CHECK(plan("6.5.0", "ext4", true) == "no-longterm-pin:error" + limits);
  CHECK(plan("6.18.2-amd64", "xfs", true) == "no-longterm-pin:error" + limits);
  CHECK(plan("6.1.0-50-amd64", "ext4", true) == "no-longterm-pin:warning" + limits);
  CHECK(plan("5.14.0-570.el9.x86_64", "ext4", true) == "no-longterm-pin:unknown" + limits);
  CHECK(plan("", "ext4", true) == "no-longterm-pin:unknown" + limits);
  CHECK(plan("6.18.0", "", true) == "file-unknown:unknown" + limits);
  // It could be on DAX, which no access is right for.
  CHECK(plan("6.18.0", "", false) == "file-unknown:unknown" + limits);
  CHECK(plan("6.18.0", "", true, "rw-p").starts_with("file-unknown:unknown"));
  CHECK(plan("6.18.0", "tmpfs", true) == limits.substr(1));
  CHECK(plan("6.18.0", "ramfs", true) == limits.substr(1));
  CHECK(plan("6.18.0", "ext4", false) == limits.substr(1));
  // To read only: before 6.2 the kernel writes all the same.
  CHECK(plan("6.1.0", "tmpfs", false, "r--s") == "not-registrable:error" + limits);
  CHECK(plan("6.2.0", "tmpfs", false, "r--s") == limits.substr(1));
  CHECK(plan("", "tmpfs", false, "r--s") == "not-registrable:unknown" + limits);
}

TEST_CASE("plan: of a recorded file it is not known how far it reaches") {
  System system({.perms = "rw-s",
                 .flags = "rd wr sh mr mw me ms",
                 .bytes = 8192,
                 .name = "/memfd:x (deleted)",
                 .file = "00:01 12",
                 .entries = {{base, 1, mine | entry::file | 0x100, 1}}});
  CHECK(kinds(system.audit_one(range(0, 4096), true)) == "limits-unknown:unknown");
  CHECK(kinds(system.audit_one(range(0, 8192), true)) ==
        "file-unknown:unknown limits-unknown:unknown");
}

TEST_CASE("registration: a range of the whole address space") {
  System system({.bytes = 8192, .entries = {{base, 2, mine | 0x100, 1}}});
  const Audit a = system.audit_one({.range = {{0}, {UINT64_MAX}}}, true);
  REQUIRE(find(a, AuditFindingKind::unmapped));
  CHECK(find(a, AuditFindingKind::unmapped)->bytes == UINT64_MAX - 8192);
  CHECK(a.resident_bytes == 8192);
}
