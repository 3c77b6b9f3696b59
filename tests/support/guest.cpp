// SPDX-License-Identifier: MIT
#include "support/guest.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "support/catch.hpp"
#include "support/require.hpp"

namespace vmem::test {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t page = 4096;
const std::string tracing = "/sys/kernel/tracing/";

std::string hex(std::uint64_t value) {
  std::ostringstream out;
  out << "0x" << std::hex << value;
  return out.str();
}

std::string environment(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

sigjmp_buf faulted;
volatile bool touching = false;

/// Without buffering: each write is one command to the kernel.
int write_control(const std::string& path, const std::string& text, int flags = 0) {
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC | flags);
  if (fd < 0) return errno;
  const ssize_t n = write(fd, text.data(), text.size());
  const int error = n == static_cast<ssize_t>(text.size()) ? 0 : errno;
  close(fd);
  return error;
}

}  // namespace

bool in_guest() {
  if (!environment("VMEM_VM").empty()) {
    // So that the console of a guest that hangs tells where.
    static std::string last;
    const std::string now = Catch::getResultCapture().getCurrentTestName();
    if (now != last) std::fprintf(stderr, "%s\n", now.c_str());
    last = now;
    return true;
  }
  skip_or_fail("vm", "not in a guest of scripts/vmtest");
  return false;
}

std::string guest_machine() { return environment("VMEM_VM_MACHINE"); }

std::string guest_kernel() { return environment("VMEM_VM_KERNEL"); }

int Module::load(const std::string& name, const std::string& parameters) {
  utsname kernel{};
  if (uname(&kernel) != 0) return errno;
  const std::string path = std::string("/lib/modules/") + kernel.release + "/vmem/" + name + ".ko";
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  const int error = syscall(SYS_finit_module, fd, parameters.c_str(), 0) == 0 ? 0 : errno;
  close(fd);
  return error;
}

int Module::unload(const std::string& name) {
  return syscall(SYS_delete_module, name.c_str(), O_NONBLOCK) == 0 ? 0 : errno;
}

Module::Module(std::string name, const std::string& parameters) : name_(std::move(name)) {
  const int error = load(name_, parameters);
  INFO("insmod " << name_ << " " << parameters << ": " << std::strerror(error));
  REQUIRE(error == 0);
}

Module::~Module() {
  int error = unload(name_);
  // A grandchild that the test does not wait for may have what it inherited open until it has
  // ended.
  for (int i = 0; i < 500 && error == EAGAIN; ++i) {
    usleep(10000);
    error = unload(name_);
  }
  if (error != 0) {
    std::fprintf(stderr, "rmmod %s: %s\n", name_.c_str(), std::strerror(error));
  }
}

MappedFile::MappedFile(const std::string& path, std::uint64_t offset, std::size_t bytes,
                       int protection, int flags, int open_flags)
    : bytes_(bytes) {
  const int access = (protection & PROT_WRITE) != 0 ? O_RDWR : O_RDONLY;
  const int fd = open(path.c_str(), access | O_CLOEXEC | open_flags);
  if (fd < 0) {
    error_ = errno;
    return;
  }
  void* const at = mmap(nullptr, bytes, protection, flags, fd, static_cast<off_t>(offset));
  if (at == MAP_FAILED)
    error_ = errno;
  else
    at_ = static_cast<char*>(at);
  close(fd);
}

MappedFile::MappedFile(int fd, std::size_t bytes) : bytes_(bytes) {
  void* const at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED)
    error_ = errno;
  else
    at_ = static_cast<char*>(at);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : at_(std::exchange(other.at_, nullptr)), bytes_(other.bytes_), error_(other.error_) {}

MappedFile::~MappedFile() {
  if (at_ != nullptr) munmap(at_, bytes_);
}

std::optional<std::uint64_t> MappedFile::word(std::size_t offset) const {
  static const bool installed = [] {
    struct sigaction action{};
    action.sa_handler = [](int number) {
      if (touching) siglongjmp(faulted, 1);
      signal(number, SIG_DFL);  // somebody else's fault: it comes again
    };
    action.sa_flags = SA_NODEFER;  // it does not return, so nothing would unblock the signal
    return sigaction(SIGBUS, &action, nullptr) == 0 && sigaction(SIGSEGV, &action, nullptr) == 0;
  }();
  if (!installed || at_ == nullptr || offset + sizeof(std::uint64_t) > bytes_) {
    FAIL("outside the mapping");
  }
  touching = true;
  if (sigsetjmp(faulted, 0) != 0) {
    touching = false;
    return {};
  }
  const std::uint64_t value = *reinterpret_cast<const volatile std::uint64_t*>(at_ + offset);
  touching = false;
  return value;
}

