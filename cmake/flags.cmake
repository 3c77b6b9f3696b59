# SPDX-License-Identifier: MIT
# Flags of every target of this project, as the interface target vmem-flags. meson.build has the same.
include(CheckLinkerFlag)

add_library(vmem-flags INTERFACE)
target_compile_definitions(vmem-flags INTERFACE _FILE_OFFSET_BITS=64)
target_compile_options(vmem-flags INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wcast-qual -Wformat=2 -Wundef
  $<$<COMPILE_LANGUAGE:CXX>:-Wnon-virtual-dtor -Wold-style-cast -Woverloaded-virtual -Wextra-semi
    -Wno-missing-field-initializers>  # members have default initializers
  -fstack-protector-strong
  -ffunction-sections -fdata-sections)
target_link_options(vmem-flags INTERFACE -Wl,-z,relro -Wl,-z,now -Wl,--as-needed -Wl,--gc-sections)

# _FORTIFY_SOURCE needs optimisation, and the sanitizers' own checks do not go with it.
if(NOT CMAKE_CXX_FLAGS MATCHES "-fsanitize=")
  target_compile_definitions(vmem-flags INTERFACE
    $<$<CONFIG:Release,RelWithDebInfo,MinSizeRel>:_FORTIFY_SOURCE=2>)
endif()
