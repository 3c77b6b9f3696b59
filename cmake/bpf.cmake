# SPDX-License-Identifier: MIT
# The program for the kernel, compiled for BPF and put into a header by bpftool. libvmem/meson.build has the same.
find_program(bpf_clang NAMES clang-19 clang REQUIRED)
find_program(bpftool NAMES bpftool PATHS /usr/sbin /sbin REQUIRED)
find_path(libbpf_headers NAMES bpf/skel_internal.h REQUIRED)

# vmem_bpf_skeleton(TARGET NAME.bpf.c) gives TARGET's sources "NAME.lskel.h".
function(vmem_bpf_skeleton target source)
  cmake_path(ABSOLUTE_PATH source)
  cmake_path(GET source PARENT_PATH folder)
  cmake_path(GET source STEM name)
  set(output ${CMAKE_CURRENT_BINARY_DIR}/bpf)
  file(MAKE_DIRECTORY ${output})
  add_custom_command(OUTPUT ${output}/${name}.bpf.o
    COMMAND ${bpf_clang} -target bpf -O2 -g -Wall -Wextra -Wno-unused-parameter -isystem ${libbpf_headers}
      -MD -MF ${output}/${name}.bpf.d -MT ${output}/${name}.bpf.o -c ${source} -o ${output}/${name}.bpf.o
    DEPENDS ${source}
    DEPFILE ${output}/${name}.bpf.d
    VERBATIM)
  add_custom_command(OUTPUT ${output}/${name}.lskel.h
    COMMAND ${bpftool} gen skeleton -L ${output}/${name}.bpf.o name ${name}_bpf > ${output}/${name}.lskel.h
    DEPENDS ${output}/${name}.bpf.o)
  target_sources(${target} PRIVATE ${output}/${name}.lskel.h)
  # What is generated is not held to our warnings.
  target_include_directories(${target} SYSTEM PRIVATE ${output} ${libbpf_headers})
endfunction()
