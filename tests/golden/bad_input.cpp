// SPDX-License-Identifier: MIT
/// Bad input gets exit status 2 and one clear line; nothing crashes, hangs or says more
/// than it knows.
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include "support/catch.hpp"
#include "support/require.hpp"
#include "support/system_model.hpp"
#include "support/temp_dir.hpp"
#include "support/vtop.hpp"

using namespace vmem::test;

namespace {

void check_refused(const std::vector<std::string>& arguments, const std::string& clue,
                   const RunOptions& options = {}) {
  std::string shown = "vtop";
  for (const std::string& word : arguments) shown += " '" + word + "'";
  CAPTURE(shown);
  const RunResult result = run_vtop(arguments, options);
  CAPTURE(result.out, result.err);
  CHECK_FALSE(result.timed_out);
  CHECK(result.signal == 0);
  CHECK(result.status == 2);
  CHECK(error_form(result.err) == "");
  CHECK(result.err.find(clue) != std::string::npos);
}

/// A copy of a fixture's tree that a test may damage.
struct Damaged {
  explicit Damaged(const std::string& fixture) {
    write_tree(load_fixture(fixtures_folder() / fixture), directory.path());
  }
  std::vector<std::string> vtop(const std::string& rest) const {
    std::vector<std::string> all{"--sysroot", directory.string()};
    for (const std::string& word : words(rest)) all.push_back(word);
    return all;
  }
  TempDir directory;
};

}  // namespace

TEST_CASE("addresses that are none") {
  for (const char* const address : {"7f00zz",
                                    "zz",
                                    "0x",
                                    "",
                                    " ",
                                    "7f00 ",
                                    "+",
                                    "-1",
                                    "0x-1",
                                    "1.5",
                                    "7f00,7f01",
                                    "10000000000000000",
                                    "0x1ffffffffffffffff",
                                    "7f00-",
                                    "-7f00x",
                                    "7f00+",
                                    "+4K",
                                    "7f00+K",
                                    "7f00+4X",
                                    "7f00+-4",
                                    "7f00+99999999999999999999",
                                    "ffffffffffffffff+4K",
                                    "7f00+20000000T",
                                    "7f00-zz",
                                    "1-2-3",
                                    "[heap",
                                    "[heap]x",
                                    "[heap]+",
                                    "[heap]+zz",
                                    "0x7f00-0x",
                                    "7f00+0",
                                    "\n",
                                    "\xff\xfe",
                                    "７f00"}) {
    check_refused({"--sysroot", "x86-64", "--", "1042", address}, "");
  }
}

TEST_CASE("ranges that are inverted, empty or beyond everything") {
  check_refused({"--sysroot", "x86-64", "1042", "7f0387f2d000-7f0387f24000"}, "inverted");
  check_refused({"--sysroot", "x86-64", "1042", "1000-1000"}, "empty");
  for (const char* const range : {"ffff800000000000-ffff800000001000", "ffff800000000000+1M"}) {
    check_refused({"--sysroot", "x86-64", "1042", range}, "it is the kernel's");
    check_refused({"--sysroot", "x86-64", "1042", range, "-J"}, "it is the kernel's");
  }
  // One that begins in user space is answered.
  const RunResult whole = run_vtop(words("--sysroot x86-64 1042 0-ffffffffffffffff"));
  CHECK(whole.status == 0);
}

