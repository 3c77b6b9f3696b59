// SPDX-License-Identifier: MIT
// DMA buffers: memory that a process maps as VM_PFNMAP, under a name ("/dmabuf:") that is no device
// node. pagemap shows nothing of it, so that only page tables tell its frames: by BPF, by the
// module. Where there is neither (a locked-down kernel loads no module of ours and no BPF program
// that reads memory) it is `unseen`, and never `absent` or a hole. What is in the frames is read
// through /proc/kcore, and compared with what was written through the mapping.
//
// vmtest: machines=smp,lockdown kernels=6.1,6.12
#include <elf.h>
#include <fcntl.h>
#include <linux/dma-heap.h>
#include <linux/udmabuf.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/guest.hpp"
#include "support/tool.hpp"
#include "support/window_view.hpp"
#include "vmem/maps.hpp"
#include "vmem/pages.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

constexpr std::uint64_t page = 4096;
constexpr std::uint64_t pages = 16;
constexpr std::uint64_t length = pages * page;

bool locked_down() { return guest_machine() == "lockdown"; }

std::string hex(std::uint64_t value) {
  std::array<char, 24> text{};
  std::snprintf(text.data(), text.size(), "0x%llx", static_cast<unsigned long long>(value));
  return text.data();
}

std::uint64_t number(const nlohmann::json& address) {
  return std::stoull(address.get<std::string>(), nullptr, 16);
}

class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

// What libdrm's drm.h and drm_mode.h have, which Debian's headers of the kernel leave out.
struct drm_version {
  int major, minor, patchlevel;
  std::size_t name_len;
  char* name;
  std::size_t date_len;
  char* date;
  std::size_t desc_len;
  char* desc;
};
struct drm_mode_create_dumb {
  std::uint32_t height, width, bpp, flags, handle, pitch;
  std::uint64_t size;
};
struct drm_prime_handle {
  std::uint32_t handle, flags;
  std::int32_t fd;
};
constexpr unsigned long drm_get_version = _IOWR('d', 0x00, drm_version);
constexpr unsigned long drm_create_dumb = _IOWR('d', 0xb2, drm_mode_create_dumb);
constexpr unsigned long drm_handle_to_fd = _IOWR('d', 0x2d, drm_prime_handle);

/// Pages of a memfd.
int make_udmabuf() {
  const Descriptor device{open("/dev/udmabuf", O_RDWR | O_CLOEXEC)};
  if (device.get() < 0) return -1;
  const Descriptor memory{memfd_create("dmabuf", MFD_ALLOW_SEALING | MFD_CLOEXEC)};
  REQUIRE(ftruncate(memory.get(), length) == 0);
  REQUIRE(fcntl(memory.get(), F_ADD_SEALS, F_SEAL_SHRINK) == 0);
  udmabuf_create create{};
  create.memfd = static_cast<std::uint32_t>(memory.get());
  create.flags = UDMABUF_FLAGS_CLOEXEC;
  create.size = length;
  return ioctl(device.get(), UDMABUF_CREATE, &create);
}

int make_heap_buffer() {
  const Descriptor heap{open("/dev/dma_heap/system", O_RDWR | O_CLOEXEC)};
  if (heap.get() < 0) return -1;
  dma_heap_allocation_data data{};
  data.len = length;
  data.fd_flags = O_RDWR | O_CLOEXEC;
  REQUIRE(ioctl(heap.get(), DMA_HEAP_IOCTL_ALLOC, &data) == 0);
  return static_cast<int>(data.fd);
}

/// A dumb buffer of a graphics driver, exported (PRIME).
int make_prime_buffer(const std::string& module, const std::string& driver) {
  if (std::system(("modprobe " + module + " 2>/dev/null").c_str()) != 0) return -1;
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/dri", none)) {
    if (!entry.path().filename().string().starts_with("card")) continue;
    const Descriptor card{open(entry.path().c_str(), O_RDWR | O_CLOEXEC)};
    std::array<char, 64> name{};
    drm_version version{};
    version.name = name.data();
    version.name_len = name.size() - 1;
    if (ioctl(card.get(), drm_get_version, &version) != 0 || driver != name.data()) continue;
    drm_mode_create_dumb dumb{};
    dumb.width = 256;
    dumb.height = static_cast<std::uint32_t>(length / 1024);
    dumb.bpp = 32;
    REQUIRE(ioctl(card.get(), drm_create_dumb, &dumb) == 0);
    REQUIRE(dumb.size == length);
    drm_prime_handle handle{};
    handle.handle = dumb.handle;
    handle.flags = O_RDWR | O_CLOEXEC;
    return ioctl(card.get(), drm_handle_to_fd, &handle) == 0 ? handle.fd : -1;
  }
  return -1;
}

