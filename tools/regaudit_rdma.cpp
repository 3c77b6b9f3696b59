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

constexpr char no_rdma[] = "this kernel has no RDMA (ib_core is not loaded)";

/// A memory region as the kernel lists it. What it did not tell is empty.
struct Region {
  std::string device;
  std::optional<pid_t> pid;  ///< empty: the kernel's own, or not told
  std::string kernel_name;   ///< of the kernel's own
  std::uint64_t length = 0;
  std::optional<std::uint32_t> number, pd, lkey, rkey;
  std::optional<std::uint64_t> iova;
};

struct Inventory {
  std::vector<Region> regions;
  std::size_t devices = 0;
  std::optional<bool> copy_on_fork;  ///< the kernel copies pinned pages for the child (5.12)
  /// Only devices of this reader's network namespace are listed; empty: kernels before 5.3, whose
  /// devices have none.
  std::optional<bool> own_namespace_only;
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
                                 ? no_rdma
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
  inventory.devices = devices.size();
  bool lengths = true;
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
                      .length = 0};
        const auto length = m.number<std::uint64_t>(RDMA_NLDEV_ATTR_RES_MRLEN);
        lengths = lengths && length;
        region.length = length.value_or(0);
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
  if (!lengths) return std::unexpected("the kernel lists a region without its length");
  // Kernels before 5.3 do not know the question; those before 5.12 do not copy.
  std::ignore = netlink->ask(RDMA_NLDEV_CMD_SYS_GET, false, {}, [&](const Attributes& a) {
    inventory.copy_on_fork = a.number<std::uint8_t>(RDMA_NLDEV_SYS_ATTR_COPY_ON_FORK) == 1;
    if (const auto mode = a.number<std::uint8_t>(RDMA_NLDEV_SYS_ATTR_NETNS_MODE))
      inventory.own_namespace_only = *mode == 0;
  });
  return inventory;
}

/// NUMA node of an RDMA device; empty for one without (soft RoCE).
std::optional<unsigned> node_of_device(const SysRoot& root, const std::string& device,
                                       std::optional<Missing>& unreadable) {
  const std::string path = "sys/class/infiniband/" + device + "/device/numa_node";
  const auto text = root.read_file(path.c_str());
  if (!text) {
    // A device without a bus has no such file.
    if (text.error().code != Errc::not_found) unreadable = {to_string(text.error()), {}};
    return std::nullopt;
  }
  int node = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), node);
  if (error != std::errc{})
    unreadable = {fmt::format("reading a device's NUMA node: /{}: no number", path), {}};
  return error == std::errc{} && node >= 0 ? std::optional(static_cast<unsigned>(node))
                                           : std::nullopt;
}

// infiniband/verbs.h
constexpr std::uint32_t access_writes = 1 | 2 | 8 | 16;  // local, remote, atomic, memory window
constexpr std::uint32_t access_on_demand = 1 << 6;

/// What is known of a region from either side.
struct Joined {
  const Region* region = nullptr;  ///< null: the kernel could not be asked
  const TracedRegion* traced = nullptr;
  bool ambiguous = false;  ///< several records could be this one's
  bool by_order = false;  ///< one of several alike, of one device: which number is whose is open
};

/// Gives the regions of one key or length the records of the same. Alike and as many on either
/// side, of one device: in the order in which they were made. Else none can be told from the
/// others.
void pair_up(const std::vector<Joined*>& regions, const std::vector<std::size_t>& records,
             const std::vector<TracedRegion>& traced, std::vector<bool>& taken) {
  if (regions.empty() || records.empty()) return;
  const bool one_device = std::ranges::all_of(regions, [&](const Joined* j) {
    return j->region->device == regions.front()->region->device;
  });
  if (regions.size() != records.size() || !one_device) {
    for (Joined* const j : regions) j->ambiguous = true;
    for (const std::size_t i : records) taken[i] = true;
    return;
  }
  for (std::size_t i = 0; i < regions.size(); ++i) {
    regions[i]->traced = &traced[records[i]];
    regions[i]->by_order = regions.size() > 1;
    taken[records[i]] = true;
  }
}

