// SPDX-License-Identifier: MIT
/// regaudit rdma: memory regions as the kernel lists them (NETLINK_RDMA), joined with what the
/// recorder noted, and their audit. libnl is linked to this tool alone: libvmem's users need none.
#include <linux/netlink.h>
#include <netlink/attr.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/socket.h>
#include <rdma/rdma_netlink.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <deque>
#include <map>
#include <memory>

#include "regaudit.hpp"
#include "regaudit_trace.hpp"
#include "targets.hpp"

namespace vmem::tools {
namespace {

/// A memory region as the kernel lists it. What it did not tell is empty.
struct Region {
  std::string device;
  std::optional<pid_t> pid;  ///< empty: the kernel's own
  std::string kernel_name;
  std::uint64_t length = 0;
  std::optional<std::uint32_t> number, pd, lkey, rkey;
  std::optional<std::uint64_t> iova;
};

struct Inventory {
  std::vector<Region> regions;
  bool copy_on_fork = false;  ///< the kernel copies pinned pages for the child (5.12)
};

struct SocketFree {
  void operator()(nl_sock* socket) const { nl_socket_free(socket); }
};
struct MessageFree {
  void operator()(nl_msg* message) const { nlmsg_free(message); }
};

/// Attributes by type, from one message or nest. What is too short for its type counts as absent.
class Attributes {
 public:
  explicit Attributes(nlmsghdr* header)
      : Attributes(nlmsg_attrdata(header, 0), nlmsg_attrlen(header, 0)) {}
  explicit Attributes(nlattr* nest)
      : Attributes(static_cast<nlattr*>(nla_data(nest)), nla_len(nest)) {}

  nlattr* get(int type) const { return table_[static_cast<std::size_t>(type)]; }
  template <class T>
  std::optional<T> number(int type) const {
    nlattr* const attribute = get(type);
    if (attribute == nullptr || nla_len(attribute) < static_cast<int>(sizeof(T)))
      return std::nullopt;
    T value;
    std::memcpy(&value, nla_data(attribute), sizeof value);
    return value;
  }
  std::string text(int type) const {
    nlattr* const attribute = get(type);
    if (attribute == nullptr) return {};
    const char* const data = static_cast<const char*>(nla_data(attribute));
    return {data, strnlen(data, static_cast<std::size_t>(nla_len(attribute)))};
  }

 private:
  Attributes(nlattr* first, int length) {
    (void)nla_parse(table_.data(), RDMA_NLDEV_ATTR_MAX - 1, first, length, nullptr);
  }
  std::array<nlattr*, RDMA_NLDEV_ATTR_MAX> table_{};
};

class Netlink {
 public:
  /// The error is a reason in words.
  static std::expected<Netlink, std::string> open() {
    Netlink netlink;
    netlink.socket_.reset(nl_socket_alloc());
    if (!netlink.socket_) throw std::bad_alloc();
    nl_socket_disable_auto_ack(netlink.socket_.get());
    const int error = nl_connect(netlink.socket_.get(), NETLINK_RDMA);
    if (error < 0) {
      return std::unexpected(error == -NLE_PROTO_MISMATCH || error == -NLE_OPNOTSUPP ||
                                     error == -NLE_AF_NOSUPPORT
                                 ? "this kernel has no RDMA (ib_core is not loaded)"
                                 : nl_geterror(error));
    }
    nl_socket_enable_msg_peek(netlink.socket_.get());  // messages of any size
    return netlink;
  }

  /// Sends a command, and gives each answer to `sink`. The error is a reason in words.
  template <class Sink>
  std::expected<void, std::string> ask(int command, bool dump, std::optional<std::uint32_t> device,
                                       Sink sink) {
    const std::unique_ptr<nl_msg, MessageFree> message{nlmsg_alloc_simple(
        RDMA_NL_GET_TYPE(RDMA_NL_NLDEV, command), NLM_F_REQUEST | (dump ? NLM_F_DUMP : NLM_F_ACK))};
    if (!message) throw std::bad_alloc();
    if (device) nla_put_u32(message.get(), RDMA_NLDEV_ATTR_DEV_INDEX, *device);
    if (const int sent = nl_send_auto(socket_.get(), message.get()); sent < 0)
      return std::unexpected(nl_geterror(sent));
    nl_socket_modify_cb(
        socket_.get(), NL_CB_VALID, NL_CB_CUSTOM,
        [](nl_msg* answer, void* argument) {
          (*static_cast<Sink*>(argument))(Attributes{nlmsg_hdr(answer)});
          return static_cast<int>(NL_OK);
        },
        &sink);
    const int got = nl_recvmsgs_default(socket_.get());
    if (got < 0) return std::unexpected(nl_geterror(got));
    return {};
  }

