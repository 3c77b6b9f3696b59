// SPDX-License-Identifier: MIT
/// Text files of /proc as a stream of whole lines.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "errors.hpp"
#include "vmem/sysroot.hpp"

namespace vmem {

/// Each chunk is what one read(2) returned, cut at its last newline: on the live system
/// that is what the kernel wrote at one moment (seq_file hands out whole lines, 4 KiB or
/// one longer line at a time, whatever the buffer).
class LineChunks {
 public:
  LineChunks(Fd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}

  /// The next whole lines, valid until the next call; empty at the end. The last line of
  /// a file may lack its newline.
  Result<std::string_view> next() {
    if (!buffer_) buffer_ = std::make_unique_for_overwrite<char[]>(capacity);
    std::memmove(buffer_.get(), buffer_.get() + used_, filled_ - used_);
    offset_ += used_;
    filled_ -= used_;
    used_ = 0;
    for (;;) {
      const ssize_t n = ::read(fd_.get(), buffer_.get() + filled_, capacity - filled_);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) {
        Error error = make_error(errno, "reading", path_);
        if (error.os_errno == ESRCH) error.code = Errc::process_changed;
        return std::unexpected(std::move(error));
      }
      const std::size_t old = filled_;
      filled_ += static_cast<std::size_t>(n);
      if (n == 0) {
        used_ = filled_;
        break;
      }
      if (const void* newline = memrchr(buffer_.get() + old, '\n', filled_ - old)) {
        used_ = static_cast<std::size_t>(static_cast<const char*>(newline) - buffer_.get()) + 1;
        break;
      }
      // No line the kernel writes is this long: four times PATH_MAX, all escaped.
      if (filled_ == capacity) return fail(Errc::malformed, "reading (line too long)", path_);
    }
    return std::string_view(buffer_.get(), used_);
  }

  /// File offset of the chunk that next() returned last.
  std::uint64_t offset() const { return offset_; }
  /// Number of the line that begins at the file offset `at`, from 1. For messages: it reads the
  /// file again, from where it was last asked to on.
  std::uint64_t line_at(std::uint64_t at) {
    if (at < known_offset_) known_offset_ = known_lines_ = 0;
    char piece[4096];
    while (known_offset_ < at) {
      const auto wanted =
          static_cast<std::size_t>(std::min<std::uint64_t>(at - known_offset_, sizeof piece));
      const ssize_t n = ::pread(fd_.get(), piece, wanted, static_cast<off_t>(known_offset_));
      if (n <= 0) break;
      known_lines_ += static_cast<std::uint64_t>(std::count(piece, piece + n, '\n'));
      known_offset_ += static_cast<std::uint64_t>(n);
    }
    return known_lines_ + 1;
  }
  const std::string& path() const { return path_; }

 private:
  static constexpr std::size_t capacity = 64 << 10;
  Fd fd_;
  std::string path_;
  std::unique_ptr<char[]> buffer_;
  std::size_t used_ = 0;
  std::size_t filled_ = 0;
  std::uint64_t offset_ = 0;
  std::uint64_t known_offset_ = 0;  ///< so far line_at() has counted known_lines_
  std::uint64_t known_lines_ = 0;
};

/// Cuts off what stands before the first `end`, and that; all of `text` where there is none.
inline std::string_view take_until(std::string_view& text, char end) {
  const std::size_t at = text.find(end);
  const std::string_view taken = text.substr(0, at);
  text.remove_prefix(at == std::string_view::npos ? text.size() : at + 1);
  return taken;
}

/// Cuts the first line off `text`, without its newline.
inline std::string_view take_line(std::string_view& text) { return take_until(text, '\n'); }

}  // namespace vmem
