/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * What the program in the kernel (vmem.bpf.c) and its reader (bpf.cpp) share.
 *
 * A run answers for [start, cursor): what no cover contains is covered by no VMA. Within a cover
 * the tables stand in preorder, each once: the root, then for each table entry in ascending order
 * the table that it points to. A table that an earlier cover brought is not brought again as long
 * as it serves.
 */
#ifndef VMEM_BPF_PROTOCOL_H
#define VMEM_BPF_PROTOCOL_H
/* C, whatever clang-tidy has to say about it as C++: NOLINTBEGIN */

/* Powers of two, all of them: the verifier is shown bounds by masks. */
#define VMEM_TABLES 128  /* copied by one run: 512 KiB */
#define VMEM_RECORDS 256
#define VMEM_COVERS 2048
#define VMEM_VMAS 64 /* flags change: few are told before they are asked for */
#define VMEM_RAM_RANGES 256
#define VMEM_LEVELS 8 /* five are in use */
#define VMEM_POINTERS 16
/* Of vm_operations_struct, up to `name`: every kernel has these. The mappings that need this most
 * (/dev/mem, PCI resources, UIO) have `access` alone. */
#define VMEM_FUNCTIONS 13
#define VMEM_ENTRIES 512

typedef unsigned long long vmem_u64;
typedef unsigned int vmem_u32;

enum vmem_mode {
  vmem_mode_walk,
  vmem_mode_pointers, /* no page table is read: only `pointers` */
  vmem_mode_symbol,   /* nor here: pointers[0] is what stands at the kernel address `cursor` */
  /* Nor here: pointers[0] is vm_ops of the VMA that covers `cursor`; behind it, unless that is 0,
   * stand its first VMEM_FUNCTIONS functions. */
  vmem_mode_vm_ops,
  /* Nor here: `vmas` are those that end above the address that `cursor` was, and the first that did
   * not fit begins at what it is now. */
  vmem_mode_vmas,
};

enum vmem_status {
  vmem_copied,
  vmem_entry, /* no table any more: `raw` is what stands there now */
  vmem_moved, /* the entry above kept changing while its table was copied */
  vmem_unreadable, /* the table does not lie in RAM, as far as is known */
};

struct vmem_record {
  vmem_u64 va; /* the first address that the table is for */
  vmem_u64 pa; /* of the table */
  vmem_u64 raw; /* the entry above; 0 for the root */
  vmem_u32 slot;
  unsigned char level; /* of the table, 0: PTEs */
  unsigned char status;
  unsigned char unused[2];
};

struct vmem_cover {
  vmem_u64 start, end;
  vmem_u32 record; /* the first that came with it */
  vmem_u32 soft_dirty; /* all of it, whatever the entries say */
};

struct vmem_vma {
  vmem_u64 start, end;
  vmem_u64 flags; /* vm_flags */
};

struct vmem_ram {
  vmem_u64 start, end; /* page aligned; unused ones, at the end: all bits set */
};

/* The table of a level that the walk has last gone through. */
struct vmem_path {
  vmem_u64 prefix; /* address above the bits that the table resolves */
  vmem_u64 pa;
  vmem_u64 raw;
  vmem_u32 slot;
  vmem_u32 show; /* number of the VMA it was copied for; 0: none */
};

struct vmem_run {
  /* Asked. */
  vmem_u64 cursor, end;
  vmem_u64 direct_map; /* kernel address of physical address 0 */
  vmem_u64 address_mask; /* of an entry: the bits that are an address */
  vmem_u32 levels;
  vmem_u32 mode;
  vmem_u32 continued; /* this is not the iterator's first read() */

  /* Answered. */
  vmem_u32 seen; /* VMAs */
  vmem_u32 ended; /* there are no more VMAs */
  vmem_u32 lost; /* VMAs may have been missed: begin with another iterator */
  vmem_u32 records, tables, covers, vmas, pointer_count;
  vmem_u64 mm, exec_id, start_boottime; /* which address space of which process */
  vmem_u64 task; /* the thread whose VMAs these are: the others have the same ones */
  vmem_u64 pointers[VMEM_POINTERS]; /* kernel addresses of slab objects */

  /* Where the walk is. */
  vmem_u64 va, limit, pgd;
  vmem_u32 level, show, tries, ram_at;
  vmem_u32 refreshed; /* a table was copied again for this VMA */
  vmem_u32 closed; /* the last cover cannot be made longer */
  struct vmem_path path[VMEM_LEVELS];
};

/* NOLINTEND */
#endif
