# SPDX-License-Identifier: MIT
# Man pages and completions, by explicit list. meson.build has the same.
install(FILES man/vtop.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
install(FILES completions/vtop.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME vtop)
install(FILES completions/_vtop DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
install(FILES completions/vtop.fish DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
