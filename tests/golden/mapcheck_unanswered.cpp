// SPDX-License-Identifier: MIT
/// What could not be answered, in every form of output: each says what the exit status says.
#include <fstream>
#include <regex>
#include <vector>

#include "support/catch.hpp"
#include "support/recorded.hpp"
#include "support/system_model.hpp"
#include "support/temp_dir.hpp"
#include "support/tool.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

struct Unanswered {
  const char* name;
  SystemModel system;
  std::string arguments;
  std::string says;  ///< in every form that gives reasons
};

SystemModel machine() {
  return one_process(
      "5000000000-5000008000 rw-p 00000000 00:00 0                          [heap]\n",
      {{.va = 0x5000000000, .pages = 8, .first = entry::present | 0x200, .step = 1}});
}

std::vector<Unanswered> kinds() {
  std::vector<Unanswered> all;
  all.push_back({"no device mapping", machine(), "--auto 1", "no device mapping is there"});
  all.push_back(
      {"no device mapping of anybody", machine(), "--auto --all", "no device mapping is there"});
  all.push_back({"nothing selected", machine(), "-e nothing=any 1", "no mapping is selected"});
  all.push_back(
      {"nothing selected of anybody", machine(), "-e nothing=any --all", "no mapping is selected"});
  SystemModel hidden = machine();
  hidden.manifest = "vmem-tree 1\npage_size 4096\npfn_access full\nhidepid invisible\n";
  all.push_back({"processes that are hidden", hidden, "-e [heap]=any,sparse --all", "hidepid"});
  all.push_back(
      {"optional, and processes that are hidden", hidden, "-e no=any,optional --all", "hidepid"});
  all.push_back({"a process that may be hidden", hidden, "--policy other.toml -", "hidepid"});
  all.push_back({"others of that name may be hidden", hidden, "--policy test.toml -", "hidepid"});
  all.push_back({"a process that is not there", machine(), "--policy other.toml -",
                 "no process is named other"});
  SystemModel refused = machine();
  refused.processes[0].maps = "no line of maps\n";
  all.push_back(
      {"a process that cannot be read", refused, "-e [heap]=any 1", "not a line of maps"});
  all.push_back(
      {"one of all that cannot be read", refused, "-e [heap]=any --all", "not a line of maps"});
  all.push_back({"optional, of a process that cannot be read", refused, "-e no=any,optional 1",
                 "not a line of maps"});
  SystemModel odd = machine();
  odd.processes[0].maps += "6000000000-6000000000 rw-p 00000000 00:00 0 \n";
  const std::string left_out = "line 2: an empty mapping: left out";
  all.push_back({"a line of maps that is odd", odd, "-e [heap]=any 1", left_out});
  all.push_back({"a line of one of all that is odd", odd, "-e [heap]=any --all", left_out});
  all.push_back({"nothing but an odd line", odd, "--auto 1", left_out});
  all.push_back({"an odd line that may be selected", odd, "-e no=any,optional 1", "may be one"});
  all.push_back({"one of all may be selected", odd, "-e no=any,optional --all", "may be one"});
  SystemModel unread = machine();
  unread.processes[0].files["smaps"] = "hello\n";
  all.push_back({"a file that cannot be read", unread, "-e [heap]=any,flags=rd 1", "smaps"});
  SystemModel first = machine();
  first.processes[0].maps = "hello\n" + first.processes[0].maps;
  all.push_back({"which is the first", first, "-e [heap]=any,nth=1 1", "meant by nth"});
  SystemModel twice = machine();
  twice.processes[0].maps += "5000001000-5000001800 rw-p 00000000 00:00 0 \n";
  all.push_back({"told of by two lines", twice, "-e [heap]=any 1", "tells of it, too"});
  all.push_back({"a process that cannot be opened", machine(), "-e [heap]=any 77", "77"});
  all.push_back({"no such policy", machine(), "--policy none.toml 1", "none.toml"});
  SystemModel device = one_process(
      "7f0000000000-7f0000001000 rw-s 00000000 00:05 10                     /dev/own\n");
  device.processes[0].files["mountinfo"] = "24 27 0:5 / /dev rw - devtmpfs devtmpfs rw\n";
  all.push_back({"a window that is not known", device, "--auto 1", "only its driver knows"});
  all.push_back({"pages that are not seen", device, "-e /dev/own=0x90000000+4K 1", "VM_PFNMAP"});
  // Nothing of it shows in pagemap, whose entries are there and empty: no hole, and no pass.
  for (const bool flags : {true, false}) {
    const std::string line =
        "7f0000000000-7f0000001000 rw-s 00000000 00:0c 4711                     /dmabuf:\n";
    SystemModel buffer = one_process(line);
    if (flags)
      buffer.processes[0].files["smaps"] = line + "VmFlags: rd wr sh mr mw me ms pf de dd sd \n";
    buffer.files["sys/kernel/dmabuf/buffers/4711/exporter_name"] = "system\n";
    buffer.files["proc/iomem"] = "00001000-7fffffff : System RAM\n";
    for (const char* const rule : {"-e /dmabuf*=ram 1", "-e /dmabuf*=any,sparse 1", "--auto 1"})
      all.push_back({"a dma-buf that is not seen", buffer, rule, "VM_PFNMAP"});
  }
  all.push_back({"a window that is not there", machine(), "-e [heap]=uio0/map0 1", "uio"});
  return all;
}

