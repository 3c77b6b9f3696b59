// SPDX-License-Identifier: MIT
/// The address space in a terminal: one cell for each block, its letter the class that has most
/// there, in upper case where half of the block or more is mapped. Wide gaps are cut out.
#include <algorithm>
#include <array>
#include <bit>

#include "vmastat_output.hpp"
#include "vmastat_report.hpp"

namespace vmem::tools {
namespace {

constexpr std::uint64_t most_lines = 40;
constexpr unsigned margin = 16;  ///< the address before a line
constexpr std::size_t classes = 5;
constexpr std::string_view letters = "fadhs";
constexpr std::array<std::string_view, classes> names = {"file", "anonymous", "device", "hugepage",
                                                         "special"};
constexpr std::array<std::string_view, classes> colors = {"\033[34m", "\033[32m", "\033[33m",
                                                          "\033[36m", "\033[35m"};

struct Cell {
  std::array<std::uint64_t, classes> mapped{};
  std::array<std::uint64_t, classes> size{};
  bool known = true;
};

/// Mappings without a wide gap between them, in whole lines.
struct Area {
  VaRange range;
  std::size_t first = 0;  ///< cell
  std::size_t cells = 0;
};

class Map final : public StatReport {
 public:
  Map(Output& out, const SysRoot& root, unsigned width, bool color)
      : out_(out),
        page_size_(root.page_size()),
        columns_(std::bit_floor(std::clamp(width, margin + 16, 1024U) - margin - 2)),
        color_(color) {}

  void begin(const Process& process) override {
    title_ = fmt::format("{} {}", process.pid(), printable(process.comm()));
    areas_.clear();
    cells_.clear();
    plan(process);
  }

  void extent(const Vma& vma, const Extent& extent) override {
    const bool resident = extent.state == PageState::resident || extent.state == PageState::hidden;
    if (!(last_ == vma.range)) {
      last_ = vma.range;
      pending_.clear();
    }
    // The class is told with the sums, after the extents.
    if (resident || extent.state == PageState::unseen) pending_.push_back(extent);
    if (pending_.size() == 4096) coarsen();
  }

  void vma(const VmaStats& stats) override {
    const auto c = static_cast<std::size_t>(stats.classification.vma_class);
    spread(stats.vma.range, [&](Cell& cell, std::uint64_t bytes) { cell.size[c] += bytes; });
    for (const Extent& e : pending_) {
      spread({e.va, e.end()}, [&](Cell& cell, std::uint64_t bytes) {
        if (e.state == PageState::unseen)
          cell.known = false;
        else
          cell.mapped[c] += bytes;
      });
    }
    for (auto& [index, bytes] : coarse_) cells_[index].mapped[c] += bytes;
    coarse_.clear();
    pending_.clear();
  }

  void end(const MemorySums& sums, bool) override {
    out_.print("{}: {} in {} mappings, {} mapped; a cell is {}, a line {}", title_,
               human_size(sums.size, false), sums.vmas, human_size(sums.mapped(), false),
               shift_label(shift_), shift_label(shift_ + line_shift()));
    out_.end_line();
    VirtAddr before{0};
    for (const Area& area : areas_) {
      if (before.value != 0) {
        out_.print("{:>{}}  ... {} without a mapping ...", "", margin - 2,
                   human_size(area.range.start - before, false));
        out_.end_line();
      }
      lines(area);
      before = area.range.end;
    }
    legend();
  }

  void finish(std::size_t) override {}

 private:
  unsigned line_shift() const { return static_cast<unsigned>(std::countr_zero(columns_)); }

  /// Chooses the block so that all areas fit, and lays them out. Gaps wider than a line are cut.
  void plan(const Process& process) {
    for (shift_ = page_size_.shift(); shift_ < 56; ++shift_) {
      areas_.clear();
      std::uint64_t count = 0;
      if (!lay_out(process, count)) return;
      // Each area has a line of its own at least, and one for the gap.
      if (count <= most_lines || count <= 2 * areas_.size()) break;
    }
    std::size_t cells = 0;
    for (Area& area : areas_) {
      area.first = cells;
      area.cells = static_cast<std::size_t>((area.range.bytes() - 1) >> shift_) + 1;
      cells += area.cells;
    }
    cells_.resize(cells);
  }