void MappedFile::set_word(std::size_t offset, std::uint64_t value) {
  if (at_ == nullptr || offset + sizeof value > bytes_) FAIL("outside the mapping");
  // One access of full width: devices may not take others.
  *reinterpret_cast<volatile std::uint64_t*>(at_ + offset) = value;
}

MappedFile map_device(const std::string& path, std::uint64_t offset, std::size_t bytes) {
  return {path, offset, bytes, PROT_READ | PROT_WRITE, MAP_SHARED};
}

std::string describe(const std::vector<Run>& runs) {
  std::string text;
  for (const Run& run : runs) {
    text += hex(run.offset) + "+" + hex(run.bytes) + " " +
            (run.physical ? hex(*run.physical) : "-") + " " + run.cache + "\n";
    if (text.size() > 2000) return text + "...\n";
  }
  return text;
}

std::vector<Run> truth(int window) {
  std::ifstream in("/sys/kernel/debug/mem_mmap/" + std::to_string(window) + "/truth");
  std::vector<Run> runs;
  std::string line;
  while (std::getline(in, line)) {
    if (line.starts_with('#')) continue;
    std::istringstream words(line);
    std::string offset, bytes, physical;
    Run run;
    words >> offset >> bytes >> physical >> run.cache;
    if (!words) FAIL("truth: " << line);
    run.offset = std::stoull(offset, nullptr, 16);
    run.bytes = std::stoull(bytes, nullptr, 16);
    if (physical != "-") run.physical = std::stoull(physical, nullptr, 16);
    runs.push_back(run);
  }
  REQUIRE_FALSE(runs.empty());
  return runs;
}

std::vector<Run> part(const std::vector<Run>& runs, std::uint64_t offset, std::uint64_t bytes) {
  std::vector<Run> shown;
  for (Run run : runs) {
    const std::uint64_t start = std::max(run.offset, offset);
    const std::uint64_t end = std::min(run.offset + run.bytes, offset + bytes);
    if (start >= end) continue;
    if (run.physical) *run.physical += start - run.offset;
    run.offset = start - offset;
    run.bytes = end - start;
    shown.push_back(run);
  }
  return shown;
}

std::vector<Run> calls_of(const std::vector<Run>& runs) {
  std::vector<Run> calls;
  std::uint64_t offset = 0;
  for (const Run& run : runs) {
    if (!run.physical) continue;
    calls.push_back({offset, run.bytes, run.physical, ""});
    offset += run.bytes;
  }
  return calls;
}

RemapRecord::RemapRecord() {
#ifdef __x86_64__
  const std::string arguments = "pfn=%dx size=%cx";
#else
  const std::string arguments = "pfn=%x2 size=%x3";
#endif
  REQUIRE(write_control(tracing + "kprobe_events", "p:vmem_remap remap_pfn_range " + arguments,
                        O_APPEND) == 0);
  REQUIRE(write_control(tracing + "events/kprobes/vmem_remap/enable", "1") == 0);
  REQUIRE(write_control(tracing + "trace", "", O_TRUNC) == 0);
}

RemapRecord::~RemapRecord() {
  write_control(tracing + "events/kprobes/vmem_remap/enable", "0");
  write_control(tracing + "kprobe_events", "-:vmem_remap", O_APPEND);
}

std::vector<Run> RemapRecord::take() {
  std::ifstream in(tracing + "trace");
  std::vector<Run> runs;
  std::uint64_t offset = 0;
  std::string line;
  while (std::getline(in, line)) {
    const std::size_t pfn = line.find("pfn=0x");
    const std::size_t size = line.find("size=0x");
    if (pfn == std::string::npos || size == std::string::npos) continue;
    Run run;
    run.offset = offset;
    run.bytes = std::stoull(line.substr(size + 5), nullptr, 16);
    run.physical = std::stoull(line.substr(pfn + 4), nullptr, 16) * page;
    offset += run.bytes;
    runs.push_back(run);
  }
  in.close();
  write_control(tracing + "trace", "", O_TRUNC);
  return runs;
}