/// Each region of the kernel's with the record of its own: by its key, else, where the kernel hides
/// keys, by its length.
std::vector<Joined> join(const std::vector<const Region*>& regions,
                         const std::vector<TracedRegion>& traced) {
  std::vector<Joined> all;
  all.reserve(regions.size());
  std::map<std::pair<std::uint32_t, std::uint64_t>, std::vector<Joined*>> by_key;
  std::map<std::uint64_t, std::vector<Joined*>> by_length;
  for (const Region* region : regions) {
    all.push_back({.region = region});
    if (region->lkey)
      by_key[{*region->lkey, region->length}].push_back(&all.back());
    else
      by_length[region->length].push_back(&all.back());
  }
  std::map<std::pair<std::uint32_t, std::uint64_t>, std::vector<std::size_t>> keys;
  for (std::size_t i = 0; i < traced.size(); ++i)
    keys[{traced[i].lkey, traced[i].length}].push_back(i);
  std::vector<bool> taken(traced.size());
  for (const auto& [key, alike] : by_key) {
    if (const auto records = keys.find(key); records != keys.end())
      pair_up(alike, records->second, traced, taken);
  }
  std::map<std::uint64_t, std::vector<std::size_t>> lengths;
  for (std::size_t i = 0; i < traced.size(); ++i) {
    if (!taken[i]) lengths[traced[i].length].push_back(i);
  }
  for (const auto& [length, alike] : by_length) {
    if (const auto records = lengths.find(length); records != lengths.end())
      pair_up(alike, records->second, traced, taken);
  }
  return all;
}

std::string optional_number(const std::optional<std::uint32_t>& value) {
  return value ? std::to_string(*value) : "null";
}

Registration registration_of(const Joined& j, const SysRoot& root, bool copy_on_fork,
                             std::optional<Missing>& unreadable_node) {
  const TracedRegion& t = *j.traced;
  Registration r{.range = {{t.address}, {t.address + t.length}}, .iova = t.iova};
  r.iova_known = true;
  r.device_writes = (t.access & access_writes) != 0;
  r.pinned = (t.access & access_on_demand) == 0;
  r.copied_at_fork = copy_on_fork && r.pinned;
  r.key = fmt::format("lkey {:#x}", t.lkey);
  if (j.region != nullptr) {
    r.device = j.region->device;
    r.node = node_of_device(root, r.device, unreadable_node);
  }
  return r;
}

