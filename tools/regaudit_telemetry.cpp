// SPDX-License-Identifier: MIT
#include "regaudit_telemetry.hpp"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

namespace vmem::tools {
namespace {

using nlohmann::json;

/// An answer's array ends here without a word: RTE_TEL_MAX_ARRAY_ENTRIES.
constexpr std::size_t most_told = 512;
/// From here on addresses are cut without a word: ADDR_STR leaves 14 characters, "0x" included.
/// What has that many may have had more.
constexpr std::uint64_t perhaps_cut = std::uint64_t{1} << 44;
constexpr std::uint32_t most_segments = 1 << 20;
constexpr auto patience = std::chrono::seconds(20);

Error failed(const char* what, const std::string& path, int error) {
  return {.code = error == ENOENT || error == ECONNREFUSED ? Errc::not_found
                  : error == EACCES || error == EPERM      ? Errc::permission
                                                           : Errc::io,
          .os_errno = error,
          .what = what,
          .path = path};
}

class Telemetry {
 public:
  explicit Telemetry(const std::string& path)
      : path_(path), socket_(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {}

  Result<json> open(pid_t primary) {
    const auto owner = connect_to();
    if (!owner) return std::unexpected(owner.error());
    // A file of the primary's folder: anybody who may write there may have put it there.
    if (*owner != primary)
      return std::unexpected(failed("connecting to DPDK's telemetry", path_, ECONNREFUSED));
    return receive();
  }

  /// The process behind the socket.
  Result<pid_t> connect_to() {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path_.size() >= sizeof address.sun_path)
      return std::unexpected(failed("connecting to DPDK's telemetry", path_, ENAMETOOLONG));
    path_.copy(address.sun_path, path_.size());
    const timeval wait{.tv_sec = 2, .tv_usec = 0};
    const int fd = socket_.get();
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait) != 0 ||
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait) != 0 ||
        connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
      return std::unexpected(failed("connecting to DPDK's telemetry", path_, errno));
    ucred peer{};
    socklen_t bytes = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0)
      return std::unexpected(failed("connecting to DPDK's telemetry", path_, errno));
    return peer.pid;
  }

  /// What stands behind the question in the answer; null where the primary has none.
  Result<json> ask(const std::string& command, const std::string& parameters = "") {
    const std::string question = parameters.empty() ? command : command + "," + parameters;
    if (send(socket_.get(), question.data(), question.size(), MSG_NOSIGNAL) < 0)
      return std::unexpected(failed("asking DPDK's telemetry", path_, errno));
    auto answer = receive();
    if (!answer) return answer;
    const auto found = answer->find(command);
    if (found == answer->end()) return std::unexpected(malformed());
    return std::move(*found);
  }

  Error malformed() const {
    return {.code = Errc::malformed, .what = "reading DPDK's telemetry", .path = path_};
  }

 private:
  Result<json> receive() {
    // Spent waiting in this run, for however many primaries; what is done between is not theirs.
    static std::chrono::steady_clock::duration waited{};
    if (waited > patience)
      return std::unexpected(failed("reading DPDK's telemetry", path_, ETIMEDOUT));
    const auto start = std::chrono::steady_clock::now();
    const ssize_t n = recv(socket_.get(), buffer_.data(), buffer_.size(), MSG_TRUNC);
    const int error = errno;
    waited += std::chrono::steady_clock::now() - start;
    if (n < 0) {
      return std::unexpected(
          failed("reading DPDK's telemetry", path_, error == EAGAIN ? ETIMEDOUT : error));
    }
    if (static_cast<std::size_t>(n) > buffer_.size()) return std::unexpected(malformed());
    auto answer =
        json::parse(std::string_view(buffer_.data(), static_cast<std::size_t>(n)), nullptr, false);
    if (!answer.is_object()) return std::unexpected(malformed());
    return answer;
  }

  const std::string& path_;
  Fd socket_;
  std::string buffer_ = std::string(1 << 16, '\0');
};

