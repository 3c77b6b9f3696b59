// SPDX-License-Identifier: MIT
#include "vmem/error.hpp"

#include <algorithm>
#include <cerrno>
#include <string>
#include <vector>

#include "support/catch.hpp"

using namespace vmem;

TEST_CASE("an error is one line: what: path: reason") {
  const Error error{.code = Errc::io,
                    .os_errno = EIO,
                    .what = "reading pagemap",
                    .path = "/proc/7/pagemap",
                    .address = 0,
                    .hint = "a hint"};
  CHECK(to_string(error) == "reading pagemap: /proc/7/pagemap: Input/output error");
}

TEST_CASE("the hint is not part of the line") {
  const Error error{.code = Errc::permission,
                    .os_errno = EACCES,
                    .what = "opening",
                    .path = "/x",
                    .address = 0,
                    .hint = "be root"};
  CHECK(to_string(error) == "opening: /x: Permission denied");
}

TEST_CASE("a line's number, and a reason that is more exact than the code's") {
  Error error{.code = Errc::malformed, .what = "parsing maps", .path = "/proc/7/maps", .line = 2};
  CHECK(to_string(error) == "parsing maps: /proc/7/maps: line 2: malformed or truncated");
  error.reason = "an empty mapping";
  CHECK(to_string(error) == "parsing maps: /proc/7/maps: line 2: an empty mapping");
}

TEST_CASE("an address is shown in hexadecimal") {
  const Error error{.code = Errc::malformed,
                    .os_errno = 0,
                    .what = "reading",
                    .path = "/p",
                    .address = 0x7f001000,
                    .hint = nullptr};
  const std::string text = to_string(error);
  CHECK(text.find("0x7f001000") != std::string::npos);
  CHECK(text.find("/p") != std::string::npos);
}

TEST_CASE("a path cannot break the line or the terminal") {
  const Error error{.code = Errc::not_found,
                    .os_errno = ENOENT,
                    .what = "opening",
                    .path = "/a\nb\x1b[31m\tc\x7f",
                    .address = 0,
                    .hint = nullptr};
  for (const char c : to_string(error)) {
    CAPTURE(static_cast<int>(c));
    CHECK((static_cast<unsigned char>(c) >= 0x20 && c != 0x7f));
  }
}

TEST_CASE("every code has a reason of its own, without a path too") {
  std::vector<std::string> seen;
  for (const Errc code :
       {Errc::invalid_argument, Errc::not_supported, Errc::not_found, Errc::no_process,
        Errc::no_user_memory, Errc::process_changed, Errc::permission, Errc::malformed, Errc::io}) {
    const std::string text = to_string(
        Error{.code = code, .os_errno = 0, .what = "w", .path = {}, .address = 0, .hint = nullptr});
    CAPTURE(text);
    CHECK(text.starts_with("w: "));
    CHECK(text.size() > 5);
    CHECK(text.find('\n') == std::string::npos);
    CHECK(std::find(seen.begin(), seen.end(), text) == seen.end());
    seen.push_back(text);
  }
}
