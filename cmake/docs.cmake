# SPDX-License-Identifier: MIT
# Man pages and completions, by explicit list. meson.build has the same.
foreach(page IN ITEMS vtop.1)
  string(REGEX MATCH "[0-9]$" section ${page})
  if(EXISTS ${PROJECT_SOURCE_DIR}/man/${page})
    install(FILES man/${page} DESTINATION ${CMAKE_INSTALL_MANDIR}/man${section})
  endif()
endforeach()
