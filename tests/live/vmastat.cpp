// SPDX-License-Identifier: MIT
// What vmastat says of processes that it may not read or see, and what it asks of those it reads.
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "live/children.hpp"
#include "live/oracle.hpp"
#include "support/tool.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

/// A script in a mount namespace of its own, with the tool's path as $0.
RunResult in_namespace(const std::string& script, const std::string& first = "") {
  return run({"/usr/bin/unshare", "-m", "--propagation", "private", "/bin/sh", "-c", script,
              tool_path("vmastat"), first});
}

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE(
    "through page tables what is private is told without smaps, for making it stalls the target") {
  const KindsChild child({"anon", "shm", "fork", "zero-page", "file"});
  stop(child.pid());
  if (!open_translator(process_of(child.pid()), Backend::bpf)) return skip_or_fail("bpf", "no BPF");
  const std::string pid = std::to_string(child.pid());
  // An empty file stands over its smaps, and over numa_maps.
  const RunResult blind = in_namespace(
      "for f in smaps numa_maps; do mount --bind /dev/null /proc/$1/$f || exit 77; done\n"
      "\"$0\" --backend bpf --bytes --noheadings -o start,rss,pss,uss,swap,nodes $1",
      pid);
  if (blind.status == 77) return skip_or_fail("bpf", "no mount over smaps: " + blind.err);
  const RunResult seeing =
      run_tool("vmastat", words("--bytes --noheadings -o start,rss,pss,uss,swap,nodes " + pid));
  INFO(blind.err << blind.out);
  CHECK(blind.status == 0);
  const auto cut = [](const std::string& text) { return text.substr(0, text.find("0xffffffff")); };
  // pss of what others map moves meanwhile: start, rss and uss are compared.
  const auto columns = [&](const std::string& text) {
    std::istringstream in(cut(text));
    std::string all, start, rss, pss, uss, swap, nodes;
    while (in >> start >> rss >> pss >> uss >> swap >> nodes)
      all += start + " " + rss + " " + uss + "\n";
    return all;
  };
  CHECK(!columns(blind.out).empty());
  CHECK(columns(blind.out) == columns(seeing.out));
}

TEST_CASE("who has the capabilities is not told to run as root, and the process is named") {
  const KindsChild child({"anon"});
  const std::string pid = std::to_string(child.pid());
  // In a user namespace of its own the tool is root, and the child is out of reach.
  const auto reach = [&](std::vector<std::string> more) {
    std::vector<std::string> all = {"/usr/bin/unshare", "-Ur", tool_path("vmastat")};
    all.insert(all.end(), more.begin(), more.end());
    return run(all);
  };
  const RunResult one = reach({"-J", "-a", "--by", "process"});
  if (one.out.empty()) return skip_or_fail("userns", "no user namespaces: " + one.err);
  CHECK(one.status == 2);
  CHECK_FALSE(has(one.err, "run as root"));
  CHECK(has(one.err, "could not be read (PID "));
  CHECK(has(one.err, "capabilities that you have not, or an LSM refuses"));
  const auto document = nlohmann::json::parse(one.out);
  bool named = false;
  for (const auto& refused : document["refused"]) {
    named = named || refused["pid"] == child.pid();
    CHECK(refused["reason"] == "it has capabilities that you have not, or an LSM refuses");
    CHECK(refused["comm"].is_string());
  }
  CHECK(named);
  CHECK(document["error"].is_string());
  const RunResult metrics = reach({"-a", "--openmetrics"});
  CHECK(metrics.status == 2);
  CHECK_FALSE(has(metrics.out, "vmem_processes_refused 0\n"));
}

TEST_CASE("a list of processes that hidepid cuts short is not told as the whole") {
  if (geteuid() != 0) return skip_or_fail("root", "mounting needs root");
  const auto hidden = [](const std::string& hidepid, const std::string& options) {
    return in_namespace("mount -t proc -o hidepid=" + hidepid +
                        " proc /proc || exit 77\n"
                        "exec setpriv --reuid 65534 --regid 65534 --clear-groups "
                        "--inh-caps=-all,+sys_admin,+dac_read_search "
                        "--ambient-caps=-all,+sys_admin,+dac_read_search "
                        "\"$0\" " +
                        options);
  };
  for (const char* hidepid : {"invisible", "ptraceable"}) {
    INFO(hidepid);
    const RunResult table = hidden(hidepid, "-a --by process");
    if (table.status == 77) return skip_or_fail("root", "no hidepid: " + table.err);
    CHECK(table.status == 2);
    CHECK(has(table.err, "proc is mounted with hidepid: only your own processes are seen"));
    const RunResult metrics = hidden(hidepid, "-a --openmetrics");
    CHECK(metrics.status == 2);
    CHECK(has(metrics.out, "\nvmem_processes_hidden 1\n"));
    const RunResult json = hidden(hidepid, "-a -J");
    CHECK(json.status == 2);
    CHECK(nlohmann::json::parse(json.out)["hidden_processes"].is_string());
    // Of one process that is seen all is told.
    CHECK_FALSE(has(hidden(hidepid, "self").err, "hidepid"));
  }
  const RunResult off = run_tool("vmastat", words("-a --openmetrics"));
  CHECK(has(off.out, "\nvmem_processes_hidden 0\n"));
}
