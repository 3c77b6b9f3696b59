// SPDX-License-Identifier: MIT
// regaudit dpdk where the layout of a primary's files is not known: what a telemetry socket tells,
// and what it may not make of regaudit. The primary is the test's: a process that maps a config of
// a version to come, and answers as lib/telemetry does.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <filesystem>
#include <map>

#include "live/children.hpp"
#include "live/oracle.hpp"
#include "support/temp_dir.hpp"
#include "support/tool.hpp"

using namespace vmem::test;

namespace {

constexpr std::size_t page = 4096, pages = 600;  // an answer's array ends at 512

using Answers = std::map<std::string, std::string>;

std::string hexadecimal(std::uint64_t value) {
  std::ostringstream out;
  out << "0x" << std::hex << value;
  return out.str();
}

std::string info(std::uint64_t at, std::size_t index, std::uint64_t iova) {
  return R"({"/eal/memseg_info":{"Memseg_list_index":3,"Memseg_index":)" + std::to_string(index) +
         R"(,"IOVA_addr":")" + hexadecimal(iova) + R"(","Start_addr":")" + hexadecimal(at) +
         R"(","End_addr":")" + hexadecimal(at + page) +
         R"(","Size":4096,"Hugepage_size":4096,"Socket_id":0,"flags":0}})";
}

/// What a primary with memory at `at` answers.
Answers answers(std::uint64_t at) {
  std::string indexes;
  for (std::size_t i = 0; i < 512; ++i) indexes += (i == 0 ? "" : ",") + std::to_string(i);
  Answers all{{"", R"({"version":"DPDK 26.03.0","pid":1,"max_output_len":16384})"},
              {"/eal/memseg_lists", R"({"/eal/memseg_lists":[3]})"},
              {"/eal/memseg_list_info,3", R"({"/eal/memseg_list_info":[)" + indexes + "]}"}};
  for (std::size_t i = 0; i < pages; ++i)
    all["/eal/memseg_info,3," + std::to_string(i)] = info(at + i * page, i, at + i * page);
  return all;
}

/// Answers one who connects after the other; nothing where it has no answer of that name.
[[noreturn]] void serve(const std::string& path, const Answers& all,
                        const std::function<void()>& ready) {
  const int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      listen(listener, 4) != 0)
    _exit(1);
  ready();
  while (true) {
    const int connection = accept(listener, nullptr, nullptr);
    std::string question;
    const auto answer = [&] {
      const auto found = all.find(question);
      const std::string name = question.substr(0, question.find(','));
      const std::string text = found != all.end() ? found->second : "{\"" + name + "\":null}";
      if (text.empty()) return;  // silent
      (void)!send(connection, text.data(), text.size(), MSG_NOSIGNAL);
    };
    answer();
    char buffer[256];
    for (ssize_t n = 0; (n = recv(connection, buffer, sizeof buffer, 0)) > 0;) {
      question.assign(buffer, static_cast<std::size_t>(n));
      answer();
    }
    close(connection);
  }
}

class Primary {
 public:
  /// `change` has the answers changed before they are given.
  explicit Primary(const std::function<void(Answers&, std::uint64_t)>& change = {},
                   bool shares_files = true) {
    std::filesystem::create_directories(folder());
    std::string config(25344, '\0');
    const std::uint32_t head[] = {19820526, 0x1a030063};  // RTE_MAGIC, 26.03
    std::memcpy(config.data(), head, sizeof head);
    if (shares_files) write_file(folder() / "config", config);
    child_.emplace(fork_child([&](const std::function<void()>& ready) {
      const int fd = open((folder() / "config").c_str(), O_RDWR | O_CLOEXEC);
      void* const mapped =
          shares_files ? mmap(nullptr, config.size(), PROT_READ, MAP_SHARED, fd, 0) : nullptr;
      auto* const at = static_cast<char*>(mmap(nullptr, pages * page, PROT_READ | PROT_WRITE,
                                               MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0));
      if (mapped == MAP_FAILED || at == MAP_FAILED) _exit(1);
      const auto address = reinterpret_cast<std::uint64_t>(at);
      Answers all = answers(address);
      if (change) change(all, address);
      serve(folder() / "dpdk_telemetry.v2", all, ready);
    }));
  }
  const std::string& name() const { return name_; }
  pid_t pid() const { return child_->pid(); }
  std::filesystem::path folder() const { return directory_.path() / "dpdk" / name(); }
  RunResult audit() const { return run_tool("regaudit", {"dpdk", "-J", "--prefix", name()}); }

