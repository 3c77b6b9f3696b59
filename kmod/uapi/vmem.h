/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * The protocol of /dev/vmem: page tables, page frames and IOMMU mappings, read only.
 *
 * Who may. The device is mode 0600, is opened O_RDONLY, and needs CAP_SYS_ADMIN in the initial user
 * namespace both at open() (EPERM; EACCES when opened for writing) and at every ioctl (EPERM).
 * ENODEV at open(): the module is just being unloaded.
 *
 * Arguments. Each ioctl takes a pointer to a structure whose first member is its size, as the
 * caller was compiled (like openat2(2)). Structures only ever grow at their end, and 0 in a new
 * member means what was meant before it existed:
 *  - a smaller size than the kernel's: what is missing counts as 0, and is not written back;
 *  - a larger one: E2BIG unless all that the kernel does not know is 0;
 *  - smaller than the first version: EINVAL.
 * A reserved member that is not 0, or a flag that is not defined, is EINVAL. Nothing is written
 * back where an error is returned, but buffers that the arguments point to may have been written
 * to.
 *
 * Errors. Every ioctl may fail with EPERM, EINVAL and E2BIG as said here, with EFAULT (the argument,
 * or a buffer that it points to, cannot be read or written) and with ENOTTY (there is no such ioctl,
 * at least not yet). What else each may fail with stands at its structure.
 *
 * Work per call is bounded. A call does a part of what it was asked, says in `next` where it
 * stopped, and is repeated from there until `next` equals `end`. Each call with room for at least
 * one result gets further. Only a fatal signal ends a call early (EINTR); the target's mmap_lock is
 * released every fraction of a millisecond.
 *
 * Targets. A process is named by the id of one of its threads in the caller's PID namespace and by
 * that thread's start time, field 22 of /proc/PID/stat (clock ticks; as the caller's time namespace
 * shows it). No pidfd: no kernel so far exports to modules what would resolve one. Errors: ESRCH
 * where there is no such thread, or one of another start time; ENXIO where it has no address space
 * (a kernel thread, or a zombie whose other threads are gone, too). `address_space` names the
 * address space behind it: opaque, never 0, another one after execve(2). Passed in as 0 it is
 * told; passed in as it was told before, a call on another address space is ESTALE.
 *
 * What is read is what stands in memory at that moment: bits that the processor sets (accessed,
 * dirty) and any other thread's changes included. Nothing is faulted in, pinned or changed.
 */
#ifndef VMEM_UAPI_H
#define VMEM_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>
#if defined(__KERNEL__)
#include <linux/build_bug.h>
#elif !defined(__cplusplus)
#include <assert.h>
#endif

#define VMEM_DEVICE "/dev/vmem"

/* A change that is not compatible as described above. */
#define VMEM_PROTOCOL 1

/* As in iommufd, the size is no part of the number: it stands in the structure. */
#define VMEM_IOC_TYPE 0xF6
#define VMEM_IOC_INFO _IO(VMEM_IOC_TYPE, 0)
#define VMEM_IOC_RESOLVE _IO(VMEM_IOC_TYPE, 1)
#define VMEM_IOC_WALK _IO(VMEM_IOC_TYPE, 2)
#define VMEM_IOC_FRAMES _IO(VMEM_IOC_TYPE, 3)
#define VMEM_IOC_IOVA _IO(VMEM_IOC_TYPE, 4)

#define VMEM_ARCH_X86_64 1
#define VMEM_ARCH_ARM64 2

/* struct vmem_info.features */
#define VMEM_FEATURE_FRAMES 0x1
#define VMEM_FEATURE_IOVA 0x2 /* the kernel was built with PCI and IOMMU support */
#define VMEM_FEATURE_LPA2 0x4 /* arm64: 52-bit output addresses with 4K or 16K granules */
#define VMEM_FEATURE_SAVED_DIRTY 0x8 /* x86: bit 58 is _PAGE_SAVED_DIRTY */

/* VMEM_IOC_INFO: how to read entries. No errors of its own. */
struct vmem_info {
	__u32 size;
	__u32 protocol; /* VMEM_PROTOCOL */
	__u32 architecture; /* VMEM_ARCH_ */
	__u32 features; /* VMEM_FEATURE_ */
	__u32 page_shift;
	__u32 levels; /* of page tables, folded ones not counted; the caller's */
	__u64 encryption_mask; /* x86: address bits that mark encryption and are no part of it */
	__u64 pat; /* x86: IA32_PAT */
	__u64 mair; /* arm64: MAIR_EL1 */
	__u32 swap_type_shift; /* lowest bit of the type in entries of swap */
	__u32 reserved;
};