/// Sum of the samples of that name whose labels hold `label`.
double metric(const std::string& text, const std::string& name, const std::string& label) {
  double sum = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = text.find('\n', at);
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    if (!line.starts_with(name) || (line[name.size()] != '{' && line[name.size()] != ' ')) continue;
    if (line.find(label) != std::string::npos) sum += std::stod(line.substr(line.rfind(' ')));
  }
  return sum;
}

}  // namespace

TEST_CASE("mapcheck: what could not be answered is so in every form") {
  for (const Unanswered& kind : kinds()) {
    CAPTURE(kind.name);
    const Recorded tree{kind.system};
    for (const char* const name : {"other", "test"}) {
      std::ofstream(tree.directory() / (std::string(name) + ".toml"))
          << "[[check]]\nselect = \"[heap]\"\nwindow = \"any\"\nsparse = true\nprocess = \"" << name
          << "\"\n";
    }
    const auto with = [&](const char* form) {
      auto arguments = words(kind.arguments);
      if (arguments[0] == "--policy") arguments[1] = (tree.directory() / arguments[1]).string();
      arguments.insert(arguments.begin(), {"--sysroot", tree.directory().string()});
      for (const std::string& word : words(form)) arguments.push_back(word);
      const RunResult result = run_tool("mapcheck", arguments);
      CAPTURE(form);
      INFO(result.out << result.err);
      CHECK(result.status == 2);
      CHECK(error_form(result.err, "mapcheck") == "");
      return result;
    };
    const bool nothing_looked_at =
        kind.arguments.ends_with(" 77") || kind.arguments.find("none.toml") != std::string::npos;

    const RunResult text = with("--noheadings");
    CHECK((text.out + text.err).find(kind.says) != std::string::npos);
    if (!nothing_looked_at) CHECK(text.out.find(kind.says) != std::string::npos);

    const std::string junit = with("--junit -").out;
    INFO(junit);
    CHECK(std::regex_search(junit, std::regex("<testsuite [^>]* failures=\"0\" errors=\"[1-9]")));
    CHECK(junit.find("<error type=\"unverified\"") != std::string::npos);
    CHECK(junit.find(kind.says) != std::string::npos);
    const auto file = (tree.directory() / "result.xml").string();
    std::ofstream(file) << "<!-- all is well -->";
    with(("--junit " + file).c_str());
    CHECK(read_file(file) == junit);

    const std::string tap = with("--tap").out;
    INFO(tap);
    CHECK((tap.find("\nnot ok ") != std::string::npos ||
           tap.find("\nBail out! ") != std::string::npos));
    CHECK(tap.find(kind.says) != std::string::npos);

    const std::string metrics = with("--openmetrics").out;
    INFO(metrics);
    CHECK(metrics.ends_with("# EOF\n"));
    // The alert of docs/ci.md.
    CHECK((metric(metrics, "vmem_mapcheck_verdict", R"(verdict="unverified")") > 0 ||
           metric(metrics, "vmem_mapcheck_unchecked_processes", "") > 0));
    CHECK(metric(metrics, "vmem_mapcheck_status", "") == 2);

    const std::string json = with("-J").out;
    INFO(json);
    if (nothing_looked_at) {
      CHECK(json.empty());  // and so is taken for no answer
    } else {
      const auto document = nlohmann::json::parse(json);
      CHECK((document["summary"]["unverified"] > 0 || !document["unchecked"].empty()));
      CHECK(json.find(kind.says) != std::string::npos);
    }
  }
}

