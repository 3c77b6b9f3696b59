// SPDX-License-Identifier: MIT
// Without the right to see page frame numbers: `hidden`, never frame 0; and nothing at all of
// other users' processes. The children become uid 65534, so root has to start these tests.
#include <grp.h>
#include <linux/capability.h>
#include <sys/xattr.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "live/children.hpp"
#include "live/oracle.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

constexpr uid_t nobody = 65534;

bool become_nobody() {
  return setgroups(0, nullptr) == 0 && setresgid(nobody, nobody, nobody) == 0 &&
         setresuid(nobody, nobody, nobody) == 0 &&
         // Dumpable again, so that its own files in /proc are its own.
         prctl(PR_SET_DUMPABLE, 1) == 0;
}

/// Runs `body` as nobody in a child; the line that it returns.
std::string as_nobody(const std::function<std::string()>& body) {
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) throw std::runtime_error("pipe2");
  const pid_t pid = fork();
  if (pid == 0) {
    const std::string line = become_nobody() ? body() : "cannot become nobody";
    (void)!write(ends[1], line.data(), line.size());
    _exit(0);
  }
  close(ends[1]);
  std::string line;
  std::array<char, 4096> buffer{};
  for (ssize_t n = 0; (n = read(ends[0], buffer.data(), buffer.size())) > 0;) {
    line.append(buffer.data(), static_cast<std::size_t>(n));
  }
  close(ends[0]);
  (void)waitpid(pid, nullptr, 0);
  return line;
}

/// A process of nobody's with 16 written pages and 16 untouched ones at `start`.
Child nobodys_process(std::uint64_t& start) {
  void* const at =
      mmap(nullptr, 32 * base_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  start = reinterpret_cast<std::uint64_t>(at);
  Child child = fork_child([&](const std::function<void()>& ready) {
    if (!become_nobody()) _exit(1);
    std::memset(at, 1, 16 * base_page);
    ready();
    wait_for_ever();
  });
  munmap(at, 32 * base_page);
  return child;
}

std::string read_as(pid_t pid, std::uint64_t start) {
  auto root = SysRoot::live();
  if (!root) return "root: " + to_string(root.error());
  std::string line = root->pfn_access() == PfnAccess::hidden ? "hidden;" : "not hidden;";
  auto process = root->process(pid);
  if (!process) return line + "process: " + std::to_string(static_cast<int>(process.error().code));
  auto translator = open_translator(*process, Backend::pagemap);
  if (!translator) {
    return line + (translator.error().code == Errc::permission ? "permission" : "other error") +
           (translator.error().hint != nullptr ? " with a hint" : "");
  }
  VmaInspector inspector(*process);
  const auto result = translate(
      *process, **translator, inspector, {{start}, {start + 32 * base_page}}, {},
      [&](const Vma*, const Extent& e) {
        line += std::string(to_string(e.state)) + "+" + std::to_string(e.bytes / base_page) + " " +
                std::to_string(e.pfn.value) + ";";
        return true;
      });
  if (!result) line += to_string(result.error());
  return line;
}

}  // namespace

TEST_CASE("an unprivileged reader sees hidden pages, not frame 0") {
  if (geteuid() != 0) return skip_or_fail("pfn", "only root can become another user");
  std::uint64_t start = 0;
  const Child child = nobodys_process(start);
  CHECK(as_nobody([&] { return read_as(child.pid(), start); }) ==
        "hidden;hidden+16 0;absent+16 0;");
  // The same process, seen with the right: proof that there was something to hide.
  if (!shown_pfns()) return skip_or_fail("pfn", "frames are not shown to root");
  const std::string shown = read_as(child.pid(), start);
  INFO(shown);
  CHECK(shown.starts_with("not hidden;resident+"));
  CHECK(shown.find("hidden+") == std::string::npos);
}