/// One buffer of each kind that this kernel has, mapped, and every page written to.
struct Buffer {
  std::string kind;
  Descriptor fd;
  MappedFile mapping;
  std::uint64_t at() const { return mapping.address(); }
  std::uint64_t stamp(std::uint64_t number) const {
    return PhysicalMemory::stamp_of(number * page + 1, std::hash<std::string>{}(kind) | 1);
  }
};

std::vector<Buffer> make_buffers() {
  const std::vector<std::pair<std::string, int>> made{
      {"udmabuf", make_udmabuf()},
      {"dma_heap", make_heap_buffer()},
      {"vgem", make_prime_buffer("vgem", "vgem")},
      {"cirrus", make_prime_buffer("cirrus", "cirrus")},
      {"bochs", make_prime_buffer("bochs", "bochs-drm")}};
  // Debian's 6.1 has neither udmabuf nor heaps, and its bochs exports nothing.
  const bool all = guest_kernel() != "6.1";
  std::vector<Buffer> buffers;
  for (const auto& [kind, fd] : made) {
    INFO(kind);
    CHECK((fd >= 0) == (all || kind == "vgem" || kind == "cirrus"));
    if (fd < 0) continue;
    buffers.push_back({kind, Descriptor{fd}, MappedFile(fd, length)});
    Buffer& buffer = buffers.back();
    REQUIRE(buffer.mapping.error() == 0);
    for (std::uint64_t i = 0; i < pages; ++i) buffer.mapping.set_word(i * page, buffer.stamp(i));
    const std::string line = maps_line(buffer.at());
    INFO(line);
    REQUIRE(line.find("/dmabuf:") != std::string::npos);
    REQUIRE(line.find(" pf ") != std::string::npos);
  }
  REQUIRE_FALSE(buffers.empty());
  return buffers;
}

/// The word in memory at a physical address, by /proc/kcore; empty where that holds none.
std::optional<std::uint64_t> word_in_ram(std::uint64_t physical) {
  const Descriptor core{open("/proc/kcore", O_RDONLY | O_CLOEXEC)};
  Elf64_Ehdr header{};
  REQUIRE(pread(core.get(), &header, sizeof header, 0) == sizeof header);
  for (unsigned i = 0; i < header.e_phnum; ++i) {
    Elf64_Phdr part{};
    REQUIRE(pread(core.get(), &part, sizeof part,
                  static_cast<off_t>(header.e_phoff + i * sizeof part)) == sizeof part);
    if (part.p_type != PT_LOAD || physical < part.p_paddr ||
        physical - part.p_paddr >= part.p_memsz)
      continue;
    std::uint64_t word = 0;
    REQUIRE(pread(core.get(), &word, sizeof word,
                  static_cast<off_t>(part.p_offset + (physical - part.p_paddr))) == sizeof word);
    return word;
  }
  return {};
}

RunResult tool(const std::string& name, std::vector<std::string> arguments) {
  RunOptions options;
  options.directory = "/";
  return run_tool(name, arguments, options);
}

nlohmann::json document_of(const RunResult& result) {
  INFO(result.out.substr(0, 3000) << result.err);
  CHECK(result.signal == 0);
  auto document = nlohmann::json::parse(result.out, nullptr, false);
  REQUIRE_FALSE(document.is_discarded());
  return document;
}

/// The extents that vtop tells of the buffer's mapping when it is asked `question` (nothing: the
/// whole process).
std::vector<nlohmann::json> extents(const Buffer& buffer, const std::string& backend,
                                    const std::string& question, int status) {
  std::vector<std::string> arguments{"-J", "--backend", backend, std::to_string(getpid())};
  if (!question.empty()) arguments.push_back(question);
  const RunResult result = tool("vtop", arguments);
  INFO("vtop " << backend << " " << question << "\n" << result.err);
  CHECK(result.status == status);
  std::vector<nlohmann::json> found;
  const auto document = document_of(result);
  for (const auto& group : document["results"]) {
    if (group["vma"].is_null() || group["vma"]["start"] != hex(buffer.at())) continue;
    for (const auto& extent : group["extents"]) found.push_back(extent);
  }
  return found;
}

