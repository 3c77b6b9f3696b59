// SPDX-License-Identifier: MIT
/// mapcheck on recorded systems, byte by byte; its exit status; hostile policies.
#include "support/golden.hpp"

using namespace vmem::test;

namespace {

const GoldenCase cases[] = {
    {"pass", "--sysroot x86-64 -e [heap]=ram,sparse,perms=rw-p 1042"},
    {"pass-node", "--sysroot arm64-64k -e fffd80000000=ram,sparse,node=1 2001"},
    {"several",
     "--sysroot device-window -e /dev/mixed0=0x90000000+16K -e /dev/mixed0=0x90001000+16K,scatter "
     "-e mixed0=uio0/map0 -e 7f1040000000=ram,sparse -e /dev/mixed*=90000000-90004000,sparse "
     "-e /dev/mixed0+0x1000=90000000-90004000,sparse,perms=r--s,flags=mm,pf 500"},
    {"unseen", "--sysroot device-window -e /dev/mem_mmap1=0x90000000+64M 500"},
    {"hidden", "--sysroot hidden -e [heap]=any,sparse 300"},
    {"hidden-iomem", "--sysroot hidden -e [heap]=ram,sparse 300"},
    {"page-tables",
     "--sysroot page-tables -e /dev/accelerator0=0x10000000000+1T,cache=uc-,leaf=2M "
     "-e /dev/mem_mmap1=0x90000000+64M,cache=wc,leaf=4K,perms=rw-s 700"},
    {"page-tables-wrong",
     "--sysroot page-tables -e /dev/accelerator0=iomem:0000:40:00.0,cache=wc,leaf=1G "
     "-e /dev/mem_mmap1=0x90000000+64M,cache=uc -e /dev/mem_mmap2=0x94000000+64M,cache=uc "
     "-e 7f1040000000=ram 700"},
    {"page-tables-auto", "--sysroot page-tables --auto 700"},
    {"error-recorded-from-page-tables",
     "--sysroot page-tables --backend pagemap -e /dev/accelerator0=any 700"},
    {"nothing-selected", "--sysroot x86-64 -e /dev/nothing=any 1042"},
    {"nothing-selected-optional", "--sysroot x86-64 -e /dev/nothing=any,optional 1042"},
    {"windows-not-there",
     "--sysroot device-window -e /dev/mixed0=pci:00:03.0/bar1 -e /dev/mixed0=pci:00:03.0/bar2 "
     "-e /dev/mixed0=pci:0000:00:03.0/bar5 -e /dev/mixed0=pci:00:03.0/bar99 -e "
     "/dev/mixed0=pci:00:04.0/bar0 -e /dev/mixed0=uio0/map7 -e /dev/mixed0=iomem:nix 500"},
    {"swapped", "--sysroot swapped -e 7f5500000000=any 77"},
    {"swapped-sparse", "--sysroot swapped -e 7f5500000000=any,sparse 77"},
    {"auto", "--sysroot device-window --auto 500"},
    {"auto-nothing", "--sysroot x86-64 --auto 1042"},
    {"auto-all", "--sysroot device-window --auto --all"},
    {"truncated", "--sysroot truncated -e 10000000=any,sparse 9"},
    {"columns",
     "--sysroot x86-64 --bytes -o name,comm,vma,end,size,perms,kind,findings,backend "
     "-e [heap]=ram,sparse 1042"},
    {"noheadings", "--sysroot x86-64 --noheadings -e [heap]=ram 1042"},
    {"json",
     "--sysroot device-window -J -e /dev/mixed0=0x90000000+16K -e nix=any "
     "-e no*=any,optional -e 7f1040000000=any,sparse 500"},
    {"json-auto", "--sysroot device-window -J --auto 500"},
    {"json-all", "--sysroot device-window -J -e /dev/mixed0=0x90000000+16K,sparse --all"},
    {"tap",
     "--sysroot device-window --tap -e /dev/mixed0=0x90000000+16K -e nix=any "
     "-e no#*=any,optional -e 7f1040000000=any,sparse 500"},
    {"junit",
     "--sysroot device-window --junit - -e /dev/mixed0=0x90000000+16K -e nix=any "
     "-e <&\">*=any,optional -e 7f1040000000=any,sparse 500"},
    {"openmetrics",
     "--sysroot device-window --openmetrics -e /dev/mixed0=0x90000000+16K "
     "-e /dev/mixed0=0x90000000+16K -e \"\\*=any 500"},
    {"hostile-names", "--sysroot hostile-names -e *=any,sparse 666"},
    {"print-policy", "--sysroot x86-64 --print-policy 1042"},
    {"print-policy-device", "--sysroot device-window --print-policy 500"},
    {"print-policy-hostile", "--sysroot hostile-names --print-policy 666"},
    {"print-policy-hidden", "--sysroot hidden --print-policy 300"},
    {"watch", "--sysroot x86-64 --watch 0.01 --count 3 -e [heap]=ram,sparse 1042"},
    {"watch-json", "--sysroot x86-64 -J --watch 0.01 --count 3 -e [heap]=ram,sparse 1042"},
    {"error-nothing-asked", "--sysroot x86-64 1042"},
    {"error-no-target", "--sysroot x86-64 -e [heap]=ram"},
    {"error-two-targets", "--sysroot x86-64 -e [heap]=ram 1042 1043"},
    {"error-no-process", "--sysroot x86-64 -e [heap]=ram 99"},
    {"error-dash-without-policy", "--sysroot x86-64 -e [heap]=ram -"},
    {"error-no-window", "--sysroot x86-64 -e [heap] 1042"},
    {"error-window", "--sysroot x86-64 -e [heap]=0x90000000 1042"},
    {"error-window-empty", "--sysroot x86-64 -e [heap]= 1042"},
    {"error-window-inverted", "--sysroot x86-64 -e [heap]=2000-1000 1042"},
    {"error-window-high", "--sysroot x86-64 -e [heap]=0xfffffffffffff000+4K 1042"},
    {"error-pci", "--sysroot x86-64 -e [heap]=pci:0000:00:03.0 1042"},
    {"error-pci-path", "--sysroot x86-64 -e [heap]=pci:../../../bar0 1042"},
    {"error-option", "--sysroot x86-64 -e [heap]=ram,nope 1042"},
    {"error-cache", "--sysroot x86-64 -e [heap]=ram,cache=hot 1042"},
    {"error-leaf", "--sysroot x86-64 -e [heap]=ram,leaf=3M 1042"},
    {"error-perms", "--sysroot x86-64 -e [heap]=ram,perms=rwx 1042"},
    {"error-flags", "--sysroot x86-64 -e [heap]=ram,flags=io,ppf 1042"},
    {"error-trailing-comma", "--sysroot x86-64 -e [heap]=ram, 1042"},
    {"error-select-range", "--sysroot x86-64 -e 1000-2000=ram 1042"},
    {"error-watch-nan", "--sysroot x86-64 -e [heap]=ram --watch nan 1042"},
    {"error-count", "--sysroot x86-64 -e [heap]=ram --watch 1 --count -1 1042"},
    {"error-no-policy", "--sysroot x86-64 --policy /nowhere/x.toml 1042"},
    {"error-unknown-column", "--sysroot x86-64 -e [heap]=ram -o nope 1042"},
    {"error-backend-bpf", "--sysroot x86-64 --backend bpf -e [heap]=ram 1042"},
};

struct PolicyCase {
  const char* toml;
  const char* error;  ///< behind "mapcheck: p.toml:"
};

RunResult with_policy(const std::string& toml, const std::string& rest) {
  const TempDir directory;
  const auto file = directory / "p.toml";
  write_file(file, toml);
  std::vector<std::string> arguments{"--policy", file.string()};
  for (const std::string& word : words(rest)) arguments.push_back(word);
  RunResult result = run_tool("mapcheck", arguments);
  for (std::string* const text : {&result.out, &result.err}) {
    for (std::size_t at = 0; (at = text->find(file.string(), at)) != std::string::npos;)
      text->replace(at, file.string().size(), "p.toml");
  }
  return result;
}

}  // namespace

