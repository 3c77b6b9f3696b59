// SPDX-License-Identifier: MIT
/// Where windows come from: what sysfs and /proc/iomem say of devices, and what a mapping is
/// derived to be.
#include <map>
#include <sstream>
#include <utility>

#include "support/catch.hpp"
#include "support/recorded.hpp"
#include "vmem/window.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

std::string digits(std::uint64_t value) {
  std::ostringstream out;
  out << std::hex << value;
  return out.str();
}

/// A network card with SR-IOV, one of its virtual functions, a bridge, a card behind it.
SystemModel machine(const std::string& maps = "") {
  SystemModel system = one_process(maps);
  const auto device = [&](const std::string& address) -> std::string& {
    return system.files["sys/bus/pci/devices/" + address + "/resource"];
  };
  const std::string none = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
  // drivers/pci/pci-sysfs.c, resource_show(): six BARs, the ROM, six of SR-IOV, four bridge
  // windows.
  device("0000:03:00.0") =
      "0x0000380000000000 0x0000380000ffffff 0x000000000014220c\n" + none +  // 64-bit, prefetchable
      "0x00000000fe000000 0x00000000fe000fff 0x0000000000040200\n" +  // 32-bit
      "0x000000000000c000 0x000000000000c01f 0x0000000000040101\n" +  // ports
      "0x00000000a0000000 0x00000000a0003fff 0x0000000020040200\n" +  // IORESOURCE_UNSET
      none + "0x00000000fe080000 0x00000000fe0fffff 0x0000000000046200\n" +  // ROM
      "0x0000380001000000 0x00003800010fffff 0x000000000014220c\n" + none + none + none + none +
      none;
  device("0000:03:00.1") = "0x0000380001000000 0x0000380001003fff 0x000000000014220c\n" + none +
                           none + none + none + none + none;
  device("0000:00:1c.0") = none + none + none + none + none + none + none + none + none + none +
                           none + none + none +
                           "0x0000000000001000 0x0000000000001fff 0x0000000000000101\n" +
                           "0x00000000fc000000 0x00000000fc1fffff 0x0000000000000200\n" +
                           "0x0000390000000000 0x00003900000fffff 0x0000000000102201\n" + none;
  device("10000:e1:00.0") = "0x00000000fd000200 0x00000000fd0002ff 0x0000000000040200\n";
  system.files["proc/iomem"] =
      "00001000-0009fbff : System RAM\n"
      "00100000-7fffffff : System RAM\n"
      "  01000000-01ffffff : Kernel code\n"
      "90000000-90ffffff : Reserved\n"
      "  90100000-901fffff : ramoops:dump(0/2)\n"
      "  90200000-902fffff : ramoops:dump(0/2)\n"
      "fc000000-fe7fffff : PCI Bus 0000:00\n"
      "  fe000000-fe000fff : 0000:03:00.0\n"
      "    fe000000-fe0007ff : driver\n";
  const auto uio = [&](const std::string& map, const std::string& address,
                       const std::string& size) {
    system.files["sys/class/uio/" + map + "/addr"] = address + "\n";
    system.files["sys/class/uio/" + map + "/size"] = size + "\n";
  };
  uio("uio0/maps/map0", "0xfe000000", "0x1000");
  uio("uio0/maps/map1", "0xffff888012345000", "0x1000");
  uio("uio0/maps/map2", "0x90000800", "0x1000");
  return system;
}

/// The window's text and ranges, or the error.
std::string text(const Result<Window>& window) {
  if (!window) return window.error().what;
  std::string all = window->text + (window->device ? " device" : "");
  for (const PaRange& r : window->ranges)
    all += " " + digits(r.start.value) + "-" + digits(r.end.value);
  return all;
}