 private:
  std::unique_ptr<nl_sock, SocketFree> socket_;
};

std::expected<Inventory, std::string> read_inventory() {
  auto netlink = Netlink::open();
  if (!netlink) return std::unexpected(netlink.error());
  Inventory inventory;
  std::vector<std::pair<std::uint32_t, std::string>> devices;
  auto listed = netlink->ask(RDMA_NLDEV_CMD_GET, true, {}, [&](const Attributes& a) {
    if (const auto index = a.number<std::uint32_t>(RDMA_NLDEV_ATTR_DEV_INDEX))
      devices.emplace_back(*index, a.text(RDMA_NLDEV_ATTR_DEV_NAME));
  });
  if (!listed) return std::unexpected(listed.error());
  for (const auto& [index, name] : devices) {
    auto read = netlink->ask(RDMA_NLDEV_CMD_RES_MR_GET, true, index, [&](const Attributes& a) {
      nlattr* const all = a.get(RDMA_NLDEV_ATTR_RES_MR);
      if (all == nullptr) return;
      int left = nla_len(all);
      for (auto* entry = static_cast<nlattr*>(nla_data(all)); nla_ok(entry, left);
           entry = nla_next(entry, &left)) {
        const Attributes m{entry};
        Region region{.device = name,
                      .pid = {},
                      .kernel_name = m.text(RDMA_NLDEV_ATTR_RES_KERN_NAME),
                      .length = m.number<std::uint64_t>(RDMA_NLDEV_ATTR_RES_MRLEN).value_or(0)};
        if (const auto pid = m.number<std::uint32_t>(RDMA_NLDEV_ATTR_RES_PID))
          region.pid = static_cast<pid_t>(*pid);
        region.number = m.number<std::uint32_t>(RDMA_NLDEV_ATTR_RES_MRN);
        region.pd = m.number<std::uint32_t>(RDMA_NLDEV_ATTR_RES_PDN);
        region.lkey = m.number<std::uint32_t>(RDMA_NLDEV_ATTR_RES_LKEY);
        region.rkey = m.number<std::uint32_t>(RDMA_NLDEV_ATTR_RES_RKEY);
        region.iova = m.number<std::uint64_t>(RDMA_NLDEV_ATTR_RES_IOVA);
        inventory.regions.push_back(std::move(region));
      }
    });
    if (!read) return std::unexpected(read.error());
  }
  // Older kernels do not know the question, and do not copy.
  std::ignore = netlink->ask(RDMA_NLDEV_CMD_SYS_GET, false, {}, [&](const Attributes& a) {
    inventory.copy_on_fork = a.number<std::uint8_t>(RDMA_NLDEV_SYS_ATTR_COPY_ON_FORK) == 1;
  });
  return inventory;
}

/// NUMA node of an RDMA device; empty for one without (soft RoCE).
std::optional<unsigned> node_of_device(const SysRoot& root, const std::string& device) {
  const auto text =
      root.read_file(("sys/class/infiniband/" + device + "/device/numa_node").c_str());
  if (!text) return std::nullopt;
  unsigned node = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), node);
  return error == std::errc{} ? std::optional(node) : std::nullopt;
}

// infiniband/verbs.h
constexpr std::uint32_t access_writes = 1 | 2 | 8 | 16;  // local, remote, atomic, memory window
constexpr std::uint32_t access_on_demand = 1 << 6;

/// What is known of a region from either side.
struct Joined {
  const Region* region = nullptr;  ///< null: the kernel could not be asked
  const TracedRegion* traced = nullptr;
};

