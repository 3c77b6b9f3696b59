// SPDX-License-Identifier: MIT
/// The fixture format itself, and that every fixture of this repository opens.
#include <sys/stat.h>

#include "support/catch.hpp"
#include "support/recorded.hpp"
#include "vmem/frames.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

std::uint64_t word_at(const std::filesystem::path& file, std::uint64_t index) {
  const std::string text = read_file(file);
  std::uint64_t word = 0;
  if ((index + 1) * 8 > text.size()) FAIL("beyond the end of " << file);
  for (unsigned byte = 8; byte-- > 0;)
    word = word << 8 | static_cast<unsigned char>(text[index * 8 + byte]);
  return word;
}

/// A fixture of one process with these extents.
std::filesystem::path fixture_with(const TempDir& directory, const std::string& extents) {
  write_file(directory / "manifest", "vmem-tree 1\npage_size 4096\npfn_access full\n");
  write_file(directory / "5/maps", "1000-9000 rw-p 00000000 00:00 0 \n");
  write_file(directory / "5/extents", extents);
  return directory.path();
}

}  // namespace

TEST_CASE("entries of a fixture") {
  const TempDir source, tree;
  write_tree(
      load_fixture(fixture_with(source,
                                "# comment\n\n1000 2 pfn=0x10 bits=exclusive,file # trailing\n3000 "
                                "1 swap 3 7 bits=soft-dirty\n4000 1 hidden\n"
                                "5000 1 guard\n6000 2 0x8000000000000020\n8000 1 pfn=9 same\n")),
      tree.path());
  const auto pagemap = tree / "proc/5/pagemap";
  const std::uint64_t expected[] = {0,
                                    0xa100000000000010,
                                    0xa100000000000011,
                                    0x40800000000000e3,
                                    0x8000000000000000,
                                    0x440000000000009f,
                                    0x8000000000000020,
                                    0x8000000000000021,
                                    0x8000000000000009};
  for (std::size_t i = 0; i < std::size(expected); ++i) CHECK(word_at(pagemap, i) == expected[i]);
  CHECK(std::filesystem::file_size(pagemap) == 9 * 8);
  CHECK(read_file(tree / "manifest").starts_with("vmem-tree 1"));
}

TEST_CASE("a fixture that is not well formed is refused with its line") {
  for (const char* const bad :
       {"1000\n", "1000 2\n", "xyz 1 pfn=1\n", "1000 x pfn=1\n", "1000 1 pfn=\n", "1000 1 pfn=zz\n",
        "1000 1 frame=1\n", "1000 1 swap 1\n", "1000 1 pfn=1 bits=sticky\n", "1000 1 pfn=1 more\n",
        "1000 -1 pfn=1\n"}) {
    CAPTURE(bad);
    const TempDir source;
    try {
      (void)load_fixture(fixture_with(source, std::string("# first line\n") + bad));
      FAIL("accepted");
    } catch (const std::runtime_error& error) {
      CHECK(std::string(error.what()).find("extents:2: ") != std::string::npos);
    }
  }
  CHECK_THROWS(load_fixture("/nonexistent"));
}

TEST_CASE("a tree of 16 TiB stays small on disk") {
  const TempDir tree;
  write_tree(load_fixture(fixtures_folder() / "sparse-16t"), tree.path());
  std::uintmax_t apparent = 0, used = 0;
  for (const auto& file : std::filesystem::recursive_directory_iterator(tree.path())) {
    if (!file.is_regular_file()) continue;
    apparent += file.file_size();
    struct stat info{};
    REQUIRE(stat(file.path().c_str(), &info) == 0);
    used += static_cast<std::uintmax_t>(info.st_blocks) * 512;
  }
  CHECK(apparent > std::uintmax_t{32} << 30);
  CHECK(used < 4 << 20);
}

TEST_CASE("every fixture opens, and every process in it has VMAs") {
  int fixtures = 0;
  for (const auto& folder : std::filesystem::directory_iterator(fixtures_folder())) {
    if (!folder.is_directory()) continue;
    CAPTURE(folder.path());
    ++fixtures;
    const SystemModel system = load_fixture(folder.path());
    const Recorded tree(system);
    CHECK_FALSE(tree.root().kernel_release().empty());
    CHECK_FALSE(system.processes.empty());
    for (const ProcessModel& model : system.processes) {
      const Process process = tree.process(model.pid);
      CHECK_FALSE(process.comm().empty());
      const auto vmas = read_vmas(process);
      REQUIRE(vmas);
      CHECK_FALSE(vmas->empty());
    }
  }
  CHECK(fixtures >= 8);
}

TEST_CASE("the captured machine: every frame that is mapped has its facts") {
  const Recorded tree("x86-64");
  const Process process = tree.process(1042);
  auto reader = FrameReader::open(tree.root());
  REQUIRE(reader);
  int pages = 0;
  for (const VmaExtent& e : translate_whole(process)) {
    if (e.extent.state != PageState::resident) continue;
    REQUIRE(reader->read(e.extent.pfn, e.extent.bytes / 4096,
                         [&](Pfn, std::uint64_t frames, const FrameFacts& facts) {
                           pages += static_cast<int>(frames);
                           CHECK(facts.known == 7);
                           CHECK(facts.mapcount >= 1);
                           return true;
                         }));
  }
  CHECK(pages > 300);
  CHECK(tree.root().self()->pid() == 1042);
}