/// What is derived for the only mapping of the process.
std::string derived(SystemModel system, const std::string& line,
                    const std::map<std::string, std::string>& links = {}) {
  system.processes[0].maps = line;
  system.processes[0].files["mountinfo"] =
      "24 27 0:5 / /dev rw - devtmpfs devtmpfs rw\n25 27 0:6 / /sys rw - sysfs sysfs rw\n"
      "26 27 0:7 / /proc rw - proc proc rw\n";
  for (const auto& [path, target] : links) system.links[path] = target;
  const Recorded tree{system};
  const Process process = tree.process(1);
  VmaInspector inspector{process};
  WindowSources sources{tree.root()};
  const auto vmas = read_vmas(process);
  REQUIRE(vmas);
  REQUIRE(vmas->size() == 1);
  const auto check = sources.derive(process, vmas->front(), inspector.classify(vmas->front()));
  if (!check) return check.error().what;
  std::string caches;
  for (const char* const word : {"uc", "wc", "wb"})
    if ((check->cache & *cache_set(word)) != 0) caches += std::string(" ") + word;
  return text(check->window) + caches + (check->sparse ? " sparse" : "");
}

}  // namespace

TEST_CASE("windows of PCI: lines of resource, by what they are") {
  const Recorded tree{machine()};
  WindowSources sources{tree.root()};
  const auto bar = [&](const char* device, unsigned index) {
    return text(sources.pci_bar(device, index));
  };
  CHECK(bar("0000:03:00.0", 0) == "pci:0000:03:00.0/bar0 device 380000000000-380001000000");
  CHECK(bar("03:00.0", 2) == "pci:0000:03:00.0/bar2 device fe000000-fe001000");
  CHECK(bar("0000:03:00.0", 1) == "PCI BAR (the upper half of a 64-bit one)");
  CHECK(bar("0000:03:00.0", 3) == "PCI BAR (I/O ports, not memory)");
  CHECK(bar("0000:03:00.0", 4) == "PCI BAR (not assigned)");
  CHECK(bar("0000:03:00.0", 5) == "PCI BAR (not assigned)");
  CHECK(bar("0000:03:00.0", 6) == "pci:0000:03:00.0/bar6 device fe080000-fe100000");
  CHECK(bar("0000:03:00.0", 7) == "pci:0000:03:00.0/bar7 device 380001000000-380001100000");
  CHECK(bar("0000:03:00.0", 13) == "PCI BAR (the device has none such)");
  // A virtual function has its own, within what the device set aside for all of them.
  CHECK(bar("0000:03:00.1", 0) == "pci:0000:03:00.1/bar0 device 380001000000-380001004000");
  CHECK(bar("0000:00:1c.0", 0) == "PCI BAR (not assigned)");
  CHECK(bar("0000:00:1c.0", 13) == "PCI BAR (I/O ports, not memory)");
  CHECK(bar("0000:00:1c.0", 14) == "pci:0000:00:1c.0/bar14 device fc000000-fc200000");
  CHECK(bar("0000:00:1c.0", 15) == "pci:0000:00:1c.0/bar15 device 390000000000-390000100000");
  // Smaller than a page: the page that holds it.
  CHECK(bar("10000:e1:00.0", 0) == "pci:10000:e1:00.0/bar0 device fd000000-fd001000");
  CHECK_FALSE(sources.pci_bar("0000:09:00.0", 0));
  for (const char* const bad :
       {"", "..", "0000:03:00", "../0000:03:00.0", "0000:03:00.0/", "3:0.0"})
    CHECK(bar(bad, 0) == "not a PCI address");
}

TEST_CASE("windows of UIO: physical addresses only") {
  const Recorded tree{machine()};
  WindowSources sources{tree.root()};
  CHECK(text(sources.uio_map(0, 0)) == "uio0/map0 fe000000-fe001000");
  CHECK(text(sources.uio_map(0, 1)) == "UIO map (its address is the kernel's, not physical)");
  CHECK(text(sources.uio_map(0, 2)) == "uio0/map2 90000000-90002000");
  CHECK(text(sources.uio_map(0, 3)) == "UIO map");
  CHECK(text(sources.uio_map(1, 0)) == "UIO map");
}