std::vector<std::string> reserved_caches(std::uint64_t physical) {
  // "PAT: [mem 0x0000000090000000-0x0000000094000000] uncached-minus", exclusive end; without "PAT:
  // " and with other spelling on old kernels.
  std::ifstream in("/sys/kernel/debug/x86/pat_memtype_list");
  std::vector<std::string> caches;
  std::string line;
  while (std::getline(in, line)) {
    const std::size_t start = line.find("0x");
    const std::size_t end = line.find("-0x");
    if (start == std::string::npos || end == std::string::npos) continue;
    if (physical < std::stoull(line.substr(start), nullptr, 16) ||
        physical >= std::stoull(line.substr(end + 1), nullptr, 16)) {
      continue;
    }
    for (const auto& [theirs, ours] :
         {std::pair{"uncached-minus", "uc-"}, std::pair{"uncached", "uc"},
          std::pair{"write-combining", "wc"}, std::pair{"write-back", "wb"},
          std::pair{"write-through", "wt"}, std::pair{"write-protected", "wp"}}) {
      if (line.find(theirs) != std::string::npos) {
        caches.emplace_back(ours);
        break;
      }
    }
  }
  return caches;
}

PhysicalMemory::PhysicalMemory(std::uint64_t physical, std::size_t bytes)
    : physical_(physical),
      // Without O_SYNC the kernel would take write-back, and keep drivers from another attribute.
      mapping_("/dev/mem", physical, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, O_SYNC) {
  INFO("/dev/mem at " << hex(physical) << ": " << std::strerror(mapping_.error()));
  REQUIRE(mapping_.error() == 0);
}

std::uint64_t PhysicalMemory::stamp_of(std::uint64_t physical, std::uint64_t salt) {
  return physical ^ salt * 0x9e3779b97f4a7c15;
}

void PhysicalMemory::stamp(std::uint64_t salt) {
  for (std::size_t at = 0; at < mapping_.bytes(); at += page) {
    mapping_.set_word(at, stamp_of(physical_ + at, salt));
  }
}

std::string maps_line(std::uint64_t address) {
  std::ifstream in("/proc/self/smaps");
  std::string line, found;
  while (std::getline(in, line)) {
    const std::size_t dash = line.find('-');
    if (dash != std::string::npos && dash < line.find(' ') && dash < line.find(':')) {
      const std::uint64_t start = std::stoull(line, nullptr, 16);
      const std::uint64_t end = std::stoull(line.substr(dash + 1), nullptr, 16);
      if (found.empty() && start <= address && address < end) found = line;
    } else if (!found.empty() && line.starts_with("VmFlags:")) {
      return found + "\n" + line + " ";
    }
  }
  return found;
}

std::string pci_device(std::uint16_t vendor, std::uint16_t device) {
  const auto number = [](const fs::path& path) {
    std::string text;
    std::ifstream(path) >> text;
    return text.empty() ? 0 : std::stoul(text, nullptr, 16);
  };
  std::error_code none;
  for (const auto& entry : fs::directory_iterator("/sys/bus/pci/devices", none)) {
    if (number(entry.path() / "vendor") == vendor && number(entry.path() / "device") == device) {
      return entry.path();
    }
  }
  return {};
}

BoundDevice::BoundDevice(const std::string& device, const std::string& driver,
                         const std::string& module)
    : device_(device) {
  if (device_.empty() || std::system(("modprobe " + module).c_str()) != 0) return;
  write_control(device_ + "/driver_override", driver);
  write_control("/sys/bus/pci/drivers_probe", fs::path(device_).filename());
  std::error_code none;
  bound_ = fs::read_symlink(device_ + "/driver", none).filename() == driver;
}

BoundDevice::~BoundDevice() {
  if (device_.empty()) return;
  if (bound_) write_control(device_ + "/driver/unbind", fs::path(device_).filename());
  write_control(device_ + "/driver_override", "\n");
}

std::optional<Run> pci_bar(const std::string& device, int bar) {
  std::ifstream in(device + "/resource");
  std::string start, end, flags;
  for (int i = 0; i <= bar; ++i) in >> start >> end >> flags;
  if (!in || std::stoull(end, nullptr, 16) == 0) return {};
  Run run;
  run.physical = std::stoull(start, nullptr, 16);
  run.bytes = std::stoull(end, nullptr, 16) - *run.physical + 1;
  return run;
}

}  // namespace vmem::test
