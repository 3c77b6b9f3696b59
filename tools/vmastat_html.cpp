// SPDX-License-Identifier: MIT
/// The report: a page that carries its data as columns of numbers in base 36, runs of equal numbers
/// folded, so that 60,000 mappings stay below 2 MB. No bytes of a name reach the page as markup.
#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <map>
#include <unordered_map>

#include "vmastat_output.hpp"
#include "vmastat_report.hpp"

namespace vmem::tools {
namespace {

constexpr std::string_view page =
#include "vmastat_page.inc"
    ;
constexpr std::string_view data_mark = "/*DATA*/null";

/// Points of the scatter plot at most: beyond, neighbours become one.
constexpr std::size_t most_points = 16384;
/// Distinct names that are kept whole; their bytes in all.
constexpr std::size_t most_name_bytes = 400'000;

constexpr std::size_t classes = 5;

/// Numbers in base 36, separated by spaces; "V*N" stands for N equal ones; "-" is unknown.
class Numbers {
 public:
  void add(std::optional<std::uint64_t> value) {
    if (count_ != 0 && value == last_) {
      ++count_;
      return;
    }
    close();
    last_ = value;
    count_ = 1;
  }
  std::string take() {
    close();
    count_ = 0;
    return std::move(text_);
  }

 private:
  void digits(std::uint64_t value) {
    char buffer[16];
    text_.append(buffer, std::to_chars(buffer, buffer + sizeof buffer, value, 36).ptr);
  }
  void close() {
    if (count_ == 0) return;
    if (!text_.empty()) text_ += ' ';
    if (last_)
      digits(*last_);
    else
      text_ += '-';
    if (count_ == 1) return;
    text_ += '*';
    digits(count_);
  }
  std::string text_;
  std::optional<std::uint64_t> last_;
  std::uint64_t count_ = 0;
};

struct Point {
  std::uint64_t page = 0, pfn = 0, pages = 0;
  VmaClass vma_class = VmaClass::special;
};

/// A JSON string that is safe within <script>.
std::string script_string(std::string_view text) {
  const std::string json = json_string(text);
  std::string safe;
  safe.reserve(json.size());
  for (std::size_t i = 0; i < json.size(); ++i) {
    if (json[i] == '<') {
      safe += "\\u003c";
    } else if (json.compare(i, 3, "\xe2\x80\xa8") == 0 || json.compare(i, 3, "\xe2\x80\xa9") == 0) {
      safe += json[i + 2] == '\xa8' ? "\\u2028" : "\\u2029";
      i += 2;
    } else {
      safe += json[i];
    }
  }
  return safe;
}

class Html final : public StatReport {
 public:
  Html(std::string& html, const SysRoot& root)
      : html_(html), page_size_(root.page_size()), kernel_(root.kernel_release()) {}

  void begin(const Process& process) override {
    pid_ = process.pid();
    comm_ = process.comm();
    columns_ = {};
    names_.clear();
    name_list_.clear();
    points_.clear();
    coarse_ = 0;
    pending_ = 0;
    end_ = 0;
  }

  void extent(const Vma&, const Extent& e) override {
    if (e.state != PageState::resident) return;
    add_point({.page = e.va.value >> page_size_.shift(),
               .pfn = e.pfn.value,
               .pages = page_size_.pages(e.bytes)});
  }

  void vma(const VmaStats& stats) override {
    const MemorySums& s = stats.sums;
    const Vma& vma = stats.vma;
    // The class of its points is known only now.
    for (std::size_t i = pending_; i < points_.size(); ++i)
      points_[i].vma_class = stats.classification.vma_class;
    pending_ = points_.size();
    const std::uint64_t start = vma.range.start.value >> page_size_.shift();
    const auto pages = [&](std::uint64_t bytes, std::uint32_t needs) {
      return s.known(needs) ? std::optional(page_size_.pages(bytes)) : std::nullopt;
    };
    const std::array<std::optional<std::uint64_t>, column_count> values = {
        start - end_,
        page_size_.pages(vma.range.bytes()),
        static_cast<std::uint64_t>(stats.classification.vma_class),
        static_cast<std::uint64_t>(stats.classification.kind),
        (vma.readable ? 1U : 0U) | (vma.writable ? 2U : 0U) | (vma.executable ? 4U : 0U) |
            (vma.shared ? 8U : 0U),
        name_index(vma.path),
        pages(s.rss, unknown_sum::rss),
        s.known(unknown_sum::pss) ? std::optional(s.pss()) : std::nullopt,
        pages(s.uss, unknown_sum::uss),
        pages(s.swap, unknown_sum::swap),
        pages(s.hugetlb, unknown_sum::hugetlb),
        pages(s.device, unknown_sum::device),
        s.known(unknown_sum::extents) ? std::optional(s.extents) : std::nullopt,
        pages(s.largest_extent, unknown_sum::extents)};
    for (std::size_t i = 0; i < column_count; ++i) columns_[i].add(values[i]);
    end_ = vma.range.end.value >> page_size_.shift();
  }

