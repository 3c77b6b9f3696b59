// SPDX-License-Identifier: MIT
// The recorder of `regaudit trace`, before a libibverbs that stands in for the real one. What must
// be found is what the program itself says of its registrations.
#include <sys/stat.h>

#include <algorithm>
#include <sstream>

#include "live/children.hpp"
#include "live/programs.hpp"
#include "support/catch.hpp"
#include "support/require.hpp"
#include "support/temp_dir.hpp"
#include "support/tool.hpp"

using namespace vmem::test;

namespace {

const std::string verbs_path =
    "LD_LIBRARY_PATH=" + std::filesystem::path(VMEM_REGISTRAR_PATH).parent_path().string() +
    "/verbs:" + std::filesystem::path(VMEM_REGISTRAR_PATH).parent_path().string();

std::string regaudit() { return std::filesystem::absolute(tool_path("regaudit")).string(); }

struct Region {
  std::uint64_t va = 0, bytes = 0;
  std::uint32_t lkey = 0;
  friend auto operator<=>(const Region&, const Region&) = default;
};

/// What the program said that it has.
std::vector<Region> told(const std::string& said) {
  std::vector<Region> all;
  std::istringstream lines(said);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string word;
    Region r;
    if (words >> word && word == "mr" && words >> std::hex >> r.va >> r.bytes >> r.lkey)
      all.push_back(r);
  }
  std::ranges::sort(all);
  return all;
}

/// What regaudit found of it.
std::vector<Region> found(const nlohmann::ordered_json& document) {
  std::vector<Region> all;
  for (const auto& r : document["registrations"]) {
    if (r["va"].is_null()) continue;
    all.push_back(
        {std::stoull(r["va"].get<std::string>(), nullptr, 16), r["bytes"],
         static_cast<std::uint32_t>(std::stoul(r["lkey"].get<std::string>(), nullptr, 16))});
  }
  std::ranges::sort(all);
  return all;
}

/// The registrar under the recorder, until it is ready.
class Traced {
 public:
  explicit Traced(const std::string& mode, const std::vector<std::string>& options = {})
      : program_(command(mode, options), {verbs_path}) {
    if (!program_.wait_for("ready\n")) FAIL("registrar " << mode << ": " << program_.said());
  }
  nlohmann::ordered_json audit(pid_t pid = 0) const {
    return tool_json("regaudit", {"rdma", "-J", std::to_string(pid != 0 ? pid : program_.pid())});
  }
  const std::string& said() const { return program_.said(); }
  pid_t pid() const { return program_.pid(); }

 private:
  static std::vector<std::string> command(const std::string& mode,
                                          const std::vector<std::string>& options) {
    std::vector<std::string> all{regaudit(), "trace"};
    all.insert(all.end(), options.begin(), options.end());
    all.insert(all.end(), {"--", VMEM_REGISTRAR_PATH, mode});
    return all;
  }
  Program program_;
};

/// These need map_files or the process's own descriptors: root, or the same user.
bool netlink_answers() {
  return run_tool("regaudit", {"rdma"}).err.find("no RDMA") == std::string::npos;
}

}  // namespace

TEST_CASE("trace: every way to register and to end it, with errno and failures as they were") {
  if (netlink_answers())
    return skip_or_fail("", "the kernel has RDMA, and knows nothing of a fake");
  const Traced program("each-way");
  const auto document = program.audit();
  CHECK(told(program.said()).size() == 7);
  CHECK(found(document) == told(program.said()));
  CHECK(document["rdma"]["netlink"] == false);
  const auto& process = document["processes"][0];
  CHECK(process["fork_init"] == true);
  REQUIRE(process["failed"].size() == 1);
  CHECK(process["failed"][0]["errno"] == EINVAL);
  CHECK(process["failed"][0]["bytes"] == 0);
  // The dma-buf is listed, without an address.
  int without_address = 0;
  for (const auto& r : document["registrations"]) without_address += r["va"].is_null() ? 1 : 0;
  CHECK(without_address == 1);
  for (const auto& r : document["registrations"]) {
    if (r["va"].is_null() || r["lkey"].is_null()) continue;
    if (r["bytes"] == 8192 && r["iova"] == "0x1000") return;
  }
  FAIL("ibv_reg_mr_iova's address is not there");
}

TEST_CASE("trace: eight threads lose nothing and mix nothing up") {
  if (netlink_answers())
    return skip_or_fail("", "the kernel has RDMA, and knows nothing of a fake");
  const Traced program("threads");
  CHECK(told(program.said()).size() == 8);
  CHECK(found(program.audit()) == told(program.said()));
}

