// SPDX-License-Identifier: MIT
#include "vmem/sysroot.hpp"

#include <unistd.h>

#include "support/catch.hpp"
#include "support/recorded.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

/// Opens a tree that holds nothing but this manifest.
Result<SysRoot> with_manifest(const TempDir& directory, const std::string& text) {
  write_file(directory / "manifest", text);
  return SysRoot::open(directory.string());
}

}  // namespace

TEST_CASE("a manifest says page size, PFN access and kernel") {
  const TempDir directory;
  const auto root = with_manifest(directory,
                                  "# comment\n\nvmem-tree 1\npage_size 65536\npfn_access "
                                  "hidden\nkernel 6.6.6-x\nsomething else\n");
  REQUIRE(root);
  CHECK(root->recorded());
  CHECK(root->page_size().bytes() == 65536);
  CHECK(root->pfn_access() == PfnAccess::hidden);
  CHECK(root->kernel_release() == "6.6.6-x");
  CHECK(with_manifest(directory, "pfn_access full\n")->pfn_access() == PfnAccess::full);
  CHECK(with_manifest(directory, "pfn_access none\n")->pfn_access() == PfnAccess::none);
  CHECK(with_manifest(directory, "page_size 16384")->page_size().bytes() == 16384);
}

TEST_CASE("a recording's list of processes is incomplete where its manifest says so") {
  const TempDir directory;
  CHECK_FALSE(with_manifest(directory, "vmem-tree 1\n")->hidden_processes());
  for (const char* const value : {"off", "noaccess"})
    CHECK_FALSE(with_manifest(directory, std::string("hidepid ") + value)->hidden_processes());
  for (const char* const value : {"invisible", "ptraceable"}) {
    const auto why = with_manifest(directory, std::string("hidepid ") + value)->hidden_processes();
    REQUIRE(why);
    CHECK(why->find("hidepid") != std::string_view::npos);
  }
  CHECK_FALSE(with_manifest(directory, "hidepid 7\n"));
}

TEST_CASE("without a manifest the page size is 4096 and PFN access unknown") {
  const TempDir directory;
  const auto root = SysRoot::open(directory.string());
  REQUIRE(root);
  CHECK(root->page_size().bytes() == 4096);
  CHECK(root->pfn_access() == PfnAccess::unknown);
  CHECK(root->kernel_release().empty());
  write_file(directory / "proc/sys/kernel/osrelease", "5.10.0\n");
  CHECK(root->kernel_release() == "5.10.0");
}

TEST_CASE("a manifest that makes no sense is an error") {
  const char* const bad[] = {
      "page_size 0\n",
      "page_size 3\n",
      "page_size 1\n",
      "page_size 2048\n",
      "page_size 4095\n",
      "page_size 4097\n",
      "page_size 12288\n",
      "page_size 9223372036854775808\n",
      "page_size 18446744073709551615\n",
      "page_size 18446744073709551616\n",
      "page_size 99999999999999999999999\n",
      "page_size -4096\n",
      "page_size +4096\n",
      "page_size 0x1000\n",
      "page_size 4096k\n",
      "page_size\n",
      "page_size \n",
      "page_size 4096 4096\n",
      "page_size 1099511627776\n",
      "page_size 4 096\n",
      "pfn_access\n",
      "pfn_access yes\n",
      "pfn_access FULL\n",
      "pfn_access full \n",
      "vmem-tree 2\n",
      "vmem-tree\n",
      "vmem-tree one\n",
  };
  for (const char* const text : bad) {
    CAPTURE(text);
    const TempDir directory;
    const auto root = with_manifest(directory, text);
    REQUIRE_FALSE(root);
    CHECK((root.error().code == Errc::malformed || root.error().code == Errc::not_supported));
    CHECK(root.error().path == directory.string() + "/manifest");
  }
  SECTION("junk of a megabyte") {
    const TempDir directory;
    CHECK_FALSE(with_manifest(directory, std::string(1 << 20, 'x')));
  }
  SECTION("junk that is not lines of key and value") {
    for (const std::string& text :
         {std::string("\0\0page_size 0\0\n", 15),
          std::string("\x7f"
                      "ELF\x02\x01\x01"),
          std::string(100, '\xff'), std::string("{\"page_size\": 4096}\n")}) {
      CAPTURE(text);
      const TempDir directory;
      CHECK_FALSE(with_manifest(directory, text));
    }
  }
}

TEST_CASE("a tree that is not there, or no directory") {
  const TempDir directory;
  const auto missing = SysRoot::open((directory / "nothing").string());
  REQUIRE_FALSE(missing);
  CHECK(missing.error().code == Errc::not_found);
  write_file(directory / "file", "x");
  const auto file = SysRoot::open((directory / "file").string());
  REQUIRE_FALSE(file);
  CHECK(file.error().path == (directory / "file").string());
  CHECK_FALSE(SysRoot::open(""));
}