/*
 * A run of page-table entries of one level, in neighbouring slots. The entry of page i (of the size
 * 1 << shift) is
 *	entry			without a direction (there may then be many equal ones),
 *	entry + (i << shift)	with VMEM_RUN_UP,
 *	entry - (i << shift)	with VMEM_RUN_DOWN (x86, entries that are not present: of PROT_NONE
 *				and NUMA hinting, which hold the frame inverted).
 * Of pages that are in memory either means consecutive frames; other entries are just numbers here.
 * Entries that are empty are in no run. Those that are not present (swap, migration, markers) are,
 * and so is what should not exist. Entries are as pte_val() has them: the encryption bit stands in
 * them, and under Xen PV frames are pseudo-physical.
 */
struct vmem_run {
	__u64 va; /* of the first entry; below the asked range where a large leaf starts there */
	__u64 entry; /* the first */
	__u64 count;
	__u16 flags; /* VMEM_RUN_ */
	__u8 level; /* 0: PTE, 1: PMD, ... */
	__u8 shift; /* log2 of the bytes that an entry of this level maps */
	__u32 reserved;
};

#define VMEM_RUN_UP 0x1
#define VMEM_RUN_DOWN 0x2
/*
 * What an upper level takes away from all entries below it. (The NX bit that page-table isolation
 * puts into the kernel's copy of x86's top level is not counted: user mode runs on the other copy.)
 */
#define VMEM_RUN_TABLE_READ_ONLY 0x4
#define VMEM_RUN_TABLE_NO_USER 0x8
#define VMEM_RUN_TABLE_NO_EXEC 0x10
/* The VMA is soft-dirty as a whole (VM_SOFTDIRTY): pagemap's bit 55 counts it for all its pages. */
#define VMEM_RUN_SOFT_DIRTY 0x20

/*
 * VMEM_IOC_RESOLVE: all entries that map [start, end) of a process, in ascending order. Only inside
 * of VMAs: elsewhere there is no user memory, and tables there may be freed at any moment. With
 * runs_len 0 only the target is looked at. Errors: those of targets; EINVAL, also for a range that
 * is not page aligned or ends before it starts; ENOMEM; EINTR.
 */
struct vmem_resolve {
	__u32 size;
	__u32 flags; /* 0 */
	__s32 pid;
	__u32 reserved;
	__u64 start_time;
	__u64 address_space; /* in, out */
	__u64 start; /* page aligned, start <= end */
	__u64 end;
	__u64 runs; /* out: pointer to an array of struct vmem_run */
	__u32 runs_len;
	__u32 runs_count; /* out */
	__u64 next; /* out: all of [start, next) is done */
};

struct vmem_step {
	__u64 table; /* physical address of the table */
	__u64 entry;
	__u32 index; /* of the entry in the table */
	__u8 level; /* 0: PTE */
	__u8 shift;
	__u16 flags; /* VMEM_RUN_TABLE_, of the levels above, and VMEM_RUN_SOFT_DIRTY */
};

#define VMEM_MAX_LEVELS 5

/*
 * VMEM_IOC_WALK: every level's entry for one address, from the root down to the one that does not
 * point to a table. Errors: those of targets; EINVAL, also for a steps_count that is not 0; EINTR.
 */
struct vmem_walk {
	__u32 size;
	__u32 flags; /* 0 */
	__s32 pid;
	__u32 steps_count; /* out; in: 0. 0 where no VMA covers the address */
	__u64 start_time;
	__u64 address_space; /* in, out */
	__u64 va;
	struct vmem_step steps[VMEM_MAX_LEVELS]; /* out */
};

struct vmem_frame {
	__u32 flags; /* VMEM_FRAME_; 0: there is no such frame of RAM, or it is offline */
	__s32 refcount; /* of the frame, or of its compound page (folio); 0: free or frozen */
	__s32 mapcount; /* page-table entries that map this frame, as /proc/kpagecount counts */
	__u32 order; /* log2 of the pages in its compound page */
};

#define VMEM_FRAME_ONLINE 0x1 /* the kernel has a struct page for it, and the rest is valid */
/*
 * As page_maybe_dma_pinned(): exact for large pages (where the kernel has a counter); a small page
 * with 1024 other references looks pinned, too. Clear: not pinned.
 */
