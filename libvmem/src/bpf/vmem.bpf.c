/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * Copies a process's page tables, whole tables at a time, for user space to decode.
 *
 * An iter/task_vma program, because that iterator holds mmap_lock while the program looks at a VMA
 * (task_vma_seq_get_next() in kernel/bpf/task_iter.c; it lets go between two VMAs if a writer
 * waits). So the VMA stays, and with it every table that it needs: free_pgtables() frees only what
 * no neighbouring VMA uses. What frees PTE tables under less (khugepaged's retract_page_tables(),
 * the reclaim of empty tables) waits for RCU, and this program runs inside one RCU section. The
 * entry above is read before and after each copy.
 *
 * A program that returns 1 is shown the same VMA again by the next read() (bpf_iter_run_prog()):
 * that is how a run is bounded.
 */
#include "protocol.h"

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

#include <bpf/bpf_helpers.h>

/* From include/uapi/linux/bpf.h, which asks for headers of the target's architecture. */
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_F_MMAPABLE (1U << 10)

/*
 * The fields that are used; CO-RE finds where they are. Each type whose name is not in the kernel's
 * cache of candidates costs a search of all its types, half a millisecond a load. Not named here
 * for that: vm_operations_struct, which has mm_struct's place in that cache, so that the two would
 * drive each other out (check_cand_cache() in kernel/bpf/btf.c).
 */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct mm_struct {
  __u64* pgd;
};
struct vm_area_struct {
  unsigned long vm_start;
  unsigned long vm_end;
  unsigned long vm_flags;
  struct mm_struct* vm_mm;
  const void* vm_ops;
};
struct task_struct {
  struct task_struct* group_leader;
  __u64 start_boottime;
  __u64 self_exec_id;
  const void* cred;
  void* files;
  void* fs;
  void* sighand;
  void* signal;
};
struct bpf_iter__task_vma {
  void* meta;
  struct task_struct* task;
  struct vm_area_struct* vma;
};
#pragma clang attribute pop

struct table {
  __u64 entry[VMEM_ENTRIES];
};

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, VMEM_TABLES);
  __uint(map_flags, BPF_F_MMAPABLE);
  __type(key, __u32);
  __type(value, struct table);
} tables SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, VMEM_RECORDS);
  __uint(map_flags, BPF_F_MMAPABLE);
  __type(key, __u32);
  __type(value, struct vmem_record);
} records SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, VMEM_COVERS);
  __uint(map_flags, BPF_F_MMAPABLE);
  __type(key, __u32);
  __type(value, struct vmem_cover);
} covers SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, VMEM_VMAS);
  __uint(map_flags, BPF_F_MMAPABLE);
  __type(key, __u32);
  __type(value, struct vmem_vma);
} vmas SEC(".maps");

/* These are mapped by the reader, too. */
struct vmem_run run;
struct vmem_ram ram[VMEM_RAM_RANGES];

#define PAGE_SHIFT 12
#define INDEX_BITS 9
/* arch/x86/include/asm/pgtable_types.h */
#define PAGE_PRESENT (1ULL << 0)
#define PAGE_ACCESSED (1ULL << 5)
#define PAGE_DIRTY (1ULL << 6)
#define PAGE_PSE (1ULL << 7)

/* include/linux/mm.h. Never set where the kernel has no soft-dirty bits. */
#define VM_SOFTDIRTY 0x08000000

/* Steps of one look at a VMA: some hundred microseconds at most. */
#define STEPS (1U << 15)
/* VMAs of one read(): bpf_seq_read() itself gives up after a million. */
#define SHOWS (1U << 19)
/* A few entries are read by blocks of so many into a copy that is there. */
#define BLOCK 16
#define TRIES 3

enum { go_on, stop }; /* of a callback of bpf_loop() */

static __always_inline unsigned int shift_of(__u32 level) {
  return PAGE_SHIFT + level * INDEX_BITS;
}

static __always_inline int is_table(__u64 entry) {
  return (entry & (PAGE_PRESENT | PAGE_PSE)) == PAGE_PRESENT;
}

/* The processor sets these two at any time. */
static __always_inline int same_entry(__u64 a, __u64 b) {
  return ((a ^ b) & ~(PAGE_ACCESSED | PAGE_DIRTY)) == 0;
}

