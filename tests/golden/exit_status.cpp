// SPDX-License-Identifier: MIT
/// 0: all answered and good. 1: answered, negative. 2: could not be answered. And what
/// happens where the output cannot be written.
#include <sys/stat.h>

#include <csignal>

#include "support/catch.hpp"
#include "support/require.hpp"
#include "support/temp_dir.hpp"
#include "support/vtop.hpp"

using namespace vmem::test;

TEST_CASE("exit status by what was asked and found") {
  const std::pair<const char*, int> cases[] = {
      // One address: resident, or not.
      {"--sysroot x86-64 1042 564499f34000", 0},
      {"--sysroot x86-64 1042 7f0387f26000", 1},
      {"--sysroot x86-64 1042 1000", 1},
      {"--sysroot swapped 77 560000404000", 1},
      {"--sysroot swapped 77 7f5500008000", 1},
      {"--sysroot swapped 77 7f5500010000", 1},
      {"--sysroot x86-64 1042 564499f34000 7f0387f26000", 1},
      {"--sysroot x86-64 1042 564499f34000 564499f34000", 0},
      {"--sysroot x86-64 1042 [heap]+0", 0},
      {"--sysroot x86-64 1042 [heap]+4K", 1},
      {"--sysroot x86-64 1042 libc.so.6+0", 0},
      // Hidden PFNs, in any form; what cannot be seen is not answered either.
      {"--sysroot hidden 300 55d0c0a00000", 2},
      {"--sysroot hidden 300 55d0c0a00000+4K", 2},
      {"--sysroot hidden 300", 2},
      {"--sysroot device-window 500 7f1000001000", 2},
      {"--sysroot device-window 501 7f1000001000", 2},
      // Ranges and whole processes: the states are the answer, unless nothing is mapped.
      {"--sysroot x86-64 1042 7f0387f26000+4K", 0},
      {"--sysroot x86-64 1042 1000-3000", 1},
      {"--sysroot swapped 77 55ffffff0000-560000422000", 0},
      {"--sysroot x86-64 1042", 0},
      {"--sysroot swapped 77", 0},
      {"--sysroot device-window 500", 0},
  };
  for (const auto& [line, status] : cases) {
    for (const char* const form : {"", " -J", " -p", " -J -p", " --noheadings", " -o va,state"}) {
      CAPTURE(line, form);
      const RunResult result = run_vtop(words(std::string(line) + form));
      CHECK(result.signal == 0);
      CHECK(result.status == status);
      if (status < 2)
        CHECK(result.err == "");
      else
        CHECK(error_form(result.err) == "");
    }
  }
}

TEST_CASE("hidden PFNs are never printed as numbers") {
  for (const char* const line :
       {"--sysroot hidden 300", "--sysroot hidden 300 -p", "--sysroot hidden 300 55d0c0a00000",
        "--sysroot hidden 300 -f", "--sysroot hidden 300 -o pa,pfn,state",
        "--sysroot hidden 300 -J"}) {
    const RunResult result = run_vtop(words(line));
    CAPTURE(line, result.out);
    CHECK(result.out.find("hidden") != std::string::npos);
    for (const char* const zero : {"0x0 ", "0x0\n", "\"0x0\"", " 0 \n"})
      CHECK(result.out.find(zero) == std::string::npos);
    CHECK(result.err.find("hint: ") != std::string::npos);
  }
}

TEST_CASE("help and version") {
  const RunResult help = run_vtop({"--help"});
  CHECK(help.status == 0);
  CHECK(help.err == "");
  CHECK(help.out.find("Examples") != std::string::npos);
  CHECK(help.out.find("--sysroot") != std::string::npos);
  const RunResult version = run_vtop({"--version"});
  CHECK(version.status == 0);
  CHECK(version.out.starts_with("vtop "));
}

