// SPDX-License-Identifier: MIT
/// A walk must not allocate for each page, extent or VMA. This file counts every
/// allocation of the whole program.
#include <atomic>
#include <cstdlib>
#include <new>

#include "support/catch.hpp"
#include "support/recorded.hpp"

// The thread sanitizer has operators of its own, which cannot be replaced; it tells of each
// allocation instead.
#if defined(__SANITIZE_THREAD__)
#define VMEM_ALLOCATION_HOOK 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define VMEM_ALLOCATION_HOOK 1
#endif
#endif

namespace {

std::atomic<std::uint64_t> allocations{0};
std::atomic<std::uint64_t> allocated_bytes{0};

void count(std::size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  allocated_bytes.fetch_add(size, std::memory_order_relaxed);
}

}  // namespace

#ifdef VMEM_ALLOCATION_HOOK
#include <sanitizer/allocator_interface.h>
namespace {
const int hooks = __sanitizer_install_malloc_and_free_hooks(
    [](const volatile void*, std::size_t size) { count(size); }, [](const volatile void*) {});
}  // namespace
#else
namespace {
void* counted(std::size_t size) {
  count(size);
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc{};
}
}  // namespace

void* operator new(std::size_t size) { return counted(size); }
void* operator new[](std::size_t size) { return counted(size); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  count(size);
  return std::malloc(size == 0 ? 1 : size);
}
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  count(size);
  return std::malloc(size == 0 ? 1 : size);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
#endif

using namespace vmem;
using namespace vmem::test;

namespace {

struct Cost {
  std::uint64_t allocations, bytes;
};

template <class F>
Cost cost_of(F&& work) {
  const std::uint64_t count = allocations, bytes = allocated_bytes;
  work();
  return {allocations - count, allocated_bytes - bytes};
}

constexpr std::uint64_t base = 0x7f0000000000;

/// `pages` pages of which every one is an extent of its own.
SystemModel scattered(std::uint64_t pages) {
  char line[80];
  std::snprintf(line, sizeof line, "%llx-%llx rw-p 00000000 00:00 0 \n",
                static_cast<unsigned long long>(base),
                static_cast<unsigned long long>(base + pages * 4096));
  return one_process(line, {{base, pages, entry::present | (pages * 3), ~std::uint64_t{0}}});
}

struct Walked {
  Cost walk, translate;
  std::uint64_t extents = 0;
};

Walked walk(const SystemModel& system, std::uint64_t pages, const WalkOptions& options) {
  const Recorded tree(system);
  const Process process = tree.process(1);
  auto translator = open_translator(process, Backend::pagemap);
  REQUIRE(translator);
  const VaRange range{{base}, {base + pages * 4096}};
  Walked walked{};
  bool good = true;
  walked.walk = cost_of([&] {
    good = (*translator)
               ->walk(range, options,
                      [&](const Extent&) {
                        ++walked.extents;
                        return true;
                      })
               .has_value();
  });
  REQUIRE(good);
  VmaInspector inspector(process);
  walked.translate = cost_of([&] {
    good =
        translate(process, **translator, inspector, range, options, [](const Vma*, const Extent&) {
          return true;
        }).has_value();
  });
  REQUIRE(good);
  return walked;
}

}  // namespace

TEST_CASE("the counter counts") {
#ifdef VMEM_ALLOCATION_HOOK
  REQUIRE(hooks != 0);
#endif
  // Through a volatile, or the compiler may leave the pair out.
  CHECK(cost_of([] {
          int* volatile made = new int;
          delete made;
        }).allocations == 1);
  CHECK(cost_of([] { std::string(1000, 'x').clear(); }).bytes >= 1000);
  CHECK(cost_of([] {}).allocations == 0);
}

TEST_CASE("allocations of a walk do not grow with its length") {
  for (const WalkOptions options :
       {WalkOptions{1, false}, WalkOptions{1, true}, WalkOptions{2, false}}) {
    CAPTURE(options.threads);
    const Walked small = walk(scattered(20'000), 20'000, options);
    const Walked large = walk(scattered(2'000'000), 2'000'000, options);
    REQUIRE(small.extents == 20'000);
    REQUIRE(large.extents == 2'000'000);
    CHECK(small.walk.allocations < 30);
    CHECK(small.translate.allocations < 100);
    // A second thread costs a fixed amount, and joins in only where a walk is long.
    const std::uint64_t thread = options.threads == 1 ? 0 : 60;
    CHECK(large.walk.allocations <= small.walk.allocations + thread);
    CHECK(large.translate.allocations <= small.translate.allocations + thread);
    // Neither may a single allocation grow: 64 MB of extents would pass unseen otherwise.
    CHECK(large.walk.bytes < 4 << 20);
    CHECK(large.translate.bytes < 4 << 20);
  }
}

TEST_CASE("allocations of a stream of VMAs do not grow with their number") {
  const auto cost = [](int count) {
    std::string maps;
    for (int i = 0; i < count; ++i) {
      char line[120];
      std::snprintf(
          line, sizeof line,
          "%llx-%llx r--p 00000000 fe:00 %d                   /usr/lib/some/library.so\n",
          static_cast<unsigned long long>(base + static_cast<unsigned>(i) * 0x2000ULL),
          static_cast<unsigned long long>(base + static_cast<unsigned>(i) * 0x2000ULL + 0x1000),
          i + 1);
      maps += line;
    }
    const Recorded tree(one_process(maps));
    const Process process = tree.process(1);
    int seen = 0;
    const Cost result = cost_of([&] {
      auto reader = VmaReader::open(process);
      Vma vma;
      while (reader) {
        const auto more = reader->next(vma);
        if (!more || !*more) break;
        ++seen;
      }
    });
    REQUIRE(seen == count);
    return result;
  };
  const Cost small = cost(100), large = cost(100'000);
  CHECK(large.allocations <= small.allocations + 2);
  CHECK(large.bytes < 1 << 20);
}