/// A member that is a number and fits.
template <class T>
std::optional<T> number(const json& from, const char* key) {
  const auto found = from.find(key);
  if (found == from.end() || !found->is_number_integer()) return {};
  if (found->is_number_unsigned()) {
    const auto value = found->get<std::uint64_t>();
    return std::in_range<T>(value) ? std::optional(static_cast<T>(value)) : std::nullopt;
  }
  const auto value = found->get<std::int64_t>();
  return std::in_range<T>(value) ? std::optional(static_cast<T>(value)) : std::nullopt;
}

/// "0x1000f6000"
std::optional<std::uint64_t> address(const json& from, const char* key) {
  const auto found = from.find(key);
  if (found == from.end() || !found->is_string()) return {};
  std::string_view text = found->get_ref<const std::string&>();
  if (!text.starts_with("0x")) return {};
  text.remove_prefix(2);
  std::uint64_t value = 0;
  const char* const begin = text.data();
  const auto read = std::from_chars(begin, begin + text.size(), value, 16);
  if (text.empty() || read.ec != std::errc{} || read.ptr != begin + text.size()) return {};
  return value;
}

/// The segment that an answer tells; of no size where the place is not in use. Empty: malformed.
std::optional<DpdkSegment> segment(const json& told, std::uint32_t list, std::uint32_t index) {
  if (!told.is_object() || number<std::uint32_t>(told, "Memseg_list_index") != list ||
      number<std::uint32_t>(told, "Memseg_index") != index)
    return {};
  const auto start = address(told, "Start_addr"), end = address(told, "End_addr");
  const auto bytes = number<std::uint64_t>(told, "Size");
  const auto page = number<std::uint64_t>(told, "Hugepage_size");
  const auto socket = number<std::int32_t>(told, "Socket_id");
  if (!start || !end || !bytes || !page || !socket) return {};
  if (*bytes == 0) return DpdkSegment{};
  if (*end - *start != *bytes || *end < *start || !PageSize::valid(*page) ||
      PageSize{*page}.offset(VirtAddr{*start | *bytes}) != 0)
    return {};
  DpdkSegment s{.range = {{*start}, {*end}},
                .page_size = *page,
                .socket = *socket,
                .list = list,
                .index = index};
  if (told.value("IOVA_addr", json()) == "Bad IOVA") {
    s.iova = ~std::uint64_t{0};
    return s;
  }
  const auto iova = address(told, "IOVA_addr");
  if (!iova) return {};
  s.iova = *iova;
  return s;
}

}  // namespace

Result<std::vector<std::string>> telemetry_sockets(const SysRoot& root, const char* unix_sockets) {
  const auto text = root.read_file(unix_sockets, 16 << 20);
  if (!text) return std::unexpected(text.error());
  std::vector<std::string> paths;
  std::string_view rest = *text;
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    // "0000000000000000: 00000002 00000000 00010000 0005 01 17872
    // /var/run/dpdk/rte/dpdk_telemetry…"
    const std::size_t path = line.find(" /");
    if (path == std::string_view::npos || line.find(" 00010000 0005 ") >= path) continue;
    line.remove_prefix(path + 1);
    // The second of one prefix (--in-memory) listens on dpdk_telemetry.v2:1.
    if (line.substr(line.rfind('/')).starts_with("/dpdk_telemetry.v2")) paths.emplace_back(line);
  }
  return paths;
}

Result<pid_t> telemetry_owner(const std::string& socket) { return Telemetry{socket}.connect_to(); }

