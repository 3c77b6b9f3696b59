// SPDX-License-Identifier: MIT
// Windows of physical memory that a driver mapped, rightly or wrongly, as page tables show them by
// the module and by BPF, through the library and through vtop. The oracles are the driver's truth
// file, the kernel's record of what the driver asked for, and its list of cache attributes.
//
// vmtest: machines=fast,pc,pti,iommu
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/guest.hpp"
#include "support/require.hpp"
#include "support/tool.hpp"
#include "support/window_view.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

constexpr std::uint64_t page = 4096;
constexpr std::uint64_t base = 0x90000000;
constexpr std::uint64_t length = 0x4000000;
const std::string devices[] = {"/dev/mem_mmap1", "/dev/mem_mmap2"};

#ifdef __x86_64__
const std::string uc = "uc-", wc = "wc", wb = "wb";
#else
const std::string uc = "device-nGnRnE", wc = "normal-nc", wb = "normal";
#endif

std::string hex(std::uint64_t value) {
  std::ostringstream out;
  out << "0x" << std::hex << value;
  return out.str();
}

std::string self() { return std::to_string(getpid()); }

/// The ways to page tables that work here.
std::vector<Backend> backends() {
  std::vector<Backend> all;
  for (const Backend backend : {Backend::kmod, Backend::bpf}) {
    if (works(backend)) all.push_back(backend);
  }
  REQUIRE_FALSE(all.empty());
  return all;
}

/// What `auto` must take where both could be had.
std::string automatic(const std::vector<Backend>& all) {
  return std::string(to_string(all.back()));
}

/// A mapping of a part of a window by every way, against `expected`. vtop is asked about the first
/// and the last pages alone where there are very many runs.
void check_view(const MappedFile& mapping, const std::vector<Run>& expected,
                const std::vector<Backend>& all) {
  const std::uint64_t at = mapping.address(), bytes = mapping.bytes();
  INFO("expected\n" << describe(expected));
  for (const Backend backend : all) {
    const auto seen = seen_by(backend, getpid(), at, bytes);
    INFO(to_string(backend) << " sees\n" << describe(seen));
    CHECK(seen == expected);
  }
  const std::uint64_t some = expected.size() < 1000 ? bytes : 256 * page;
  for (const std::uint64_t offset : {std::uint64_t{0}, bytes - some}) {
    std::vector<std::pair<std::string, std::string>> names;
    for (const Backend backend : all) names.emplace_back(to_string(backend), to_string(backend));
    names.emplace_back("auto", automatic(all));
    for (const auto& [name, answers] : names) {
      const auto seen = seen_by_vtop(name, answers, getpid(), at + offset, some);
      INFO("vtop --backend " << name << " shows\n" << describe(seen));
      CHECK(seen == part(expected, offset, some));
    }
    if (some == bytes) break;
  }
}

/// Both windows, whole and in part: what the driver's truth says, what was asked of the kernel and
/// what the kernel has noted of the caches is what every backend sees. Returns the truths.
std::vector<std::vector<Run>> check_windows(const std::string& parameters,
                                            std::uint64_t window_length = length) {
  INFO(parameters);
  const Module reader("vmem");
  const Module driver("mem_mmap", parameters);
  const auto all = backends();
  RemapRecord record;
  std::vector<std::vector<Run>> truths;
  for (int i = 0; i < 2; ++i) {
    const std::string& device = devices[i];
    INFO(device);
    const auto said = truth(i + 1);
    truths.push_back(said);
#ifdef __x86_64__
    for (const Run& run : said) {
      if (!run.physical || &run - said.data() > 4) continue;
      const auto caches = reserved_caches(*run.physical);
      CHECK(std::all_of(caches.begin(), caches.end(),
                        [&](const std::string& cache) { return cache == run.cache; }));
    }
#endif
    for (const auto& [offset, bytes] :
         {std::pair{std::uint64_t{0}, window_length}, std::pair{page, 3 * page}}) {
      record.take();
      const MappedFile mapping = map_device(device, offset, bytes);
      REQUIRE(mapping.error() == 0);
      const auto expected = part(said, offset, bytes);
      CHECK(record.take() == calls_of(expected));
      check_view(mapping, expected, all);
    }
  }
  return truths;
}