 private:
  const std::string name_ = "vmem-telemetry-" + std::to_string(getpid());
  TempDir directory_;
  std::optional<Child> child_;
};

}  // namespace

TEST_CASE("dpdk: of an unknown version the primary is asked itself, past the end of its arrays") {
  if (!shown_pfns()) return skip_or_fail("pfn", "PFNs are hidden");
  const Primary primary;
  const RunResult result = primary.audit();
  INFO(result.err);
  CHECK(result.status == 0);
  const auto document = nlohmann::json::parse(result.out);
  CHECK(document["summary"]["clean"] == pages);
  const auto& dpdk = document["dpdk"][0];
  CHECK(dpdk["version"] == "26.03.0");
  CHECK(dpdk["source"] == "telemetry");
  CHECK(dpdk["iova_mode"] == "va");
  CHECK(dpdk["legacy_mem"].is_null());
  CHECK(dpdk["memzones"].is_null());
}

TEST_CASE("dpdk: what telemetry tells is held against the page tables") {
  if (!shown_pfns()) return skip_or_fail("pfn", "PFNs are hidden");
  const Primary primary([](Answers& all, std::uint64_t at) {
    all["/eal/memseg_info,3,7"] = info(at + 7 * page, 7, at + 8 * page);
    // Below mmap_min_addr, where nothing can be by chance.
    all["/eal/memseg_info,3,599"] = info(8 * page, 599, 8 * page);
  });
  const RunResult result = primary.audit();
  CHECK(result.status == 1);
  const auto document = nlohmann::json::parse(result.out);
  CHECK(document["summary"]["error"] == 2);
  CHECK(document["summary"]["clean"] == pages - 2);
  for (const auto& r : document["registrations"]) {
    if (r["verdict"] != "error") continue;
    CHECK((r["key"] == "list-3/7" || r["key"] == "list-3/599"));
  }
}

TEST_CASE("dpdk: a telemetry that means no good") {
  const std::string deep(60000, '[');
  const std::pair<const char*, std::string> malformed[] = {
      {"", "no JSON"},
      {"", "[]"},
      {"", R"({"version":5})"},
      {"/eal/memseg_lists", "{}"},
      {"/eal/memseg_lists", R"({"/eal/memseg_lists":)" + deep},
      {"/eal/memseg_lists", R"({"/eal/memseg_lists":[-1]})"},
      {"/eal/memseg_lists", R"({"/eal/memseg_lists":[3,3]})"},
      {"/eal/memseg_list_info,3", R"({"/eal/memseg_list_info":[1,0]})"},
      {"/eal/memseg_list_info,3", R"({"/eal/memseg_list_info":[1e300]})"},
      {"/eal/memseg_info,3,0", R"({"/eal/memseg_info":null})"},
      {"/eal/memseg_info,3,0", info(0x1000, 1, 0x1000)},
      {"/eal/memseg_info,3,0", info(~std::uint64_t{0} - 100, 0, 0x1000)},
      {"/eal/memseg_info,3,0", std::string(60000, 'x')},
  };
  for (const auto& [question, answer] : malformed) {
    CAPTURE(question, answer.substr(0, 100));
    const Primary primary([&](Answers& all, std::uint64_t) { all[question] = answer; });
    const RunResult result = primary.audit();
    CHECK(result.status == 2);
    CHECK(result.signal == 0);
    CHECK(result.out == "");
    CHECK(error_form(result.err, "regaudit") == "");
    CHECK(result.err.find("reading DPDK's telemetry") != std::string::npos);
  }
  {
    // A physical address that may have been cut, as DPDK does with longer ones.
    const Primary primary([](Answers& all, std::uint64_t at) {
      for (std::size_t i = 0; i < pages; ++i)
        all["/eal/memseg_info,3," + std::to_string(i)] =
            info(at + i * page, i, i == 5 ? 0x123456789000 : i * page);
    });
    const RunResult result = primary.audit();
    CHECK(result.status == 2);
    CHECK(result.err.find("addresses may be cut") != std::string::npos);
  }
  // It does not serve segments, or says nothing: the version is refused by its name.
  for (const auto& [question, answer] :
       {std::pair{"/eal/memseg_lists", R"({"/eal/memseg_lists":null})"}, std::pair{"", ""}}) {
    const Primary primary([&](Answers& all, std::uint64_t) { all[question] = answer; });
    const RunResult result = primary.audit();
    CHECK(result.status == 2);
    CHECK(error_form(result.err, "regaudit") == "");
    CHECK(result.err.find("DPDK 26.03") != std::string::npos);
    CHECK(result.err.find("telemetry") != std::string::npos);
  }
}