TEST_CASE("mapcheck: one odd line of maps does not take the other mappings with it") {
  SystemModel system = machine();
  system.processes[0].maps = "400000-400000 rw-p 00000000 00:00 0 \n" + system.processes[0].maps +
                             "5100000000-5100001000 rw-p 00000000 00:00 0 [stack]\n";
  const Recorded tree{system};
  const auto with = [&](const std::string& line) {
    auto arguments = words(line);
    arguments.insert(arguments.begin(), {"--sysroot", tree.directory().string()});
    return run_tool("mapcheck", arguments);
  };
  const RunResult good = with("-J -e [heap]=0x200000+32K 1");
  INFO(good.out << good.err);
  CHECK(good.status == 2);
  CHECK(good.err.find("line 1: an empty mapping: left out") != std::string::npos);
  const auto document = nlohmann::json::parse(good.out);
  CHECK(document["summary"]["pass"] == 1);
  CHECK(document["checks"][0]["pages_ok"] == 8);
  CHECK(document["unchecked"][0]["pid"] == 1);
  // What was asked of smaps and could not be had is said, whatever the verdict.
  system.processes[0].maps = machine().processes[0].maps;
  system.processes[0].files["smaps"] = "hello\n";
  const Recorded unread{system};
  const auto of_unread = [&](const std::string& rule) {
    return run_tool("mapcheck", {"--sysroot", unread.directory().string(), "-J", "-e", rule, "1"});
  };
  const RunResult flagless = of_unread("[heap]=0x200000+32K");
  INFO(flagless.out << flagless.err);
  CHECK(flagless.status == 2);
  CHECK(nlohmann::json::parse(flagless.out)["summary"]["pass"] == 1);
  CHECK(flagless.err.find("smaps") != std::string::npos);
  CHECK(of_unread("[heap]=0x300000+32K").status == 1);
  // What fails fails all the same.
  CHECK(with("-e [heap]=0x300000+32K 1").status == 1);
  // An address at which no line can tell of anything.
  CHECK(with("-J -e 600000=any,optional 1").out.find("may be one") == std::string::npos);
  const RunResult policy = with("--print-policy 1");
  INFO(policy.out << policy.err);
  CHECK(policy.status == 2);
  CHECK(policy.out.find("line 1: an empty mapping: left out") != std::string::npos);
  CHECK(policy.err.find("line 1: an empty mapping: left out") != std::string::npos);
  CHECK(policy.out.find("[heap]") != std::string::npos);
}

TEST_CASE("mapcheck: metrics have the same labels when a program is started again") {
  const auto labels = [](int pid, const std::string& first, const std::string& second) {
    SystemModel system =
        one_process(first + " rw-s 00000000 00:05 10                     /dev/own\n" + second +
                    " rw-s 00001000 00:05 10                     /dev/own\n");
    system.processes[0].pid = pid;
    system.processes[0].files["mountinfo"] = "24 27 0:5 / /dev rw - devtmpfs devtmpfs rw\n";
    const Recorded tree{system};
    const std::string text =
        run_tool("mapcheck", {"--sysroot", tree.directory().string(), "-e",
                              "/dev/own=0x90000000+8K", "--openmetrics", std::to_string(pid)})
            .out;
    CHECK(metric(text, "vmem_mapcheck_verdict", R"(verdict="unverified")") == 2);
    return text;
  };
  CHECK(labels(41, "7f0000000000-7f0000001000", "7f0000002000-7f0000003000") ==
        labels(42, "7e0000000000-7e0000001000", "7e0000002000-7e0000003000"));
}
