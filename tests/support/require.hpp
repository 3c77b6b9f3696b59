// SPDX-License-Identifier: MIT
/// A test that lacks a privilege or a feature skips loudly, or fails where it must not.
#pragma once

#include <string>

namespace vmem::test {

/// Skips the running test: "SKIPPED: ..." on stderr and in the report. Where the comma
/// separated list VMEM_REQUIRE (of pfn, bpf, kmod, vm, real) names `feature`, fails it.
/// With Catch2 v2 this returns, so: `return skip_or_fail("pfn", "needs CAP_SYS_ADMIN");`
void skip_or_fail(const char* feature, const std::string& why);

/// Whether VMEM_REQUIRE names `feature`.
bool required(const char* feature);

}  // namespace vmem::test