std::vector<Run> right(std::uint64_t start, const std::string& cache = uc) {
  return {{0, length, start, cache}};
}

/// JSON of vtop about one address or range of this process.
nlohmann::json vtop_says(const std::vector<std::string>& options, const std::string& question,
                         int status) {
  std::vector<std::string> arguments{"-J"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  arguments.push_back(self());
  arguments.push_back(question);
  const RunResult result = guest_vtop(arguments);
  INFO(question << "\n" << result.out.substr(0, 2000) << result.err);
  CHECK(result.status == status);
  auto document = nlohmann::json::parse(result.out, nullptr, false);
  REQUIRE_FALSE(document.is_discarded());
  return document;
}

const nlohmann::json& only_extent(const nlohmann::json& document) {
  REQUIRE(document["results"].size() == 1);
  REQUIRE(document["results"][0]["extents"].size() == 1);
  return document["results"][0]["extents"][0];
}

}  // namespace

TEST_CASE("windows: a right driver's two lie where they should") {
  if (!in_guest()) return;
  SECTION("uncached") {
    const auto truths = check_windows("");
    CHECK(truths[0] == right(base));
    CHECK(truths[1] == right(base + length));
  }
  SECTION("write-combining") { CHECK(check_windows("cache=wc")[0] == right(base, wc)); }
  SECTION("write-back") { CHECK(check_windows("cache=wb")[1] == right(base + length, wb)); }
}

TEST_CASE("windows: each fault shows as what it is") {
  if (!in_guest()) return;
  SECTION("wrong-base") {
    const auto truths = check_windows("fault=wrong-base");
    CHECK(truths[0] == right(base + length));
    CHECK(truths[1] == right(base));
  }
  SECTION("shifted") { CHECK(check_windows("fault=shifted")[0][0].physical == base + page); }
  SECTION("hole") {
    const auto seen = check_windows("fault=hole")[0];
    REQUIRE(seen.size() == 3);
    CHECK(seen[1] == Run{page, page, {}, "-"});
  }
  SECTION("swapped-pages") { CHECK(check_windows("fault=swapped-pages")[0].size() == 4); }
  SECTION("cached") { CHECK(check_windows("fault=cached")[0] == right(base, wb)); }
  SECTION("short") {
    CHECK(check_windows("fault=short")[0].back() == Run{length / 2, length / 2, {}, "-"});
  }
  SECTION("reversed") { CHECK(check_windows("fault=reversed")[0].size() == length / page); }
  SECTION("shifted, and write-combining") {
    const auto seen = check_windows("cache=wc fault=shifted")[1];
    CHECK(seen.back() == Run{length - page, page, base + length, wc});
  }
}

TEST_CASE("windows: over RAM the cache is not what was asked for") {
  if (!in_guest()) return;
  // A page-aligned piece of this program's memory would do as well; the kernel's own image is
  // always there.
  std::ifstream in("/proc/iomem");
  std::string line;
  std::uint64_t start = 0;
  while (std::getline(in, line)) {
    if (line.find("Kernel code") != std::string::npos) start = std::stoull(line, nullptr, 16);
  }
  start &= ~(page - 1);
  REQUIRE(start != 0);
  const Module reader("vmem");
  const Module driver("mem_mmap", "allow_ram=1 windows=1 len=0x8000 cache=uc base=" + hex(start));
#ifdef __x86_64__
  const std::vector<Run> expected{{0, 0x8000, start, "wb"}};
#else
  const std::vector<Run> expected{{0, 0x8000, start, uc}};
#endif
  CHECK(truth(1) == expected);
  const MappedFile mapping(devices[0], 0, 0x8000, PROT_READ, MAP_SHARED);
  REQUIRE(mapping.error() == 0);
  check_view(mapping, expected, backends());
}

