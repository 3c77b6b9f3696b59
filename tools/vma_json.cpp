// SPDX-License-Identifier: MIT
#include "vma_json.hpp"

#include "render.hpp"

namespace vmem::tools {

std::string device_number(const Vma& vma) {
  return fmt::format("{:02x}:{:02x}", vma.dev_major, vma.dev_minor);
}

std::string vma_json(const Vma& vma, Classification classification,
                     const std::optional<VmFlags>& flags) {
  std::string text = fmt::format(
      R"("start":"{:#x}","end":"{:#x}","perms":"{}","offset":{},"dev":"{}","inode":{},{},"class":"{}","kind":"{}","flags":)",
      vma.range.start.value, vma.range.end.value, permissions(vma), vma.offset, device_number(vma),
      vma.inode, json_name("path", vma.path), to_string(classification.vma_class),
      to_string(classification.kind));
  if (!flags) return text += "null";
  text += '[';
  for (std::string_view rest = flags->text(); !rest.empty();) {
    const std::size_t space = rest.find(' ');
    if (text.back() != '[') text += ',';
    text += json_string(rest.substr(0, space));
    rest.remove_prefix(space == std::string_view::npos ? rest.size() : space + 1);
  }
  return text += ']';
}

}  // namespace vmem::tools