TEST_CASE("mapcheck prints what is recorded") {
  check_golden("mapcheck", "expected-mapcheck", cases);
}

TEST_CASE("a policy: what is wrong with it, and where") {
  const std::string check = "[[check]]\nselect = \"[heap]\"\nwindow = \"ram\"\n";
  const std::pair<std::string, std::string> all[] = {
      {"", " no [[check]]"},
      {check + "nth = 0\n", "4:1: nth: not which one of the mappings, from 1"},
      {check + "nth = \"2\"\n", "4:1: nth: must be a number, from 1"},
      {"[defaults]\nnth = 2\n" + check, "2:1: nth: is each check's own"},
      {"check = 5\n", "1:9: check: not a list; write [[check]]"},
      {"check = [5]\n", "1:10: check: not a table"},
      {"[[check]]\nwindow = \"ram\"\n", "1:1: select: is missing"},
      {"[[check]]\nselect = \"[heap]\"\n", "1:1: window: is missing"},
      {check + "colour = \"red\"\n", "4:1: colour: no such key"},
      {check + "cache = \"hot\"\n",
       "4:1: cache: not a cache attribute: uc, uc-, wc, wb, wt, wp, any, or one of arm64's "
       "(device-nGnRnE, device-nGnRE, normal-nc, normal, normal-tagged)"},
      {check + "cache = 5\n", "4:1: cache: must be a string or a list of strings"},
      {check + "cache = []\n", "4:1: cache: must be a string or a list of strings"},
      {check + "cache = [\"uc\", 5]\n", "4:1: cache: must be a string or a list of strings"},
      {check + "node = -1\n", "4:1: node: must be a number"},
      {check + "node = \"1\"\n", "4:1: node: must be a number"},
      {check + "node = 99999999999\n", "4:1: node: not the number of a NUMA node"},
      {check + "offset = -4096\n",
       "4:1: offset: must be a number of bytes, or a string such as \"64K\""},
      {check + "sparse = \"yes\"\n", "4:1: sparse: must be true or false"},
      {check + "sparse = true\npopulated = true\n", "1:1: sparse and populated exclude each other"},
      {check + "offset = 0\n", "1:1: offset: would not be looked at: ram has no order"},
      {"[[check]]\nselect = \"[heap]\"\nwindow = \"0x1000+4K\"\noffset = 0\nscatter = true\n",
       "1:1: offset: would not be looked at: scatter has no order"},
      {check + "flags = \"!zz\"\n",
       "4:1: flags: zz is no flag that is known: that it does not stand there proves nothing"},
      {check + "perms = \"rwxz\"\n",
       "4:1: perms: not permissions as maps shows them, such as rw-s ('?' stands for either)"},
      {check + "flags = \"toolong\"\n",
       "4:1: flags: not VmFlags of smaps: two letters each, such "
       "as io,pf ('!io': must not stand there)"},
      {check + "process = \"\"\n", "4:1: process: names no process"},
      {"[defaults]\nselect = \"x\"\n" + check, "2:1: select: is each check's own"},
      {"[defaults]\nnope = 1\n" + check, "2:1: nope: no such key"},
      {"[extra]\n" + check, "1:2: extra: no such key ([defaults], [[check]])"},
      {"[[check]]\nselect = \"\"\n", "2:1: select: nothing is selected"},
      {"[[check]]\nselect = 5\n", "2:1: select: must be a string"},
  };
  for (const auto& [toml, error] : all) {
    CAPTURE(toml);
    const RunResult result = with_policy(toml, "--sysroot x86-64 1042");
    CHECK(result.status == 2);
    CHECK(result.out == "");
    CHECK(result.err == "mapcheck: p.toml:" + error + "\nhint: see vmem-policy(5)\n");
  }
  // Bounds. A parser that nests as deep as it is told to would end by a signal.
  const auto times = [](std::size_t n, const std::string& text) {
    std::string repeated;
    for (std::size_t i = 0; i < n; ++i) repeated += text;
    return repeated;
  };
  const std::string deep = "a" + times(200000, ".a");
  const std::string quoted = "'.'" + times(200000, " . \"\\\".\"");
  const std::string many = check + "cache = [" + times(1'000'001, "1,") + "]\n";
  for (const auto& [toml, error] : std::initializer_list<std::pair<std::string, std::string>>{
           {deep + " = 1\n", "1:32: a key of more than 16 parts"},
           {"[" + deep + "]\n", "1:33: a key of more than 16 parts"},
           {check + "[[" + deep + "]]\n", "4:34: a key of more than 16 parts"},
           {"x = {" + deep + " = 1}\n", "1:37: a key of more than 16 parts"},
           {"x = [\n{y = {" + deep + " = 1}}]\n", "2:38: a key of more than 16 parts"},
           {quoted + " = 1\n", "1:125: a key of more than 16 parts"},
           {"x = \"\"\"\n.\"\"\"\"\"\n" + deep + " = 1\n", "3:32: a key of more than 16 parts"},
           {many, "4:1999999: more than 1000000 keys and values"},
           {times(1'000'001, "a=\n"), "1000001:2: more than 1000000 keys and values"},
           {times(100'001, "[[check]]\nselect=\"a\"\nwindow=\"any\"\n"),
            "300001:1: more than 100000 checks"}}) {
    CAPTURE(toml.substr(0, 40));
    const RunResult result = with_policy(toml, "--sysroot x86-64 1042");
    CHECK(result.status == 2);
    CHECK(result.signal == 0);
    CHECK(result.err == "mapcheck: p.toml:" + error + "\nhint: see vmem-policy(5)\n");
  }
  const RunResult large =
      with_policy(times((16 << 20) / 8 + 1, "# 45678\n"), "--sysroot x86-64 1042");
  CHECK(large.status == 2);
  CHECK(large.err == "mapcheck: reading policy: p.toml: larger than 16 MiB\n");
  // Dots in strings, comments and numbers are none of a key's.
  for (const std::string& toml :
       {check + "name = \"" + times(50, ".") + "\" # " + times(50, ".") + "\n",
        check + "name = '" + times(50, ".") + "\\'\n",
        check + "name = \"\"\"" + times(50, ".\n\"\"\\\"") + "\"\"\"\"\"\n",
        check + "name = '''" + times(50, ".\n''\"") + "'''''\n"}) {
    CAPTURE(toml);
    const RunResult result = with_policy(toml + "sparse = true\n", "--sysroot x86-64 1042");
    INFO(result.err);
    CHECK(result.status == 0);
  }
  // What TOML itself says is the parser's; that it has a line and is one line is ours.
  for (const std::string& toml :
       {check + "x\n", "[[check]\n" + check, check + "name = \"unfinished\n",
        std::string("\xff\xfe\0", 3), check + "select = \"twice\"\n", std::string(100000, '['),
        "[[check]]\nselect = " + std::string(100000, '[') + "\n"}) {
    CAPTURE(toml.substr(0, 100));
    const RunResult result = with_policy(toml, "--sysroot x86-64 1042");
    CHECK(result.status == 2);
    CHECK(result.signal == 0);
    CHECK(error_form(result.err, "mapcheck") == "");
    CHECK(result.err.starts_with("mapcheck: p.toml:"));
  }
}

TEST_CASE("an expectation: options of which one would be ignored") {
  for (const auto& [options, error] :
       {std::pair{"=ram,offset=4K", "offset: would not be looked at: ram has no order"},
        std::pair{"=0x1000+4K,scatter,offset=4K",
                  "offset: would not be looked at: scatter has no order"},
        std::pair{"=ram,perms=rw-p,perms=r--p", "perms: is given twice"},
        std::pair{"=ram,sparse,populated", "sparse or populated, and once"},
        std::pair{"=ram,flags=rd,flags=!rd", "flags: is given twice"}}) {
    CAPTURE(options);
    const RunResult result = run_tool(
        "mapcheck", {"--sysroot", "x86-64", "-e", std::string("[heap]") + options, "1042"});
    CHECK(result.status == 2);
    CHECK(result.out == "");
    CHECK(result.err == std::string("mapcheck: -e [heap]") + options + ": " + error +
                            "\nhint: SELECT=WINDOW[,OPT...]; see --help\n");
  }
}

TEST_CASE("words of an expectation may have any case") {
  for (const char* const rule : {"[heap]=RAM,Sparse,PERMS=RW-P", "[heap]=Any,SPARSE,perms=rw-P",
                                 "[heap]=iomem:SYSTEM ram,SCATTER,sparse"}) {
    CAPTURE(rule);
    const RunResult result = run_tool("mapcheck", {"--sysroot", "x86-64", "-e", rule, "1042"});
    INFO(result.out << result.err);
    CHECK(result.status == 0);
  }
  for (const char* const rule :
       {"/dev/mixed0=UIO0/MAP0,Flags=MM,sparse", "/dev/mixed0=PCI:0000:00:03.0/BAR0,sparse"}) {
    CAPTURE(rule);
    const RunResult result =
        run_tool("mapcheck", {"--sysroot", "device-window", "-e", rule, "500"});
    INFO(result.out << result.err);
    CHECK(result.status < 2);
  }
  CHECK(run_tool("mapcheck", words("--sysroot page-tables -e "
                                   "/dev/accelerator0=0x10000000000+1t,CACHE=UC|Wc,LEAF=2m 700"))
            .status == 0);
}

TEST_CASE("32-bit arm: no backend reads its page tables, and that is said") {
  SystemModel system = load_fixture(fixtures_folder() / "device-window");
  const TempDir directory;
  for (const auto& [machine, says] :
       {std::pair{"armv7l", "no backend of arm reads page tables"},
        std::pair{"riscv64", "no backend of this architecture reads page tables"},
        std::pair{"aarch64", ""}, std::pair{"x86_64", ""}}) {
    CAPTURE(machine);
    system.manifest =
        std::string("vmem-tree 1\npage_size 4096\npfn_access full\narch ") + machine + "\n";
    const auto tree = directory / machine;
    write_tree(system, tree);
    const auto with = [&](const char* tool, const char* arguments) {
      auto all = words(arguments);
      all.insert(all.begin(), {"--sysroot", tree.string()});
      const RunResult result = run_tool(tool, all);
      INFO(result.out << result.err);
      CHECK(result.status == 2);
      CHECK((result.err.find("reads page tables") != std::string::npos) == (*says != '\0'));
      CHECK(result.err.find(says) != std::string::npos);
    };
    with("mapcheck", "-e /dev/mem_mmap1=0x90000000+64M 500");
    with("mapcheck", "--auto 500");
    with("vtop", "500 7f1000000000");
  }
}

TEST_CASE("a policy: processes, defaults, every key") {
  const std::string policy =
      "[defaults]\nprocess = \"driv*\"\nsparse = true\nwindow = \"0x90000000+16K\"\n"
      "[[check]]\nname = \"ring\"\nselect = \"/dev/mixed0\"\nperms = \"rw-s\"\n"
      "flags = [\"mm\", \"!pf\"]\noptional = false\n"
      "[[check]]\nname = \"other\"\nselect = \"*/mixed?\"\nwindow = \"0x90001000+16K\"\n"
      "scatter = true\npopulated = false\n"
      "[[check]]\nname = \"nowhere\"\nselect = \"/dev/nothing\"\noptional = true\n"
      "[[check]]\nname = \"another's\"\nprocess = \"nobody\"\nselect = \"/dev/mixed0\"\n";
  const RunResult result =
      with_policy(policy, "--sysroot device-window --noheadings -o name,pid,verdict -");
  CHECK(result.status == 1);
  const std::size_t blank = result.out.find("\n\n");
  CHECK(result.out.substr(0, blank) ==
        "ring       500  pass\n"
        "ring       501  unverified\n"  // its flags are not recorded
        "other      500  fail\n"
        "other      501  fail\n"
        "another's    -  unverified");
  const std::string named = "[[check]]\nselect = \"[heap]\"\nwindow = \"any\"\n";
  const RunResult nameless = with_policy(named, "--sysroot x86-64 -");
  CHECK(nameless.status == 2);
  CHECK(nameless.err ==
        "mapcheck: [heap]: names no process\n"
        "hint: with - as TARGET each check needs the key process\n");
  // What concerns other processes than the target selects nothing.
  CHECK(with_policy("[[check]]\nprocess = \"bash\"\nselect = \"[heap]\"\nwindow = \"any\"\n",
                    "--sysroot x86-64 1042")
            .status == 2);
}

TEST_CASE("the printed policy passes") {
  for (const auto& [tree, pid] : {std::pair{"x86-64", "1042"}, std::pair{"arm64-64k", "2001"},
                                  std::pair{"hostile-names", "666"}, std::pair{"swapped", "77"}}) {
    CAPTURE(tree);
    const RunResult printed = run_tool("mapcheck", {"--sysroot", tree, "--print-policy", pid});
    CHECK(printed.status == 0);
    const RunResult checked =
        with_policy(printed.out, std::string("--sysroot ") + tree + " " + pid);
    INFO(printed.out << checked.out << checked.err);
    CHECK(checked.status == 0);
  }
}

TEST_CASE("the printed policy: what cannot be seen makes it no good one, and is said") {
  const RunResult printed =
      run_tool("mapcheck", {"--sysroot", "device-window", "--print-policy", "500"});
  CHECK(printed.status == 2);
  CHECK(
      printed.err.starts_with("mapcheck: 3 device mappings are not described: /dev/mem_mmap1 at "
                              "0x7f1000000000: "));
  // What their devices say is checked nevertheless, and cannot pass unseen.
  CHECK(printed.out.find("window = \"uio0/map1\"") != std::string::npos);
  CHECK(printed.out.find("window = \"pci:0000:00:03.0/bar0\"") != std::string::npos);
  const RunResult checked = with_policy(printed.out, "--sysroot device-window -o name,verdict 500");
  INFO(checked.out << checked.err);
  CHECK(checked.status == 2);
  CHECK(checked.out.find("/dev/uio0") != std::string::npos);
}

TEST_CASE("mapcheck: output that cannot be written, a pipe that nobody reads") {
  RunOptions full;
  full.stdout_path = "/dev/full";
  for (const char* const form : {"", " -J", " --tap", " --openmetrics", " --junit -"}) {
    CAPTURE(form);
    const auto arguments = words(std::string("--sysroot x86-64 1042 -e [heap]=ram,sparse") + form);
    const RunResult result = run_tool("mapcheck", arguments, full);
    CHECK(result.status == 2);
    CHECK(error_form(result.err, "mapcheck") == "");
    RunOptions closed;
    closed.stdout_closed_pipe = true;
    CHECK(run_tool("mapcheck", arguments, closed).err == "");
  }
  const RunResult junit = run_tool(
      "mapcheck", words("--sysroot x86-64 1042 -e [heap]=ram,sparse --junit /nowhere/x.xml"));
  CHECK(junit.status == 2);
  CHECK(error_form(junit.err, "mapcheck") == "");
  CHECK(run_tool("mapcheck", words("--sysroot x86-64 1042 -e [heap]=ram,sparse --junit /dev/full"))
            .status == 2);
}
