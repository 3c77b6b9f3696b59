// SPDX-License-Identifier: MIT
/// How vtop shows translations: a table, a block for one address, or JSON. All of them
/// streams: nothing is held but the line being made.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "render.hpp"
#include "vmem/frames.hpp"
#include "vmem/pages.hpp"
#include "vmem/physmap.hpp"

namespace vmem::tools {

/// What is known of a run of frames (--frames).
struct FrameView {
  FrameFacts facts;
  std::optional<unsigned> node;
  const std::string* region = nullptr;  ///< of /proc/iomem
};

/// One extent to show, with its VMA.
struct Row {
  const Vma* vma = nullptr;
  Extent extent;
  VirtAddr shown;                    ///< the address asked for; extent.va for a run
  const FrameView* frame = nullptr;  ///< null: not asked for, or no frame
  const PageWalk* walk = nullptr;    ///< of a single address through page tables
  bool every_level = false;  ///< of the walk, and where its tables lie: --walk alone asks
  /// Translator::vm_ops(); null: not known, or not asked for.
  const std::string* vm_ops = nullptr;
  const std::string* device = nullptr;  ///< of a device-private page; null: not told
};

enum class Column : std::uint8_t {
  va,
  end,
  size,
  state,
  pa,
  pfn,
  leaf,
  bits,
  swap,
  pte,
  cache,
  backend,
  perms,
  offset,
  dev,
  inode,
  vma_class,
  kind,
  flags,
  mapcount,
  memcg,
  node,
  region,
  vmflags,
  name,
  reason,
};

/// The columns named; the error is the name that is none.
std::expected<std::vector<Column>, std::string> parse_columns(std::string_view names);
/// "va,end,size,…": for messages and --help.
std::string column_names();
std::vector<Column> default_columns(bool frames);
/// Whether one of them is a fact of frames.
bool needs_frames(const std::vector<Column>& columns);
/// Whether one of them is the bits that pagemap alone tells.
bool needs_bits(const std::vector<Column>& columns);

/// Looks up what a VMA's line does not say, once per VMA.
class VmaDetails {
 public:
  explicit VmaDetails(VmaInspector& inspector) : inspector_(inspector) {}
  Classification classification(const Vma& vma);
  const std::optional<VmFlags>& flags(const Vma& vma);
  void forget() { vma_.reset(); }
  /// Whether VMAs are asked about in the order of a walk. Out of order, smaps is read from
  /// its beginning for each: then it is left alone if many VMAs lie before.
  void in_order(bool yes) { most_ = yes ? SIZE_MAX : 4096; }

 private:
  void turn_to(const Vma& vma);
  VmaInspector& inspector_;
  std::optional<Vma> vma_;
  std::optional<Classification> classification_;
  std::optional<std::optional<VmFlags>> flags_;
  std::size_t most_ = SIZE_MAX;
};

class Table {
 public:
  Table(Output& out, VmaDetails& details, PageSize page_size, std::vector<Column> columns,
        bool bytes, bool color)
      : out_(out),
        details_(details),
        page_size_(page_size),
        columns_(std::move(columns)),
        bytes_(bytes),
        color_(color) {}
  void heading();
  bool row(const Row& row);
  /// One address as lines of "key value".
  bool block(const Row& row);
  /// The entry of each level (--walk).
  bool walk(const PageWalk& walk);

 private:
  std::string cell(Column column, const Row& row);
  void write_cell(Column column, const Row& row, std::string& text);
  Output& out_;
  VmaDetails& details_;
  PageSize page_size_;
  std::vector<Column> columns_;
  bool bytes_;
  bool color_;
};

class JsonResults {
 public:
  /// `prologue`: the document's first members, without the closing brace. `lines`: false
  /// keeps the document on one line.
  JsonResults(Output& out, VmaDetails& details, PageSize page_size, bool lines)
      : out_(out), details_(details), page_size_(page_size), lines_(lines) {}
  void begin(std::string_view prologue, const Process& process);
  bool row(const Row& row);
  /// `error`: what kept the document from being complete, or empty.
  void end(std::string_view error);

 private:
  void group(const Row& row);
  /// An extent's members from "leaf_size" on.
  void tail(const Row& row);
  void entry(const Row& row);
  void pte(const Row& row);
  void newline();
  Output& out_;
  VmaDetails& details_;
  PageSize page_size_;
  bool lines_;
  bool any_group_ = false;
  bool any_extent_ = false;
  std::optional<Vma> vma_;  ///< of the open group
  /// What plain extents had lately: pages that are there and pages that are not alternate.
  struct Tail {
    std::optional<std::tuple<std::uint8_t, std::uint8_t, std::uint16_t, Backend>> of;
    std::string text;
  };
  std::array<Tail, 4> tails_;
  std::size_t oldest_tail_ = 0;
};

}  // namespace vmem::tools
