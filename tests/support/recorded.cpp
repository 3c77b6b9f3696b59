// SPDX-License-Identifier: MIT
#include "support/recorded.hpp"

#include <sstream>
#include <utility>

#include "support/catch.hpp"

namespace vmem::test {
namespace {

SysRoot opened(const SystemModel& system, const TempDir& directory) {
  write_tree(system, directory.path());
  auto root = SysRoot::open(directory.string());
  if (!root) FAIL(to_string(root.error()));
  return *root;
}

struct Sources {
  explicit Sources(const Process& process) : inspector(process) {
    auto opened = open_translator(process, Backend::pagemap);
    if (!opened) FAIL(to_string(opened.error()));
    translator = std::move(*opened);
  }
  VmaInspector inspector;
  std::unique_ptr<Translator> translator;
};

}  // namespace

Recorded::Recorded(const SystemModel& system) : root_(opened(system, directory_)) {}
Recorded::Recorded(const std::string& fixture)
    : Recorded(load_fixture(fixtures_folder() / fixture)) {}

Process Recorded::process(int pid) const {
  auto process = root_->process(pid);
  if (!process) FAIL(to_string(process.error()));
  return std::move(*process);
}

SystemModel one_process(std::string maps, std::vector<EntryRun> entries, std::string manifest) {
  SystemModel system;
  system.manifest = std::move(manifest);
  if (const auto at = system.manifest.find("page_size "); at != std::string::npos) {
    system.page_size = std::stoull(system.manifest.substr(at + 10));
  }
  ProcessModel process;
  process.pid = 1;
  process.maps = std::move(maps);
  process.entries = std::move(entries);
  process.files["comm"] = "test\n";
  system.processes.push_back(std::move(process));
  return system;
}

std::vector<VmaExtent> translate_range(const Process& process, VaRange range,
                                       const WalkOptions& options) {
  Sources sources(process);
  std::vector<VmaExtent> all;
  const auto result =
      translate(process, *sources.translator, sources.inspector, range, options,
                [&](const Vma* vma, const Extent& extent) {
                  all.push_back({vma == nullptr ? 0 : vma->range.start.value, extent});
                  return true;
                });
  if (!result) FAIL(to_string(result.error()));
  return all;
}

std::vector<VmaExtent> translate_whole(const Process& process, const WalkOptions& options) {
  Sources sources(process);
  std::vector<VmaExtent> all;
  const auto result =
      translate_all(process, *sources.translator, sources.inspector, options,
                    [&](const Vma* vma, const Extent& extent) {
                      all.push_back({vma == nullptr ? 0 : vma->range.start.value, extent});
                      return true;
                    });
  if (!result) FAIL(to_string(result.error()));
  return all;
}

std::string describe(const Extent& extent, PageSize page_size) {
  std::ostringstream text;
  text << std::hex << extent.va.value << " +" << std::dec << page_size.pages(extent.bytes) << ' '
       << to_string(extent.state);
  if (extent.state == PageState::resident)
    text << " pfn=" << std::hex << extent.pfn.value << std::dec;
  if (extent.state == PageState::swapped)
    text << " type=" << unsigned{extent.swap_type} << " offset=" << extent.swap_offset;
  if (names_frame(extent))
    text << " frame=" << std::hex << extent.pfn.value << std::dec
         << " type=" << unsigned{extent.swap_type};
  if (extent.reason != Reason::none) text << " reason=" << static_cast<unsigned>(extent.reason);
  constexpr std::pair<std::uint8_t, const char*> names[] = {
      {page_bit::soft_dirty, " soft-dirty"},
      {page_bit::exclusive, " exclusive"},
      {page_bit::uffd_wp, " uffd-wp"},
      {page_bit::file, " file"},
      {page_bit::leaf_sampled, " leaf-sampled"}};
  for (const auto& [bit, name] : names) {
    if ((extent.bits & bit) != 0) text << name;
  }
  if (extent.leaf_shift != 0) text << " leaf=" << unsigned{extent.leaf_shift};
  return text.str();
}

}  // namespace vmem::test