TEST_CASE("trace: exec ends what was registered, and the recorder goes on") {
  if (netlink_answers())
    return skip_or_fail("", "the kernel has RDMA, and knows nothing of a fake");
  const Traced program("exec");
  CHECK(found(program.audit()) == told(program.said()));
}

TEST_CASE("trace: parent and child of a fork each have their own") {
  if (netlink_answers())
    return skip_or_fail("", "the kernel has RDMA, and knows nothing of a fake");
  const Traced program("fork");
  CHECK(found(program.audit()) == told(program.said()));
  std::istringstream text(program.said().substr(program.said().find("child ") + 6));
  pid_t child = 0;
  std::uint64_t va = 0;
  text >> std::dec >> child >> std::hex >> va;
  const auto all = found(program.audit(child));
  REQUIRE(all.size() == 1);
  CHECK(all.front().va == va);
}

TEST_CASE("trace: a log in a file, and one that is damaged") {
  if (netlink_answers())
    return skip_or_fail("", "the kernel has RDMA, and knows nothing of a fake");
  const TempDir directory;
  const std::string log = (directory / "log").string();
  const Traced program("each-way", {"--log", log});
  const std::string pid = std::to_string(program.pid());
  CHECK(found(program.audit()) == told(program.said()));
  CHECK(found(tool_json("regaudit", {"rdma", "-J", "--log", log, pid})) == told(program.said()));
  const std::string whole = read_file(log).substr(0, 4096);
  const auto refused = [&](const std::string& content, const std::string& why) {
    write_file(directory / "bad", content);
    const RunResult result =
        run_tool("regaudit", {"rdma", "--log", (directory / "bad").string(), pid});
    CHECK(result.status == 2);
    CHECK(error_form(result.err, "regaudit") == "");
    CHECK(result.err.find(why) != std::string::npos);
  };
  refused("", "not a log");
  refused("vmregtr1", "not a log");
  refused(std::string(4096, '\xff'), "not a log");
  // A header that claims more than there is: what is there counts.
  std::string large = whole;
  large[16] = '\xff';  // capacity
  large[30] = '\xff';  // next
  write_file(directory / "large", large);
  const RunResult result =
      run_tool("regaudit", {"rdma", "--log", (directory / "large").string(), pid});
  CHECK(result.signal == 0);
  CHECK(result.status == 2);  // records are lost: it cannot be told
}

TEST_CASE("trace: a program that was not traced is said to be so") {
  const Child child = fork_child([](const std::function<void()>& ready) {
    ready();
    wait_for_ever();
  });
  if (netlink_answers()) return skip_or_fail("", "the kernel has RDMA");
  const RunResult result = run_tool("regaudit", {"rdma", std::to_string(child.pid())});
  CHECK(result.status == 2);
  CHECK(error_form(result.err, "regaudit") == "");
  CHECK(result.err.find("not started under regaudit trace") != std::string::npos);
}

TEST_CASE("trace: a log that another user wrote is no evidence, nor one of an earlier process") {
  if (netlink_answers()) return skip_or_fail("", "the kernel has RDMA");
  if (geteuid() != 0) return skip_or_fail("pfn", "needs root to give a file away");
  const TempDir directory;
  const std::string log = (directory / "log").string();
  const Traced program("each-way", {"--log", log});
  const std::string pid = std::to_string(program.pid());
  const auto refused = [&](const std::string& why) {
    const RunResult result = run_tool("regaudit", {"rdma", "--log", log, pid});
    CAPTURE(result.out, result.err);
    CHECK(result.status == 2);
    CHECK(result.out == "");
    CHECK(error_form(result.err, "regaudit") == "");
    CHECK(result.err.find(why) != std::string::npos);
  };
  REQUIRE(chown(log.c_str(), 65534, 65534) == 0);
  refused("another user");
  REQUIRE(chown(log.c_str(), 0, 0) == 0);
  CHECK(found(tool_json("regaudit", {"rdma", "-J", "--log", log, pid})) == told(program.said()));
  // As if another process had had the PID: each record's time is before this one began. The log
  // is mapped shared, so it is changed in a copy. (regtrace.h: time_ns at 48 of 64 bytes.)
  std::string copy = read_file(log).substr(0, 64 + 64 * 64);
  for (std::size_t at = 64; at + 64 <= copy.size(); at += 64)
    std::fill_n(copy.begin() + static_cast<std::ptrdiff_t>(at + 48), 8, '\0');
  std::filesystem::remove(log);
  write_file(log, copy);
  refused("not started under regaudit trace");
}