TEST_CASE("a number that no process can have as an address is questioned") {
  const std::string self = std::to_string(getpid());
  for (const std::vector<std::string>& system :
       {std::vector<std::string>{"--sysroot", "x86-64", "1042"}, {self}}) {
    const auto with = [&](std::vector<std::string> more) {
      more.insert(more.begin(), system.begin(), system.end());
      return more;
    };
    check_refused(with({"ffff800000000000"}), "not a user address: it is the kernel's");
    check_refused(with({"ffffffffffffffff"}), "not a user address: it is the kernel's");
    check_refused(with({"0xffff888000000000", "-J"}), "not a user address: it is the kernel's");
    const char* const both =
        "140462249738240: not a user address; addresses are hexadecimal: 0x7fbfea800000 is "
        "140462249738240";
    check_refused(with({"140462249738240"}), both);
    check_refused(with({"140462249738240+2M"}),
                  "addresses are hexadecimal: 0x7fbfea800000 is 140462249738240");
    check_refused(with({"140462249738240-140462249746432"}),
                  "addresses are hexadecimal: 0x7fbfea800000 is 140462249738240");
    check_refused(with({"--watch", "1", "--count", "1", "140462249738240"}), both);
    check_refused(with({"0x140462249738240"}), "not a user address");
    check_refused(with({"0123456789abcdef"}), "not a user address");
    RunOptions stdin_line;
    stdin_line.input = "140462249738240\n";
    check_refused(with({"-"}), both, stdin_line);
    const RunResult json = run_vtop(with({"-J", "-"}), stdin_line);
    CHECK(json.status == 2);
    CHECK(nlohmann::json::parse(json.out)["error"] == both);
  }
}

TEST_CASE("an address just above what this machine gives to processes") {
  // The answer depends on the levels of its page tables; of a recording nobody can tell.
  CHECK(run_vtop(words("--sysroot x86-64 1042 0x800000000000")).status == 1);
  const RunResult live = run_vtop({std::to_string(getpid()), "0x800000000000"});
  CAPTURE(live.out, live.err);
  CHECK((live.status == 1 || live.err.find("not a user address") != std::string::npos));
  // [vsyscall] lies there, and is told.
  const RunResult gate = run_vtop(words("--sysroot hostile-names 666 ffffffffff600000"));
  CHECK(gate.err.find("not a user address") == std::string::npos);
}

TEST_CASE("digits that are mapped as a decimal number, and not as they stand") {
  // 0x564499f34000
  const RunResult result = run_vtop(words("--sysroot x86-64 1042 94852640620544"));
  CAPTURE(result.out, result.err);
  CHECK(result.status == 1);
  CHECK(result.out.find("unmapped") != std::string::npos);
  CHECK(result.err.find("0x564499f34000 is mapped") != std::string::npos);
  CHECK(error_form(result.err) == "");
  const RunResult range = run_vtop(words("--sysroot x86-64 1042 94852640620544+4K"));
  CHECK(range.status == 1);
  CHECK(range.err.find("0x564499f34000 is mapped") != std::string::npos);
  CHECK(run_vtop(words("--sysroot x86-64 1042 1000")).err == "");
}

TEST_CASE("a TARGET that is no PID: what may have been meant") {
  for (const char* const line : {"0x339163000", "339163000f", "--sysroot x86-64 0x339163000"}) {
    const RunResult result = run_vtop(words(line));
    CAPTURE(line, result.err);
    CHECK(result.status == 2);
    CHECK(result.err.find("not a PID") != std::string::npos);
    CHECK(result.err.find("physical address") != std::string::npos);
  }
  check_refused(words("--sysroot hostile-names ordinary"), "not a PID");
  const Damaged tree("x86-64");
  std::ifstream stat(tree.directory / "proc/1042/stat");
  std::string text;
  std::getline(stat, text);
  const std::string comm = text.substr(text.find('(') + 1, text.rfind(')') - text.find('(') - 1);
  write_file(tree.directory / "proc/1042/comm", comm + "\n");
  check_refused(tree.vtop(comm), "use -n " + comm);
}

