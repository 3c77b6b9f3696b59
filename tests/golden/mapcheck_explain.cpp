// SPDX-License-Identifier: MIT
/// mapcheck explain on recorded systems: what the kernel refuses to map through /dev/mem, by what
/// is known of it.
#include <regex>

#include "support/catch.hpp"
#include "support/recorded.hpp"
#include "support/system_model.hpp"
#include "support/tool.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

const std::string config = "boot/config-6.12.9-amd64";

SystemModel machine() {
  SystemModel system;
  system.manifest = "vmem-tree 1\npage_size 4096\narch x86_64\nkernel 6.12.9-amd64\n";
  system.files["proc/iomem"] =
      "00001000-0009fbff : System RAM\n"
      "000a0000-000fffff : Reserved\n"
      "00100000-7fffffff : System RAM\n"
      "  01000000-01ffffff : Kernel code\n"
      "80000000-8fffffff : PCI Bus 0000:00\n"
      "  80000000-80003fff : 0000:03:00.0\n"
      "    80000000-800007ff : driver\n"
      "  80010000-8001ffff : 0000:04:00.0\n"
      "90000000-90ffffff : Reserved\n"
      "100000000-13fffffff : dax0.0\n"
      "  100000000-13fffffff : System RAM (kmem)\n";
  system.files["sys/bus/pci/devices/0000:03:00.0/resource"] =
      "0x0000000080000000 0x0000000080003fff 0x0000000000040200\n";
  system.files[config] = "CONFIG_DEVMEM=y\nCONFIG_STRICT_DEVMEM=y\nCONFIG_IO_STRICT_DEVMEM=y\n";
  system.files["sys/kernel/security/lockdown"] = "[none] integrity confidentiality\n";
  return system;
}

RunResult explain(const SystemModel& system, const std::string& arguments) {
  const Recorded tree{system};
  auto all = words("explain " + arguments);
  all.insert(all.end(), {"--sysroot", tree.directory().string(), "--noheadings"});
  return run_tool("mapcheck", all);
}

/// "ANSWER: WHY" of one address.
std::string answer(const SystemModel& system, const std::string& address) {
  const Recorded tree{system};
  const RunResult result =
      run_tool("mapcheck", {"explain", address, "--sysroot", tree.directory().string(), "-J"});
  INFO(result.out << result.err);
  const auto document = nlohmann::json::parse(result.out);
  REQUIRE(document["explanations"].size() == 1);
  const auto& one = document["explanations"][0];
  const std::string said = one["answer"];
  CHECK(result.status == (said == "allowed" ? 0 : said == "refused" ? 1 : 2));
  CHECK((result.status == 2) == !result.err.empty());
  return said + ": " + one["why"].get<std::string>();
}

}  // namespace

TEST_CASE("explain: what STRICT_DEVMEM and IO_STRICT_DEVMEM refuse, and no more") {
  const SystemModel system = machine();
  CHECK(answer(system, "0x2000") ==
        "allowed: the first MiB of x86 is allowed, whatever lies there");
  CHECK(answer(system, "0x1000000") == "refused: System RAM: the kernel has CONFIG_STRICT_DEVMEM");
  CHECK(answer(system, "0x100000000") ==
        "refused: System RAM: the kernel has CONFIG_STRICT_DEVMEM");
  CHECK(answer(system, "0x80000000") ==
        "refused: busy: driver holds it, and the kernel has CONFIG_IO_STRICT_DEVMEM (iomem=relaxed "
        "on its command line lifts that)");
  CHECK(answer(system, "0x80001000") == "allowed: no driver holds it");
  CHECK(answer(system, "0x90000000+1M") == "allowed: no driver holds it");
  CHECK(answer(system, "0xa0000000") ==
        "allowed: no region of /proc/iomem is there: nobody holds it");

  SystemModel io = system;
  io.files[config] =
      "CONFIG_DEVMEM=y\nCONFIG_STRICT_DEVMEM=y\n# CONFIG_IO_STRICT_DEVMEM is not set\n";
  CHECK(answer(io, "0x80000000") ==
        "allowed: busy: driver holds it, but the kernel has no CONFIG_IO_STRICT_DEVMEM");
  SystemModel open = system;
  open.files[config] = "CONFIG_DEVMEM=y\n# CONFIG_STRICT_DEVMEM is not set\n";
  CHECK(answer(open, "0x1000000") ==
        "allowed: System RAM, and the kernel has no CONFIG_STRICT_DEVMEM");
  CHECK(answer(open, "0x80000000").starts_with("allowed: busy: driver holds it"));
  SystemModel relaxed = system;
  relaxed.files["proc/cmdline"] = "root=/dev/sda1 iomem=relaxed quiet\n";
  CHECK(answer(relaxed, "0x80000000") ==
        "allowed: busy: driver holds it, but the kernel was booted with iomem=relaxed");
  CHECK(answer(relaxed, "0x1000000").starts_with("refused"));
  SystemModel none = system;
  none.files[config] = "# CONFIG_DEVMEM is not set\n";
  CHECK(answer(none, "0xa0000000") ==
        "refused: the kernel has no /dev/mem (CONFIG_DEVMEM is not set)");
  SystemModel arm = system;
  arm.manifest = "vmem-tree 1\npage_size 4096\narch aarch64\nkernel 6.12.9-amd64\n";
  CHECK(answer(arm, "0x2000").starts_with("refused: System RAM"));
}