static __always_inline int in_ram(__u64 pa) {
  __u32 half;

  if (pa >= ram[run.ram_at % VMEM_RAM_RANGES].start && pa < ram[run.ram_at % VMEM_RAM_RANGES].end)
    return 1;
  /* In memory, where the verifier does not tell one position from another. */
  run.ram_at = 0;
  for (half = VMEM_RAM_RANGES / 2; half > 0; half /= 2) {
    const __u32 at = *(volatile __u32*)&run.ram_at + half;

    if (ram[at % VMEM_RAM_RANGES].start <= pa) *(volatile __u32*)&run.ram_at = at;
  }
  barrier();
  return pa >= ram[run.ram_at % VMEM_RAM_RANGES].start &&
         pa < ram[run.ram_at % VMEM_RAM_RANGES].end;
}

/* Of a table that is known to lie in RAM. */
static __always_inline int read_entry(__u64 table, __u32 index, __u64* entry) {
  const __u64 at = run.direct_map + table + index * sizeof *entry;

  return bpf_probe_read_kernel(entry, sizeof *entry, (const void*)at) == 0;
}

static __always_inline struct table* slot_at(__u32 slot) {
  return bpf_map_lookup_elem(&tables, &slot);
}

/* Notes a step down to (or at) the table for `va`. */
static __always_inline void note(__u64 va, __u64 pa, __u64 raw, __u32 level, __u32 slot,
                                 __u8 status) {
  const __u32 at = run.records;
  struct vmem_record* const r = bpf_map_lookup_elem(&records, &at);

  if (!r) return;
  r->va = va;
  r->pa = pa;
  r->raw = raw;
  r->slot = slot;
  r->level = level;
  r->status = status;
  run.records = at + 1;
}

static __always_inline int room(void) {
  return run.tables < VMEM_TABLES && run.records < VMEM_RECORDS - 1;
}

/* Copies a table into the next slot, which is not used up yet. */
static __always_inline int copy(__u64 pa) {
  struct table* const to = slot_at(run.tables);
  const __u64 from = run.direct_map + pa;

  return to && bpf_probe_read_kernel(to, sizeof *to, (const void*)from) == 0;
}

/* Copies some entries into a copy that is there. They are those of an earlier VMA, too, as they are
 * now. */
static __always_inline int copy_block(struct table* to, __u64 pa, __u32 block) {
  const __u64 from = run.direct_map + pa + block % (VMEM_ENTRIES / BLOCK) * BLOCK * sizeof(__u64);

  return bpf_probe_read_kernel(&to->entry[block % (VMEM_ENTRIES / BLOCK) * BLOCK],
                               BLOCK * sizeof(__u64), (const void*)from) == 0;
}

/* Uses up the slot: it holds the table of `level` for `va`. */
static __always_inline void keep(__u64 va, __u64 pa, __u64 raw, __u32 level) {
  struct vmem_path* p = &run.path[level % VMEM_LEVELS];
  const __u64 prefix = va >> shift_of(level + 1);

  if (p->show != 0 && p->prefix == prefix) run.refreshed = 1;
  p->prefix = prefix;
  p->pa = pa;
  p->raw = raw;
  p->slot = run.tables;
  p->show = run.show;
  note(prefix << shift_of(level + 1), pa, raw, level, run.tables, vmem_copied);
  ++run.tables;
}

