// SPDX-License-Identifier: MIT
#include "vmem/error.hpp"

#include <cerrno>
#include <cstring>

namespace vmem {
namespace {

const char* reason(Errc code) {
  switch (code) {
    case Errc::invalid_argument:
      return "invalid argument";
    case Errc::not_supported:
      return "not supported here";
    case Errc::not_found:
      return "not found";
    case Errc::no_process:
      return "no such process";
    case Errc::no_user_memory:
      return "it has no user memory";
    case Errc::process_changed:
      return "the process ended or replaced its address space meanwhile";
    case Errc::permission:
      return "permission denied";
    case Errc::malformed:
      return "malformed or truncated";
    case Errc::io:
      return "input/output error";
  }
  return "unknown error";
}

void append_hex(std::string& out, std::uint64_t value) {
  char digits[16];
  int n = 0;
  do {
    digits[n++] = "0123456789abcdef"[value & 15];
    value >>= 4;
  } while (value != 0);
  out += "0x";
  while (n > 0) out += digits[--n];
}

}  // namespace

std::string to_string(const Error& error) {
  std::string text = error.what;
  if (!error.path.empty()) {
    text += ": ";
    // A path may come from a hostile tree; the message stays one line.
    for (const char c : error.path)
      text += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  }
  if (error.address != 0) {
    text += " at ";
    append_hex(text, error.address);
  }
  if (error.line != 0) text += ": line " + std::to_string(error.line);
  text += ": ";
  if (error.reason != nullptr) return text += error.reason;
  // The code is more exact than errno where it was read off something else than errno.
  const bool by_errno =
      error.os_errno != 0 && (error.code == Errc::io || error.code == Errc::permission ||
                              error.code == Errc::not_found || error.code == Errc::not_supported);
  text += by_errno ? std::strerror(error.os_errno) : reason(error.code);
  return text;
}

}  // namespace vmem