std::string members_of(const Joined& j) {
  std::string text;
  if (j.region != nullptr) {
    const bool whose = !j.by_order;
    text += fmt::format(R"(,"mrn":{},"pd":{})", whose ? optional_number(j.region->number) : "null",
                        whose ? optional_number(j.region->pd) : "null");
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
                   const std::vector<const Region*>& regions,
                   const std::expected<Inventory, std::string>& inventory,
                   const Messages& messages) {
  const bool asked_kernel = inventory.has_value();
  const bool copy_on_fork = asked_kernel && inventory->copy_on_fork == true;
  const auto process = open_audited(root, pid);
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
    messages.error(
        fmt::format("{}: it was not started under regaudit trace, and the kernel's list "
                    "of regions cannot be read: {}",
                    pid, inventory.error()));
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
  std::optional<Missing> unreadable_node;
  for (const Joined& j : all) {
    if (j.traced == nullptr) {
      unlocated.push_back(unlocated_of(
          j, j.ambiguous && !j.region->lkey
                 ? "its key is hidden (it needs CAP_NET_ADMIN), and the trace has others that long"
             : j.ambiguous ? "the trace has more than one of this key and length"
             : *trace      ? "the trace has no such registration"
                           : "not started under regaudit trace"));
    } else if (j.traced->dmabuf) {
      unlocated.push_back(unlocated_of(j, "a dma-buf: no memory of the process"));
      unlocated.back().dmabuf = true;
    } else if (j.traced->address > UINT64_MAX - j.traced->length || j.traced->length == 0) {
      unlocated.push_back(unlocated_of(j, "the trace gives no range"));
    } else {
      registrations.push_back(registration_of(j, root, copy_on_fork, unreadable_node));
      members.push_back(members_of(j));
    }
  }
  if (!audit_into(report, options, *process, "", std::move(registrations), false, messages))
    return false;
  if (unreadable_node) report.missing.push_back(std::move(*unreadable_node));
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

std::string or_null(const std::optional<bool>& value) {
  return value ? (*value ? "true" : "false") : "null";
}

bool in_first_pid_namespace(const SysRoot& root) {
  constexpr std::string_view first = "pid:[4026531836]";  // PROC_PID_INIT_INO
  return root.read_link("proc/self/ns/pid").value_or("") == first;
}

/// What the kernel's list leaves out: "none" may only mean that none is shown.
void say_scope(Report& report, const SysRoot& root, const Inventory& inventory,
               std::optional<pid_t> only) {
  if (inventory.own_namespace_only == true) {
    const auto mine = root.read_link("proc/self/ns/net");
    const auto theirs = only ? root.read_link(fmt::format("proc/{}/ns/net", *only).c_str()) : mine;
    const bool elsewhere = !mine || !theirs || *mine != *theirs;
    if (elsewhere || !only) {
      report.text +=
          "devices of other network namespaces are not listed (rdma system: netns exclusive): run "
          "regaudit in theirs (nsenter -t PID -n)\n";
    }
    // All that there is here is no answer about what may be there.
    report.unanswered = report.unanswered || elsewhere || inventory.devices == 0;
  }
  if (!only && !in_first_pid_namespace(root))
    report.text += "regions of other PID namespaces and the kernel's own are not listed\n";
  if (inventory.devices == 0) report.text += "the kernel lists no RDMA device\n";
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
  const auto inventory = read_inventory();
  // A trace alone answers for one process: the kernel's list only adds device and numbers.
  if (!inventory && !only) {
    messages.error(fmt::format("reading memory regions: netlink: {}", inventory.error()),
                   "with a TARGET that runs under regaudit trace, its log is enough");
    return 2;
  }
  std::map<pid_t, std::vector<const Region*>> by_pid;
  Report report{.mode = "rdma"};
  std::string kernel;
  std::size_t ownerless = 0;
  if (inventory) {
    for (const Region& region : inventory->regions) {
      if (region.pid) {
        // It may be a thread's id.
        const auto process = root->process(*region.pid);
        const pid_t pid = process ? process->pid() : *region.pid;
        if (!only || *only == pid) by_pid[pid].push_back(&region);
      } else if (region.kernel_name.empty()) {
        ++ownerless;  // the thread that registered it has ended, or is of another PID namespace
      } else if (!only) {
        kernel += fmt::format(R"({}{{"device":{},"name":{},"bytes":{},"mrn":{}}})",
                              kernel.empty() ? "" : ",", json_string(region.device),
                              json_string(region.kernel_name), region.length,
                              optional_number(region.number));
      }
    }
  }
  if (ownerless != 0) {
    report.text += fmt::format("unknown: of {} region{} the kernel does not tell the process\n",
                               ownerless, ownerless == 1 ? "" : "s");
    report.unanswered = true;
  }
  if (inventory) {
    say_scope(report, *root, *inventory, only);
  } else {
    report.text += fmt::format("by the trace alone: the kernel's list cannot be read: {}\n",
                               inventory.error());
    report.unanswered = report.unanswered || inventory.error() != no_rdma;
  }
  // In another PID namespace the kernel lists none of its own (rdma_is_visible_in_pid_ns()).
  const bool sees_kernel = in_first_pid_namespace(*root);
  report.json = fmt::format(
      R"(,"rdma":{{"netlink":{},"reason":{},"devices":{},"own_network_namespace_only":{},)"
      R"("ownerless":{},"copy_on_fork":{},"kernel":{}}})",
      inventory.has_value(), inventory ? "null" : json_string(inventory.error()),
      inventory ? std::to_string(inventory->devices) : "null",
      inventory ? or_null(inventory->own_namespace_only) : "null",
      inventory ? std::to_string(ownerless) : "null",
      inventory ? or_null(inventory->copy_on_fork) : "null",
      inventory && !only && sees_kernel ? "[" + kernel + "]" : "null");
  if (only) by_pid.try_emplace(*only);
  for (const auto& [pid, regions] : by_pid) {
    if (!audit_process(report, options, *root, pid, regions, inventory, messages)) {
      if (only) return 2;
      report.unanswered = true;
    }
  }
  return show(report, options, *root, messages);
}

}  // namespace vmem::tools
