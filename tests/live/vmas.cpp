// SPDX-License-Identifier: MIT
// The VMAs of live processes: the stream, the lookup by ioctl and a plain reading of the text
// say the same, for a usual process and for one with as many VMAs as the kernel allows.
#include <sys/syscall.h>

#include <random>

#include "live/children.hpp"
#include "live/oracle.hpp"
#include "support/temp_dir.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

/// Lines of maps, read in one go and taken apart by sscanf.
std::vector<Vma> plain_vmas(pid_t pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/maps");
  std::vector<Vma> all;
  std::string line;
  while (std::getline(in, line)) {
    Vma v;
    char perms[5] = "";
    int name = 0;
    const int fields = std::sscanf(line.c_str(), "%lx-%lx %4s %lx %x:%x %lu%n",
                                   &v.range.start.value, &v.range.end.value, perms, &v.offset,
                                   &v.dev_major, &v.dev_minor, &v.inode, &name);
    REQUIRE(fields == 7);
    v.readable = perms[0] == 'r';
    v.writable = perms[1] == 'w';
    v.executable = perms[2] == 'x';
    v.shared = perms[3] == 's';
    // The name begins at column 73, or after one space where the numbers reach that far.
    std::size_t at = static_cast<std::size_t>(name) + 1;
    if (at < line.size()) at = std::max<std::size_t>(at, 73);
    if (at < line.size()) v.path = line.substr(at);
    for (std::size_t n; (n = v.path.find("\\012")) != std::string::npos;)
      v.path.replace(n, 4, "\n");
    all.push_back(v);
  }
  return all;
}

void check_lookup(const Process& process, const std::vector<Vma>& vmas, std::size_t i,
                  const std::vector<PlainSmaps>& smaps) {
  const Vma& v = vmas[i];
  INFO(v.path << " " << hex(v.range.start.value));
  for (const VirtAddr inside :
       {v.range.start, v.range.start + v.range.bytes() / 2, v.range.end - 1}) {
    std::optional<PageSize> size;
    const auto found = find_vma(process, inside, &size);
    REQUIRE(found);
    REQUIRE(*found);
    CHECK(**found == v);
    if (size) CHECK(size->bytes() == smaps[i].kilobytes.at("KernelPageSize") * 1024);
  }
  if (i + 1 == vmas.size() || vmas[i + 1].range.start != v.range.end) {
    if (v.range.end.value != 0) {
      const auto after = find_vma(process, v.range.end);
      REQUIRE(after);
      CHECK_FALSE(*after);
    }
  }
}

}  // namespace

TEST_CASE("the stream, the lookup and the text agree on every VMA") {
  const KindsChild child;
  stop(child.pid());
  const Process process = process_of(child.pid());
  const auto plain = plain_vmas(child.pid());
  REQUIRE(plain.size() > 40);
  const auto smaps = plain_smaps(child.pid());
  REQUIRE(smaps.size() == plain.size());
  const auto all = read_vmas(process);
  REQUIRE(all);
  REQUIRE(all->size() == plain.size());
  for (std::size_t i = 0; i < plain.size(); ++i) {
    INFO(plain[i].path);
    CHECK((*all)[i] == plain[i]);
  }
  auto reader = VmaReader::open(process);
  REQUIRE(reader);
  Vma vma;
  std::size_t count = 0;
  for (;; ++count) {
    const auto more = reader->next(vma);
    REQUIRE(more);
    if (!*more) break;
    REQUIRE(count < plain.size());
    CHECK(vma == plain[count]);
  }
  CHECK(count == plain.size());
  for (std::size_t i = 0; i < plain.size(); ++i) check_lookup(process, plain, i, smaps);
  unsigned newlines = 0, deleted = 0;
  for (const Vma& v : *all) {
    newlines += v.path.find("line\nbreak") != std::string::npos;
    deleted += v.path.ends_with("/not (deleted)");
  }
  CHECK(newlines == 1);
  CHECK(deleted == 1);
}

