// SPDX-License-Identifier: MIT
/// Reads the text form of a system: tests/fixtures/README.md.
#include <array>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "support/system_model.hpp"
#include "support/temp_dir.hpp"

namespace vmem::test {
namespace {

namespace fs = std::filesystem;

/// One line of words, with its place for messages.
struct Line {
  std::string place;
  std::vector<std::string> words;
  [[noreturn]] void fail(const std::string& why) const {
    throw std::runtime_error(place + ": " + why);
  }
};

std::vector<Line> lines_of(const fs::path& path) {
  std::vector<Line> lines;
  std::istringstream text(read_file(path));
  std::string raw;
  for (int number = 1; std::getline(text, raw); ++number) {
    Line line{path.string() + ":" + std::to_string(number), {}};
    std::istringstream words(raw.substr(0, raw.find('#')));
    for (std::string word; words >> word;) line.words.push_back(word);
    if (!line.words.empty()) lines.push_back(std::move(line));
  }
  return lines;
}

std::uint64_t number(const Line& line, const std::string& text, int base = 0) {
  std::size_t used = 0;
  std::uint64_t value = 0;
  try {
    value = std::stoull(text, &used, base);
  } catch (const std::exception&) {
    used = 0;
  }
  if (used == 0 || used != text.size() || text[0] == '-') line.fail("not a number: " + text);
  return value;
}

/// "key=value" with this key: the value.
std::optional<std::string> value_of(const std::string& word, std::string_view key) {
  if (!word.starts_with(key) || word.size() <= key.size() || word[key.size()] != '=') return {};
  return word.substr(key.size() + 1);
}

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> names;
  std::istringstream text(list);
  for (std::string name; std::getline(text, name, ',');) names.push_back(name);
  return names;
}

std::uint64_t entry_bits(const Line& line, const std::string& list) {
  constexpr std::array<std::pair<std::string_view, std::uint64_t>, 5> known{
      {{"soft-dirty", entry::soft_dirty},
       {"exclusive", entry::exclusive},
       {"uffd-wp", entry::uffd_wp},
       {"file", entry::file},
       {"guard", entry::guard}}};
  std::uint64_t bits = 0;
  for (const std::string& name : split(list)) {
    bool found = false;
    for (const auto& [known_name, bit] : known) {
      if (name == known_name) bits |= bit, found = true;
    }
    if (!found) line.fail("no such pagemap bit: " + name);
  }
  return bits;
}

/// VA PAGES ENTRY [same] [bits=...]
EntryRun parse_run(const Line& line) {
  const auto& w = line.words;
  if (w.size() < 3) line.fail("want: VA PAGES ENTRY");
  EntryRun run{.va = number(line, w[0], 16), .pages = number(line, w[1]), .first = 0, .step = 0};
  std::size_t next = 3;
  if (const auto pfn = value_of(w[2], "pfn")) {
    run.first = entry::present | number(line, *pfn);
    run.step = 1;
  } else if (w[2] == "hidden") {
    run.first = entry::present;
  } else if (w[2] == "swap") {
    if (w.size() < 5) line.fail("want: swap TYPE OFFSET");
    run.first = entry::swapped(number(line, w[3]), number(line, w[4]));
    run.step = entry::swap_step;
    next = 5;
  } else if (w[2] == "swap-hidden") {
    run.first = entry::swap;
  } else if (w[2] == "guard") {
    run.first = entry::guard_page;
  } else if (w[2] == "empty") {
    run.first = 0;
  } else {
    run.first = number(line, w[2]);
    if ((run.first & entry::present) != 0 && (run.first & (entry::soft_dirty - 1)) != 0)
      run.step = 1;
  }
  for (; next < w.size(); ++next) {
    if (const auto bits = value_of(w[next], "bits"))
      run.first |= entry_bits(line, *bits);
    else if (w[next] == "same")
      run.step = 0;
    else
      line.fail("unexpected: " + w[next]);
  }
  return run;
}

constexpr std::array<std::string_view, 43> frame_flags{"locked",
                                                       "error",
                                                       "referenced",
                                                       "uptodate",
                                                       "dirty",
                                                       "lru",
                                                       "active",
                                                       "slab",
                                                       "writeback",
                                                       "reclaim",
                                                       "buddy",
                                                       "mmap",
                                                       "anon",
                                                       "swapcache",
                                                       "swapbacked",
                                                       "compound_head",
                                                       "compound_tail",
                                                       "huge",
                                                       "unevictable",
                                                       "hwpoison",
                                                       "nopage",
                                                       "ksm",
                                                       "thp",
                                                       "offline",
                                                       "zero_page",
                                                       "idle",
                                                       "pgtable",
                                                       "",
                                                       "",
                                                       "",
                                                       "",
                                                       "",
                                                       "reserved",
                                                       "mlocked",
                                                       "owner_2",
                                                       "private",
                                                       "private_2",
                                                       "owner_private",
                                                       "arch",
                                                       "uncached",
                                                       "softdirty",
                                                       "arch_2",
                                                       "arch_3"};

std::uint64_t flag_bits(const Line& line, const std::string& list) {
  if (list.starts_with("0x")) return number(line, list);
  std::uint64_t bits = 0;
  for (const std::string& name : split(list)) {
    bool found = false;
    for (std::size_t bit = 0; bit < frame_flags.size(); ++bit) {
      if (name == frame_flags[bit]) bits |= 1ULL << bit, found = true;
    }
    if (name.starts_with("bit")) bits |= 1ULL << number(line, name.substr(3), 10), found = true;
    if (!found) line.fail("no such frame flag: " + name);
  }
  return bits;
}

/// FIRST FRAMES [flags=...] [mapcount=N] [memcg=N]
FrameRun parse_frames(const Line& line) {
  if (line.words.size() < 3) line.fail("want: FIRST FRAMES FACTS");
  FrameRun run{.first = number(line, line.words[0]),
               .frames = number(line, line.words[1]),
               .flags = {},
               .mapcount = {},
               .memcg = {}};
  for (std::size_t i = 2; i < line.words.size(); ++i) {
    const std::string& word = line.words[i];
    if (const auto flags = value_of(word, "flags"))
      run.flags = flag_bits(line, *flags);
    else if (const auto count = value_of(word, "mapcount"))
      run.mapcount = number(line, *count);
    else if (const auto inode = value_of(word, "memcg"))
      run.memcg = number(line, *inode);
    else
      line.fail("unexpected: " + word);
  }
  return run;
}

ProcessModel load_process(const fs::path& folder, int pid) {
  ProcessModel process{.pid = pid,
                       .maps = read_file(folder / "maps"),
                       .entries = {},
                       .pagemap_bytes = {},
                       .has_pagemap = false,
                       .files = {}};
  if (!fs::exists(folder / "extents")) {
    // no page facts
  } else if (std::string text = read_file(folder / "extents"); text.starts_with("vmem-extents ")) {
    process.files["extents"] = std::move(text);
  } else {
    process.has_pagemap = true;
    for (const Line& line : lines_of(folder / "extents")) {
      if (line.words[0] == "bytes" && line.words.size() == 2)
        process.pagemap_bytes = number(line, line.words[1]);
      else
        process.entries.push_back(parse_run(line));
    }
  }
  for (const auto& file : fs::recursive_directory_iterator(folder)) {
    const std::string name = file.path().lexically_relative(folder).string();
    if (file.is_regular_file() && name != "maps" && name != "extents") {
      process.files[name] = read_file(file.path());
    }
  }
  return process;
}

}  // namespace

