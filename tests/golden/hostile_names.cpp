// SPDX-License-Identifier: MIT
/// Whatever a system calls its things, no output of any tool holds a byte that steers a terminal,
/// and what JSON says of a name is exact.
#include <set>

#include "support/catch.hpp"
#include "support/recorded.hpp"
#include "support/tool.hpp"

using namespace vmem::test;

namespace {

// ESC, BEL, CR, DEL, C1 controls (U+009B is CSI), a mark of direction, no UTF-8, markup.
const std::string evil =
    "\x1b[31m\x07\r\x7f\xc2\x9b\x33\xc2\x80\xe2\x80\xae\xff\xfe</script>\"\\{}";

/// Why the text is not safe; empty: it is.
std::string unsafe(const std::string& text) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = [&](std::size_t at) {
      return at < text.size() ? static_cast<unsigned char>(text[at]) : 0U;
    };
    const unsigned c = byte(i);
    const std::string where = " at " + std::to_string(i);
    if ((c < 0x20 && c != '\n') || c == 0x7f) return "control " + std::to_string(c) + where;
    if (c < 0x80) continue;
    const std::size_t length = c >= 0xc2 && c < 0xe0   ? 2
                               : c >= 0xe0 && c < 0xf0 ? 3
                               : c >= 0xf0 && c < 0xf5 ? 4
                                                       : 0;
    if (length == 0) return "no UTF-8" + where;
    for (std::size_t k = 1; k < length; ++k) {
      if ((byte(i + k) & 0xc0) != 0x80) return "no UTF-8" + where;
    }
    if (c == 0xc2 && byte(i + 1) < 0xa0) return "C1 control" + where;
    if (c == 0xe2 && byte(i + 1) == 0x80 && byte(i + 2) >= 0xaa && byte(i + 2) <= 0xae)
      return "mark of direction" + where;
    i += length - 1;
  }
  return "";
}

SystemModel hostile() {
  SystemModel system =
      one_process("10000-14000 rw-p 00000000 fe:01 7 /f/" + evil +
                      "\n"
                      "20000-24000 rw-s 00000000 00:06 8 /dev/" +
                      evil +
                      "\n"
                      "30000-34000 rw-p 00000000 fe:01 9 /c\xff\n"
                      "40000-44000 rw-p 00000000 fe:01 10 /c\xfe\n"
                      "50000-54000 rw-p 00000000 00:00 0 [anon:" +
                      evil + "]\n",
                  {}, "vmem-tree 1\npage_size 4096\npfn_access full\nkernel 6.18" + evil + "\n");
  ProcessModel& process = system.processes.at(0);
  std::string smaps;
  for (const char* const start :
       {"10000-14000 rw-p 00000000 fe:01 7 /f", "20000-24000 rw-s 00000000 00:06 8 /dev/x"})
    smaps += std::string(start) + "\nSize: 16 kB\nRss: 16 kB\nVmFlags: rd wr " + evil + " mm\n";
  process.files["smaps"] = smaps;
  process.files["stat"] =
      "1 (" + evil.substr(0, 13) + ") S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 77 0 0\n";
  process.files["comm"] = evil.substr(0, 13) + "\n";
  process.files["mountinfo"] = "27 1 254:1 / / rw - ext4" + evil + " /dev/" + evil + " rw\n";
  process.files["status"] = "Name:\t" + evil.substr(0, 13) + "\nTgid:\t1\n";
  system.files["proc/iomem"] = "00000000-00ffffff : System" + evil + "\n";
  return system;
}

}  // namespace

TEST_CASE("no output of any tool holds what steers a terminal") {
  const Recorded tree(hostile());
  const std::string root = tree.directory().string();
  const std::string path = "/f/" + evil;
  const std::vector<std::vector<std::string>> calls = {
      {"vtop", "1"},
      {"vtop", "1", "-J"},
      {"vtop", "1", "-f"},
      {"vtop", "1", "-o", "va,kind,vmflags,region,name,reason"},
      {"vtop", "1", "10000"},
      {"vtop", "1", "10000", "-f"},
      {"vtop", "1", "10000", "-J", "-f"},
      {"vtop", "1", "60000"},
      {"vtop", "1", path + "+0"},
      {"vtop", "1", evil},
      {"vtop", "1", evil, "-J"},
      {"vtop", evil},
      {"vtop", "-n", evil},
      {"vtop", "1", "-o", evil},
      {"vtop", "1", "10000", "--watch", "0.001", "--count", "1"},
      {"vmastat", "1"},
      {"vmastat", "1", "-J"},
      {"vmastat", "1", "--by", "file"},
      {"vmastat", "1", "--by", "file", "-J"},
      {"vmastat", "1", "--by", "process"},
      {"vmastat", "1", "--by", "process", "-J"},
      {"vmastat", evil},
      {"mapcheck", "-e", "/f/*=ram", "1"},
      {"mapcheck", "-e", "/f/*=ram", "1", "-J"},
      {"mapcheck", "-e", "/f/*=ram", "1", "--tap"},
      {"mapcheck", "-e", "/f/*=ram", "1", "--openmetrics"},
      {"mapcheck", "-e", "/f/*=ram", "1", "--junit", "-"},
      {"mapcheck", "--auto", "1"},
      {"mapcheck", "--auto", "1", "-J"},
      {"mapcheck", "--auto", "1", "--print-policy"},
      {"mapcheck", "-e", evil, "1"},
      {"mapcheck", "-e", "/f/*=" + evil, "1"},
      {"regaudit", "plan", "1", "10000+16K"},
      {"regaudit", "plan", "1", "10000+16K", "-J"},
      {"regaudit", "plan", "1", path + "+0"},
      {"regaudit", "dpdk", "--dir", evil},
  };
  for (std::vector<std::string> call : calls) {
    const std::string tool = call[0];
    call.erase(call.begin());
    call.insert(call.end(), {"--sysroot", root});
    const RunResult result = run_tool(tool, call);
    CAPTURE(tool, call, result.out, result.err);
    CHECK(result.signal == 0);
    CHECK(unsafe(result.out) == "");
    CHECK(unsafe(result.err) == "");
  }
}

TEST_CASE("JSON tells names exactly, also those that are no text") {
  const Recorded tree(hostile());
  const auto document = tool_json("vtop", {"-J", "--sysroot", tree.directory().string(), "1"});
  std::set<std::string> bytes;
  std::string first, first_bytes;
  for (const auto& result : document["results"]) {
    const auto& vma = result["vma"];
    const std::string name = vma["path"];
    if (vma.contains("path_bytes")) bytes.insert(vma["path_bytes"].get<std::string>());
    if (vma["start"] == "0x10000") {
      first = name;
      first_bytes = vma["path_bytes"];
    }
  }
  CHECK(bytes.contains("2f63ff"));
  CHECK(bytes.contains("2f63fe"));
  CHECK(first.starts_with("/f/\x1b[31m\x07\r\x7f\xc2\x9b\x33\xc2\x80\xe2\x80\xae\xef\xbf\xbd"));
  std::string expected;
  for (const char c : "/f/" + evil) {
    constexpr const char* digits = "0123456789abcdef";
    expected += digits[static_cast<unsigned char>(c) >> 4];
    expected += digits[static_cast<unsigned char>(c) & 15];
  }
  CHECK(first_bytes == expected);
  // Names that are text need no more.
  const auto plain = tool_json("vtop", {"-J", "--sysroot", "x86-64", "1042"});
  for (const auto& result : plain["results"]) CHECK_FALSE(result["vma"].contains("path_bytes"));
}