TEST_CASE("an unprivileged walk of everything agrees with an unprivileged plain reader") {
  if (geteuid() != 0) return skip_or_fail("pfn", "only root can become another user");
  std::uint64_t start = 0;
  const Child child = nobodys_process(start);
  stop(child.pid());
  const auto plain = plain_read(child.pid(), {.uid = nobody});
  std::map<std::string, std::uint64_t> wanted, blind;
  for (const PlainVma& v : plain) {
    const bool pf = v.rest.ends_with("[vvar]") || v.rest.ends_with("[vvar_vclock]");
    for (const PlainRun& r : v.runs) {
      wanted[r.state == "eof" || pf ? "unseen" : r.state] += r.pages;
    }
  }
  std::string text;
  for (const auto& [state, pages] : wanted) text += state + " " + std::to_string(pages) + ";";
  const std::string got = as_nobody([&] {
    auto root = SysRoot::live();
    auto process = root->process(child.pid());
    if (!process) return to_string(process.error());
    auto translator = open_translator(*process, Backend::pagemap);
    if (!translator) return to_string(translator.error());
    VmaInspector inspector(*process);
    std::map<std::string, std::uint64_t> sums;
    const auto result =
        translate_all(*process, **translator, inspector, {}, [&](const Vma*, const Extent& e) {
          sums[std::string(to_string(e.state))] += e.bytes / base_page;
          return true;
        });
    if (!result) return to_string(result.error());
    std::string line;
    for (const auto& [state, pages] : sums) line += state + " " + std::to_string(pages) + ";";
    return line;
  });
  CHECK(got == text);
  CHECK(wanted.contains("hidden"));
  CHECK_FALSE(wanted.contains("resident"));
}

TEST_CASE("another user's process is refused with permission, and a hint") {
  if (geteuid() != 0) return skip_or_fail("pfn", "only root can become another user");
  const Child child = fork_child([](const std::function<void()>& ready) {
    ready();
    wait_for_ever();
  });
  CHECK(as_nobody([&] { return read_as(child.pid(), 0); }) == "hidden;permission with a hint");
}

