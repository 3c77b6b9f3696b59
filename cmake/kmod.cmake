# SPDX-License-Identifier: MIT
# The kernel modules, by kbuild in a copy of their sources. kmod/meson.build has the same.
set(kmod_sources Kbuild Makefile compat.h dkms.conf mem_mmap.c vmem.c)
list(TRANSFORM kmod_sources PREPEND ${PROJECT_SOURCE_DIR}/kmod/)
set(kmod_modules ${PROJECT_BINARY_DIR}/kmod/mem_mmap.ko ${PROJECT_BINARY_DIR}/kmod/vmem.ko)
add_custom_command(OUTPUT ${kmod_modules}
  COMMAND ${PROJECT_SOURCE_DIR}/scripts/build-kmod ${PROJECT_BINARY_DIR}/kmod
  DEPENDS ${kmod_sources} ${PROJECT_SOURCE_DIR}/kmod/uapi/vmem.h ${PROJECT_SOURCE_DIR}/scripts/build-kmod
  VERBATIM)
add_custom_target(kmod ALL DEPENDS ${kmod_modules})
install(FILES ${kmod_sources} DESTINATION src/vmem-${PROJECT_VERSION})
install(FILES kmod/uapi/vmem.h DESTINATION src/vmem-${PROJECT_VERSION}/uapi)
