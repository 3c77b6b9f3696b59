// SPDX-License-Identifier: MIT
// What leads to the direct map: /proc/kcore, /proc/kpageflags and /proc/kallsyms, from files made
// here.
#include "support/catch.hpp"
#include "vmem/pages.hpp"
#if VMEM_BPF
#include <elf.h>
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "bpf_program.hpp"
#include "direct_map.hpp"
#include "support/recorded.hpp"
#include "support/temp_dir.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

constexpr std::uint64_t base = 0xffff9a8040000000;

Fd file_of(const TempDir& directory, const std::string& content) {
  const std::string path = directory.path() / "file";
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  REQUIRE(fd >= 0);
  REQUIRE(pwrite(fd, content.data(), content.size(), 0) == static_cast<ssize_t>(content.size()));
  return Fd{fd};
}

template <class T>
void append(std::string& to, const T& value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof value);
}

Elf64_Phdr load(std::uint64_t va, std::uint64_t pa) {
  Elf64_Phdr segment{};
  segment.p_type = PT_LOAD;
  segment.p_vaddr = va;
  segment.p_paddr = pa;
  segment.p_filesz = segment.p_memsz = 0x1000;
  return segment;
}

std::string kcore_of(const std::vector<Elf64_Phdr>& segments, const std::string& notes) {
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_phoff = sizeof header;
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = static_cast<Elf64_Half>(segments.size() + 1);
  Elf64_Phdr note{};
  note.p_type = PT_NOTE;
  note.p_offset = sizeof header + header.e_phnum * sizeof(Elf64_Phdr);
  note.p_filesz = notes.size();
  std::string file;
  append(file, header);
  append(file, note);
  for (const Elf64_Phdr& segment : segments) append(file, segment);
  return file + notes;
}

}  // namespace

TEST_CASE("kcore: the base of what it maps as RAM, not of its text and not of vmalloc") {
  const TempDir directory;
  const std::vector<Elf64_Phdr> segments = {load(0xffffffff81000000, 0x1000000),          // text
                                            load(0xffffc90000000000, ~std::uint64_t{0}),  // vmalloc
                                            load(base + 0x1000, 0x1000),
                                            load(base + 0x100000000, 0x100000000)};
  const Fd plain = file_of(directory, kcore_of(segments, "VMCOREINFO OSRELEASE=6.1\n"));
  const auto kcore = read_kcore(plain);
  REQUIRE(kcore);
  CHECK(kcore->bases == std::vector<std::uint64_t>{base});
  CHECK_FALSE(kcore->encryption_mask);
  const Fd sme = file_of(
      directory, kcore_of(segments, "OSRELEASE=6.1\nNUMBER(sme_mask)=140737488355328\nX=1\n"));
  const auto encrypted = read_kcore(sme);
  REQUIRE(encrypted);
  CHECK(encrypted->encryption_mask == std::uint64_t{1} << 47);
}

TEST_CASE("kcore: what is cut off or no core file is malformed") {
  const TempDir directory;
  const std::string whole = kcore_of({load(base, 0)}, "");
  for (const std::size_t bytes : {0U, 3U, 63U, 64U, 119U, 175U}) {
    INFO(bytes);
    const auto kcore = read_kcore(file_of(directory, whole.substr(0, bytes)));
    REQUIRE_FALSE(kcore);
    CHECK(kcore.error().code == Errc::malformed);
  }
  CHECK(read_kcore(file_of(directory, whole)));
  std::string other = whole;
  other[1] = 'X';
  CHECK_FALSE(read_kcore(file_of(directory, other)));
}

TEST_CASE("calibration: only a base by which every object lies in a slab") {
  const TempDir directory;
  constexpr std::uint64_t gib = std::uint64_t{1} << 30, slab = 1 << 7, anon = 1 << 12;
  const std::vector<PaRange> ram = {{{0}, {3 * gib}}, {{4 * gib}, {6 * gib}}};
  std::vector<std::uint64_t> flags(6 * gib / 4096, anon);
  std::vector<std::uint64_t> pointers;
  for (std::uint64_t i = 0; i < 8; ++i) {
    const std::uint64_t pa = 4 * gib + i * 0x12345000 % (2 * gib);
    flags[pa / 4096] |= slab;
    pointers.push_back(base + pa + 0x40);
  }
  pointers.push_back(0xffffffff82a10980);  // init_task is no slab object
  const auto file = [&] {
    return file_of(directory, std::string(reinterpret_cast<const char*>(flags.data()),
                                          flags.size() * sizeof flags[0]));
  };
  CHECK(calibrate(file(), ram, pointers) == std::vector<std::uint64_t>{base});
  // Another base by which it is so, too: both are told, and the proof decides.
  for (std::size_t i = 0; i < 8; ++i) flags[(pointers[i] - base - 2 * gib) / 4096] |= slab;
  CHECK(calibrate(file(), ram, pointers) ==
        std::vector<std::uint64_t>{base});  // part of it is no RAM
  for (std::size_t i = 0; i < 8; ++i) flags[(pointers[i] - base - 4 * gib) / 4096] |= slab;
  CHECK(calibrate(file(), ram, pointers) == std::vector<std::uint64_t>{base + 4 * gib, base});
  flags[(pointers[3] - base) / 4096] = anon;
  CHECK(calibrate(file(), ram, pointers) == std::vector<std::uint64_t>{base + 4 * gib});
  CHECK(calibrate(file(), ram, {pointers[0], pointers[1], pointers[8]}).empty());
  CHECK(calibrate(file(), {}, pointers).empty());
}

