// SPDX-License-Identifier: MIT
/// Each form of output, byte by byte, against a file in tests/golden/expected.
/// VMEM_UPDATE_GOLDEN=1 writes the files anew: read the difference before committing it.
#include "support/golden.hpp"

using namespace vmem::test;

namespace {

const GoldenCase cases[] = {
    {"page-tables", "--sysroot page-tables -J 700"},
    {"error-walk-recorded", "--sysroot page-tables --walk 700 7e0000000000"},
    // One address.
    {"one-resident", "--sysroot x86-64 1042 564499f34000"},
    {"one-inside-a-page", "--sysroot x86-64 1042 0x7ffd0d715638"},
    {"one-frames", "--sysroot x86-64 1042 -f 7f0387f27000"},
    {"one-absent", "--sysroot x86-64 1042 7f0387f26000"},
    {"one-unmapped", "--sysroot x86-64 1042 1000"},
    {"one-unmapped-frames", "--sysroot x86-64 1042 -f 1000"},
    {"one-above-user-space", "--sysroot x86-64 1042 ffff800000000000"},
    {"one-vsyscall", "--sysroot x86-64 1042 ffffffffff600000"},
    {"one-bytes", "--sysroot arm64-64k 2001 --bytes ffff40123456"},
    {"one-hugetlb", "--sysroot arm64-64k 2001 -f ffff40123456"},
    {"one-hidden", "--sysroot hidden 300 55d0c0a00000"},
    {"one-hidden-frames", "--sysroot hidden 300 -f 55d0c0a00000"},
    {"one-hidden-swap", "--sysroot hidden 300 7f2c40003000"},
    {"one-swapped", "--sysroot swapped 77 560000404000"},
    {"one-guard", "--sysroot swapped 77 7f5500008000"},
    {"one-special", "--sysroot swapped 77 7f5500010000"},
    {"one-unseen", "--sysroot device-window 500 7f1000001000"},
    {"one-maybe-unseen", "--sysroot device-window 501 7f1000001000"},
    {"one-hostile-name", "--sysroot hostile-names 666 700000000000"},
    {"one-columns", "--sysroot x86-64 1042 -o va,pfn,kind,node 564499f34000"},
    // Names and files.
    {"name-heap", "--sysroot x86-64 1042 [heap]"},
    {"name-offset", "--sysroot x86-64 1042 [stack]+0x1f638"},
    {"file-offset", "--sysroot x86-64 1042 libc.so.6+0x26000"},
    {"file-path-offset", "--sysroot x86-64 1042 /usr/bin/sleep+8K"},
    {"by-comm", "--sysroot x86-64 -n sleep [heap]"},
    {"self", "--sysroot x86-64 self [heap]"},
    // Several addresses, ranges, whole processes.
    {"several", "--sysroot x86-64 1042 564499f34000 1000 7f0387f26000 [heap]"},
    {"range", "--sysroot x86-64 1042 7f0387f24000-7f0387f2d000"},
    {"range-length", "--sysroot x86-64 1042 7f0387f24000+36K"},
    {"range-unaligned", "--sysroot x86-64 1042 7f0387f24fff-7f0387f27001"},
    {"range-with-gaps", "--sysroot swapped 77 55ffffff0000-560000422000"},
    {"range-unmapped", "--sysroot swapped 77 1000-3000"},
    {"range-hidden", "--sysroot hidden 300 7f2c40000000+64K"},
    {"range-pages", "--sysroot x86-64 1042 -p 7f0387f24000+36K"},
    {"range-frames", "--sysroot x86-64 1042 -f 7f0387f24000+36K"},
    {"range-pages-frames", "--sysroot arm64-64k 2001 -p -f fffd80000000+512K"},
    {"range-bytes", "--sysroot swapped 77 --bytes 560000400000+132K"},
    {"range-noheadings", "--sysroot swapped 77 --noheadings 560000400000+132K"},
    {"range-columns",
     "--sysroot swapped 77 -o va,size,state,swap,bits,reason 7f5500000000-7f5500020000"},
    {"range-all-columns",
     "--sysroot arm64-64k 2001 -f -o "
     "va,end,size,state,pa,pfn,leaf,bits,swap,pte,cache,backend,perms,offset,dev,inode,class,kind,"
     "flags,mapcount,memcg,node,region,vmflags,name,reason "
     "fffd80000000+512K"},
    {"whole", "--sysroot x86-64 1042"},
    {"whole-hidden", "--sysroot hidden 300"},
    {"whole-swapped", "--sysroot swapped 77"},
    {"whole-sparse", "--sysroot sparse-16t 16"},
    {"whole-arm64-frames", "--sysroot arm64-64k 2001 -f"},
    {"whole-device-window", "--sysroot device-window 500"},
    {"whole-device-window-unproven",
     "--sysroot device-window 501 -o va,size,state,kind,name,reason"},
    {"whole-hostile-names", "--sysroot hostile-names 666"},
    {"whole-truncated", "--sysroot truncated 9"},
    // From stdin.
    {"stdin", "--sysroot x86-64 1042 -",
     "564499f34000\n7f0387f26000\n[heap]\nlibc.so.6+0\n7f0387f24000+8K\n"},
    {"stdin-bad-line", "--sysroot x86-64 1042 -", "564499f34000\njunk\n7f0387f24000\n"},
    {"stdin-empty", "--sysroot x86-64 1042 -", ""},
    // JSON.
    {"json-one", "--sysroot x86-64 1042 -J 564499f34000"},
    {"json-one-frames", "--sysroot x86-64 1042 -J -f 564499f34000"},
    {"json-one-unmapped", "--sysroot x86-64 1042 -J 1000"},
    {"json-one-hidden", "--sysroot hidden 300 -J -f 55d0c0a00000"},
    {"json-one-unseen", "--sysroot device-window 500 -J 7f1000001000"},
    {"json-several", "--sysroot x86-64 1042 -J 564499f34000 1000 7f0387f26000"},
    {"json-range", "--sysroot x86-64 1042 -J 7f0387f24000+36K"},
    {"json-range-gaps", "--sysroot swapped 77 -J 55ffffff0000-560000422000"},
    {"json-range-pages", "--sysroot x86-64 1042 -J -p 7f0387f24000+36K"},
    {"json-range-frames", "--sysroot arm64-64k 2001 -J -f fffd80000000+512K"},
    {"json-whole", "--sysroot swapped 77 -J"},
    {"json-whole-device-window", "--sysroot device-window 500 -J"},
    {"json-whole-hostile-names", "--sysroot hostile-names 666 -J"},
    {"json-stdin", "--sysroot x86-64 1042 -J -", "564499f34000\n1000\n7f0387f24000+8K\n"},
    {"json-stdin-bad-line", "--sysroot x86-64 1042 -J -", "junk\n564499f34000\n"},
    {"json-truncated", "--sysroot truncated 9 -J"},
    // Messages.
    {"error-no-process", "--sysroot x86-64 99"},
    {"error-no-sysroot", "--sysroot nowhere 1"},
    {"error-junk-address", "--sysroot x86-64 1042 7f00zz"},
    {"error-inverted-range", "--sysroot x86-64 1042 2000-1000"},
    {"error-empty-range", "--sysroot x86-64 1042 1000-1000"},
    {"error-huge-address", "--sysroot x86-64 1042 0x10000000000000000"},
    {"error-unknown-option", "--sysroot x86-64 1042 --nope"},
    {"error-unknown-column", "--sysroot x86-64 1042 -o va,nope"},
    {"error-unknown-name", "--sysroot x86-64 1042 [nothing]"},
    {"error-unknown-file", "--sysroot x86-64 1042 nothing.so+0"},
    {"error-file-offset-beyond", "--sysroot x86-64 1042 libc.so.6+1G"},
    {"error-several-named", "--sysroot device-window -n driver"},
    {"error-nobody-named", "--sysroot x86-64 -n nobody"},
    {"error-no-target", "--sysroot x86-64"},
    {"error-target-not-a-number", "--sysroot x86-64 1042x"},
    {"error-backend-bpf", "--sysroot x86-64 --backend bpf 1042"},
    {"error-backend-unknown", "--sysroot x86-64 --backend psychic 1042"},
};

}  // namespace

TEST_CASE("every form of output is as recorded") { check_golden("vtop", "expected", cases); }