TEST_CASE("a line of maps that makes no sense does not refuse the others") {
  const auto add_line = [](const Damaged& tree, const std::string& line) {
    std::ifstream file(tree.directory / "proc/1042/maps");
    std::string text((std::istreambuf_iterator<char>(file)), {});
    text.insert(0, line);
    write_file(tree.directory / "proc/1042/maps", text);
  };
  const std::size_t all = vtop_json("--sysroot x86-64 1042 -J")["results"].size();
  for (const char* const line :
       {"10000-10000 rw-p 00000000 00:00 0 \n", "10000-10800 rw-p 00000000 00:00 0 \n"}) {
    const Damaged tree("x86-64");
    add_line(tree, line);
    check_refused(tree.vtop("1042"), "proc/1042/maps: line 1: a");
    const RunResult json = run_vtop(tree.vtop("1042 -J"));
    CHECK(json.status == 2);
    const auto document = nlohmann::json::parse(json.out);
    CHECK(document["results"].size() == all);
    CHECK(document["error"].get<std::string>().find("line 1") != std::string::npos);
    // What lies elsewhere is answered.
    const RunResult elsewhere = run_vtop(tree.vtop("1042 7f0387f24000"));
    CAPTURE(elsewhere.out, elsewhere.err);
    CHECK(elsewhere.status == 0);
    CHECK(elsewhere.err.find("line 1") != std::string::npos);
  }
  const Damaged tree("x86-64");
  add_line(tree, "10000-10800 rw-p 00000000 00:00 0 \n");
  for (const char* const asked : {"1042 10400", "1042 10000+4K"}) {
    const RunResult result = run_vtop(tree.vtop(asked));
    CAPTURE(asked, result.out, result.err);
    CHECK(result.status == 2);
    CHECK(result.out.find("unmapped") == std::string::npos);
  }
  check_refused(tree.vtop("1042 10400 -J"), "line 1");
}

TEST_CASE("options and columns that do not exist, or make no sense") {
  for (const char* const line : {"--nope 1042",
                                 "-Z 1042",
                                 "1042 -o nope",
                                 "1042 -o va,,pa",
                                 "1042 -o",
                                 "1042 --backend psychic",
                                 "1042 --backend bpf",
                                 "1042 --backend kmod",
                                 "1042 --color sometimes",
                                 "1042 --threads 0",
                                 "1042 --threads x",
                                 "1042 --watch x",
                                 "1042 --watch nan --count 1",
                                 "1042 --watch 1 --count -1",
                                 "1042 --watch -1",
                                 "1042 --sysroot",
                                 "",
                                 "-n",
                                 "1042x",
                                 "-5",
                                 "0",
                                 "99999999999999999999",
                                 "4194305",
                                 "-n nobody",
                                 "-n sleep junk"}) {
    auto all = words("--sysroot x86-64 " + std::string(line));
    check_refused(all, "");
  }
}

TEST_CASE("no such process, kernel thread, zombie") {
  pid_t free_pid = 4194303;
  while (kill(free_pid, 0) == 0) --free_pid;
  check_refused({std::to_string(free_pid)}, "no such process");
  check_refused({std::to_string(free_pid), "-J"}, "no such process");

  std::ifstream comm("/proc/2/comm");
  std::string name;
  if (std::getline(comm, name) && name == "kthreadd")
    check_refused({"2"}, "kernel thread");
  else
    skip_or_fail("real", "process 2 is not the kernel's: inside a container");

  const pid_t zombie = fork();
  REQUIRE(zombie >= 0);
  if (zombie == 0) _exit(0);
  siginfo_t info;
  REQUIRE(waitid(P_PID, static_cast<id_t>(zombie), &info, WEXITED | WNOWAIT) == 0);
  check_refused({std::to_string(zombie)}, "zombie");
  check_refused({std::to_string(zombie), "1000"}, "zombie");
  waitpid(zombie, nullptr, 0);
}