Result<DpdkMemory> read_telemetry(const std::string& socket, pid_t primary) {
  Telemetry telemetry{socket};
  const auto hello = telemetry.open(primary);
  if (!hello) return std::unexpected(hello.error());
  DpdkMemory memory;
  memory.by_telemetry = true;
  const auto version = hello->find("version");
  if (version == hello->end() || !version->is_string())
    return std::unexpected(telemetry.malformed());
  memory.version = version->get<std::string>();
  if (memory.version.starts_with("DPDK ")) memory.version.erase(0, 5);

  const auto lists = telemetry.ask("/eal/memseg_lists");
  if (!lists) return std::unexpected(lists.error());
  if (lists->is_null()) {
    return std::unexpected(Error{.code = Errc::not_supported,
                                 .what = "asking DPDK's telemetry (it does not serve segments)",
                                 .path = socket});
  }
  if (!lists->is_array() || lists->size() >= most_told)
    return std::unexpected(telemetry.malformed());
  for (const json& list : *lists) {
    if (!list.is_number_unsigned() || list.get<std::uint64_t>() > 0xffff)
      return std::unexpected(telemetry.malformed());
    const auto id = list.get<std::uint32_t>();
    const auto used = telemetry.ask("/eal/memseg_list_info", std::to_string(id));
    if (!used) return std::unexpected(used.error());
    if (!used->is_array()) return std::unexpected(telemetry.malformed());
    if (used->empty()) continue;
    const auto place = static_cast<std::uint32_t>(memory.lists.size());
    DpdkList all{.name = fmt::format("list-{}", id)};
    const auto take = [&](std::uint32_t index, bool in_use) -> Result<bool> {
      const auto told = telemetry.ask("/eal/memseg_info", fmt::format("{},{}", id, index));
      if (!told) return std::unexpected(told.error());
      if (told->is_null() && !in_use) return false;
      auto one = segment(*told, id, index);
      if (!one || (in_use && one->range.empty()) || memory.segments.size() >= most_segments)
        return std::unexpected(telemetry.malformed());
      if (one->range.empty()) return true;
      one->list = place;
      all.range.start =
          all.range.empty() ? one->range.start : std::min(all.range.start, one->range.start);
      all.range.end = std::max(all.range.end, one->range.end);
      all.page_size = one->page_size;
      all.socket = one->socket;
      all.external = one->socket >= 256;  // EXTERNAL_HEAP_MIN_SOCKET_ID
      memory.segments.push_back(*one);
      return true;
    };
    std::int64_t last = -1;
    for (const json& index : *used) {
      if (!index.is_number_unsigned() || index.get<std::uint64_t>() > UINT32_MAX / 2 ||
          static_cast<std::int64_t>(index.get<std::uint64_t>()) <= last)
        return std::unexpected(telemetry.malformed());
      last = static_cast<std::int64_t>(index.get<std::uint64_t>());
      const auto taken = take(static_cast<std::uint32_t>(last), true);
      if (!taken) return std::unexpected(taken.error());
    }
    // What did not fit into the array is asked for one by one, up to the end of the list.
    for (bool more = used->size() >= most_told; more;) {
      const auto taken = take(static_cast<std::uint32_t>(++last), false);
      if (!taken) return std::unexpected(taken.error());
      more = *taken;
    }
    memory.lists.push_back(std::move(all));
  }
  std::vector<VaRange> ranges;
  ranges.reserve(memory.segments.size());
  for (const DpdkSegment& s : memory.segments) ranges.push_back(s.range);
  std::ranges::sort(ranges, {}, &VaRange::start);
  for (std::size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].start < ranges[i - 1].end) return std::unexpected(telemetry.malformed());
  }
  memory.mode = iova_mode(memory);
  // As the virtual address an IOVA is whole, or wrong in any case.
  const bool cut = std::ranges::any_of(memory.segments, [](const DpdkSegment& s) {
    return s.iova >= perhaps_cut && s.iova != ~std::uint64_t{0};
  });
  if (cut && memory.mode == IovaRule::physical) {
    return std::unexpected(Error{.code = Errc::malformed,
                                 .what = "reading DPDK's telemetry (addresses may be cut)",
                                 .path = socket});
  }
  return memory;
}

}  // namespace vmem::tools
