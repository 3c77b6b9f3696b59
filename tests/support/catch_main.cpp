// SPDX-License-Identifier: MIT
// Catch2 v2 brings no library with a main() that every distribution ships; v3 does.
#if !__has_include(<catch2/catch_all.hpp>)
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
#endif