#define VMEM_FRAME_MAYBE_PINNED 0x2
/*
 * Whether a long-term pin (FOLL_LONGTERM, as RDMA and VFIO take) may stay where it is.
 * NOT_PINNABLE: it is in ZONE_MOVABLE, and a pin would migrate it first. Neither: not known (the
 * kernel has CMA, and tells no module which frames belong to it).
 */
#define VMEM_FRAME_PINNABLE 0x4
#define VMEM_FRAME_NOT_PINNABLE 0x8
/* mapcount is an average over the compound page (CONFIG_NO_PAGE_MAPCOUNT). */
#define VMEM_FRAME_MAPCOUNT_AVERAGE 0x10
/* It changed hands all the while it was looked at: counts are of no meaning. */
#define VMEM_FRAME_CHANGING 0x20

/*
 * VMEM_IOC_FRAMES: what the kernel says of the frames [pfn, pfn + count). frames[i] is of frame pfn
 * + i. The module holds a reference of its own for an instant, which it does not count. Errors:
 * EINVAL, also where pfn + count wraps; ENOMEM; EINTR.
 */
struct vmem_frames {
	__u32 size;
	__u32 flags; /* 0 */
	__u64 pfn;
	__u64 count;
	__u64 frames; /* out: pointer to an array of `count` struct vmem_frame */
	__u64 done; /* out: how many were written; go on from pfn + done */
};

struct vmem_iova_run {
	__u64 iova;
	__u64 pa;
	__u64 bytes;
};

/* struct vmem_iova.state */
#define VMEM_IOVA_NO_IOMMU 1 /* no IOMMU translates for this device: runs are the bus's own map */
#define VMEM_IOVA_IDENTITY 2 /* an IOMMU lets every address through as it is */
#define VMEM_IOVA_BLOCKED 3 /* an IOMMU lets nothing through: there are no runs */
#define VMEM_IOVA_TRANSLATED 4 /* what is in no run is not mapped */

/*
 * VMEM_IOC_IOVA: what a PCI device reaches at the bus addresses [start, end), by the IOMMU domain
 * that it is attached to (not by those of PASIDs). One call tells of one domain. Errors:
 *  - EINVAL: also a range that is not aligned to 4096, or ends before it starts;
 *  - ENODEV: there is no such PCI device, or it is just being unplugged;
 *  - EAGAIN: the device was attached to another domain during the call, as VFIO does when it takes
 *    a device or gives it back. What was written to `runs` is of no use: ask again, from the
 *    beginning of all that was to be told, since earlier calls told of the old domain. It goes
 *    unnoticed between two calls, and where the new domain's structure lies where that of the old
 *    one lay, which was freed: an answer is sure only of a device that its driver keeps;
 *  - EOPNOTSUPP: a domain whose kind tells nothing (nested in a guest's tables), or a kernel without
 *    PCI or IOMMU support (see VMEM_FEATURE_IOVA);
 *  - ENOMEM; EINTR.
 */
struct vmem_iova {
	__u32 size;
	__u32 flags; /* 0 */
	__u32 domain; /* of 0000:03:00.1 the 0 */
	__u8 bus; /* 3 */
	__u8 devfn; /* 0 << 3 | 1 */
	__u16 reserved;
	__u64 start; /* aligned to 4096; start <= end */
	__u64 end;
	__u64 runs; /* out: pointer to an array of struct vmem_iova_run */
	__u32 runs_len;
	__u32 runs_count; /* out */
	__u64 next; /* out: all of [start, next) is done */
	__u32 state; /* out: VMEM_IOVA_ */
	__u32 reserved2;
};

/* One layout on every architecture, and for 32-bit callers. */
static_assert(sizeof(struct vmem_info) == 56, "struct vmem_info");
static_assert(sizeof(struct vmem_run) == 32, "struct vmem_run");
static_assert(sizeof(struct vmem_resolve) == 72, "struct vmem_resolve");
static_assert(sizeof(struct vmem_step) == 24, "struct vmem_step");
static_assert(sizeof(struct vmem_walk) == 160, "struct vmem_walk");
static_assert(sizeof(struct vmem_frame) == 16, "struct vmem_frame");
static_assert(sizeof(struct vmem_frames) == 40, "struct vmem_frames");
static_assert(sizeof(struct vmem_iova_run) == 24, "struct vmem_iova_run");
static_assert(sizeof(struct vmem_iova) == 64, "struct vmem_iova");

#endif
