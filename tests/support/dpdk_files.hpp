// SPDX-License-Identifier: MIT
/// A DPDK runtime directory as tests describe it, in the layout of 22.11 on x86-64. The offsets
/// were compiled from DPDK's own headers, apart from the library's.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace vmem::test {

struct DpdkFiles {
  struct Segment {
    std::uint32_t index = 0;
    std::uint64_t iova = 0, address = 0, bytes = 2 << 20, page_size = 2 << 20;
    std::int32_t socket = 0;
  };
  struct List {
    std::string name = "memseg-2048k-0-0";
    std::uint64_t base = 0x100200000, page_size = 2 << 20, bytes = 1 << 30;
    std::int32_t socket = 0;
    std::uint32_t external = 0;
    std::vector<Segment> segments;
    std::uint32_t length() const { return static_cast<std::uint32_t>(bytes / page_size); }
  };
  struct Zone {
    std::string name;
    std::uint64_t iova = 0, address = 0, bytes = 0, page_size = 2 << 20;
    std::int32_t socket = 0;
    std::uint32_t flags = 0;
  };

  std::uint32_t magic = 19820526, version = 0x160b0b63;
  std::uint64_t config_address = 0x100000000;
  std::uint8_t dma_mask_bits = 0;
  std::vector<List> lists;
  std::vector<Zone> zones;

  /// File name to content.
  std::map<std::string, std::string> files() const {
    std::map<std::string, std::string> all;
    std::string config(25344, '\0');
    put(config, 0, magic);
    put(config, 4, version);
    put_array(config, 40, "memzone", 2560, 72);
    for (std::size_t i = 0; i < lists.size(); ++i) {
      const std::size_t at = 136 + i * 136;
      const List& list = lists[i];
      put(config, at, list.base);
      put(config, at + 8, list.page_size);
      put(config, at + 16, list.socket);
      put(config, at + 24, list.bytes);
      put(config, at + 32, list.external);
      put_array(config, at + 40, list.name, list.length(), 48);
      std::string array(std::size_t{list.length()} * 48, '\0'), mask = mask_of(list.length());
      for (const Segment& s : list.segments) {
        const std::size_t element = std::size_t{s.index} * 48;
        put(array, element, s.iova);
        put(array, element + 8, s.address);
        put(array, element + 16, s.bytes);
        put(array, element + 24, s.page_size);
        put(array, element + 32, s.socket);
        mark(mask, s.index);
      }
      all["fbarray_" + list.name] = array + mask;
    }
    put(config, 25288, config_address);
    config[25312] = static_cast<char>(dma_mask_bits);
    all["config"] = config;
    std::string array(std::size_t{2560} * 72, '\0'), mask = mask_of(2560);
    for (std::size_t i = 0; i < zones.size(); ++i) {
      const Zone& z = zones[i];
      std::memcpy(array.data() + i * 72, z.name.data(), z.name.size());
      put(array, i * 72 + 32, z.iova);
      put(array, i * 72 + 40, z.address);
      put(array, i * 72 + 48, z.bytes);
      put(array, i * 72 + 56, z.page_size);
      put(array, i * 72 + 64, z.socket);
      put(array, i * 72 + 68, z.flags);
      mark(mask, static_cast<std::uint32_t>(i));
    }
    all["fbarray_memzone"] = array + mask;
    return all;
  }

 private:
  template <class T>
  static void put(std::string& text, std::size_t at, T value) {
    std::memcpy(text.data() + at, &value, sizeof value);
  }
  static void put_array(std::string& config, std::size_t at, const std::string& name,
                        std::uint32_t length, std::uint32_t element) {
    std::memcpy(config.data() + at, name.data(), name.size());
    put(config, at + 68, length);
    put(config, at + 72, element);
  }
  static std::string mask_of(std::uint32_t length) {
    const std::uint32_t words = (length + 63) / 64;
    std::string mask(8 + std::size_t{words} * 8, '\0');
    put(mask, 0, words);
    return mask;
  }
  static void mark(std::string& mask, std::uint32_t index) {
    mask[8 + index / 8] = static_cast<char>(mask[8 + index / 8] | 1 << index % 8);
  }
};

/// One list of `count` segments, one page apart, with the IOVAs iova, iova + step, ...
inline DpdkFiles dpdk_files(std::uint32_t count, std::uint64_t iova, std::uint64_t step) {
  DpdkFiles files;
  files.lists.emplace_back();
  DpdkFiles::List& list = files.lists.back();
  for (std::uint32_t i = 0; i < count; ++i) {
    list.segments.push_back({.index = i,
                             .iova = iova + i * step,
                             .address = list.base + std::uint64_t{i} * list.page_size});
  }
  return files;
}

}  // namespace vmem::test
