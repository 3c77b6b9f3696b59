// SPDX-License-Identifier: MIT
// Catch2 v2 brings no library with a main() that every distribution ships; v3 does.
#if !__has_include(<catch2/catch_all.hpp>)
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>

// v2 returns how many checks failed. Four of them would look like v3's "all were skipped".
int main(int argc, char** argv) { return Catch::Session().run(argc, argv) == 0 ? 0 : 1; }
#endif
