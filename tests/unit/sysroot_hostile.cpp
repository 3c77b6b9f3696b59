// SPDX-License-Identifier: MIT
/// A recorded tree may come from anybody: it must neither lead out of itself nor block,
/// nor crash what reads it.
#include <fcntl.h>
#include <grp.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <functional>

#include "support/catch.hpp"
#include "support/recorded.hpp"
#include "support/require.hpp"
#include "vmem/frames.hpp"
#include "vmem/physmap.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

constexpr const char* secret_maps = "5000-6000 rw-p 00000000 00:00 0 [heap]\n";

/// A directory outside the tree, which no link in the tree may lead to.
struct Outside {
  Outside() {
    write_file(directory / "maps", secret_maps);
    write_file(directory / "manifest", "page_size 65536\n");
    write_file(directory / "1/maps", secret_maps);
  }
  TempDir directory;
};

SystemModel plain() {
  return one_process("1000-2000 rw-p 00000000 00:00 0 \n", {{0x1000, 1, entry::present | 5, 1}});
}

void replace_by_link(const std::filesystem::path& path, const std::string& target) {
  std::filesystem::remove_all(path);
  std::filesystem::create_symlink(target, path);
}

/// Ends the test program if `work` blocks: the test must not hang.
void without_blocking(const std::function<void()>& work) {
  alarm(20);
  work();
  alarm(0);
}

bool maps_lead_out(const Recorded& tree) {
  const auto process = tree.root().process(1);
  if (!process) return false;
  const auto vmas = read_vmas(*process);
  return vmas && !vmas->empty() && vmas->front().path == "[heap]";
}

}  // namespace

TEST_CASE("symbolic links do not lead out of a tree") {
  const Outside outside;
  const std::string out = outside.directory.string();
  const std::string up = "../../../../../../../.." + out;
  const auto check = [&](const std::string& path, const std::string& target) {
    CAPTURE(path, target);
    const Recorded tree(plain());
    replace_by_link(tree.directory() / path, target);
    CHECK_FALSE(maps_lead_out(tree));
  };
  check("proc/1/maps", out + "/maps");
  check("proc/1/maps", up + "/maps");
  check("proc/1", out);
  check("proc/1", up);
  check("proc", out);
  check("proc", up);
  SECTION("a manifest") {
    const TempDir directory;
    std::filesystem::create_symlink(out + "/manifest", directory / "manifest");
    const auto root = SysRoot::open(directory.string());
    if (root) CHECK(root->page_size().bytes() == 4096);
  }
  SECTION("self") {
    // The link itself is read through proc, which may be a link too.
    const TempDir directory;
    std::filesystem::create_symlink("/proc", directory / "proc");
    const auto root = SysRoot::open(directory.string());
    REQUIRE(root);
    CHECK_FALSE(root->self());
    CHECK_FALSE(root->read_link("proc/self"));
    CHECK_FALSE(root->read_file("proc/self/maps"));
    CHECK_FALSE(root->process(getpid()));
    CHECK_FALSE(root->list("proc"));
  }
  SECTION("directories") {
    const TempDir directory;
    std::filesystem::create_directories(directory / "sys/bus/pci/devices");
    std::filesystem::create_symlink("/", directory / "sys/bus/pci/devices/0000:00:01.0");
    std::filesystem::create_symlink(out, directory / "x");
    const auto root = SysRoot::open(directory.string());
    REQUIRE(root);
    CHECK_FALSE(root->list("x"));
    CHECK_FALSE(root->list("../x"));
    CHECK_FALSE(root->read_file((up + "/maps").c_str()));
    (void)read_pci_bars(*root);
  }
  SECTION("a link that stays inside is followed") {
    const Recorded tree(plain());
    std::filesystem::rename(tree.directory() / "proc/1/maps", tree.directory() / "proc/1/kept");
    replace_by_link(tree.directory() / "proc/1/maps", "kept");
    const auto vmas = read_vmas(tree.process(1));
    REQUIRE(vmas);
    CHECK(vmas->size() == 1);
  }
  SECTION("a loop of links ends") {
    const Recorded tree(plain());
    replace_by_link(tree.directory() / "proc/1/maps", "maps");
    CHECK_FALSE(read_vmas(tree.process(1)));
  }
}