  void end(const MemorySums& sums, bool whole) override {
    std::string& t = processes_;
    if (!t.empty()) t += ",\n";
    t += fmt::format(R"({{"pid":{},"comm":{},"note":{},"size":{},"mapped":)", pid_,
                     script_string(printable(comm_)),
                     whole ? "null" : "\"it ended or changed while it was read\"", sums.size);
    if (sums.known(unknown_sum::rss | unknown_sum::device | unknown_sum::hugetlb))
      append_decimal(t, sums.mapped());
    else
      t += "null";
    t += ",\n\"cols\":{";
    for (std::size_t i = 0; i < column_count; ++i)
      t += fmt::format("{}\"{}\":\"{}\"", i != 0 ? "," : "", column_names[i], columns_[i].take());
    t += "},\n\"names\":[";
    for (const std::string& name : name_list_) {
      if (&name != name_list_.data()) t += ',';
      t += script_string(printable(name));
    }
    t += "],\n\"runs\":";
    if (sums.known(unknown_sum::extents)) {
      t += '[';
      for (const auto& [shift, count] : sums.runs.entries())
        t += fmt::format("{}[{},{}]", t.back() == '[' ? "" : ",", shift, count);
      t += ']';
    } else {
      t += "null";
    }
    write_points(t);
    t += '}';
  }

  void finish(std::size_t) override {
    std::string data = fmt::format(R"({{"page":{},"kernel":{},"classes":[)", page_size_.bytes(),
                                   script_string(kernel_.empty() ? "unknown" : kernel_));
    for (std::size_t c = 0; c < classes; ++c)
      data += fmt::format("{}\"{}\"", c != 0 ? "," : "", to_string(static_cast<VmaClass>(c)));
    data += "],\"kinds\":[";
    for (std::size_t k = 0; k <= static_cast<std::size_t>(VmaKind::unknown); ++k)
      data += fmt::format("{}\"{}\"", k != 0 ? "," : "", to_string(static_cast<VmaKind>(k)));
    data += "],\n\"processes\":[\n" + processes_ + "]}";
    const std::size_t at = page.find(data_mark);
    html_.append(page.substr(0, at)).append(data).append(page.substr(at + data_mark.size()));
  }

 private:
  static constexpr std::size_t column_count = 14;
  static constexpr std::array<std::string_view, column_count> column_names = {
      "gap", "size", "cls",  "kind",    "perms",  "name",    "rss",
      "pss", "uss",  "swap", "hugetlb", "device", "extents", "largest"};

  std::uint64_t name_index(const std::string& name) {
    const auto [at, added] = names_.try_emplace(name, name_list_.size());
    if (!added) return at->second;
    if (name_bytes_ > most_name_bytes) {
      names_.erase(at);
      const auto [rest, first] = names_.try_emplace("(another)", name_list_.size());
      if (first) name_list_.emplace_back("(another)");
      return rest->second;
    }
    name_bytes_ += name.size();
    name_list_.push_back(name);
    return name_list_.size() - 1;
  }

  /// Points that fall into one square of the grid are one; the grid grows until they are few.
  void add_point(Point p) {
    const auto same = [&](const Point& a, const Point& b) {
      return a.page >> coarse_ == b.page >> coarse_ && a.pfn >> coarse_ == b.pfn >> coarse_;
    };
    if (coarse_ != 0 && points_.size() > pending_ && same(points_.back(), p)) return;
    points_.push_back(p);
    if (points_.size() < 2 * most_points) return;
    while (points_.size() > most_points && coarse_ < 48) {
      coarse_ += coarse_ == 0 ? 3 : 1;
      thin_out();
    }
  }

  void thin_out() {
    struct Square {
      std::uint64_t page, pfn;
      bool operator==(const Square&) const = default;
    };
    struct Hash {
      std::size_t operator()(const Square& s) const {
        return s.page * 0x9e3779b97f4a7c15ULL ^ (s.pfn * 0xff51afd7ed558ccdULL >> 7);
      }
    };
    std::unordered_map<Square, std::size_t, Hash> seen;
    std::vector<Point> kept;
    std::size_t settled = 0;
    for (std::size_t i = 0; i < points_.size(); ++i) {
      const Point& p = points_[i];
      if (i == pending_) settled = kept.size();
      const auto [at, added] =
          seen.try_emplace(Square{p.page >> coarse_, p.pfn >> coarse_}, kept.size());
      if (added)
        kept.push_back(p);
      else
        kept[at->second].pages = std::max(kept[at->second].pages, p.pages);
    }
    if (pending_ >= points_.size()) settled = kept.size();
    pending_ = settled;
    points_ = std::move(kept);
  }

  void write_points(std::string& t) {
    Numbers va, pfn, pages, cls;
    std::uint64_t last = 0;
    for (const Point& p : points_) {
      va.add(p.page - last);
      last = p.page;
      pfn.add(p.pfn);
      pages.add(std::max<std::uint64_t>(p.pages, std::uint64_t{1} << coarse_));
      cls.add(static_cast<std::uint64_t>(p.vma_class));
    }
    t += fmt::format(
        ",\n\"coarse\":{},\"points\":{{\"va\":\"{}\",\"pfn\":\"{}\",\"pages\":\"{}\",\"cls\":\"{}"
        "\"}}",
        coarse_ != 0 ? std::uint64_t{1} << coarse_ : 0, va.take(), pfn.take(), pages.take(),
        cls.take());
  }

  std::string& html_;
  const PageSize page_size_;
  const std::string kernel_;
  std::string processes_;  ///< JSON of those that are done
  pid_t pid_ = 0;
  std::string comm_;
  std::array<Numbers, column_count> columns_;
  std::uint64_t end_ = 0;  ///< page after the last VMA
  std::unordered_map<std::string, std::uint64_t> names_;
  std::vector<std::string> name_list_;
  std::size_t name_bytes_ = 0;
  std::vector<Point> points_;
  std::size_t pending_ = 0;  ///< the first point whose class is not known yet
  unsigned coarse_ = 0;  ///< log2 of the grid's pages
};

}  // namespace

std::unique_ptr<StatReport> html_report(std::string& html, const SysRoot& root) {
  return std::make_unique<Html>(html, root);
}

}  // namespace vmem::tools