TEST_CASE("kallsyms: a symbol by its whole name, unless it is hidden") {
  const std::string text =
      "ffffffff82a00ff8 d old_page_offset_base\n"
      "ffffffff82a01000 D page_offset_base\n"
      "ffffffff82a01008 D page_offset_base_2\n";
  CHECK(find_symbol(text, "page_offset_base") == 0xffffffff82a01000);
  CHECK(find_symbol(text, "page_offset_base_2") == 0xffffffff82a01008);
  CHECK_FALSE(find_symbol(text, "page_offset"));
  CHECK_FALSE(find_symbol("0000000000000000 D page_offset_base\n", "page_offset_base"));
  CHECK_FALSE(find_symbol("", "page_offset_base"));
  CHECK(find_symbol("ffffffff82a01000 D page_offset_base", "page_offset_base") ==
        0xffffffff82a01000);
}

TEST_CASE("kallsyms: the symbol of an address, to the bit") {
  const std::string text =
      "ffffffff82a00ff8 d before_vm_ops\n"
      "ffffffff82a01000 d special_mapping_vmops\n"
      "ffffffffc0801000 r uio_physical_vm_ops\t[uio]\n"
      "0000000000000000 d hidden";
  CHECK(symbol_at(text, 0xffffffff82a00ff8) == "before_vm_ops");
  CHECK(symbol_at(text, 0xffffffff82a01000) == "special_mapping_vmops");
  CHECK(symbol_at(text, 0xffffffffc0801000) == "uio_physical_vm_ops [uio]");
  for (const std::uint64_t none : {0xffffffff82a01001, 0xffffffff82a00fff, 0xffffffffU + 0UL, 0UL})
    CHECK(symbol_at(text, none).empty());
  CHECK(symbol_at("ffffffff82a01000", 0xffffffff82a01000).empty());
  CHECK(symbol_at("ffffffff82a01000 ", 0xffffffff82a01000).empty());
}

TEST_CASE("why the kernel refused the program") {
  const auto why = [](const std::string& lockdown, const char* jit, bool btf, int os_errno) {
    const Recorded tree(one_process("1000-2000 rw-p 00000000 00:00 0 \n"));
    const auto write = [&](const std::string& path, const std::string& text) {
      const auto file = tree.directory() / path;
      std::filesystem::create_directories(file.parent_path());
      std::ofstream(file) << text;
    };
    write("sys/kernel/security/lockdown", lockdown);
    write("proc/sys/net/core/bpf_jit_enable", jit);
    if (btf) write("sys/kernel/btf/vmlinux", "BTF");
    return why_not_loaded(tree.process(1).root(), os_errno);
  };
  const auto is = [](const Error& e, Errc code, const char* part) {
    INFO(to_string(e) << ": " << e.hint);
    return e.code == code && std::string_view(e.hint).find(part) != std::string_view::npos;
  };
  const std::string off = "[none] integrity confidentiality\n";
  // Lockdown answers EINVAL or EPERM, and is what counts.
  for (const int code : {EINVAL, EPERM}) {
    CHECK(is(why("none integrity [confidentiality]\n", "1\n", true, code), Errc::permission,
             "locked down"));
  }
  CHECK(is(why("none [integrity] confidentiality\n", "1\n", true, EPERM), Errc::permission,
           "CAP_BPF"));
  CHECK(is(why(off, "1\n", true, EACCES), Errc::permission, "CAP_BPF"));
  CHECK(is(why(off, "0\n", true, EINVAL), Errc::not_supported, "bpf_jit_enable"));
  CHECK(is(why(off, "1\n", false, EINVAL), Errc::not_supported, "BTF"));
  CHECK(is(why(off, "1\n", true, EINVAL), Errc::not_supported, "6.1"));
  CHECK(is(why(off, "1\n", true, ENOSYS), Errc::not_supported, "without BPF"));
}
#else
TEST_CASE("a build without BPF says so") {
  const auto root = vmem::SysRoot::live();
  REQUIRE(root);
  const auto self = root->self();
  REQUIRE(self);
  const auto translator = vmem::open_translator(*self, vmem::Backend::bpf);
  REQUIRE_FALSE(translator);
  CHECK(translator.error().code == vmem::Errc::not_supported);
  CHECK(translator.error().hint != nullptr);
}
#endif