TEST_CASE("a recorded process") {
  SystemModel system = one_process("1000-2000 rw-p 00000000 00:00 0 \n");
  auto& files = system.processes[0].files;
  SECTION("with maps alone") {
    files.clear();
    const Recorded tree(system);
    const Process process = tree.process(1);
    CHECK(process.pid() == 1);
    CHECK(process.comm().empty());
    CHECK_FALSE(process.start_time());
    CHECK(process.check_alive());
  }
  SECTION("comm, without stat") {
    const Recorded tree(system);
    CHECK(tree.process(1).comm() == "test");
    CHECK_FALSE(tree.process(1).start_time());
  }
  SECTION("stat, whose comm may hold anything") {
    files["stat"] = "1 (a) b (c) (d) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 5 6\n";
    const Recorded tree(system);
    CHECK(tree.process(1).comm() == "a) b (c) (d");
    CHECK(tree.process(1).start_time() == 987654);
  }
  SECTION("a kernel thread has no user memory") {
    files["stat"] = "1 (kworker/0:1) I 2 0 0 0 -1 69238880 0 0 0 0 0 0 0 0 20 0 1 0 30 0 0\n";
    const Recorded tree(system);
    const auto process = tree.root().process(1);
    REQUIRE_FALSE(process);
    CHECK(process.error().code == Errc::no_user_memory);
  }
  SECTION("nor has a zombie") {
    files["stat"] = "1 (gone) Z 2 0 0 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 30 0 0\n";
    const Recorded tree(system);
    const auto process = tree.root().process(1);
    REQUIRE_FALSE(process);
    CHECK(process.error().code == Errc::no_user_memory);
  }
  SECTION("a stat that is not one") {
    for (const char* const bad : {"", "1", "1 (x", "1 x) S", "1 (x) ", "1 (x) S 1 2 3\n",
                                  "1 )x( S 0 1 1 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 9 5 6\n",
                                  "1 (x) S 0 1 1 0 -1 zz 1 2 3 4 5 6 7 8 20 0 1 0 9 5 6\n",
                                  "1 (x) S 0 1 1 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 -9 5 6\n"}) {
      CAPTURE(bad);
      files["stat"] = bad;
      const Recorded tree(system);
      const auto process = tree.root().process(1);
      REQUIRE_FALSE(process);
      CHECK(process.error().code == Errc::malformed);
    }
  }
  SECTION("another process is no such process") {
    const Recorded tree(system);
    for (const pid_t pid : {2, 0, -1, 2147483647}) {
      CAPTURE(pid);
      const auto process = tree.root().process(pid);
      REQUIRE_FALSE(process);
      CHECK(process.error().code == Errc::no_process);
    }
  }
}

TEST_CASE("a thread's id names its process") {
  SystemModel system = one_process("1000-2000 rw-p 00000000 00:00 0 \n");
  system.processes[0].files["status"] = "Name:\ttest\nTgid:\t1\nPid:\t1\n";
  ProcessModel thread;
  thread.pid = 7;
  thread.has_pagemap = false;
  thread.files["status"] = "Name:\tworker\nTgid:\t1\nPid:\t7\n";
  system.processes.push_back(thread);
  const Recorded tree(system);
  const auto process = tree.root().process(7);
  REQUIRE(process);
  CHECK(process->pid() == 1);
  CHECK(process->comm() == "test");
  SECTION("a circle of thread groups ends") {
    write_file(tree.directory() / "proc/1/status", "Name:\ttest\nTgid:\t7\n");
    (void)tree.root().process(7);
    (void)tree.root().process(1);
  }
}

TEST_CASE("processes by name, and self") {
  SystemModel system = one_process("1000-2000 rw-p 00000000 00:00 0 \n");
  for (const auto& [pid, comm] : {std::pair{30, "b"}, {4, "a"}, {200, "a"}, {9, "aa"}}) {
    ProcessModel process = system.processes[0];
    process.pid = pid;
    process.files["comm"] = std::string(comm) + "\n";
    system.processes.push_back(process);
  }
  ProcessModel newline = system.processes[0];
  newline.pid = 11;
  newline.files["comm"] = "a\nb\n";
  system.processes.push_back(newline);
  system.links["proc/self"] = "30";
  const Recorded tree(system);
  CHECK(tree.root().find_by_comm("a") == std::vector<pid_t>{4, 200});
  CHECK(tree.root().find_by_comm("b") == std::vector<pid_t>{30});
  CHECK(tree.root().find_by_comm("a\nb") == std::vector<pid_t>{11});
  CHECK(tree.root().find_by_comm("nobody")->empty());
  CHECK(tree.root().find_by_comm("")->empty());
  const auto self = tree.root().self();
  REQUIRE(self);
  CHECK(self->pid() == 30);
  for (const char* const target : {"self", "", "0", "-1", "99999999999", "30x", "../proc/30"}) {
    CAPTURE(target);
    std::filesystem::remove(tree.directory() / "proc/self");
    if (*target == '\0') continue;
    std::filesystem::create_symlink(target, tree.directory() / "proc/self");
    CHECK_FALSE(tree.root().self());
  }
}

TEST_CASE("files have a limit, and messages their path") {
  SystemModel system = one_process("1000-2000 rw-p 00000000 00:00 0 \n");
  system.files["proc/ten"] = "0123456789";
  const Recorded tree(system);
  CHECK(tree.root().read_file("proc/ten") == "0123456789");
  CHECK(tree.root().read_file("proc/ten", 10) == "0123456789");
  const auto too_large = tree.root().read_file("proc/ten", 9);
  REQUIRE_FALSE(too_large);
  CHECK(too_large.error().code == Errc::malformed);
  CHECK(too_large.error().path == tree.directory().string() + "/proc/ten");
  const auto missing = tree.root().read_file("proc/none");
  REQUIRE_FALSE(missing);
  CHECK(missing.error().code == Errc::not_found);
  CHECK(tree.process(1).path("maps") == tree.directory().string() + "/proc/1/maps");
}

TEST_CASE("the live system") {
  const auto root = SysRoot::live();
  REQUIRE(root);
  CHECK_FALSE(root->recorded());
  CHECK(root->page_size().bytes() == static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE)));
  CHECK_FALSE(root->kernel_release().empty());
  const auto self = root->self();
  REQUIRE(self);
  CHECK(self->pid() == getpid());
  CHECK(self->start_time());
  CHECK(self->check_alive());
  CHECK(self->path("maps") == "/proc/" + std::to_string(getpid()) + "/maps");
}