TEST_CASE("windows by name: nested and repeated ones; zeros are no answer") {
  const Recorded tree{machine()};
  WindowSources sources{tree.root()};
  CHECK(text(sources.iomem("Reserved")) == "iomem:Reserved 90000000-91000000");
  CHECK(text(sources.iomem("driver")) == "iomem:driver fe000000-fe001000");
  CHECK(text(sources.iomem("ramoops:dump(0/2)")) == "iomem:ramoops:dump(0/2) 90100000-90300000");
  CHECK(text(sources.iomem("System RAM")) == "iomem:System RAM 1000-9f000 100000-80000000");
  CHECK(text(sources.ram()) == "ram 1000-9f000 100000-80000000");
  CHECK(text(sources.iomem("system ram")) == "iomem:system ram 1000-9f000 100000-80000000");
  CHECK(text(sources.iomem("nothing")) == "region of that name");
  SystemModel hidden = machine();
  hidden.files["proc/iomem"] = "00000000-00000000 : System RAM\n00000000-00000000 : Reserved\n";
  const Recorded zeros{hidden};
  WindowSources blind{zeros.root()};
  for (const auto& window : {blind.iomem("Reserved"), blind.ram(), blind.iomem("System RAM")}) {
    REQUIRE_FALSE(window);
    CHECK(window.error().code == Errc::permission);
  }
}

TEST_CASE("windows of devices that publish their memory") {
  SystemModel system = machine();
  const auto device = [&](const std::string& folder, const std::string& address,
                          const std::string& size) {
    system.files["sys/class/" + folder + "/phys_addr"] = address + "\n";
    system.files["sys/class/" + folder + "/size"] = size + "\n";
  };
  device("u-dma-buf/udmabuf0", "0x000000001f100000", "1048576");
  device("u-dma-buf/camera", "0x1f300000", "8192");
  device("udmabuf/udmabuf1", "0x1f400800", "4096");  // the class of older ones; parts of pages
  device("uiomem/uiomem0", "0x90000000", "0x2000");
  device("u-dma-buf/empty", "0x1f100000", "0");
  device("u-dma-buf/odd", "somewhere", "4096");
  device("u-dma-buf/high", "0xfffffffffffff000", "8192");
  device("other/thing0", "0x1f100000", "4096");
  const std::string dax = "sys/bus/dax/devices/";
  system.files[dax + "dax0.0/resource"] = "0x100000000\n";
  system.files[dax + "dax0.0/size"] = "2097152\n";
  const auto mapping = [&](const std::string& folder, const std::string& start,
                           const std::string& end, const std::string& offset) {
    system.files[dax + folder + "/start"] = start + "\n";
    system.files[dax + folder + "/end"] = end + "\n";
    system.files[dax + folder + "/page_offset"] = offset + "\n";
  };
  mapping("dax0.1/mapping0", "0x200000000", "0x2001fffff", "0x0");
  mapping("dax0.1/mapping1", "0x300000000", "0x3001fffff", "0x200");
  mapping("dax0.2/mapping0", "0x300000000", "0x3001fffff", "0x0");
  mapping("dax0.2/mapping1", "0x200000000", "0x2001fffff", "0x200");
  const Recorded tree{system};
  WindowSources sources{tree.root()};
  const auto of = [&](const char* name) { return text(sources.published(name)); };
  CHECK(of("udmabuf0") == "udmabuf0 1f100000-1f200000");
  CHECK(of("camera") == "u-dma-buf:camera 1f300000-1f302000");
  CHECK(of("udmabuf1") == "udmabuf1 1f400000-1f402000");
  CHECK(of("uiomem0") == "uiomem0 90000000-90002000");
  CHECK(of("dax0.0") == "dax0.0 100000000-100200000");
  CHECK(of("dax0.1") == "dax0.1 200000000-200200000 300000000-300200000");
  CHECK(of("dax0.2") == "memory of a device (its offsets do not ascend with its addresses)");
  CHECK(of("empty") == "reading a device's memory (its size)");
  CHECK(of("high") == "reading a device's memory (its size)");
  CHECK(of("odd") == "parsing");
  for (const char* const none : {"thing0", "nothing", "", ".", "..", "../class/u-dma-buf/camera"})
    CHECK(of(none) == "device that publishes its memory");

  const auto line = [](const std::string& name) {
    return "7f0000000000-7f0000001000 rw-s 00000000 00:05 10                     " + name + "\n";
  };
  CHECK(derived(system, line("/dev/udmabuf0")) == "udmabuf0 1f100000-1f200000 sparse");
  CHECK(derived(system, line("/dev/camera (deleted)")) ==
        "u-dma-buf:camera 1f300000-1f302000 sparse");
  CHECK(derived(system, line("/dev/dax0.0")) == "dax0.0 100000000-100200000 sparse");
  // Another driver's file may mean anything: it is told, and proves nothing.
  system.processes[0].maps = line("/dev/thing0");
  system.processes[0].files["mountinfo"] = "24 27 0:5 / /dev rw - devtmpfs devtmpfs rw\n";
  const Recorded other{system};
  const Process process = other.process(1);
  VmaInspector inspector{process};
  WindowSources others{other.root()};
  const auto vmas = read_vmas(process);
  REQUIRE(vmas);
  const auto check = others.derive(process, vmas->front(), inspector.classify(vmas->front()));
  REQUIRE_FALSE(check);
  CHECK(check.error().code == Errc::not_supported);
  CHECK(check.error().path == "/sys/class/other/thing0/phys_addr says 0x1f100000");
}

