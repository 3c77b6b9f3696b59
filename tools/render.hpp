// SPDX-License-Identifier: MIT
/// What every tool's output shares: a checked stdout, sizes, names, JSON strings, colour.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#define FMT_HEADER_ONLY 1
#include <fmt/format.h>

namespace vmem::tools {

// Rows are many and short: these append digits as they are made, which takes a tenth of
// what a format string does.
void append_hex(std::string& text, std::uint64_t value);  ///< "0x…"
void append_decimal(std::string& text, std::uint64_t value);

/// Standard output, written in whole lines: what an interrupt leaves behind is intact.
class Output {
 public:
  /// `interrupted`: whether a write that a signal broke off is to be left so.
  explicit Output(bool (*interrupted)()) : interrupted_(interrupted) {}

  template <class... Args>
  void print(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(buffer_), format, std::forward<Args>(args)...);
  }
  void append(std::string_view text) { buffer_.append(text); }
  void hex(std::uint64_t value) { append_hex(buffer_, value); }
  void decimal(std::uint64_t value) { append_decimal(buffer_, value); }
  void pad(std::size_t spaces) { buffer_.append(spaces, ' '); }
  /// What is not written yet, for those who append to it themselves.
  std::string& text() { return buffer_; }

  /// Ends a line; writes when enough has come together. False once writing has failed.
  bool end_line();
  /// Within a line that has no bound (a JSON document): writes when enough has come together.
  bool relieve();
  void flush();

  bool failed() const { return error_ != 0; }
  int error() const { return error_; }  ///< errno of the first failed write

 private:
  bool (*interrupted_)();
  std::string buffer_;
  int error_ = 0;
};

/// "4.0K", "2.0M", or plain bytes.
void append_size(std::string& text, std::uint64_t bytes, bool plain);
std::string human_size(std::uint64_t bytes, bool plain);

/// A name for a terminal: control characters, marks of direction and what is no UTF-8 as \n or
/// \xNN and a backslash as \\, so that a file's name cannot steer the terminal or break the table.
std::string printable(std::string_view name);
void append_printable(std::string& text, std::string_view name);

/// A quoted JSON string, which no terminal obeys either: DEL, C1 controls and marks of direction
/// are written as \uNNNN, like the controls that JSON asks for. What is not UTF-8 becomes U+FFFD.
std::string json_string(std::string_view text);

/// "key":"text", and for a text that is not UTF-8, which no JSON string can hold,
/// ,"key_bytes":"636f66ff" besides: each byte by two hexadecimal digits.
std::string json_name(std::string_view key, std::string_view text);

/// Whether to colour, by --color=`when`, NO_COLOR (https://no-color.org) and the terminal.
bool use_color(std::string_view when);

}  // namespace vmem::tools