TEST_CASE("dpdk: two primaries of one prefix are told apart; a foreign socket is not believed") {
  if (!shown_pfns()) return skip_or_fail("pfn", "PFNs are hidden");
  const Primary good;
  const Primary bad([](Answers& all, std::uint64_t at) {
    all["/eal/memseg_info,3,7"] = info(at + 7 * page, 7, at + 8 * page);
  });
  const RunResult both = good.audit();
  CHECK(both.status == 2);
  CHECK(both.out == "");
  CHECK(error_form(both.err, "regaudit") == "");
  CHECK(both.err.find("more than one primary has this prefix") != std::string::npos);
  const auto one = [](pid_t pid) {
    return run_tool("regaudit", {"dpdk", "--pid", std::to_string(pid)}).status;
  };
  CHECK(one(good.pid()) == 0);
  CHECK(one(bad.pid()) == 1);
  // The other's socket in its place: what it tells is of another process.
  std::filesystem::rename(bad.folder() / "dpdk_telemetry.v2", good.folder() / "dpdk_telemetry.v2");
  CHECK(one(good.pid()) == 2);
}

TEST_CASE(
    "dpdk: a primary without files, given away by its telemetry, is audited by what that tells") {
  if (!shown_pfns()) return skip_or_fail("pfn", "PFNs are hidden");
  // --in-memory of a DPDK that serves segments: nothing in its mappings is called after DPDK.
  const Primary good({}, false);
  const auto one = [](const Primary& primary) {
    return run_tool("regaudit", {"dpdk", "-J", "--pid", std::to_string(primary.pid())});
  };
  const RunResult result = one(good);
  CAPTURE(result.err);
  CHECK(result.status == 0);
  const auto document = nlohmann::ordered_json::parse(result.out);
  CHECK(document["dpdk"][0]["source"] == "telemetry");
  CHECK(document["dpdk"][0]["pid"] == good.pid());
  CHECK(document["summary"]["clean"] == pages);
  // Without a name it is found, too, and what it tells is compared.
  const Primary bad(
      [](Answers& all, std::uint64_t at) {
        all["/eal/memseg_info,3,7"] = info(at + 7 * page, 7, at + 8 * page);
      },
      false);
  CHECK(one(bad).status == 1);
  const RunResult all = run_tool("regaudit", {"dpdk", "-J"});
  CHECK(all.status == 1);
  std::size_t found = 0;
  const auto both = nlohmann::ordered_json::parse(all.out);
  for (const auto& instance : both["dpdk"]) {
    if (instance["pid"] != good.pid() && instance["pid"] != bad.pid()) continue;  // another test's
    CHECK(instance["source"] == "telemetry");
    ++found;
  }
  CHECK(found == 2);
  // One that does not answer is not passed over.
  const Primary silent([](Answers& answers, std::uint64_t) { answers[""] = ""; }, false);
  const RunResult without = run_tool("regaudit", {"dpdk"});
  CHECK(without.status == 1);  // the wrong one
  CHECK(without.err.find("reading DPDK's telemetry") != std::string::npos);
  CHECK(without.err.find("process " + std::to_string(silent.pid())) != std::string::npos);
}