nlohmann::json vmastat_row(const Buffer& buffer, const std::string& backend) {
  const RunResult result = tool("vmastat", {"-J", "--backend", backend, std::to_string(getpid())});
  const auto document = document_of(result);
  for (const auto& row : document["processes"][0]["vmas"]) {
    if (row["start"] == hex(buffer.at())) return row;
  }
  FAIL("vmastat does not tell of it");
  return {};
}

struct Verdict {
  int status = -1;
  std::string verdict;
  std::vector<std::string> findings;
};

Verdict mapcheck(const Buffer& buffer, const std::string& backend) {
  const RunResult result = tool(
      "mapcheck", {"-J", "--backend", backend, "-e", "/dmabuf*=ram", std::to_string(getpid())});
  Verdict verdict;
  verdict.status = result.status;
  const auto document = document_of(result);
  for (const auto& check : document["checks"]) {
    if (check["vma"].is_null() || check["vma"]["start"] != hex(buffer.at())) continue;
    verdict.verdict = check["verdict"];
    for (const auto& finding : check["findings"]) verdict.findings.push_back(finding["kind"]);
  }
  return verdict;
}

/// Every way to ask tells the frames that the buffer's words are in.
void check_frames(const Buffer& buffer, const std::string& backend, const std::string& answers) {
  INFO(buffer.kind << " by --backend " << backend);
  std::vector<std::uint64_t> frames;
  for (const Run& run : seen_by_vtop(backend, answers, getpid(), buffer.at(), length)) {
    REQUIRE(run.physical);
    for (std::uint64_t at = 0; at < run.bytes; at += page) frames.push_back(*run.physical + at);
  }
  REQUIRE(frames.size() == pages);
  // bochs keeps its buffers in the video memory of the card, or in RAM.
  const auto bar = pci_bar(pci_device(0x1234, 0x1111), 0);
  bool ram = true;
  for (std::uint64_t i = 0; i < pages; ++i) {
    INFO("page " << i << " at " << hex(frames[i]));
    if (buffer.kind == "bochs" && bar && frames[i] - *bar->physical < bar->bytes) {
      ram = false;
      continue;
    }
    CHECK(word_in_ram(frames[i]) == buffer.stamp(i));
  }

  const auto one = extents(buffer, backend, hex(buffer.at() + 3 * page + 8), 0);
  REQUIRE(one.size() == 1);
  CHECK(one[0]["state"] == "resident");
  CHECK(number(one[0]["pa"]) / page == frames[3] / page);
  std::uint64_t bytes = 0;
  for (const auto& extent : extents(buffer, backend, "", 0)) {
    INFO(extent);
    CHECK(extent["state"] == "resident");
    CHECK(number(extent["pa"]) == frames.at(bytes / page));
    bytes += extent["bytes"].get<std::uint64_t>();
  }
  CHECK(bytes == length);

  const auto row = vmastat_row(buffer, backend);
  INFO(row);
  CHECK(row["device"] == length);
  CHECK(row["unseen"] == 0);

  const Verdict verdict = mapcheck(buffer, backend);
  CHECK(verdict.verdict == (ram ? "pass" : "fail"));
  CHECK(std::ranges::count(verdict.findings, "hole") == 0);
}

/// Every way to ask says that nothing could be seen.
void check_unseen(const Buffer& buffer, const std::string& backend) {
  INFO(buffer.kind << " by --backend " << backend);
  const std::string at = hex(buffer.at() + 3 * page + 8);
  for (const auto& [question, status] :
       {std::pair{at, 2}, std::pair{hex(buffer.at()) + "+64K", 0}, std::pair{std::string(), 0}}) {
    const auto told = extents(buffer, backend, question, status);
    CHECK_FALSE(told.empty());
    for (const auto& extent : told) {
      INFO(question << " " << extent);
      CHECK(extent["state"] == "unseen");
      CHECK(extent["pa"].is_null());
      CHECK(extent["reason"].dump().find("VM_PFNMAP") != std::string::npos);
    }
  }
  const auto row = vmastat_row(buffer, backend);
  INFO(row);
  CHECK(row["unseen"] == length);
  const Verdict verdict = mapcheck(buffer, backend);
  CHECK(verdict.status == 2);
  CHECK(verdict.verdict == "unverified");
  CHECK(std::ranges::count(verdict.findings, "hole") == 0);
}

}  // namespace

