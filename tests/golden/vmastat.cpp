// SPDX-License-Identifier: MIT
/// vmastat on recorded systems, byte by byte.
#include "support/golden.hpp"

using namespace vmem::test;

namespace {

const GoldenCase cases[] = {
    {"vmas", "--sysroot x86-64 1042"},
    {"vmas-arm64", "--sysroot arm64-64k 2001"},
    {"vmas-device", "--sysroot device-window 500"},
    {"vmas-device-unproven", "--sysroot device-window 501"},
    {"vmas-hidden", "--sysroot hidden 300"},
    {"vmas-swapped", "--sysroot swapped 77"},
    {"vmas-truncated", "--sysroot truncated 9"},
    {"vmas-hostile", "--sysroot hostile-names 666"},
    {"vmas-sparse", "--sysroot sparse-16t 16"},
    {"vmas-pages", "--sysroot arm64-64k --pages 2001"},
    {"vmas-several", "--sysroot device-window -o pid,comm,start,rss,name 500 501"},
    {"vmas-all", "--sysroot device-window -a -o pid,rss,name"},
    {"vmas-bytes", "--sysroot arm64-64k --bytes --noheadings -o start,size,rss,pss,uss 2001"},
    {"vmas-columns",
     "--sysroot arm64-64k -o start,offset,dev,inode,vmas,mapped,shared,hugetlb,device,uncounted,"
     "guard,special,unseen,leaf,runs,zero,ksm,folios,flags,name 2001"},
    {"vmas-sorted", "--sysroot x86-64 --sort rss --top 4 1042"},
    {"vmas-sorted-by-name", "--sysroot x86-64 --sort name -o name,rss 1042"},
    {"by-class", "--sysroot x86-64 --by class 1042"},
    {"by-kind", "--sysroot arm64-64k --by kind --sort mapped 2001"},
    {"by-file", "--sysroot x86-64 --by file --sort pss 1042"},
    {"by-node", "--sysroot arm64-64k --by node 2001"},
    {"by-process", "--sysroot device-window --by process -a"},
    {"by-process-truncated", "--sysroot truncated --by process -a"},
    {"json-by-kind-truncated", "--sysroot truncated -J --by kind 9"},
    {"tree", "--sysroot x86-64 --tree 1042"},
    {"by-comm", "--sysroot x86-64 --by class -n sleep"},
    {"json", "--sysroot x86-64 -J 1042"},
    {"json-arm64-pages", "--sysroot arm64-64k -J --pages 2001"},
    {"json-hidden", "--sysroot hidden -J 300"},
    {"json-device", "--sysroot device-window -J 500"},
    {"json-swapped", "--sysroot swapped -J 77"},
    {"json-by-class", "--sysroot arm64-64k -J --by class 2001"},
    {"json-by-process", "--sysroot device-window -J --by process -a"},
    {"map", "--sysroot x86-64 --map 1042"},
    {"map-sparse", "--sysroot sparse-16t --map 16"},
    {"map-device", "--sysroot device-window --map --color always 500"},
    {"openmetrics", "--sysroot arm64-64k --openmetrics 2001"},
    {"openmetrics-hidden", "--sysroot hidden --openmetrics 300"},
    {"error-two-forms", "--sysroot x86-64 --map -J 1042"},
    {"error-no-process", "--sysroot x86-64 99"},
    {"error-no-target", "--sysroot x86-64"},
    {"error-all-and-target", "--sysroot x86-64 -a 1042"},
    {"error-unknown-column", "--sysroot x86-64 -o rss,nope 1042"},
    {"error-unknown-sort", "--sysroot x86-64 --sort nope 1042"},
    {"error-unknown-group", "--sysroot x86-64 --by nope 1042"},
    {"error-tree-by", "--sysroot x86-64 --tree --by kind 1042"},
    {"error-backend-bpf", "--sysroot x86-64 --backend bpf 1042"},
    {"error-backend-bpf-all", "--sysroot x86-64 --backend bpf -a"},
};

}  // namespace

TEST_CASE("vmastat prints what is recorded") { check_golden("vmastat", "expected-vmastat", cases); }