/* One entry of a table above the PTEs: passes over it, or takes the table below. */
static long step(__u32 i, void* context) {
  const __u32 level = run.level;
  const __u64 va = run.va;
  const __u32 shift = shift_of(level % VMEM_LEVELS);
  const __u32 index = (va >> shift) % VMEM_ENTRIES;
  const __u64 start = va >> shift << shift;
  struct vmem_path* const p = &run.path[level % VMEM_LEVELS];
  struct vmem_path* const below = &run.path[(level - 1) % VMEM_LEVELS];
  __u64 next = start + (1ULL << shift);
  __u64 entry, before = 0, after, pa;
  struct table* table;
  __u32 first, last;
  __u8 status = vmem_unreadable;

  if (level == 0 || level >= VMEM_LEVELS || !room()) return stop;
  table = slot_at(p->slot);
  if (!table) return stop;
  entry = table->entry[index];

  /* A copy made for an earlier VMA serves if this one needs a single entry of it, and that is still
   * the same. */
  if (p->show != run.show) {
    if (!read_entry(p->pa, index, &before)) goto give_up;
    if (run.limit > next || !same_entry(entry, before)) {
      if (!copy(p->pa)) goto give_up;
      keep(va, p->pa, p->raw, level);
      return go_on;
    }
  }

  if (!is_table(entry)) {
    /* Of empty ones eight at a time, for the sake of huge empty ranges. */
    if (entry == 0 && index % 8 == 0 && p->show == run.show) {
      const __u64* const e = &table->entry[index & (VMEM_ENTRIES - 8)];

      if ((e[1] | e[2] | e[3] | e[4] | e[5] | e[6] | e[7]) == 0) next = start + (8ULL << shift);
    }
    goto pass;
  }

  if (p->show == run.show && !read_entry(p->pa, index, &before)) goto give_up;
  if (!is_table(before)) {
    status = vmem_entry;
    goto give_up;
  }
  pa = before & run.address_mask;
  if (!in_ram(pa)) goto give_up;

  first = (va >> PAGE_SHIFT) % VMEM_ENTRIES / BLOCK;
  last = (((run.limit < next ? run.limit : next) - 1) >> PAGE_SHIFT) % VMEM_ENTRIES / BLOCK;
  if (below->show != 0 && below->prefix == va >> shift && same_entry(below->raw, before) &&
      (level > 1 || last - first <= 1)) {
    if (level > 1) {
      run.level = level - 1;
      return go_on;
    }
    table = slot_at(below->slot);
    if (!table || !copy_block(table, pa, first)) goto give_up;
    if (first != last && !copy_block(table, pa, last)) goto give_up;
    if (!read_entry(p->pa, index, &after)) goto give_up;
    if (same_entry(before, after)) goto pass;
  } else {
    if (!copy(pa)) goto give_up;
    if (!read_entry(p->pa, index, &after)) goto give_up;
    if (same_entry(before, after)) {
      keep(va, pa, before, level - 1);
      if (level == 1) goto pass;
      run.tries = 0;
      run.level = level - 1;
      return go_on;
    }
  }
  if (++run.tries < TRIES) return go_on;
  status = vmem_moved;

give_up:
  note(start, 0, before, level - 1, 0, status);
  run.closed = 1;
pass:
  run.va = next;
  run.tries = 0;
  if (next >= run.limit) return stop;
  /* Up again, to the table in which that address is. */
  for (first = 1; first < 5; ++first) {
    const __u32 l = *(volatile __u32*)&run.level;

    if (l + 1 >= run.levels ||
        next >> shift_of((l + 1) % VMEM_LEVELS) == run.path[l % VMEM_LEVELS].prefix)
      break;
    *(volatile __u32*)&run.level = l + 1;
  }
  return go_on;
}

/*
 * A small VMA beside the one before, in a process with many: if all tables on the way are those of
 * last time, its entries are added to the copy that is there. False if it takes a closer look.
 */
static __always_inline int beside(__u64 start, __u64 end) {
  const __u32 first = (start >> PAGE_SHIFT) % VMEM_ENTRIES / BLOCK;
  const __u32 last = ((end - 1) >> PAGE_SHIFT) % VMEM_ENTRIES / BLOCK;
  struct table* table;
  __u64 entry;
  __u32 level;

  if (run.path[0].show == 0 || run.path[0].prefix != start >> shift_of(1) ||
      run.path[0].prefix != (end - 1) >> shift_of(1) || last - first > 1) {
    return 0;
  }
  for (level = 4; level > 0; --level) {
    const struct vmem_path* const p = &run.path[level];

    if (level >= run.levels) continue;
    if (p->show == 0 || p->prefix != start >> shift_of(level + 1) ||
        !read_entry(p->pa, (start >> shift_of(level)) % VMEM_ENTRIES, &entry) ||
        !same_entry(entry, run.path[level - 1].raw)) {
      return 0;
    }
  }
  table = slot_at(run.path[0].slot);
  return table && copy_block(table, run.path[0].pa, first) &&
         (first == last || copy_block(table, run.path[0].pa, last)) &&
         read_entry(run.path[1].pa, (start >> shift_of(1)) % VMEM_ENTRIES, &entry) &&
         same_entry(entry, run.path[0].raw);
}

static __always_inline void add_pointer(const void* p) {
  if (run.pointer_count < VMEM_POINTERS)
    run.pointers[run.pointer_count++ % VMEM_POINTERS] = (__u64)p;
}