TEST_CASE("a sysroot that is missing, unreadable, truncated or hostile") {
  check_refused(words("--sysroot nowhere 1"), "nowhere");
  check_refused(words("--sysroot x86-64/manifest 1"), "x86-64/manifest");
  check_refused({"--sysroot", "", "1"}, "");
  check_refused(words("--sysroot truncated 9"), "truncated/proc/9/pagemap");
  check_refused(words("--sysroot truncated 9 10018000"), "truncated/proc/9/pagemap");
  check_refused(words("--sysroot truncated 9 20000000 -J"), "truncated/proc/9/pagemap");

  const auto damaged = [](const char* name, const std::string& content) {
    const Damaged tree("x86-64");
    write_file(tree.directory / name, content);
    check_refused(tree.vtop("1042"), name);
    check_refused(tree.vtop("1042 564499f34000 -J"), name);
  };
  damaged("manifest", "page_size 0\n");
  damaged("manifest", "page_size 9223372036854775808\n");
  damaged("manifest", std::string(100, '\xff'));
  damaged("proc/1042/maps", "junk\n");
  damaged("proc/1042/maps", std::string(1 << 20, '\0'));
  damaged("proc/1042/stat", "junk");

  const auto replaced = [](const char* name, const auto& replace) {
    const Damaged tree("x86-64");
    std::filesystem::remove(tree.directory / name);
    replace((tree.directory / name).string());
    RunOptions options;
    options.timeout = std::chrono::seconds(20);
    check_refused(tree.vtop("1042"), name, options);
  };
  for (const char* const name : {"proc/1042/maps", "proc/1042/pagemap", "manifest"}) {
    replaced(name, [](const std::string& path) { REQUIRE(mkfifo(path.c_str(), 0644) == 0); });
    replaced(name, [](const std::string& path) { std::filesystem::create_directory(path); });
  }
  replaced("proc/1042/pagemap", [](const std::string&) {});
  replaced("proc/1042/maps", [](const std::string& path) {
    std::filesystem::create_symlink("/proc/self/maps", path);
  });
  {
    const Damaged tree("x86-64");
    std::filesystem::resize_file(tree.directory / "proc/1042/pagemap", 8);
    check_refused(tree.vtop("1042"), "pagemap");
  }
  if (geteuid() != 0) return skip_or_fail("real", "needs root to become another user");
  RunOptions nobody;
  nobody.uid = 65534;
  for (const char* const name :
       {"", "manifest", "proc", "proc/1042", "proc/1042/maps", "proc/1042/pagemap"}) {
    const Damaged tree("x86-64");
    std::filesystem::permissions(tree.directory / name, std::filesystem::perms::none);
    check_refused(tree.vtop("1042"), "ermission denied", nobody);
  }
}

TEST_CASE("bad lines on stdin are refused, the others answered, in order") {
  RunOptions options;
  options.input = "junk\n564499f34000\n2000-1000\n\n7f0387f24000\nno newline at the end";
  const RunResult result = run_vtop(words("--sysroot x86-64 1042 --noheadings -"), options);
  CAPTURE(result.out, result.err);
  CHECK(result.status == 2);
  CHECK(result.out.find("0x564499f34000") < result.out.find("0x7f0387f24000"));
  CHECK(result.out.find("0x7f0387f24000") != std::string::npos);
  CHECK(result.err.find("junk") != std::string::npos);
  CHECK(result.err.find("2000-1000") != std::string::npos);
}

TEST_CASE("an empty word is no value: not the live system, not a check that checks nothing") {
  const std::vector<std::vector<std::string>> calls = {
      {"vtop", "--sysroot", "", "self"},
      {"vtop", "-n", ""},
      {"vtop", "-o", "", "self"},
      {"mapcheck", "-e", "[heap]=any,sparse", "--policy", "", "self"},
      {"mapcheck", "-e", "[heap]=any,sparse", "--junit", "", "self"},
      {"vmastat", "--html", "", "self"},
      {"regaudit", "dpdk", "--sysroot", ""}};
  for (const std::vector<std::string>& call : calls) {
    const RunResult result = run_tool(call[0], {call.begin() + 1, call.end()});
    INFO(call[0] << " " << call[1] << "\n" << result.err);
    CHECK(result.status == 2);
    CHECK(result.out.empty());
    CHECK(error_form(result.err, call[0]) == "");
  }
}

TEST_CASE("a line of stdin that is too long is refused in one short line") {
  RunOptions options;
  options.input = std::string(5 << 20, 'f') + "\n564499f34000\n";
  const RunResult result = run_vtop(words("--sysroot x86-64 1042 --noheadings -"), options);
  CHECK(result.signal == 0);
  CHECK(result.status == 2);
  CHECK(error_form(result.err) == "");
  CHECK(result.err.size() < 1000);
}