TEST_CASE("windows: pagemap says that it sees nothing, and why") {
  if (!in_guest()) return;
  const Module driver("mem_mmap", "fault=hole");
  const MappedFile mapping = map_device(devices[0], 0, length);
  REQUIRE(mapping.error() == 0);
  for (const auto& [question, status] :
       {std::pair{hex(mapping.address() + 8), 2}, std::pair{hex(mapping.address() + page), 2},
        std::pair{hex(mapping.address()) + "+64M", 0}}) {
    const auto document = vtop_says({"--backend", "pagemap"}, question, status);
    const auto& extent = only_extent(document);
    CHECK(extent["state"] == "unseen");
    CHECK(extent["reason"].get<std::string>().find("VM_PFNMAP") != std::string::npos);
    CHECK(extent["pa"].is_null());
    CHECK(extent["pfn"].is_null());
    CHECK(extent["pte"].is_null());
  }
}

TEST_CASE("windows: auto takes what works, and says unseen where nothing does") {
  if (!in_guest()) return;
  const Module driver("mem_mmap");
  const MappedFile mapping = map_device(devices[1], 0, length);
  REQUIRE(mapping.error() == 0);
  const std::string question = hex(mapping.address() + 5 * page + 8);
  const bool bpf = works(Backend::bpf);
  {
    const auto document = vtop_says({}, question, bpf ? 0 : 2);
    const auto& extent = only_extent(document);
    CHECK(extent["state"] == (bpf ? "resident" : "unseen"));
    if (bpf) {
      CHECK(extent["backend"] == "bpf");
      CHECK(extent["pa"] == hex(base + length + 5 * page + 8));
    }
  }
  // A backend that is asked for by name and is not there: no other one steps in.
  const RunResult absent = guest_vtop({"--backend", "kmod", self(), question});
  CHECK(absent.status == 2);
  CHECK(absent.out.empty());
  CHECK(error_form(absent.err).empty());
  {
    const Module reader("vmem");
    const auto document = vtop_says({}, question, 0);
    const auto& extent = only_extent(document);
    CHECK(extent["backend"] == (bpf ? "bpf" : "kmod"));
    CHECK(extent["pa"] == hex(base + length + 5 * page + 8));
    // Of ordinary memory pagemap tells more.
    const auto ordinary = vtop_says({}, hex(reinterpret_cast<std::uintptr_t>(&bpf)), 0);
    CHECK(only_extent(ordinary)["backend"] == "pagemap");
  }
}

TEST_CASE("windows: one address, and the walk down to it") {
  if (!in_guest()) return;
  const Module reader("vmem");
  const Module driver("mem_mmap", "fault=hole cache=wc");
  const MappedFile mapping = map_device(devices[0], 0, length);
  REQUIRE(mapping.error() == 0);
  for (const Backend backend : backends()) {
    const std::string name(to_string(backend));
    INFO(name);
    const auto missing = vtop_says({"--backend", name}, hex(mapping.address() + page + 1), 1);
    CHECK(only_extent(missing)["state"] == "absent");

    const std::uint64_t offset = 3 * page + 0x123;
    const std::string question = hex(mapping.address() + offset);
    const auto document = vtop_says({"--backend", name, "-w"}, question, 0);
    const auto& extent = only_extent(document);
    CHECK(extent["pa"] == hex(base + offset));
    CHECK(extent["pte"]["cache"] == wc);
    CHECK(extent["pte"]["writable"] == true);
    const auto& entries = extent["pte"]["entries"];
    REQUIRE(entries.size() >= 3);
    CHECK(entries[0]["level"] == "pgd");
    CHECK(entries.back()["raw"] == extent["pte"]["raw"]);
    const std::uint64_t raw = std::stoull(extent["pte"]["raw"].get<std::string>(), nullptr, 16);
#ifdef __x86_64__
    CHECK((raw & 0x000ffffffffff000) == base + 3 * page);
    // The kernel's write-combining is the PAT's entry 1: PWT without PCD and PAT.
    CHECK((raw & 0x98) == 0x08);
    CHECK((raw & 7) == 7);
    std::ifstream cpuinfo("/proc/cpuinfo");
    const std::string flags{std::istreambuf_iterator<char>(cpuinfo), {}};
    CHECK(entries.size() == (flags.find(" la57") != std::string::npos ? 5U : 4U));
    // Debian's 5.10 was not built for them.
    if (guest_machine() == "pc" && guest_kernel() != "5.10") CHECK(entries.size() == 5);
#else
    CHECK((raw & 0x0000fffffffff000) == base + 3 * page);
#endif
    // The same for people.
    const RunResult shown = guest_vtop({"--backend", name, "-w", self(), question});
    INFO(shown.out << shown.err);
    CHECK(shown.status == 0);
    CHECK(shown.out.find(hex(base + offset) + "\n") != std::string::npos);
    CHECK(shown.out.find("cache=" + wc) != std::string::npos);
    CHECK(shown.out.find("  pte ") != std::string::npos);
  }
}