TEST_CASE("dma-bufs: by who exported them") {
  // The kernel's own mount: no line of mountinfo has its number.
  const std::string line =
      "7f0000000000-7f0000001000 rw-s 00000000 00:0c 4711                     /dmabuf:\n";
  const std::string ram = "ram 1000-9f000 100000-80000000 sparse";
  const std::string file = "sys/kernel/dmabuf/buffers/4711/exporter_name";
  const std::string list = "sys/kernel/debug/dma_buf/bufinfo";
  for (const char* const exporter : {"system", "udmabuf", "linux,cma", "reserved"}) {
    SystemModel by_sysfs = machine(), by_debugfs = machine();
    by_sysfs.files[file] = std::string(exporter) + "\n";
    CHECK(derived(by_sysfs, line) == ram);
    by_debugfs.files[list] =
        "\nDma-buf Objects:\n"
        "size    \tflags   \tmode    \tcount   \texp_name\tino     \tname\n"
        "00131072\t00000002\t00080007\t00000003\tvirtio_gpu\t00000047\t<none>\n"
        "00131072\t00000002\t00080007\t00000003\t" +
        std::string(exporter) +
        "\t00004711\t<none>\n\tAttached Devices:\nTotal 0 devices attached\n";
    CHECK(derived(by_debugfs, line) == ram);
  }
  SystemModel gpu = machine();
  gpu.files[file] = "amdgpu\n";
  CHECK(derived(gpu, line) == "a dma-buf whose exporter alone knows where it must be");
  CHECK(*read_dma_buf_exporter(Recorded{gpu}.root(), 4711) == "amdgpu");
  gpu.files[list] = "00131072\t00000002\t00080007\t00000003\tsystem\t00000001\tx\n";
  CHECK(read_dma_buf_exporter(Recorded{gpu}.root(), 47).error().code == Errc::not_found);
  CHECK(*read_dma_buf_exporter(Recorded{gpu}.root(), 1) == "system");
  CHECK(derived(machine(), line) == "a dma-buf whose exporter is not known");
}

