// SPDX-License-Identifier: MIT
// regaudit on soft RoCE, with the system's own programs: what iproute2 lists is the oracle of what
// is registered, and the kernel's errno that of what cannot be.
//
// vmtest: machines=fast kernels=6.1,6.12
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "live/programs.hpp"
#include "support/catch.hpp"
#include "support/guest.hpp"
#include "support/require.hpp"
#include "support/tool.hpp"

using namespace vmem::test;

namespace {

constexpr std::chrono::seconds patience{300};

RunResult root_run(const std::vector<std::string>& arguments) {
  RunOptions options;
  options.directory = "/";
  options.timeout = patience;
  return run(arguments, options);
}

/// An RDMA device over a network of one machine's, until this goes.
class SoftRoce {
 public:
  SoftRoce() {
    // modprobe says nothing of what is built in. rxe asks for crc32 by request_module().
    for (const char* const module : {"crc32_generic", "dummy", "rdma_rxe"})
      root_run({"modprobe", module});
    for (const std::vector<std::string>& command : std::vector<std::vector<std::string>>{
             {"ip", "link", "add", "dummy7", "type", "dummy"},
             {"ip", "address", "add", "192.0.2.1/24", "dev", "dummy7"},
             {"ip", "link", "set", "dummy7", "up"},
             {"rdma", "link", "add", "rxe0", "type", "rxe", "netdev", "dummy7"}}) {
      const RunResult result = root_run(command);
      INFO(command[0] << " " << command[1] << ": " << result.out << result.err);
      REQUIRE(result.status == 0);
    }
  }
  ~SoftRoce() {
    root_run({"rdma", "link", "delete", "rxe0"});
    root_run({"ip", "link", "delete", "dummy7"});
  }
  SoftRoce(const SoftRoce&) = delete;
  SoftRoce& operator=(const SoftRoce&) = delete;

  static bool possible() {
    if (access("/bin/ibv_rc_pingpong", X_OK) == 0) return true;
    skip_or_fail("rdma", "no libibverbs in this guest");
    return false;
  }
};

RunResult regaudit(const std::vector<std::string>& arguments) {
  std::vector<std::string> all{tool_path("regaudit")};
  all.insert(all.end(), arguments.begin(), arguments.end());
  return root_run(all);
}

nlohmann::json document_of(const RunResult& result) {
  INFO(result.out.substr(0, 3000) << result.err);
  auto document = nlohmann::json::parse(result.out, nullptr, false);
  REQUIRE_FALSE(document.is_discarded());
  return document;
}

/// The lengths of a process's memory regions, as iproute2 lists them.
std::vector<std::uint64_t> listed(pid_t pid) {
  const RunResult result = root_run({"rdma", "-j", "-d", "resource", "show", "mr"});
  INFO(result.out << result.err);
  std::vector<std::uint64_t> lengths;
  const auto document = nlohmann::json::parse(result.out, nullptr, false);
  REQUIRE_FALSE(document.is_discarded());
  for (const auto& mr : document) {
    if (mr.value("pid", 0) == pid) lengths.push_back(mr["mrlen"]);
  }
  std::ranges::sort(lengths);
  return lengths;
}

std::vector<std::string> traced(const std::vector<std::string>& command) {
  std::vector<std::string> all{tool_path("regaudit"), "trace", "--"};
  all.insert(all.end(), command.begin(), command.end());
  return all;
}

/// The same, as soon as there are any. (The program's own output comes when it ends.)
std::vector<std::uint64_t> wait_for_regions(pid_t pid) {
  const auto deadline = std::chrono::steady_clock::now() + patience;
  while (std::chrono::steady_clock::now() < deadline) {
    if (!listed(pid).empty()) {
      sleep(2);  // the recorder notes it after the kernel does
      return listed(pid);
    }
    usleep(100000);
  }
  return {};
}

}  // namespace