TEST_CASE("60,000 VMAs: every one is read and found, and the walk is right") {
  const KindsChild child({"many-vmas"});
  for (const std::string& skip : child.skips()) return skip_or_fail("pfn", "60,000 VMAs: " + skip);
  stop(child.pid());
  const Process process = process_of(child.pid());
  const auto plain = plain_vmas(child.pid());
  REQUIRE(plain.size() > 60'000);
  const auto smaps = plain_smaps(child.pid());
  REQUIRE(smaps.size() == plain.size());
  const auto all = read_vmas(process);
  REQUIRE(all);
  CHECK(*all == plain);
  std::mt19937 random(1);
  for (int i = 0; i < 300; ++i) check_lookup(process, plain, random() % plain.size(), smaps);
  check_lookup(process, plain, 0, smaps);
  check_lookup(process, plain, plain.size() - 1, smaps);
  for (const unsigned threads : {1U, 2U}) {
    const auto before = plain_read(child.pid());
    const auto answers = library_read(process, {.threads = threads});
    const Comparison c =
        compare(before, plain_read(child.pid()), plain_smaps(child.pid()), answers);
    INFO(first_faults(c));
    CHECK(c.faults.empty());
    if (shown_pfns()) CHECK(c.resident >= 15'000);
  }
}

TEST_CASE("the lookup in the text finds what the ioctl finds") {
  const KindsChild child;
  stop(child.pid());
  const Process live = process_of(child.pid());
  // The same text as a regular file: the ioctl is refused there, and the text has to do.
  const TempDir tree;
  const std::string name = "proc/" + std::to_string(child.pid());
  for (const char* file : {"maps", "stat"}) {
    write_file(tree / (name + "/" + file), read_file("/" + name + "/" + file));
  }
  const auto root = SysRoot::open(tree.string());
  REQUIRE(root);
  const auto recorded = root->process(child.pid());
  REQUIRE(recorded);
  const auto plain = plain_vmas(child.pid());
  const auto ask = [&](VirtAddr address) {
    INFO(hex(address.value));
    const auto by_ioctl = find_vma(live, address);
    const auto by_text = find_vma(*recorded, address);
    REQUIRE(by_ioctl);
    REQUIRE(by_text);
    CHECK(by_ioctl->has_value() == by_text->has_value());
    if (*by_ioctl && *by_text) CHECK(**by_ioctl == **by_text);
  };
  for (const Vma& v : plain) {
    for (const std::uint64_t address :
         {v.range.start.value - 1, v.range.start.value, v.range.start.value + 1234,
          v.range.end.value - 1, v.range.end.value}) {
      ask({address});
    }
  }
  for (const std::uint64_t address : {std::uint64_t{0}, ~std::uint64_t{0}}) ask({address});
  const auto all = read_vmas(live);
  const auto all_recorded = read_vmas(*recorded);
  REQUIRE(all);
  REQUIRE(all_recorded);
  CHECK(*all == *all_recorded);
}

TEST_CASE("a huge page VMA's page size comes with the lookup") {
  const HugePages huge_pages;
  const KindsChild child({"hugetlb-anon"});
  for (const std::string& skip : child.skips()) return skip_or_fail("pfn", skip);
  stop(child.pid());
  const Process process = process_of(child.pid());
  std::optional<PageSize> size;
  const auto found = find_vma(process, {child.mapping("hugetlb-anon").start}, &size);
  REQUIRE(found);
  REQUIRE(*found);
  if (size) CHECK(size->bytes() == std::uint64_t{2} << 20);
  VmaInspector inspector(process);
  const auto hugetlb = inspector.hugetlb_page_size(**found);
  REQUIRE(hugetlb);
  CHECK(hugetlb->bytes() == std::uint64_t{2} << 20);
}

TEST_CASE("VmFlags are those of smaps") {
  const KindsChild child;
  stop(child.pid());
  const Process process = process_of(child.pid());
  const auto all = read_vmas(process);
  REQUIRE(all);
  const auto smaps = plain_smaps(child.pid());
  REQUIRE(smaps.size() == all->size());
  VmaInspector inspector(process);
  for (std::size_t i = 0; i < all->size(); ++i) {
    INFO((*all)[i].path);
    const auto flags = inspector.flags((*all)[i]);
    REQUIRE(flags);
    std::istringstream codes(smaps[i].flags);
    std::string text, code;
    while (codes >> code) {
      CHECK(flags->has(code));
      text += (text.empty() ? "" : " ") + code;
    }
    CHECK(flags->text() == text);
  }
}