TEST_CASE("only regular files are opened: a FIFO does not block, a device is not read") {
  without_blocking([] {
    for (const char* const name :
         {"maps", "pagemap", "smaps", "stat", "comm", "mountinfo", "status"}) {
      CAPTURE(name);
      const Recorded tree(plain());
      const auto path = tree.directory() / "proc/1" / name;
      std::filesystem::remove(path);
      REQUIRE(mkfifo(path.c_str(), 0644) == 0);
      const auto process = tree.root().process(1);
      if (!process) continue;
      (void)read_vmas(*process);
      (void)find_vma(*process, {0x1000});
      auto translator = open_translator(*process);
      VmaInspector inspector(*process);
      if (translator) (void)translate(*process, **translator, inspector, VirtAddr{0x1000});
      if (std::string(name) == "maps") CHECK_FALSE(read_vmas(*process));
      if (std::string(name) == "pagemap") CHECK_FALSE(translator);
    }
    for (const char* const name : {"kpageflags", "iomem", "kpagecount"}) {
      const Recorded tree(plain());
      REQUIRE(mkfifo((tree.directory() / "proc" / name).c_str(), 0644) == 0);
      CHECK_FALSE(FrameReader::open(tree.root()));
      CHECK_FALSE(Iomem::read(tree.root()));
    }
    const TempDir directory;
    REQUIRE(mkfifo((directory / "manifest").c_str(), 0644) == 0);
    CHECK_FALSE(SysRoot::open(directory.string()));
  });
  if (geteuid() != 0) return;
  const Recorded tree(plain());
  const auto path = tree.directory() / "proc/1/maps";
  std::filesystem::remove(path);
  if (mknod(path.c_str(), S_IFCHR | 0644, static_cast<dev_t>((1 << 8) | 5)) != 0)
    return;  // /dev/zero
  CHECK_FALSE(read_vmas(tree.process(1)));
}

TEST_CASE("a directory in place of a file, and a file in place of a directory") {
  for (const char* const name :
       {"proc/1/maps", "proc/1/pagemap", "proc/1/stat", "proc/1/smaps", "proc/iomem"}) {
    CAPTURE(name);
    const Recorded tree(plain());
    std::filesystem::remove(tree.directory() / name);
    std::filesystem::create_directory(tree.directory() / name);
    CHECK_FALSE(tree.root().read_file(name));
  }
  const TempDir directory;
  std::filesystem::create_directory(directory / "manifest");
  CHECK_FALSE(SysRoot::open(directory.string()));
  const Recorded tree(plain());
  std::filesystem::remove_all(tree.directory() / "proc/1");
  write_file(tree.directory() / "proc/1", "x");
  CHECK_FALSE(tree.root().process(1));
  CHECK_FALSE(tree.root().list("proc/1"));
}

TEST_CASE("a tree that this user may not read is a permission error") {
  if (geteuid() != 0) return skip_or_fail("real", "needs root to become another user");
  const Recorded tree(plain());
  const std::string path = tree.directory().string();
  const auto locked = [&](const char* name) {
    std::filesystem::permissions(tree.directory() / name, std::filesystem::perms::none);
    int result[2];
    REQUIRE(pipe(result) == 0);
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      unsigned char code = 255;
      if (setgroups(0, nullptr) == 0 && setresgid(65534, 65534, 65534) == 0 &&
          setresuid(65534, 65534, 65534) == 0) {
        const auto root = SysRoot::open(path);
        code = 254;
        if (!root) {
          code = static_cast<unsigned char>(root.error().code);
        } else if (const auto process = root->process(1); !process) {
          code = static_cast<unsigned char>(process.error().code);
        } else if (const auto vmas = read_vmas(*process); !vmas) {
          code = static_cast<unsigned char>(vmas.error().code);
        } else if (const auto translator = open_translator(*process); !translator) {
          code = static_cast<unsigned char>(translator.error().code);
        }
      }
      (void)!write(result[1], &code, 1);
      _exit(0);
    }
    close(result[1]);
    unsigned char code = 0;
    CHECK(read(result[0], &code, 1) == 1);
    close(result[0]);
    waitpid(child, nullptr, 0);
    std::filesystem::permissions(tree.directory() / name,
                                 static_cast<std::filesystem::perms>(0755));
    return static_cast<Errc>(code);
  };
  for (const char* const name :
       {"", "manifest", "proc", "proc/1", "proc/1/maps", "proc/1/pagemap"}) {
    CAPTURE(name);
    CHECK(locked(name) == Errc::permission);
  }
}

TEST_CASE("names of processes that are no names") {
  SystemModel system = plain();
  system.files["proc/0x1/comm"] = "test\n";
  system.files["proc/1a/comm"] = "test\n";
  system.files["proc/99999999999999999999/comm"] = "test\n";
  system.files["proc/4294967297/comm"] = "test\n";
  system.files["proc/-1/comm"] = "test\n";
  const Recorded tree(system);
  const auto found = tree.root().find_by_comm("test");
  REQUIRE(found);
  CHECK(*found == std::vector<pid_t>{1});
}