TEST_CASE("trace: what a process names as its log is not opened unless it is a file") {
  if (netlink_answers()) return skip_or_fail("", "the kernel has RDMA");
  // A FIFO that somebody writes to: whoever opens it for reading lets the writer go on.
  const TempDir directory;
  const std::string fifo = (directory / "fifo").string();
  REQUIRE(mkfifo(fifo.c_str(), 0600) == 0);
  const Child child = fork_child([](const std::function<void()>& ready) {
    ready();
    wait_for_ever();
  });
  const RunResult result =
      run_tool("regaudit", {"rdma", "--log", fifo, std::to_string(child.pid())});
  CHECK(result.status == 2);
  CHECK(result.err.find("not a regular file") != std::string::npos);
}

TEST_CASE("trace: a program that nothing is preloaded into is not told from its starter's log") {
  if (netlink_answers()) return skip_or_fail("", "the kernel has RDMA");
  // The variable is there, the recorder is not: what the shell noted before is of no use.
  Program program(
      {regaudit(), "trace", "--", "sh", "-c", "echo ready; exec env -u LD_PRELOAD sleep 60"});
  REQUIRE(program.wait_for("ready\n"));
  const std::string pid = std::to_string(program.pid());
  const auto deadline = Clock::now() + std::chrono::seconds(20);
  while (first_line("/proc/" + pid + "/comm") != "sleep" && Clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  const RunResult result = run_tool("regaudit", {"rdma", pid});
  CAPTURE(result.out, result.err);
  CHECK(result.status == 2);
  CHECK(result.out == "");
  CHECK(result.err.find("not started under regaudit trace") != std::string::npos);
}

TEST_CASE("trace: its help is output like any other, and its hints fit what was typed") {
  RunOptions full;
  full.stdout_path = "/dev/full";
  for (const auto& line :
       {std::vector<std::string>{"trace", "--help"}, std::vector<std::string>{"trace", "-h"},
        std::vector<std::string>{"--help"}, std::vector<std::string>{"--version"}}) {
    const RunResult result = run_tool("regaudit", line, full);
    CAPTURE(line.front());
    CHECK(result.status == 2);
    CHECK(result.err.find("No space left on device") != std::string::npos);
    CHECK(run_tool("regaudit", line).status == 0);
  }
  CHECK(run_tool("regaudit", {"trace", "--help"}).out.find("--log FILE") != std::string::npos);
  const auto refused = [](const std::vector<std::string>& line, const std::string& why) {
    const RunResult result = run_tool("regaudit", line);
    CAPTURE(result.err);
    CHECK(result.status == 2);
    CHECK(result.out == "");
    CHECK(error_form(result.err, "regaudit") == "");
    CHECK(result.err.find(why) != std::string::npos);
    CHECK(result.err.find("nothing that can be audited") == std::string::npos);
  };
  refused({"-J", "trace", "--", "true"}, "trace comes first");
  refused({"--json", "trace", "ls", "-l"}, "trace comes first");
  refused({"--log", "x", "trace", "--", "true"}, "trace comes first");
  refused({"-n", "trace", "trace", "true"}, "trace comes first");
  refused({"trace", "-J", "--", "true"}, "-J: no such option of trace");
  refused({"trace", "--log"}, "--log: FILE is missing");
  refused({"trace", "--log=", "--", "true"}, "--log: FILE is missing");
  refused({"trace", "--log", "--", "true"}, "--log: FILE is missing");
}

TEST_CASE("trace: the program keeps the capabilities of who started it") {
  const std::string own = run({"grep", "^Cap", "/proc/self/status"}).out;
  const RunResult traced =
      run_tool("regaudit", {"trace", "--", "grep", "^Cap", "/proc/self/status"});
  CHECK(traced.status == 0);
  CHECK(traced.out == own);
}

TEST_CASE("trace: the program's status and output are its own; what cannot run is an error") {
  const RunResult result = run_tool("regaudit", {"trace", "--", "sh", "-c", "echo out; exit 7"});
  CHECK(result.status == 7);
  CHECK(result.out == "out\n");
  const RunResult missing = run_tool("regaudit", {"trace", "--", "/nonexistent"});
  CHECK(missing.status == 2);
  CHECK(error_form(missing.err, "regaudit") == "");
  CHECK(run_tool("regaudit", {"trace"}).status == 2);
  CHECK(run_tool("regaudit", {"trace", "--junk", "true"}).status == 2);
}