TEST_CASE("rdma: every region of ibv_rc_pingpong is found where it lies, is clean and pinned") {
  if (!in_guest()) return;
  if (!SoftRoce::possible()) return;
  const SoftRoce device;
  const Module reader("vmem");
  const std::vector<std::string> pingpong = {"ibv_rc_pingpong", "-d", "rxe0", "-g", "1", "-s",
                                             "65536",           "-n", "50"};
  Program server(traced(pingpong));
  // It registers its buffer, then waits for its peer.
  const auto lengths = wait_for_regions(server.pid());
  REQUIRE_FALSE(lengths.empty());

  const RunResult result = regaudit({"rdma", "-J", std::to_string(server.pid())});
  const auto document = document_of(result);
  CHECK(result.status == 0);
  CHECK(document["rdma"]["netlink"] == true);
  std::vector<std::uint64_t> found;
  for (const auto& r : document["registrations"]) {
    CAPTURE(r.dump());
    CHECK(r["device"] == "rxe0");
    CHECK(r["verdict"] == "clean");
    CHECK(r["pinned"] == true);
    CHECK(r["resident"] == r["bytes"]);
    REQUIRE(r["va"].is_string());
    // The address is one that the process has: the whole of it in one mapping.
    const std::uint64_t va = std::stoull(r["va"].get<std::string>(), nullptr, 16);
    std::ostringstream maps;
    maps << "/proc/" << server.pid() << "/maps";
    bool mapped = false;
    std::istringstream lines(root_run({"cat", maps.str()}).out);
    for (std::string line; std::getline(lines, line);) {
      std::uint64_t start = 0, end = 0;
      char dash = 0;
      std::istringstream(line) >> std::hex >> start >> dash >> end;
      mapped = mapped || (start <= va && va + r["bytes"].get<std::uint64_t>() <= end);
    }
    CHECK(mapped);
    found.push_back(r["bytes"]);
  }
  std::ranges::sort(found);
  CHECK(found == lengths);

  // The recorder changes nothing of what the two do.
  Program client(traced([&] {
    auto command = pingpong;
    command.emplace_back("127.0.0.1");
    return command;
  }()));
  const bool went = client.wait_for("iters in", patience) && server.wait_for("iters in", patience);
  CAPTURE(client.said(), server.said());
  CHECK(went);
}

TEST_CASE("rdma: what cannot be registered is explained by plan beforehand") {
  if (!in_guest()) return;
  if (!SoftRoce::possible()) return;
  const SoftRoce device;
  struct Expected {
    std::string reason;
    int error;
  };
  const bool old_kernel = guest_kernel() == "6.1";  // reads by a forced write
  const std::map<std::string, Expected> expected = {
      {"anonymous", {"", 0}},
      {"memfd", {"", 0}},
      {"pfnmap", {"not-registrable", EFAULT}},
      {"no-access", {"not-registrable", EFAULT}},
      {"hole", {"unmapped", EFAULT}},
      {"read-only", {"not-registrable", EFAULT}},
      {"read-only-read", {"", 0}},
      {"shared-read-only-read", old_kernel ? Expected{"not-registrable", EFAULT} : Expected{"", 0}},
      {"short-file", {"beyond-eof", EFAULT}},
      {"short-file-private", {"beyond-eof", EFAULT}},
      {"within-limit", {"", 0}},
      {"over-limit", {"over-memlock", ENOMEM}},
  };
  std::size_t seen = 0;
  for (const bool limited : {false, true}) {
    Program program(limited ? std::vector<std::string>{"planted", "memlock"}
                            : std::vector<std::string>{"planted"});
    const bool ready = program.wait_for("ready\n", patience);
    INFO(program.said());
    REQUIRE(ready);
    std::map<std::string, std::pair<int, nlohmann::json>> plans;
    std::istringstream lines(program.said());
    for (std::string word, name, va, bytes, access; lines >> word && word == "buffer";) {
      lines >> name >> va >> bytes >> access;
      const RunResult result = regaudit(
          {"plan", "-J", "--access", access, std::to_string(program.pid()), va + "+" + bytes});
      plans[name] = {result.status, document_of(result)["plan"]};
    }
    program.say("go\n");
    REQUIRE(program.wait_for("done\n", patience));
    std::istringstream results(program.said().substr(program.said().find("result ")));
    std::string word, name;
    for (int error = 0; results >> word >> name >> error && word == "result"; ++seen) {
      const auto& [status, plan] = plans.at(name);
      CAPTURE(name, error, plan.dump());
      REQUIRE(expected.contains(name));
      const auto& [reason, wanted] = expected.at(name);
      CHECK(error == wanted);
      CHECK(status == (error == 0 ? 0 : 1));
      CHECK(plan["verdict"] == (error == 0 ? "would work" : "would fail"));
      const auto blockers =
          reason.empty() ? nlohmann::json::array() : nlohmann::json::array({reason});
      CHECK(plan["blockers"] == blockers);
    }
  }
  CHECK(seen == expected.size());
}
