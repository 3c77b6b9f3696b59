// SPDX-License-Identifier: MIT
#include "render.hpp"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <iterator>
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
  char digits[18];
  char* at = std::end(digits);
  do {
    *--at = "0123456789abcdef"[value & 15];
    value >>= 4;
  } while (value != 0);
  *--at = 'x';
  *--at = '0';
  text.append(at, std::end(digits));
}

void append_decimal(std::string& text, std::uint64_t value) {
  if (value < 10) {
    text += static_cast<char>('0' + value);
    return;
  }
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
  const auto unit = static_cast<unsigned>(std::bit_width(bytes) - 1) / 10;
  // Tenths, cut and not rounded: 1023.99M must not read as 1024.0M.
  const std::uint64_t rest = bytes >> (10 * (unit - 1)) & 1023;
  char digits[8];
  char* const end = std::to_chars(digits, digits + 4, bytes >> (10 * unit)).ptr;
  end[0] = '.';
  end[1] = static_cast<char>('0' + rest * 10 / 1024);
  end[2] = units[unit - 1];
  text.append(digits, end + 3);
}

std::string human_size(std::uint64_t bytes, bool plain) {
  std::string text;
  append_size(text, bytes, plain);
  return text;
}

namespace {

/// Bytes of the character that `text` begins with, as UTF-8 has it; 0: it is none, or one that
/// steers a terminal (C1 controls, marks of direction).
std::size_t shown_character(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const std::size_t length = byte(0) < 0x80                      ? 1
                             : byte(0) >= 0xc2 && byte(0) < 0xe0 ? 2
                             : byte(0) >= 0xe0 && byte(0) < 0xf0 ? 3
                             : byte(0) >= 0xf0 && byte(0) < 0xf5 ? 4
                                                                 : 0;
  if (length == 0 || length > text.size()) return 0;
  char32_t code = length == 1 ? byte(0) : byte(0) & (0x7fU >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
    code = code << 6 | (byte(i) & 0x3f);
  }
  const bool too_long = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
  const bool none = code > 0x10ffff || (code >= 0xd800 && code < 0xe000);
  const bool steers = code < 0x20 || (code >= 0x7f && code < 0xa0) || code == 0x200e ||
                      code == 0x200f || (code >= 0x202a && code <= 0x202e) ||
                      (code >= 0x2066 && code <= 0x2069);
  return too_long || none || steers ? 0 : length;
}

/// What `character`, sound UTF-8 of two or three bytes, stands for.
unsigned code_point(std::string_view character) {
  unsigned code = static_cast<unsigned char>(character[0]) & (0x7fU >> character.size());
  for (const char c : character.substr(1))
    code = code << 6 | (static_cast<unsigned char>(c) & 0x3f);
  return code;
}

}  // namespace

void append_printable(std::string& text, std::string_view name) {
  const auto odd = [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte < 0x20 || byte >= 0x7f || c == '\\';
  };
  while (!name.empty()) {
    const auto at = static_cast<std::size_t>(std::ranges::find_if(name, odd) - name.begin());
    text.append(name.substr(0, at));
    name.remove_prefix(at);
    if (name.empty()) return;
    const std::size_t character = name[0] == '\\' ? 0 : shown_character(name);
    if (character != 0)
      text.append(name.substr(0, character));
    else if (name[0] == '\n')
      text += "\\n";
    else if (name[0] == '\\')
      text += "\\\\";
    else
      text += fmt::format("\\x{:02x}", static_cast<unsigned char>(name[0]));
    name.remove_prefix(std::max<std::size_t>(character, 1));
  }
}

std::string printable(std::string_view name) {
  std::string text;
  append_printable(text, name);
  return text;
}

std::string json_string(std::string_view text) {
  std::string quoted = nlohmann::json(std::string(text))
                           .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  const auto plain = [](char c) { return c >= 0x20 && c < 0x7f; };
  if (std::ranges::all_of(quoted, plain)) return quoted;
  // It is UTF-8 now, without controls below 0x20; what shown_character() refuses still is a C1
  // control or a mark of direction, of two or three bytes, or DEL.
  std::string safe;
  for (std::string_view rest = quoted; !rest.empty();) {
    std::size_t length = shown_character(rest);
    if (length != 0) {
      safe.append(rest.substr(0, length));
    } else {
      const auto first = static_cast<unsigned char>(rest[0]);
      length = first < 0x80 ? 1 : first < 0xe0 ? 2 : 3;
      safe += fmt::format("\\u{:04x}", length == 1 ? first : code_point(rest.substr(0, length)));
    }
    rest.remove_prefix(length);
  }
  return safe;
}

std::string json_name(std::string_view key, std::string_view text) {
  std::string member = fmt::format("\"{}\":{}", key, json_string(text));
  const auto high = [](char c) { return static_cast<unsigned char>(c) >= 0x80; };
  if (std::ranges::none_of(text, high)) return member;
  try {
    (void)nlohmann::json(std::string(text)).dump();
  } catch (const nlohmann::json::type_error&) {  // it is not UTF-8
    member += fmt::format(",\"{}_bytes\":\"", key);
    for (const char c : text) member += fmt::format("{:02x}", static_cast<unsigned char>(c));
    member += '"';
  }
  return member;
}

bool use_color(std::string_view when) {
  if (when != "auto") return when == "always";
  const char* no_color = std::getenv("NO_COLOR");
  if (no_color != nullptr && *no_color != '\0') return false;
  const char* term = std::getenv("TERM");
  return isatty(STDOUT_FILENO) != 0 && term != nullptr && std::string_view(term) != "dumb";
}

}  // namespace vmem::tools