TEST_CASE("a full disk on stdout is a failure") {
  struct stat info{};
  REQUIRE(stat("/dev/full", &info) == 0);
  REQUIRE(S_ISCHR(info.st_mode));
  RunOptions full;
  full.stdout_path = "/dev/full";
  for (const char* const line :
       {"--sysroot x86-64 1042", "--sysroot x86-64 1042 564499f34000", "--sysroot x86-64 1042 -J",
        "--help", "--version", "--sysroot x86-64 1042 -J 564499f34000"}) {
    CAPTURE(line);
    const RunResult result = run_vtop(words(line), full);
    CHECK(result.status == 2);
    CHECK(error_form(result.err) == "");
    CHECK(result.err.find("No space left") != std::string::npos);
  }
  full.input = "564499f34000\n";
  const RunResult batch = run_vtop(words("--sysroot x86-64 1042 -"), full);
  CHECK(batch.status == 2);
  CHECK(error_form(batch.err) == "");
}

TEST_CASE("two dashes end the options") {
  for (const auto& [line, status] : {std::pair{"--sysroot x86-64 -- 1042 564499f34000", 0},
                                     {"--sysroot x86-64 1042 -- 564499f34000", 0},
                                     {"--sysroot x86-64 1042 -- -nosuchfile+0", 1},
                                     {"--sysroot x86-64 1042 -- --", 2},
                                     {"-- --version", 2},
                                     {"--", 2}}) {
    CAPTURE(line);
    const RunResult result = run_vtop(words(line));
    CHECK(result.status == status);
    if (status != 0) CHECK(error_form(result.err) == "");
    CHECK(result.err.find("no such option") == std::string::npos);
  }
}

#if !defined(__has_feature)
#define __has_feature(feature) 0
#endif

TEST_CASE("a limit on the size of files is a failure, and no signal") {
  // Its start-up code writes a file of its own.
  if (__has_feature(thread_sanitizer)) return skip_or_fail("fsize", "ThreadSanitizer");
  const TempDir directory;
  RunOptions options;
  options.directory = expanded_fixtures();
  options.stdout_path = directory / "out";
  write_file(options.stdout_path, "");
  const RunResult result =
      run({"/bin/sh", "-c", "ulimit -f 0; exec \"$@\"", "sh",
           std::filesystem::absolute(tool_path("vtop")).string(), "--sysroot", "x86-64", "1042"},
          options);
  CHECK(result.signal == 0);
  CHECK(result.status == 2);
  CHECK(error_form(result.err) == "");
  CHECK(result.err.find("File too large") != std::string::npos);
}