SystemModel load_fixture(const fs::path& fixture) {
  if (!fs::is_directory(fixture)) throw std::runtime_error("no such fixture: " + fixture.string());
  SystemModel system;
  if (fs::exists(fixture / "manifest")) {
    system.manifest = read_file(fixture / "manifest");
    for (const Line& line : lines_of(fixture / "manifest")) {
      if (line.words[0] == "page_size" && line.words.size() == 2)
        system.page_size = number(line, line.words[1]);
    }
  }
  for (const auto& file : fs::directory_iterator(fixture)) {
    const std::string name = file.path().filename().string();
    if (!name.empty() && name.find_first_not_of("0123456789") == std::string::npos) {
      system.processes.push_back(load_process(file.path(), std::stoi(name)));
    }
  }
  if (fs::exists(fixture / "frames")) {
    for (const Line& line : lines_of(fixture / "frames")) {
      if (line.words[0] == "end" && line.words.size() == 2)
        system.frames_end = number(line, line.words[1]);
      else
        system.frames.push_back(parse_frames(line));
    }
  }
  if (fs::exists(fixture / "iomem")) system.files["proc/iomem"] = read_file(fixture / "iomem");
  for (const char* const top : {"proc", "sys"}) {
    if (!fs::exists(fixture / top)) continue;
    for (const auto& file : fs::recursive_directory_iterator(fixture / top)) {
      const std::string name = file.path().lexically_relative(fixture).string();
      if (file.is_symlink())
        system.links[name] = fs::read_symlink(file.path()).string();
      else if (file.is_regular_file())
        system.files[name] = read_file(file.path());
    }
  }
  return system;
}

fs::path fixtures_folder() {
  if (const char* named = std::getenv("VMEM_FIXTURES"); named != nullptr && *named != '\0')
    return named;
  return VMEM_FIXTURES_PATH;
}

}  // namespace vmem::test
