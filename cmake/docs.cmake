# SPDX-License-Identifier: MIT
# Man pages and completions of each tool, and other pages, by explicit list. meson.build has the same.
foreach(tool IN ITEMS mapcheck regaudit vmastat vtop)
  install(FILES man/${tool}.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
  install(FILES completions/${tool}.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME ${tool})
  install(FILES completions/_${tool} DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
  install(FILES completions/${tool}.fish DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
endforeach()
install(FILES man/vmem.4 DESTINATION ${CMAKE_INSTALL_MANDIR}/man4)
install(FILES man/vmem-policy.5 DESTINATION ${CMAKE_INSTALL_MANDIR}/man5)