TEST_CASE("a closed pipe ends quietly, with the status that was earned") {
  RunOptions closed;
  closed.stdout_closed_pipe = true;
  for (const auto& [line, status] :
       {std::pair{"vtop --sysroot x86-64 1042", 0},
        {"vtop --sysroot sparse-16t 16 -J", 0},
        {"vtop --sysroot x86-64 1042 564499f34000", 0},
        {"vtop --sysroot x86-64 1042 7f0387f26000", 1},
        {"vtop --sysroot x86-64 1042 7f0387f26000 -J", 1},
        {"vtop --sysroot x86-64 1042 7f0387f26000 --watch 1 --count 1", 1},
        {"vmastat --sysroot x86-64 1042", 0},
        {"vmastat --sysroot x86-64 1042 -J", 0},
        {"mapcheck --sysroot x86-64 -e [heap]=any,sparse 1042", 0},
        {"mapcheck --sysroot x86-64 -e [heap]=0x1000+4K,sparse 1042", 1},
        {"mapcheck --sysroot x86-64 -e [heap]=0x1000+4K,sparse -J 1042", 1},
        {"mapcheck --sysroot x86-64 -e [heap]=0x1000+4K,sparse --tap 1042", 1},
        {"mapcheck --sysroot x86-64 -e [heap]=0x1000+4K,sparse --openmetrics 1042", 1},
        {"mapcheck --sysroot x86-64 -e [nothing]=any 1042", 2}}) {
    CAPTURE(line);
    std::vector<std::string> call = words(line);
    const std::string tool = call[0];
    call.erase(call.begin());
    const RunResult result = run_tool(tool, call, closed);
    CHECK_FALSE(result.timed_out);
    // What could not be answered is said on stderr, whatever becomes of stdout.
    if (status < 2) CHECK(result.err == "");
    CHECK(result.status == status);
  }
  for (const char* const tool : {"vtop", "vmastat", "mapcheck", "regaudit"}) {
    for (const char* const option : {"--help", "--version"}) {
      const RunResult help = run_tool(tool, {option}, closed);
      CAPTURE(tool, option, help.err);
      CHECK(help.err == "");
      CHECK((help.status == 0 || help.signal == SIGPIPE));
      RunOptions full;
      full.stdout_path = "/dev/full";
      CHECK(run_tool(tool, {option}, full).status == 2);
    }
  }
  RunOptions ranges = closed;
  ranges.input = "1000 4096 gone\n";
  CHECK(run_tool("regaudit", words("ranges --sysroot x86-64 1042 -"), ranges).status == 1);
  CHECK(run_tool("regaudit", words("ranges --sysroot x86-64 1042 - -J"), ranges).status == 1);
  closed.input = "564499f34000\n564499f34000\n";
  const RunResult batch = run_vtop(words("--sysroot x86-64 1042 -"), closed);
  CHECK(batch.err == "");
  closed.input = "7f0387f26000\n564499f34000\n";
  CHECK(run_vtop(words("--sysroot x86-64 1042 -J -"), closed).status == 1);
}

TEST_CASE("colour only where it is wanted") {
  const auto coloured = [](const std::string& rest) {
    return run_vtop(words("--sysroot x86-64 1042 [heap] " + rest)).out.find('\x1b') !=
           std::string::npos;
  };
  CHECK_FALSE(coloured(""));
  CHECK_FALSE(coloured("--color=never"));
  CHECK_FALSE(coloured("--color=auto"));
  CHECK(coloured("--color=always"));
  CHECK_FALSE(coloured("--color=always -J"));
}

TEST_CASE("columns: chosen, in order, without headings one line each") {
  const RunResult result =
      run_vtop(words("--sysroot x86-64 1042 --noheadings --bytes -o pfn,size,va 7f0387f29000+16K"));
  CHECK(result.status == 0);
  std::vector<std::vector<std::string>> rows;
  std::string line;
  for (const char c : result.out) {
    if (c != '\n') {
      line += c;
      continue;
    }
    rows.push_back(words(line));
    line.clear();
  }
  CHECK(rows == std::vector<std::vector<std::string>>{{"0x10307b", "8192", "0x7f0387f29000"},
                                                      {"0x103abf", "4096", "0x7f0387f2b000"},
                                                      {"0x103a46", "4096", "0x7f0387f2c000"}});
}

TEST_CASE("a batch is answered line by line, before its input ends") {
  // The answer to a line is there before the next is asked.
  const TempDir directory;
  const std::string script =
      "mkfifo in out\n"
      "\"$0\" --sysroot \"$1\" 1042 --noheadings -o va,pfn - < in > out &\n"
      "exec 3> in 4< out\n"
      "echo 564499f34000 >&3; read -r one <&4\n"
      "echo 7f0387f24000 >&3; read -r two <&4\n"
      "exec 3>&-; wait; echo \"$one/$two\"\n";
  RunOptions options;
  options.directory = directory.string();
  options.timeout = std::chrono::seconds(20);
  const RunResult result =
      run({"/bin/sh", "-ec", script, std::filesystem::absolute(tool_path("vtop")).string(),
           (expanded_fixtures() / "x86-64").string()},
          options);
  CAPTURE(result.out, result.err);
  CHECK_FALSE(result.timed_out);
  CHECK(result.out.find("0x16e7e1") != std::string::npos);
  CHECK(result.out.find("0x16e29d") != std::string::npos);
}