/// Each region of the kernel's with the record of its own: by its key, else the one left with its
/// length. Of several alike each gets one, in the order in which they were made.
std::vector<Joined> join(const std::vector<const Region*>& regions,
                         const std::vector<TracedRegion>& traced) {
  std::map<std::pair<std::uint32_t, std::uint64_t>, std::deque<std::size_t>> by_key;
  for (std::size_t i = 0; i < traced.size(); ++i)
    by_key[{traced[i].lkey, traced[i].length}].push_back(i);
  std::vector<bool> taken(traced.size());
  std::vector<Joined> all;
  all.reserve(regions.size());
  for (const Region* region : regions) {
    all.push_back({region, nullptr});
    if (!region->lkey) continue;
    const auto found = by_key.find({*region->lkey, region->length});
    if (found == by_key.end() || found->second.empty()) continue;
    all.back().traced = &traced[found->second.front()];
    taken[found->second.front()] = true;
    found->second.pop_front();
  }
  std::map<std::uint64_t, std::deque<std::size_t>> by_length;
  for (std::size_t i = 0; i < traced.size(); ++i) {
    if (!taken[i]) by_length[traced[i].length].push_back(i);
  }
  for (Joined& j : all) {
    if (j.region->lkey) continue;
    const auto found = by_length.find(j.region->length);
    if (found == by_length.end() || found->second.empty()) continue;
    j.traced = &traced[found->second.front()];
    found->second.pop_front();
  }
  return all;
}

std::string optional_number(const std::optional<std::uint32_t>& value) {
  return value ? std::to_string(*value) : "null";
}

Registration registration_of(const Joined& j, const SysRoot& root, bool copy_on_fork) {
  const TracedRegion& t = *j.traced;
  Registration r{.range = {{t.address}, {t.address + t.length}}, .iova = t.iova};
  r.iova_known = true;
  r.device_writes = (t.access & access_writes) != 0;
  r.pinned = (t.access & access_on_demand) == 0;
  r.copied_at_fork = copy_on_fork && r.pinned;
  r.key = fmt::format("lkey {:#x}", t.lkey);
  if (j.region != nullptr) {
    r.device = j.region->device;
    r.node = node_of_device(root, r.device);
  }
  return r;
}

std::string members_of(const Joined& j) {
  std::string text;
  if (j.region != nullptr) {
    text += fmt::format(R"(,"mrn":{},"pd":{})", optional_number(j.region->number),
                        optional_number(j.region->pd));
  }
  std::optional<std::uint32_t> lkey, rkey;
  if (j.traced != nullptr)
    lkey = j.traced->lkey, rkey = j.traced->rkey;
  else
    lkey = j.region->lkey, rkey = j.region->rkey;
  const auto key = [](const auto& value) {
    return value ? fmt::format("\"{:#x}\"", *value) : std::string("null");
  };
  text += fmt::format(R"(,"lkey":{},"rkey":{})", key(lkey), key(rkey));
  if (j.traced != nullptr) text += fmt::format(R"(,"access":{})", j.traced->access);
  return text;
}

Unlocated unlocated_of(const Joined& j, const char* why) {
  // One of the two is always there.
  // NOLINTNEXTLINE(clang-analyzer-core.NullDereference)
  Unlocated u{.bytes = j.region != nullptr ? j.region->length : j.traced->length,
              .key = {},
              .device = j.region != nullptr ? j.region->device : "",
              .reason = why,
              .members = members_of(j)};
  if (j.region != nullptr && j.region->number) u.key = fmt::format("mr {}", *j.region->number);
  return u;
}