TEST_CASE("explain: lockdown, what the processor has, how memory is cached already") {
  SystemModel system = machine();
  for (const char* const word : {"integrity", "confidentiality"}) {
    system.files["sys/kernel/security/lockdown"] = std::string("none [") + word + "] x\n";
    CHECK(answer(system, "0xa0000000") == std::string("refused: the kernel is locked down (") +
                                              word + "): nobody may open /dev/mem");
  }
  system = machine();
  system.files["proc/cpuinfo"] =
      "model name\t: x\naddress sizes\t: 36 bits physical, 48 bits virtual\n";
  CHECK(answer(system, "0x1000000000") ==
        "refused: the processor has 36 bits of physical addresses");
  CHECK(answer(system, "0xfffff0000").starts_with("allowed"));
  system.files["sys/kernel/debug/x86/pat_memtype_list"] =
      "PAT memtype list:\n"
      "PAT: [mem 0x0000000090000000-0x0000000090100000] write-back\n"
      "PAT: [mem 0x0000000090100000-0x0000000090200000] write-combining\n";
  CHECK(answer(system, "0x900ff000") ==
        "allowed: no driver holds it; it is mapped write-back already, and so it will be, but with "
        "O_SYNC mmap fails (EINVAL)");
  CHECK(answer(system, "0x90100000") ==
        "allowed: no driver holds it; it is mapped write-combining already, and so it will be");
  CHECK(answer(system, "0x90200000") == "allowed: no driver holds it");
}

TEST_CASE("explain: what is not known is not answered, and another way is named") {
  SystemModel unknown = machine();
  unknown.files.erase(config);
  CHECK(
      answer(unknown, "0x1000000") ==
      "unknown: System RAM: refused if the kernel has CONFIG_STRICT_DEVMEM; no file tells whether "
      "the kernel has it");
  CHECK(answer(unknown, "0xa0000000").starts_with("allowed"));
  unknown.files["proc/config.gz"] = "\x1f\x8b";
  CHECK(answer(unknown, "0x80000000") ==
        "unknown: busy: driver holds it: refused if the kernel has CONFIG_IO_STRICT_DEVMEM; only "
        "`zgrep DEVMEM /proc/config.gz` tells whether the kernel has it");

  const RunResult all = explain(machine(), "0x7ffff000-0x80002000 90000000");
  CHECK(all.status == 1);
  const std::string lines = std::regex_replace(all.out, std::regex("  +"), " | ");
  CHECK(
      lines ==
      "0x7ffff000 | 4.0K | refused | System RAM | System RAM: the kernel has CONFIG_STRICT_DEVMEM "
      "| -\n"
      "0x80000000 | 4.0K | refused | PCI Bus 0000:00/0000:03:00.0/driver | busy: driver holds it, "
      "and the kernel has CONFIG_IO_STRICT_DEVMEM (iomem=relaxed on its command line lifts that) | "
      "/sys/bus/pci/devices/0000:03:00.0/resource0\n"
      "0x80001000 | 4.0K | allowed | PCI Bus 0000:00/0000:03:00.0 | no driver holds it | -\n"
      "0x90000000 | 4.0K | allowed | Reserved | no driver holds it | -\n");

  SystemModel zeros = machine();
  zeros.files["proc/iomem"] = "00000000-00000000 : System RAM\n";
  CHECK(explain(zeros, "0x1000").status == 2);
  for (const char* const bad : {"", "x", "0x2000-0x1000", "[heap]", "0x1000+0", "ffffffff81000000",
                                "0x1000 -e [heap]=ram", "0x1000 --auto", "0x1000 -o pa"}) {
    CAPTURE(bad);
    const RunResult result = explain(machine(), bad);
    CHECK(result.status == 2);
    CHECK(result.out.empty());
    CHECK(error_form(result.err, "mapcheck") == "");
  }
}