TEST_CASE("what a device mapping must be, from what it is") {
  const std::string sysfs =
      "7f0000000000-7f0000001000 rw-s 00000000 00:06 10                     "
      "/sys/devices/pci0000:00/0000:00:1c.0/0000:03:00.0/";
  CHECK(derived(machine(), sysfs + "resource2\n") ==
        "pci:0000:03:00.0/bar2 device fe000000-fe001000 uc");
  CHECK(derived(machine(), sysfs + "resource0_wc\n") ==
        "pci:0000:03:00.0/bar0 device 380000000000-380001000000 wc");
  CHECK(derived(machine(), sysfs + "resource3\n") == "PCI BAR (I/O ports, not memory)");
  CHECK(derived(machine(),
                "7f0000000000-7f0000001000 rw-s fe000000 00:07 10                     "
                "/proc/bus/pci/03/00.0\n") == "pci:0000:03:00.0/bar2 device fe000000-fe001000");
  CHECK(derived(machine(),
                "7f0000000000-7f0000001000 rw-s ff000000 00:07 10                     "
                "/proc/bus/pci/03/00.0\n") == "no BAR of the device is there");

  const std::string uio = "7f0000000000-7f0000001000 rw-s 0000";
  CHECK(derived(machine(), uio + "0000 00:05 10                     /dev/uio0\n") ==
        "uio0/map0 fe000000-fe001000 uc");
  CHECK(derived(machine(), uio + "2000 00:05 10                     /dev/uio0\n") ==
        "uio0/map2 90000000-90002000 uc");
  CHECK(derived(machine(), uio + "5000 00:05 10                     /dev/uio0\n") ==
        "UIO map of that offset");

  // A region's number from bit 40 on; a physical address on older kernels.
  const std::string vfio = " 00:0e 10                     anon_inode:[vfio-device]\n";
  const std::string by_region = "7f0000000000-7f0000001000 rw-s 20000000000" + vfio;
  const std::string by_address = "7f0000000000-7f0000001000 rw-s fe000000" + vfio;
  const std::map<std::string, std::string> group{{"proc/1/fd/7", "/dev/vfio/12"}};
  SystemModel grouped = machine();
  grouped.files["sys/kernel/iommu_groups/12/devices/0000:03:00.0/x"] = "";
  for (const std::string& line : {by_region, by_address}) {
    CHECK(derived(grouped, line, group) ==
          "pci:0000:03:00.0/bar2 device fe000000-fe001000 uc sparse");
    CHECK(derived(machine(), line) == "vfio mapping (its device is not known)");
  }
  CHECK(derived(machine(), by_region,
                {{"proc/1/fd/7", "/dev/vfio/devices/vfio0"},
                 {"sys/class/vfio-dev/vfio0/device", "../../../0000:03:00.0"}}) ==
        "pci:0000:03:00.0/bar2 device fe000000-fe001000 uc sparse");
  grouped.files["sys/kernel/iommu_groups/12/devices/0000:03:00.1/x"] = "";
  CHECK(derived(grouped, by_region, group) ==
        "vfio mapping (of which of its devices is not known)");
  CHECK(derived(grouped, by_address, group) ==
        "pci:0000:03:00.0/bar2 device fe000000-fe001000 uc sparse");

  const std::string mem = " 00:05 10                     /dev/mem\n";
  CHECK(derived(machine(), "7f0000000000-7f0000001000 rw-s 90100000" + mem) ==
        "0x90000000+0x1000000 device 90000000-91000000");
  CHECK(derived(machine(), "7f0000000000-7f0000001000 rw-s fe000000" + mem) ==
        "0xfe000000+0x1000 device fe000000-fe001000 uc wc");
  CHECK(
      derived(machine(),
              "7f0000000000-7f0000001000 rw-s 00000000 00:05 10                     /dev/own\n") ==
      "only its driver knows where it must be");
}