/// Audits the regions of one process. False: it could not be done.
bool audit_process(Report& report, const RegauditOptions& options, const SysRoot& root, pid_t pid,
                   const std::vector<const Region*>& regions, bool asked_kernel, bool copy_on_fork,
                   const Messages& messages) {
  const auto process = root.process(pid);
  if (!process) {
    messages.error(process.error());
    return false;
  }
  auto trace = find_trace(*process, options.log);
  if (!trace) {
    messages.error(trace.error());
    return false;
  }
  if (!asked_kernel && !*trace) {
    messages.error(fmt::format("{}: it was not started under regaudit trace", pid));
    return false;
  }
  static const std::vector<TracedRegion> none;
  const std::vector<TracedRegion>& traced = *trace ? (*trace)->regions : none;
  std::vector<Joined> all;
  if (asked_kernel) {
    all = join(regions, traced);
  } else {
    for (const TracedRegion& t : traced) all.push_back({nullptr, &t});
  }
  std::vector<Registration> registrations;
  std::vector<std::string> members;
  std::vector<Unlocated> unlocated;
  for (const Joined& j : all) {
    if (j.traced == nullptr) {
      unlocated.push_back(unlocated_of(
          j, *trace ? "the trace has no such registration" : "not started under regaudit trace"));
    } else if (j.traced->dmabuf) {
      unlocated.push_back(unlocated_of(j, "a dma-buf: no memory of the process"));
      unlocated.back().dmabuf = true;
    } else if (j.traced->address > UINT64_MAX - j.traced->length || j.traced->length == 0) {
      unlocated.push_back(unlocated_of(j, "the trace gives no range"));
    } else {
      registrations.push_back(registration_of(j, root, copy_on_fork));
      members.push_back(members_of(j));
    }
  }
  if (!audit_into(report, options, *process, "", std::move(registrations), false, messages))
    return false;
  AuditGroup& group = report.groups.back();
  group.members = std::move(members);
  group.unlocated = std::move(unlocated);
  if (*trace) {
    for (const TracedRegion& t : (*trace)->failures)
      report.text += fmt::format("{}: registering {:#x}+{} failed: {}\n", pid, t.address,
                                 human_size(t.length, options.bytes), std::strerror(t.error));
    if ((*trace)->lost != 0) {
      report.text +=
          fmt::format("{}: the trace was full: {} records are lost\n", pid, (*trace)->lost);
      report.unanswered = true;
    }
  }
  group.json = fmt::format(R"(,"traced":{},"fork_init":{},"failed":[)", trace->has_value(),
                           *trace ? ((*trace)->fork_init ? "true" : "false") : "null");
  if (*trace) {
    for (const TracedRegion& t : (*trace)->failures) {
      if (&t != &(*trace)->failures.front()) group.json += ',';
      group.json +=
          fmt::format(R"({{"va":"{:#x}","bytes":{},"access":{},"errno":{},"error":{}}})", t.address,
                      t.length, t.access, t.error, json_string(std::strerror(t.error)));
    }
  }
  group.json += ']';
  return true;
}

}  // namespace

int run_rdma(const RegauditOptions& options, const std::vector<std::string>& words,
             const Messages& messages) {
  if (words.size() > 1) {
    messages.error(fmt::format("{}: rdma takes one TARGET", words[1]), "see --help");
    return 2;
  }
  if (!options.sysroot.empty()) {
    messages.error("rdma: a recorded system has no netlink", "use ranges with the addresses");
    return 2;
  }
  const auto root = open_root(options, messages);
  if (!root) return 2;
  std::optional<pid_t> only;
  if (!words.empty() || !options.comm.empty()) {
    const auto process = open_target(options, words.empty() ? "" : words.front(), messages);
    if (!process) return 2;
    only = process->pid();
  }
  auto inventory = read_inventory();
  // A trace alone answers for one process: the kernel's list only adds device and numbers.
  if (!inventory && !only) {
    messages.error(fmt::format("reading memory regions: netlink: {}", inventory.error()),
                   "with a TARGET that runs under regaudit trace, its log is enough");
    return 2;
  }
  std::map<pid_t, std::vector<const Region*>> by_pid;
  Report report{.mode = "rdma"};
  std::string kernel;
  if (inventory) {
    for (const Region& region : inventory->regions) {
      if (region.pid) {
        if (!only || *only == *region.pid) by_pid[*region.pid].push_back(&region);
      } else if (!only) {
        kernel += fmt::format(R"({}{{"device":{},"name":{},"bytes":{},"mrn":{}}})",
                              kernel.empty() ? "" : ",", json_string(region.device),
                              json_string(region.kernel_name), region.length,
                              optional_number(region.number));
      }
    }
  }
  report.json = fmt::format(
      R"(,"rdma":{{"netlink":{},"copy_on_fork":{},"kernel":[{}]}})", inventory.has_value(),
      inventory ? (inventory->copy_on_fork ? "true" : "false") : "null", kernel);
  if (only) by_pid.try_emplace(*only);
  for (const auto& [pid, regions] : by_pid) {
    if (!audit_process(report, options, *root, pid, regions, inventory.has_value(),
                       inventory && inventory->copy_on_fork, messages)) {
      if (only) return 2;
      report.unanswered = true;
    }
  }
  return show(report, options, *root, messages);
}

}  // namespace vmem::tools