TEST_CASE("dmabuf: page tables tell the frames; without them it is unseen") {
  if (!in_guest()) return;
  const auto buffers = make_buffers();
  if (!locked_down()) {
    REQUIRE(works(Backend::bpf));
    for (const Buffer& buffer : buffers) check_frames(buffer, "auto", "bpf");
    const Module module("vmem");
    REQUIRE(works(Backend::kmod));
    for (const Buffer& buffer : buffers) check_frames(buffer, "kmod", "kmod");
  } else {
    CHECK_FALSE(works(Backend::bpf));
    CHECK(Module::load("vmem") == EPERM);
    for (const Buffer& buffer : buffers) check_unseen(buffer, "auto");
  }
  for (const Buffer& buffer : buffers) check_unseen(buffer, "pagemap");
}

TEST_CASE("dmabuf: ordinary memory that becomes one while it is read is never absent") {
  if (!in_guest() || guest_machine() != "smp") return;  // at the same time: with two processors
  constexpr std::uint64_t slots = 60, apart = 2 * length;
  const auto buffers = make_buffers();
  const Buffer& buffer = buffers.front();
  struct Shared {
    std::atomic<std::uint64_t> go, done, start;
  };
  void* const memory =
      mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  auto& shared = *new (memory) Shared{};
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const auto map = [](std::uint64_t bytes, int protection, int flags, int fd) {
      void* const at = mmap(nullptr, bytes, protection, flags, fd, 0);
      if (at == MAP_FAILED) _exit(90);
      return static_cast<char*>(at);
    };
    constexpr int both = PROT_READ | PROT_WRITE;
    char* const room = map(slots * apart, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    for (std::uint64_t i = 0; i < slots; ++i) {
      char* const slot = room + i * apart;
      if (mprotect(slot, length, both) != 0) _exit(91);
      memset(slot, 1, length);
    }
    shared.start = reinterpret_cast<std::uintptr_t>(room);
    for (std::uint64_t i = 0; i < slots; ++i) {
      // Complete before it takes the slot's place, so that a page of the slot is always there.
      char* const now = map(length, both, MAP_SHARED, buffer.fd.get());
      for (std::uint64_t at = 0; at < length; at += page) {
        *reinterpret_cast<volatile char*>(now + at) = 2;
      }
      while (shared.go <= i) usleep(50);
      for (std::uint64_t wait = 0; wait < i; ++wait) sched_yield();
      if (mremap(now, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, room + i * apart) ==
          MAP_FAILED) {
        _exit(92);
      }
      shared.done = i + 1;
    }
    for (;;) pause();
  }
  REQUIRE(child > 0);
  while (shared.start == 0) usleep(1000);

  const auto root = SysRoot::live();
  REQUIRE(root);
  const auto process = root->process(child);
  REQUIRE(process);
  std::vector<std::unique_ptr<Translator>> translators;
  translators.push_back(*open_translator(*process, Backend::pagemap));
  translators.push_back(*open_translator(*process));
  std::uint64_t absent = 0, looks = 0;
  for (std::uint64_t i = 0; i < slots; ++i) {
    const VirtAddr start{shared.start + i * apart};
    const auto& translator = translators[i % translators.size()];
    shared.go = i + 1;
    bool last = false;
    do {
      last = shared.done > i;
      VmaInspector inspector(*process);
      const auto count = [&](const Vma*, const Extent& e) {
        ++looks;
        if (e.state == PageState::absent || e.state == PageState::unmapped) ++absent;
        return true;
      };
      REQUIRE(translate(*process, *translator, inspector, {start, start + length}, {}, count));
      const auto one = translate(*process, *translator, inspector, start + page);
      REQUIRE(one);
      count(nullptr, one->extent);
    } while (!last);
  }
  INFO(looks << " looks");
  CHECK(absent == 0);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  munmap(memory, page);
}
