# SPDX-License-Identifier: MIT
# Man pages, and completions of each tool, by explicit list. meson.build has the same.
install(FILES man/vtop.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
foreach(tool IN ITEMS vtop)
  install(FILES completions/${tool}.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME ${tool})
  install(FILES completions/_${tool} DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
  install(FILES completions/${tool}.fish DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
endforeach()
