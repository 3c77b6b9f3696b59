// SPDX-License-Identifier: MIT
#include "render.hpp"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <nlohmann/json.hpp>

namespace vmem::tools {

bool Output::end_line() {
  buffer_.push_back('\n');
  return relieve();
}

bool Output::relieve() {
  if (buffer_.size() >= (48 << 10)) flush();
  return error_ == 0;
}

void Output::flush() {
  const char* p = buffer_.data();
  std::size_t left = buffer_.size();
  while (left != 0 && error_ == 0) {
    std::size_t count = left;
    if (interrupted_()) {
      // No write may block any more: a pipe that polls writable takes PIPE_BUF bytes.
      pollfd writable{.fd = STDOUT_FILENO, .events = POLLOUT, .revents = 0};
      if (poll(&writable, 1, 0) != 1) {
        error_ = EINTR;
        break;
      }
      count = std::min<std::size_t>(count, PIPE_BUF);
    }
    const ssize_t n = write(STDOUT_FILENO, p, count);
    if (n < 0) {
      if (errno != EINTR) error_ = errno;
      continue;
    }
    p += n;
    left -= static_cast<std::size_t>(n);
  }
  buffer_.clear();
}

void append_hex(std::string& text, std::uint64_t value) {
  char digits[16];
  const auto end = std::to_chars(digits, digits + sizeof digits, value, 16).ptr;
  text.append("0x").append(digits, end);
}

void append_decimal(std::string& text, std::uint64_t value) {
  char digits[20];
  const auto end = std::to_chars(digits, digits + sizeof digits, value).ptr;
  text.append(digits, end);
}

void append_size(std::string& text, std::uint64_t bytes, bool plain) {
  if (plain || bytes < 1024) {
    append_decimal(text, bytes);
    return;
  }
  constexpr std::string_view units = "KMGTPE";
  std::size_t unit = 0;
  std::uint64_t scale = 1024;
  while (unit + 1 < units.size() && bytes / scale >= 1024) {
    scale <<= 10;
    ++unit;
  }
  // Tenths, cut and not rounded: 1023.99M must not read as 1024.0M.
  append_decimal(text, bytes / scale);
  text += '.';
  append_decimal(text, (bytes % scale) / (scale / 1024) * 10 / 1024);
  text += units[unit];
}

std::string human_size(std::uint64_t bytes, bool plain) {
  std::string text;
  append_size(text, bytes, plain);
  return text;
}

std::string printable(std::string_view name) {
  std::string text;
  text.reserve(name.size());
  for (const char c : name) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n')
      text += "\\n";
    else if (c == '\\')
      text += "\\\\";
    else if (byte < 0x20 || byte == 0x7f)
      text += fmt::format("\\x{:02x}", byte);
    else
      text += c;
  }
  return text;
}

std::string json_string(std::string_view text) {
  return nlohmann::json(std::string(text))
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

bool use_color(std::string_view when) {
  if (when != "auto") return when == "always";
  const char* no_color = std::getenv("NO_COLOR");
  if (no_color != nullptr && *no_color != '\0') return false;
  const char* term = std::getenv("TERM");
  return isatty(STDOUT_FILENO) != 0 && term != nullptr && std::string_view(term) != "dumb";
}

}  // namespace vmem::tools