SEC("iter/task_vma")
int walk(struct bpf_iter__task_vma* context) {
  struct task_struct* const task = context->task;
  struct vm_area_struct* const vma = context->vma;
  struct mm_struct* mm;
  struct vmem_cover* cover;
  __u64 start, end, root;
  __u32 first, closed, at, soft_dirty;

  if (!task || !vma) {
    run.ended = 1;
    return 0;
  }
  mm = vma->vm_mm;
  if (!mm) return 0;
  if (run.seen++ == 0) {
    run.task = (__u64)task;
    run.mm = (__u64)mm;
    run.exec_id = task->self_exec_id;
    run.start_boottime = task->group_leader->start_boottime;
  } else if (run.task != (__u64)task) {
    /* An iterator over a process goes on with the next thread. */
    run.ended = 1;
    return 1;
  }
  if (run.mode == vmem_mode_symbol) {
    if (bpf_probe_read_kernel(&run.pointers[0], sizeof run.pointers[0], (const void*)run.cursor) ==
        0) {
      run.pointer_count = 1;
    }
    return 1;
  }
  if (run.mode == vmem_mode_pointers) {
    if (run.seen == 1) {
      add_pointer(task);
      add_pointer(mm);
      add_pointer(task->cred);
      add_pointer(task->files);
      add_pointer(task->fs);
      add_pointer(task->sighand);
      add_pointer(task->signal);
    }
    add_pointer(vma);
    return run.pointer_count == VMEM_POINTERS;
  }

  start = vma->vm_start;
  end = vma->vm_end;
  if (run.mode == vmem_mode_vm_ops) {
    if (end <= run.cursor) return run.seen > SHOWS;
    if (start <= run.cursor) {
      const void* const ops = vma->vm_ops;

      run.pointers[0] = (__u64)ops;
      run.pointer_count = 1;
      if (ops && bpf_probe_read_kernel(&run.pointers[1], VMEM_FUNCTIONS * sizeof(__u64), ops) == 0)
        run.pointer_count = 1 + VMEM_FUNCTIONS;
    }
    run.ended = 1;
    return 1;
  }
  /*
   * Another read() begins with find_vma(), at the end of the VMA where the last one stopped. That
   * may be gone, and others in its place: so what is shown first must begin where all below is
   * known.
   */
  if (run.continued && run.seen == 1 && start > run.cursor) {
    run.lost = 1;
    return 1;
  }
  if (end <= run.cursor) return run.seen > SHOWS;
  if (run.mode == vmem_mode_vmas) {
    struct vmem_vma* known;

    at = run.vmas;
    known = at < VMEM_VMAS && run.seen <= SHOWS ? bpf_map_lookup_elem(&vmas, &at) : 0;
    if (!known) {
      run.cursor = start;
      return 1;
    }
    known->start = start;
    known->end = end;
    known->flags = vma->vm_flags;
    run.vmas = at + 1;
    run.cursor = end;
    return 0;
  }
  if (start >= run.end) {
    run.cursor = run.end;
    return 1;
  }
  if (start < run.cursor) start = run.cursor;
  if (end > run.end) end = run.end;
  run.cursor = start;
  if (!room() || run.covers >= VMEM_COVERS || run.seen > SHOWS) return 1;

  first = run.records;
  closed = run.closed;
  run.closed = 0;
  ++run.show;
  run.refreshed = 0;
  run.tries = 0;
  run.va = start;
  run.limit = end;
  if (run.levels < 2 || run.levels > 5) return 1;
  run.level = run.levels - 1;
  if (run.path[run.level % VMEM_LEVELS].show == 0) {
    /* Through memory: the verifier allows no arithmetic on a pointer that it knows as one. */
    run.pgd = (__u64)mm->pgd;
    barrier();
    root = run.pgd - run.direct_map;
    if (root % sizeof(struct table) != 0 || !in_ram(root) || !copy(root)) {
      note(0, root, 0, run.level, 0, vmem_unreadable);
      run.va = end;
    } else {
      keep(0, root, 0, run.level);
    }
  }
  if (run.va < end) {
    if (beside(start, end))
      run.va = end;
    else
      bpf_loop(STEPS, step, 0, 0);
  }

  if (run.va > end) run.va = end;
  if (run.va > start) {
    soft_dirty = (vma->vm_flags & VM_SOFTDIRTY) != 0;
    at = run.covers - 1;
    cover = bpf_map_lookup_elem(&covers, &at);
    if (cover && cover->end == start && cover->soft_dirty == soft_dirty && !run.refreshed &&
        !closed) {
      cover->end = run.va;
    } else {
      at = run.covers;
      cover = bpf_map_lookup_elem(&covers, &at);
      if (!cover) return 1;
      cover->start = start;
      cover->end = run.va;
      cover->record = first;
      cover->soft_dirty = soft_dirty;
      run.covers = at + 1;
    }
  }
  run.cursor = run.va;
  return run.va < end || run.cursor >= run.end;
}

char module_license[] SEC("license") = "Dual MIT/GPL";