TEST_CASE("in a container root reads other users' processes by CAP_DAC_OVERRIDE alone") {
  if (geteuid() != 0 || !shown_pfns()) return skip_or_fail("pfn", "needs CAP_SYS_ADMIN");
  std::uint64_t start = 0;
  const Child child = nobodys_process(start);
  const pid_t pid = fork();
  if (pid == 0) {
    if (prctl(PR_CAPBSET_DROP, CAP_DAC_READ_SEARCH) != 0) _exit(100);
    _exit(run({VMEM_TOOLS_PATH "/vtop", std::to_string(child.pid()), hex(start)}).status);
  }
  int status = 0;
  REQUIRE(waitpid(pid, &status, 0) == pid);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

TEST_CASE("vtop says hidden, exits 2 and gives a hint to an unprivileged user") {
  if (geteuid() != 0) return skip_or_fail("pfn", "only root can become another user");
  std::uint64_t start = 0;
  const Child child = nobodys_process(start);
  const std::string pid = std::to_string(child.pid());
  // The build folder may not be open to others: the program's file is, once it is copied.
  FileDir directory;
  std::filesystem::permissions(directory.path(), std::filesystem::perms(0755));
  const std::string vtop = directory.path() + "/vtop";
  std::filesystem::copy_file(VMEM_TOOLS_PATH "/vtop", vtop);
  const RunOptions options{.uid = nobody, .directory = "/"};

  const RunResult one = run({vtop, pid, hex(start)}, options);
  INFO(one.out << one.err);
  CHECK(one.status == 2);
  CHECK(one.out.find("hidden") != std::string::npos);
  CHECK(one.err.find("hint: ") != std::string::npos);

  const RunResult all = run({vtop, "-J", pid}, options);
  INFO(all.err);
  CHECK(all.status == 2);
  const auto document = nlohmann::json::parse(all.out);
  CHECK(document["host"]["pfn_access"] == "hidden");
  unsigned hidden = 0;
  for (const auto& group : document["results"]) {
    for (const auto& e : group["extents"]) {
      CHECK(e["pfn"].is_null());
      CHECK(e["pa"].is_null());
      CHECK(e["state"] != "resident");
      hidden += e["state"] == "hidden";
    }
  }
  CHECK(hidden > 0);

  const RunResult other = run({vtop, "1"}, options);
  INFO(other.err);
  CHECK(other.status == 2);
  CHECK(other.out.empty());
  CHECK(other.err.starts_with("vtop: "));
  CHECK(other.err.find("hint: ") != std::string::npos);
}

namespace {

/// What setcap(8) does.
bool give_capabilities(const std::string& file, std::initializer_list<unsigned> numbers) {
  vfs_cap_data data{};
  data.magic_etc = VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE;
  for (const unsigned n : numbers) data.data[n / 32].permitted |= 1U << (n % 32);
  return setxattr(file.c_str(), "security.capability", &data, XATTR_CAPS_SZ_2, 0) == 0;
}

void put(const std::string& file, const std::string& text, unsigned mode) {
  std::ofstream(file) << text;
  std::filesystem::permissions(file, static_cast<std::filesystem::perms>(mode));
}

}  // namespace

TEST_CASE("a tool with capabilities of its file's opens what is named with its caller's rights") {
  if (geteuid() != 0) return skip_or_fail("pfn", "only root can become another user");
  FileDir directory;
  const std::string& at = directory.path();
  std::filesystem::permissions(at, std::filesystem::perms(0755));
  for (const std::string tool : {"vtop", "vmastat", "mapcheck", "regaudit"}) {
    std::filesystem::copy_file(VMEM_TOOLS_PATH "/" + tool, at + "/" + tool);
    if (!give_capabilities(at + "/" + tool, {CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH,
                                             CAP_DAC_OVERRIDE, CAP_FOWNER}))
      return skip_or_fail("pfn", "no capabilities of files here");
  }
  // regaudit trace wants a recorder beside it; it comes to none of these.
  put(at + "/libregtrace.so", "", 0644);
  const RunOptions nobodys{.uid = nobody, .directory = "/"};
  const auto ask = [&](std::vector<std::string> words) {
    words.front() = at + "/" + words.front();
    return run(words, nobodys);
  };
  // They have them: another user's process is shown, with frames.
  const std::string child = [&] {
    const RunResult seen = ask({"mapcheck", "-e", "[stack]=ram,sparse", std::to_string(getpid())});
    return seen.status == 0 ? std::string() : seen.err;
  }();
  if (!child.empty()) return skip_or_fail("pfn", "capabilities of files have no effect: " + child);

  const std::string secret = at + "/secret";
  put(secret, "hunter2 = 5\n1000 4K\n", 0600);
  std::filesystem::create_directory(at + "/tree");
  std::filesystem::create_directory(at + "/tree/proc");
  std::filesystem::permissions(at + "/tree", std::filesystem::perms(0700));
  const std::string log = at + "/log";
  for (const std::vector<std::string>& words : std::vector<std::vector<std::string>>{
           {"mapcheck", "--policy", secret, "self"},
           {"regaudit", "ranges", "self", secret},
           {"regaudit", "rdma", "--log", secret, std::to_string(getpid())},
           {"regaudit", "dpdk", "--dir", at + "/tree"},
           {"regaudit", "trace", "--log", log, "--", "true"},
           {"regaudit", "trace", "--log", secret, "--", "true"},
           {"mapcheck", "--junit", log, "-e", "[stack]=ram,sparse", "self"},
           {"mapcheck", "--junit", secret, "-e", "[stack]=ram,sparse", "self"},
           {"vmastat", "--html", log, "self"},
           {"vtop", "--sysroot", at + "/tree", "1"},
           {"vmastat", "--sysroot", at + "/tree", "1"},
           {"mapcheck", "--sysroot", at + "/tree", "--auto", "1"},
           {"regaudit", "--sysroot", at + "/tree", "dpdk"}}) {
    std::string line;
    for (const std::string& word : words) line += word + " ";
    const RunResult result = ask(words);
    INFO(line << result.out << result.err);
    CHECK(result.status == 2);
    CHECK(result.err.find("ermission") != std::string::npos);
    CHECK(result.err.find("hunter2") == std::string::npos);
    CHECK_FALSE(std::filesystem::exists(log));
  }
  std::ifstream kept(secret);
  std::string first;
  CHECK((std::getline(kept, first) && first == "hunter2 = 5"));

  // What its caller may open it opens; and the process's own files with the capabilities after
  // that.
  put(at + "/open.toml", "[[check]]\nselect = \"[stack]\"\nwindow = \"ram\"\nsparse = true\n",
      0644);
  const RunResult good = ask({"mapcheck", "--policy", at + "/open.toml", std::to_string(getpid())});
  INFO(good.err);
  CHECK(good.status == 0);
}