  bool lay_out(const Process& process, std::uint64_t& lines) {
    auto reader = VmaReader::open(process);
    if (!reader) return false;
    const std::uint64_t line = std::uint64_t{columns_} << shift_;
    Vma vma;
    for (auto more = reader->next(vma); more && *more; more = reader->next(vma)) {
      const VirtAddr start{vma.range.start.value & ~(line - 1)};
      if (areas_.empty() || start.value > areas_.back().range.end.value + line)
        areas_.push_back({.range = {start, vma.range.end}});
      areas_.back().range.end = std::max(areas_.back().range.end, vma.range.end);
    }
    for (const Area& area : areas_) lines += (area.range.bytes() - 1) / line + 1;
    lines += areas_.empty() ? 0 : areas_.size() - 1;
    return true;
  }

  template <class Add>
  void spread(VaRange range, Add add) {
    for (const Area& area : areas_) {
      const VaRange part = intersect(area.range, range);
      if (part.empty()) continue;
      const std::uint64_t block = std::uint64_t{1} << shift_;
      for (VirtAddr at = part.start; at < part.end;) {
        const std::uint64_t offset = at - area.range.start;
        const std::uint64_t bytes = std::min(block - (offset & (block - 1)), part.end - at);
        add(cells_[area.first + static_cast<std::size_t>(offset >> shift_)], bytes);
        at = at + bytes;
      }
    }
  }

  /// Extents that wait for their class become bytes of cells, so that they do not pile up.
  void coarsen() {
    for (const Extent& e : pending_) {
      spread({e.va, e.end()}, [&](Cell& cell, std::uint64_t bytes) {
        const auto index = static_cast<std::size_t>(&cell - cells_.data());
        if (e.state == PageState::unseen)
          cell.known = false;
        else if (!coarse_.empty() && coarse_.back().first == index)
          coarse_.back().second += bytes;
        else
          coarse_.emplace_back(index, bytes);
      });
    }
    pending_.clear();
  }

  void lines(const Area& area) {
    for (std::size_t i = 0; i < area.cells; i += columns_) {
      out_.print("{:>{}x}  ", area.range.start.value + (std::uint64_t{i} << shift_), margin - 2);
      std::string_view color;
      for (std::size_t j = i; j < std::min(area.cells, i + columns_); ++j) {
        const Cell& cell = cells_[area.first + j];
        std::uint64_t mapped = 0, size = 0;
        std::size_t most = 0;
        for (std::size_t c = 0; c < classes; ++c) {
          mapped += cell.mapped[c];
          size += cell.size[c];
          if (std::pair(cell.mapped[c], cell.size[c]) >
              std::pair(cell.mapped[most], cell.size[most]))
            most = c;
        }
        char text = ' ';
        if (size != 0) text = cell.known ? '.' : '?';
        if (mapped != 0)
          text = mapped * 2 >= size ? static_cast<char>(letters[most] - 'a' + 'A') : letters[most];
        const std::string_view wanted = color_ && size != 0 ? colors[most] : std::string_view{};
        if (wanted != color) {
          out_.append("\033[0m");
          out_.append(wanted);
          color = wanted;
        }
        out_.append({&text, 1});
      }
      if (!color.empty()) out_.append("\033[0m");
      if (!out_.end_line()) return;
    }
  }

  void legend() {
    out_.append("legend:");
    for (std::size_t c = 0; c < classes; ++c) {
      if (color_) out_.append(colors[c]);
      out_.print(" {}", letters[c]);
      if (color_) out_.append("\033[0m");
      out_.print(" {}", names[c]);
    }
    out_.append(
        "; upper case: half or more is mapped; . nothing mapped yet; ? not seen; blank: no "
        "mapping");
    out_.end_line();
  }

  Output& out_;
  PageSize page_size_;
  std::size_t columns_;  ///< cells in a line, a power of two
  bool color_;
  unsigned shift_ = 12;  ///< log2 of a cell's bytes
  std::string title_;
  std::vector<Area> areas_;
  std::vector<Cell> cells_;
  VaRange last_;
  std::vector<Extent> pending_;
  std::vector<std::pair<std::size_t, std::uint64_t>> coarse_;
};

}  // namespace

std::unique_ptr<StatReport> map_report(Output& out, const SysRoot& root, unsigned width,
                                       bool color) {
  return std::make_unique<Map>(out, root, width, color);
}

}  // namespace vmem::tools