TEST_CASE("windows: what becomes of a mapping is seen") {
  if (!in_guest()) return;
  const Module reader("vmem");
  const Module driver("mem_mmap");
  const auto all = backends();
  MappedFile mapping = map_device(devices[0], 0, 64 * page);
  REQUIRE(mapping.error() == 0);
  const std::uint64_t at = mapping.address();
  auto* const where = reinterpret_cast<char*>(at);  // NOLINT(performance-no-int-to-ptr)
  SECTION("a child's copy of it") {
    const pid_t pid = fork();
    if (pid == 0) {
      for (;;) pause();
    }
    for (const Backend backend : all) {
      CHECK(seen_by(backend, pid, at, 64 * page) == std::vector<Run>{{0, 64 * page, base, uc}});
    }
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
  }
  SECTION("moved by mremap") {
    const MappedFile room("/dev/zero", 0, 64 * page, PROT_NONE, MAP_PRIVATE);
    REQUIRE(room.error() == 0);
    void* const there =
        mremap(where, 64 * page, 64 * page, MREMAP_MAYMOVE | MREMAP_FIXED, room.address());
    REQUIRE(there != MAP_FAILED);
    for (const Backend backend : all) {
      CHECK(seen_by(backend, getpid(), room.address(), 64 * page) ==
            std::vector<Run>{{0, 64 * page, base, uc}});
    }
  }
  SECTION("a hole cut into it, and read-only behind") {
    REQUIRE(munmap(where + 8 * page, 8 * page) == 0);
    REQUIRE(mprotect(where + 32 * page, 32 * page, PROT_READ) == 0);
    for (const Backend backend : all) {
      const std::string name(to_string(backend));
      INFO(name);
      CHECK(seen_by(backend, getpid(), at, 8 * page) == std::vector<Run>{{0, 8 * page, base, uc}});
      const auto gone = vtop_says({"--backend", name}, hex(at + 8 * page), 1);
      CHECK(only_extent(gone)["state"] == "unmapped");
      const auto behind = vtop_says({"--backend", name}, hex(at + 40 * page), 0);
      CHECK(only_extent(behind)["pa"] == hex(base + 40 * page));
      CHECK(only_extent(behind)["pte"]["writable"] == false);
      const auto before = vtop_says({"--backend", name}, hex(at + 20 * page), 0);
      CHECK(only_extent(before)["pte"]["writable"] == true);
    }
  }
  SECTION("private, and written to in the middle") {
    MappedFile mine(devices[0], 0, 8 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    REQUIRE(mine.error() == 0);
    mine.set_word(3 * page, 1);
    for (const Backend backend : all) {
      const auto seen = seen_by(backend, getpid(), mine.address(), 8 * page);
      INFO(to_string(backend) << "\n" << describe(seen));
      REQUIRE(seen.size() == 3);
      CHECK(seen[0] == Run{0, 3 * page, base, uc});
      // The copy is ordinary memory, wherever that is.
      CHECK(seen[1].bytes == page);
      REQUIRE(seen[1].physical);
      CHECK((*seen[1].physical < base || *seen[1].physical >= base + 2 * length));
      CHECK(seen[2] == Run{4 * page, 4 * page, base + 4 * page, uc});
    }
  }
}

TEST_CASE("windows: nobody in particular learns nothing") {
  if (!in_guest()) return;
  const Module reader("vmem");
  const Module driver("mem_mmap");
  constexpr uid_t nobody = 65534;
  // A process of that user's own, so that no other right is missing.
  const pid_t pid = fork();
  if (pid == 0) {
    if (setgid(nobody) != 0 || setuid(nobody) != 0) _exit(1);
    execl("/bin/busybox", "sleep", "1000", nullptr);
    _exit(1);
  }
  // Until it has become that: then its [stack] is the program's that runs as nobody.
  const std::string comm_file = "/proc/" + std::to_string(pid) + "/comm";
  std::string comm;
  for (int i = 0; i < 1000 && comm != "busybox"; ++i) {
    usleep(10000);
    std::ifstream(comm_file) >> comm;
  }
  REQUIRE(comm == "busybox");
  for (const char* const name : {"kmod", "bpf"}) {
    const RunResult result =
        guest_vtop({"--backend", name, std::to_string(pid), "[stack]"}, nobody);
    INFO(name << "\n" << result.out << result.err);
    CHECK(result.status == 2);
    CHECK(result.out.empty());
    CHECK(error_form(result.err).empty());
    CHECK(result.err.find("hint: ") != std::string::npos);
  }
  const RunResult device = run({"/bin/busybox", "head", "-c", "1", "/dev/vmem"}, [&] {
    RunOptions o;
    o.uid = nobody;
    return o;
  }());
  CHECK(device.err.find("ermission denied") != std::string::npos);
  const RunResult result = guest_vtop({"-J", std::to_string(pid)}, nobody);
  CHECK(result.status == 2);
  const auto document = nlohmann::json::parse(result.out, nullptr, false);
  REQUIRE_FALSE(document.is_discarded());
  for (const auto& group : document["results"]) {
    for (const auto& extent : group["extents"]) {
      INFO(extent);
      CHECK(extent["pa"].is_null());
      CHECK(extent["pte"].is_null());
    }
  }
  kill(pid, SIGKILL);
  waitpid(pid, nullptr, 0);
}

TEST_CASE("windows: nothing of the kernel's addresses is told") {
  if (!in_guest()) return;
  const Module reader("vmem");
  const Module driver("mem_mmap");
  const MappedFile mapping = map_device(devices[0], 0, length);
  REQUIRE(mapping.error() == 0);
  // The kernel's half begins with ff; [vsyscall], which any process is shown, lies at its end.
  const auto pointers = [](const std::string& text) {
    std::string found;
    for (std::size_t at = 0;
         (at = text.find_first_of("0123456789abcdef", at)) != std::string::npos;) {
      const std::size_t end = std::min(text.find_first_not_of("0123456789abcdef", at), text.size());
      const std::string digits = text.substr(at, end - at);
      if (digits.size() == 16 && digits.starts_with("ff") && !digits.starts_with("ffffffffff60"))
        found += digits + "\n";
      at = end;
    }
    return found;
  };
  CHECK_FALSE(pointers("see 0xffff888100000000 here").empty());
  std::vector<std::string> names{"auto", "pagemap"};
  for (const Backend backend : backends()) names.emplace_back(to_string(backend));
  for (const std::string& name : names) {
    for (const std::vector<std::string>& options :
         {std::vector<std::string>{}, {"-J"}, {"-f"}, {"-J", "-f"}}) {
      std::vector<std::string> arguments{"--backend", name};
      arguments.insert(arguments.end(), options.begin(), options.end());
      arguments.push_back(self());
      const RunResult result = guest_vtop(arguments);
      INFO(name << "\n" << result.err);
      CHECK(result.out.size() > 500);
      CHECK(pointers(result.out) == "");
      CHECK(pointers(result.err) == "");
    }
  }
}
