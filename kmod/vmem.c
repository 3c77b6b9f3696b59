// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * /dev/vmem: a process's page tables as they stand, what the kernel knows of a frame, and where a
 * device's bus addresses lead. Read only. uapi/vmem.h is the protocol.
 *
 * Why page tables may be read here at all:
 *  - A reference on the mm's users keeps its page tables from being torn down as a whole.
 *  - mmap_lock is held for reading, so that VMAs neither come, go nor move. Only what lies inside
 *    of a VMA is walked: munmap() frees the tables of what it has already unlinked with mmap_lock
 *    held for reading, too (it downgrades the lock).
 *  - Tables of PTEs may go even so: khugepaged frees those of files (6.6 and later), and
 *    MADV_DONTNEED empty ones (6.14 and later, CONFIG_PT_RECLAIM). Both free by RCU, therefore
 *    rcu_read_lock() comes before the PMD is read.
 *  - Hugetlb may unshare a table of PMDs. It holds i_mmap_rwsem for writing when it does.
 *  - Each entry is read once, and what is done rests on that copy alone: entries change from a
 *    table to a huge leaf and back under us.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/capability.h>
#include <linux/dma-direct.h>
#include <linux/fs.h>
#include <linux/hugetlb.h>
#include <linux/math64.h>
#include <linux/mem_encrypt.h>
#include <linux/memory_hotplug.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/pgtable.h>
#include <linux/pid.h>
#include <linux/random.h>
#include <linux/rcupdate.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/siphash.h>
#include <linux/slab.h>
#include <linux/time_namespace.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "uapi/vmem.h"

#if !defined(CONFIG_X86_64) && !defined(CONFIG_ARM64)
#error "vmem knows the page tables of x86-64 and arm64"
#endif

/*
 * Entries looked at with mmap_lock held, and such rounds in a call: some tenths of a millisecond,
 * and some ten. A VMA counts as much as it costs to find.
 */
#define ENTRIES_PER_ROUND 32768
#define ENTRIES_PER_VMA 32
#define ROUNDS_PER_CALL 64
/* Results held in the kernel while a lock keeps them from being copied out. */
#define RUNS_PER_ROUND 2048
#define FRAMES_PER_ROUND 1024
#define FRAMES_PER_CALL 65536
#define IOVAS_PER_ROUND 4096

static siphash_key_t address_space_key __read_mostly;

enum { LEVEL_PTE, LEVEL_PMD, LEVEL_PUD, LEVEL_P4D, LEVEL_PGD };

static unsigned int level_shift(unsigned int level)
{
	return PAGE_SHIFT + level * (PAGE_SHIFT - 3);
}

/*
 * Levels that this mm does without. The kernel's functions pass through them: the entry of the
 * level above is taken for one of the level below, and is looked at there.
 */
static unsigned int levels_of(struct mm_struct *mm)
{
	return 5 - (mm_p4d_folded(mm) ? 1 : 0) - (mm_pud_folded(mm) ? 1 : 0) -
	       (mm_pmd_folded(mm) ? 1 : 0);
}

/*
 * pXd_leaf() and pXd_present() have changed their minds about entries of PROT_NONE, of migration
 * and of huge pages being split (and before 6.9 arm64 has the first say no to PROT_NONE), so this
 * is what the processor calls a table; whoever reads the entry finds out what the others are.
 */
static bool is_table(u64 entry)
{
#ifdef CONFIG_X86_64
	return (entry & (_PAGE_PRESENT | _PAGE_PSE)) == _PAGE_PRESENT;
#else
	return (entry & 3) == 3;
#endif
}

/* What an entry that is a table takes away from all below it, as VMEM_RUN_TABLE_. */
static u16 table_limits(u64 entry, bool root)
{
	u16 limits = 0;

#ifdef CONFIG_X86_64
	if (!(entry & _PAGE_RW))
		limits |= VMEM_RUN_TABLE_READ_ONLY;
	if (!(entry & _PAGE_USER))
		limits |= VMEM_RUN_TABLE_NO_USER;
	/* pti_set_user_pgtbl() sets NX in the kernel's copy of the root. */
	if (!root && (entry & _PAGE_NX))
		limits |= VMEM_RUN_TABLE_NO_EXEC;
#else
	/* APTable[1], APTable[0], UXNTable (DDI 0487, stage 1 table descriptors) */
	if (entry & BIT_ULL(62))
		limits |= VMEM_RUN_TABLE_READ_ONLY;
	if (entry & BIT_ULL(61))
		limits |= VMEM_RUN_TABLE_NO_USER;
	if (entry & BIT_ULL(60))
		limits |= VMEM_RUN_TABLE_NO_EXEC;
#endif
	return limits;
}

/* What counts for all pages of a VMA, as VMEM_RUN_. */
static u16 vma_flags(struct vm_area_struct *vma)
{
	return vma->vm_flags & VM_SOFTDIRTY ? VMEM_RUN_SOFT_DIRTY : 0;
}

/* Targets */

static u64 address_space_of(struct mm_struct *mm, u64 exec_id)
{
	/*
	 * An execve() never puts the new mm where the old one is, which it still holds; should a
	 * later one, then self_exec_id has moved on. The key keeps the kernel's address a secret.
	 */
	return siphash_2u64((uintptr_t)mm, exec_id, &address_space_key) | 1;
}

static struct mm_struct *target_mm(s32 nr, u64 start_time, u64 *address_space)
{
	struct task_struct *task, *thread;
	struct mm_struct *mm;
	struct pid *pid;
	u64 exec_id, found, ticks;

	if (nr <= 0)
		return ERR_PTR(-ESRCH);
	pid = find_get_pid(nr);
	if (!pid)
		return ERR_PTR(-ESRCH);
	task = get_pid_task(pid, PIDTYPE_PID);
	put_pid(pid);
	if (!task)
		return ERR_PTR(-ESRCH);

	/* As do_task_stat() in fs/proc/array.c; nsec_to_clock_t() is not exported. */
	ticks = div_u64(vmem_boottime(task->start_boottime), NSEC_PER_SEC / USER_HZ);
	if (ticks != start_time) {
		put_task_struct(task);
		return ERR_PTR(-ESRCH);
	}

	exec_id = READ_ONCE(task->self_exec_id);
	mm = get_task_mm(task);
	if (!mm) {
		/* The thread that the process is named by may be the first to have ended. */
		rcu_read_lock();
		for_each_thread(task, thread) {
			mm = get_task_mm(thread);
			if (mm)
				break;
		}
		rcu_read_unlock();
	}
	put_task_struct(task);
	if (!mm)
		return ERR_PTR(-ENXIO);

	found = address_space_of(mm, exec_id);
	if (*address_space && *address_space != found) {
		mmput(mm);
		return ERR_PTR(-ESTALE);
	}
	*address_space = found;
	return mm;
}

/* Resolving a range */

struct walker {
	struct vmem_run *runs;
	u32 count;
	u32 capacity;
	u32 budget; /* entries that may still be looked at */
	u64 done; /* all below was looked at */
};

/* Whether one more entry may be looked at. */
static bool spend(struct walker *w, u32 entries)
{
	if (w->budget < entries) {
		w->budget = 0;
		return false;
	}
	w->budget -= entries;
	return true;
}

/*
 * x86 holds frames inverted in entries that are not present (L1TF: __pte_needs_invert()), so that
 * there the entries of consecutive frames count down.
 */
static u16 direction_of(u64 entry)
{
#ifdef CONFIG_X86_64
	if (!(entry & _PAGE_PRESENT))
		return VMEM_RUN_DOWN;
#endif
	return VMEM_RUN_UP;
}

/* Whether `entry` goes on where `run` ends. */
static bool continues(struct vmem_run *run, u64 va, u64 entry, unsigned int level, u16 flags)
{
	const u16 directions = VMEM_RUN_UP | VMEM_RUN_DOWN;
	const u16 direction = run->count == 1 ? direction_of(entry) : run->flags & directions;
	u64 next = run->entry;

	if (run->level != level || (run->flags & ~directions) != flags ||
	    run->va + (run->count << run->shift) != va)
		return false;
	if (run->count == 1 && entry == next)
		return true;
	if (direction & VMEM_RUN_UP)
		next += run->count << run->shift;
	else if (direction & VMEM_RUN_DOWN)
		next -= run->count << run->shift;
	if (entry != next)
		return false;
	run->flags |= direction;
	return true;
}

/* False where there is no room. */
static bool add_entry(struct walker *w, u64 va, u64 entry, unsigned int level, u16 flags)
{
	struct vmem_run *run = w->runs + w->count - 1;

	va &= ~((1ULL << level_shift(level)) - 1);
	if (w->count && continues(run, va, entry, level, flags)) {
		run->count++;
		return true;
	}
	if (w->count == w->capacity)
		return false;
	run = w->runs + w->count++;
	*run = (struct vmem_run){
		.va = va,
		.entry = entry,
		.count = 1,
		.flags = flags,
		.level = level,
		.shift = level_shift(level),
	};
	return true;
}

/*
 * The functions below walk [addr, end) at one level each, and return false where they had to stop;
 * all below w->done was then looked at. The copy of the upper entry is what they go by.
 */
static bool walk_ptes(struct walker *w, pmd_t pmd, unsigned long addr, unsigned long end, u16 flags)
{
	pte_t *ptep = pte_offset_kernel(&pmd, addr);

	do {
		pte_t pte = READ_ONCE(*ptep);

		if (!spend(w, 1))
			return false;
		if (!pte_none(pte) && !add_entry(w, addr, pte_val(pte), LEVEL_PTE, flags))
			return false;
		addr += PAGE_SIZE;
		w->done = addr;
	} while (ptep++, addr != end);
	return true;
}

static bool walk_pmds(struct walker *w, pud_t *pudp, pud_t pud, unsigned long addr,
		      unsigned long end, u16 flags, bool root)
{
	pmd_t *pmdp = pmd_offset_lockless(pudp, pud, addr);
	unsigned long next;
	bool more = true;

	do {
		pmd_t pmd;

		next = pmd_addr_end(addr, end);
		if (!spend(w, 1))
			return false;
		rcu_read_lock();
		pmd = READ_ONCE(*pmdp);
		if (is_table(pmd_val(pmd)))
			more = walk_ptes(w, pmd, addr, next,
					 flags | table_limits(pmd_val(pmd), root));
		else if (!pmd_none(pmd))
			more = add_entry(w, addr, pmd_val(pmd), LEVEL_PMD, flags);
		rcu_read_unlock();
		if (!more)
			return false;
		w->done = next;
	} while (pmdp++, addr = next, addr != end);
	return true;
}

static bool walk_puds(struct walker *w, struct mm_struct *mm, p4d_t *p4dp, p4d_t p4d,
		      unsigned long addr, unsigned long end, u16 flags, bool root)
{
	pud_t *pudp = pud_offset_lockless(p4dp, p4d, addr);
	unsigned long next;
	bool more = true;

	do {
		pud_t pud = READ_ONCE(*pudp);

		next = pud_addr_end(addr, end);
		if (!spend(w, 1))
			return false;
		if (mm_pmd_folded(mm))
			more = walk_pmds(w, pudp, pud, addr, next, flags, root);
		else if (is_table(pud_val(pud)))
			more = walk_pmds(w, pudp, pud, addr, next,
					 flags | table_limits(pud_val(pud), root), false);
		else if (!pud_none(pud))
			more = add_entry(w, addr, pud_val(pud), LEVEL_PUD, flags);
		if (!more)
			return false;
		w->done = next;
	} while (pudp++, addr = next, addr != end);
	return true;
}

static bool walk_p4ds(struct walker *w, struct mm_struct *mm, pgd_t *pgdp, pgd_t pgd,
		      unsigned long addr, unsigned long end, u16 flags, bool root)
{
	p4d_t *p4dp = p4d_offset_lockless(pgdp, pgd, addr);
	unsigned long next;
	bool more = true;

	do {
		p4d_t p4d = READ_ONCE(*p4dp);

		next = p4d_addr_end(addr, end);
		if (!spend(w, 1))
			return false;
		if (mm_pud_folded(mm))
			more = walk_puds(w, mm, p4dp, p4d, addr, next, flags, root);
		else if (is_table(p4d_val(p4d)))
			more = walk_puds(w, mm, p4dp, p4d, addr, next,
					 flags | table_limits(p4d_val(p4d), root), false);
		else if (!p4d_none(p4d))
			more = add_entry(w, addr, p4d_val(p4d), LEVEL_P4D, flags);
		if (!more)
			return false;
		w->done = next;
	} while (p4dp++, addr = next, addr != end);
	return true;
}

static bool walk_pgds(struct walker *w, struct mm_struct *mm, unsigned long addr, unsigned long end,
		      u16 flags)
{
	pgd_t *pgdp = pgd_offset(mm, addr);
	unsigned long next;
	bool more = true;

	do {
		pgd_t pgd = READ_ONCE(*pgdp);

		next = pgd_addr_end(addr, end);
		if (!spend(w, 1))
			return false;
		if (mm_p4d_folded(mm))
			more = walk_p4ds(w, mm, pgdp, pgd, addr, next, flags, true);
		else if (is_table(pgd_val(pgd)))
			more = walk_p4ds(w, mm, pgdp, pgd, addr, next,
					 flags | table_limits(pgd_val(pgd), true), false);
		else if (!pgd_none(pgd))
			more = add_entry(w, addr, pgd_val(pgd), LEVEL_PGD, flags);
		if (!more)
			return false;
		w->done = next;
	} while (pgdp++, addr = next, addr != end);
	return true;
}

static void lock_tables(struct vm_area_struct *vma)
{
	if (is_vm_hugetlb_page(vma))
		i_mmap_lock_read(vma->vm_file->f_mapping);
}

static void unlock_tables(struct vm_area_struct *vma)
{
	if (is_vm_hugetlb_page(vma))
		i_mmap_unlock_read(vma->vm_file->f_mapping);
}

/* With mmap_lock held: from w->done to `end`, as far as budget and room go. */
static void walk_vmas(struct walker *w, struct mm_struct *mm, u64 end)
{
	while (w->done < end && spend(w, ENTRIES_PER_VMA)) {
		struct vm_area_struct *vma = find_vma(mm, w->done);
		bool more;

		if (!vma || vma->vm_start >= end) {
			w->done = end;
			return;
		}
		if (w->done < vma->vm_start)
			w->done = vma->vm_start;
		lock_tables(vma);
		more = walk_pgds(w, mm, w->done, min_t(u64, end, vma->vm_end), vma_flags(vma));
		unlock_tables(vma);
		if (!more)
			return;
	}
}

static int resolve_rounds(struct vmem_resolve *arg, struct mm_struct *mm, struct walker *w)
{
	struct vmem_run __user *out = u64_to_user_ptr(arg->runs);
	const u32 capacity = w->capacity;
	unsigned int round;

	for (round = 0; round < ROUNDS_PER_CALL; round++) {
		if (w->done == arg->end || arg->runs_count == arg->runs_len)
			return 0;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();

		w->count = 0;
		w->capacity = min(capacity, arg->runs_len - arg->runs_count);
		w->budget = ENTRIES_PER_ROUND;
		if (mmap_read_lock_killable(mm))
			return -EINTR;
		walk_vmas(w, mm, arg->end);
		mmap_read_unlock(mm);

		/* Not with the lock held: a fault of our own would wait for who waits for it. */
		if (copy_to_user(out + arg->runs_count, w->runs, w->count * sizeof(*w->runs)))
			return -EFAULT;
		arg->runs_count += w->count;
	}
	return 0;
}

static int vmem_resolve(struct vmem_resolve *arg)
{
	struct walker w = {};
	struct mm_struct *mm;
	int ret = 0;

	if (arg->flags || arg->reserved || !PAGE_ALIGNED(arg->start) || !PAGE_ALIGNED(arg->end) ||
	    arg->start > arg->end)
		return -EINVAL;
	mm = target_mm(arg->pid, arg->start_time, &arg->address_space);
	if (IS_ERR(mm))
		return PTR_ERR(mm);

	arg->runs_count = 0;
	w.done = arg->start;
	if (arg->runs_len) {
		w.capacity = min_t(u32, arg->runs_len, RUNS_PER_ROUND);
		w.runs = kvmalloc_array(w.capacity, sizeof(*w.runs), GFP_KERNEL);
		if (w.runs)
			ret = resolve_rounds(arg, mm, &w);
		else
			ret = -ENOMEM;
		kvfree(w.runs);
	}
	arg->next = w.done;
	mmput(mm);
	return ret;
}

/* One address, level by level */

/* Whether the entry is a table, so that the walk goes on. */
static bool add_step(struct vmem_walk *arg, void *entryp, u64 entry, unsigned int level,
		     struct mm_struct *mm, u16 *flags)
{
	const bool root = arg->steps_count == 0;
	struct vmem_step *step = &arg->steps[arg->steps_count++];

	step->level = level;
	step->shift = level_shift(level);
	step->index = (arg->va >> step->shift) & (PTRS_PER_PTE - 1);
	/* Where levels are folded, entryp points to a copy: the root is known from elsewhere. */
	if (root)
		step->table = virt_to_phys(mm->pgd);
	else
		step->table = virt_to_phys(entryp) & PAGE_MASK;
	step->entry = entry;
	step->flags = *flags;
	if (level == LEVEL_PTE || !is_table(entry))
		return false;
	*flags |= table_limits(entry, root);
	return true;
}

static void walk_address(struct vmem_walk *arg, struct mm_struct *mm, u16 flags)
{
	pgd_t *pgdp, pgd;
	p4d_t *p4dp, p4d;
	pud_t *pudp, pud;
	pmd_t *pmdp, pmd;
	pte_t *ptep;

	pgdp = pgd_offset(mm, arg->va);
	pgd = READ_ONCE(*pgdp);
	if (!mm_p4d_folded(mm) && !add_step(arg, pgdp, pgd_val(pgd), LEVEL_PGD, mm, &flags))
		return;
	p4dp = p4d_offset_lockless(pgdp, pgd, arg->va);
	p4d = READ_ONCE(*p4dp);
	if (!mm_pud_folded(mm) && !add_step(arg, p4dp, p4d_val(p4d), LEVEL_P4D, mm, &flags))
		return;
	pudp = pud_offset_lockless(p4dp, p4d, arg->va);
	pud = READ_ONCE(*pudp);
	if (!mm_pmd_folded(mm) && !add_step(arg, pudp, pud_val(pud), LEVEL_PUD, mm, &flags))
		return;
	pmdp = pmd_offset_lockless(pudp, pud, arg->va);
	rcu_read_lock();
	pmd = READ_ONCE(*pmdp);
	if (add_step(arg, pmdp, pmd_val(pmd), LEVEL_PMD, mm, &flags)) {
		ptep = pte_offset_kernel(&pmd, arg->va);
		add_step(arg, ptep, pte_val(READ_ONCE(*ptep)), LEVEL_PTE, mm, &flags);
	}
	rcu_read_unlock();
}

static int vmem_walk(struct vmem_walk *arg)
{
	struct vm_area_struct *vma;
	struct mm_struct *mm;

	if (arg->flags || arg->steps_count)
		return -EINVAL;
	mm = target_mm(arg->pid, arg->start_time, &arg->address_space);
	if (IS_ERR(mm))
		return PTR_ERR(mm);
	memset(arg->steps, 0, sizeof(arg->steps));
	if (mmap_read_lock_killable(mm)) {
		mmput(mm);
		return -EINTR;
	}
	vma = find_vma(mm, arg->va);
	if (vma && vma->vm_start <= arg->va) {
		lock_tables(vma);
		walk_address(arg, mm, vma_flags(vma));
		unlock_tables(vma);
	}
	mmap_read_unlock(mm);
	mmput(mm);
	return 0;
}

/* Frames */

static struct vmem_frame look_at_frame(u64 pfn)
{
	struct vmem_frame frame = {};
	unsigned int attempt;
	struct page *page;

	/* Also no for memory of a device, whose struct pages may not be initialised. */
	page = pfn == (unsigned long)pfn ? pfn_to_online_page(pfn) : NULL;
	if (!page)
		return frame;
	frame.flags = VMEM_FRAME_ONLINE;
	if (page_zonenum(page) == ZONE_MOVABLE)
		frame.flags |= VMEM_FRAME_NOT_PINNABLE;
	else if (!IS_ENABLED(CONFIG_CMA))
		frame.flags |= VMEM_FRAME_PINNABLE;

	/* A reference keeps the compound page in one piece for as long as its counters are read. */
	for (attempt = 0; attempt < 8; attempt++) {
		struct page *head = compound_head(page);

		if (!get_page_unless_zero(head)) {
			/* Nobody's, or its owner counts no references. */
			frame.order = 0;
			return frame;
		}
		if (compound_head(page) == head) {
			frame.refcount = page_count(head) - 1;
			frame.order = compound_order(head);
			frame.mapcount = vmem_page_mapcount(page);
#ifdef VMEM_MAPCOUNT_AVERAGE
			if (frame.order)
				frame.flags |= VMEM_FRAME_MAPCOUNT_AVERAGE;
#endif
			if (vmem_maybe_pinned(head))
				frame.flags |= VMEM_FRAME_MAYBE_PINNED;
			put_page(head);
			return frame;
		}
		put_page(head);
	}
	frame.flags |= VMEM_FRAME_CHANGING;
	return frame;
}

static int vmem_frames(struct vmem_frames *arg)
{
	struct vmem_frame __user *out = u64_to_user_ptr(arg->frames);
	struct vmem_frame *frames;
	u64 count;
	int ret = 0;

	if (arg->flags || arg->pfn + arg->count < arg->pfn)
		return -EINVAL;
	frames = kvmalloc_array(FRAMES_PER_ROUND, sizeof(*frames), GFP_KERNEL);
	if (!frames)
		return -ENOMEM;
	arg->done = 0;
	count = min_t(u64, arg->count, FRAMES_PER_CALL);
	while (arg->done < count) {
		const u32 n = min_t(u64, count - arg->done, FRAMES_PER_ROUND);
		u32 i;

		for (i = 0; i < n; i++)
			frames[i] = look_at_frame(arg->pfn + arg->done + i);
		if (copy_to_user(out + arg->done, frames, n * sizeof(*frames))) {
			ret = -EFAULT;
			break;
		}
		arg->done += n;
		if (fatal_signal_pending(current)) {
			ret = -EINTR;
			break;
		}
		cond_resched();
	}
	kvfree(frames);
	return ret;
}

/* IOMMU mappings */

#if IS_ENABLED(CONFIG_PCI) && IS_ENABLED(CONFIG_IOMMU_API)
#define IOVA_GRANULE 4096ULL

struct iova_walk {
	struct device *dev;
	/* The last round's: to be compared only, it may be gone by now. */
	const struct iommu_domain *domain;
	struct vmem_iova_run *runs;
	u32 count;
	u32 capacity;
	u32 state;
	u64 done;
	u64 end;
	bool found;
	int error;
};

static bool add_iova(struct iova_walk *w, u64 iova, u64 pa, u64 bytes)
{
	struct vmem_iova_run *run = w->runs + w->count - 1;

	if (w->count && run->iova + run->bytes == iova && run->pa + run->bytes == pa) {
		run->bytes += bytes;
		return true;
	}
	if (w->count == w->capacity)
		return false;
	run = w->runs + w->count++;
	run->iova = iova;
	run->pa = pa;
	run->bytes = bytes;
	return true;
}

static void walk_iovas(struct iova_walk *w, struct iommu_domain *domain)
{
	const u64 smallest = domain->pgsize_bitmap ? 1ULL << __ffs64(domain->pgsize_bitmap) : 0;
	const u64 step = clamp_t(u64, smallest, IOVA_GRANULE, PAGE_SIZE);
	u32 budget = IOVAS_PER_ROUND;

	while (w->done < w->end && budget--) {
		const u64 next = min((w->done | (step - 1)) + 1, w->end);
		/*
		 * 0 is the answer for "not mapped", and for what is mapped to address 0: so ask for
		 * the second byte. (A driver that leaves out the offset is right up to the granule,
		 * too.)
		 */
		const u64 second = iommu_iova_to_phys(domain, w->done + 1);

		if (second && !add_iova(w, w->done, second & ~(IOVA_GRANULE - 1), next - w->done))
			return;
		w->done = next;
	}
}

/*
 * Called with the group's mutex held, without which no domain is attached or detached: it cannot be
 * freed as long as we use it. (VFIO frees its own when the last user closes.)
 */
static int walk_device(struct device *dev, void *data)
{
	struct iova_walk *w = data;
	struct iommu_domain *domain;

	if (dev != w->dev)
		return 0;
	w->found = true;
	domain = vmem_domain_of(dev);
	w->domain = domain;
	if (!domain) {
		w->state = VMEM_IOVA_NO_IOMMU;
	} else if (domain->type == IOMMU_DOMAIN_IDENTITY) {
		w->state = VMEM_IOVA_IDENTITY;
	} else if (domain->type == IOMMU_DOMAIN_BLOCKED) {
		w->state = VMEM_IOVA_BLOCKED;
		w->done = w->end;
	} else if (!domain->ops || !domain->ops->iova_to_phys) {
		w->error = -EOPNOTSUPP;
	} else {
		w->state = VMEM_IOVA_TRANSLATED;
		walk_iovas(w, domain);
	}
	return 1;
}

/* Untranslated: as it is, but for what the bus adds (device tree's dma-ranges, ACPI's _DMA). */
static void walk_bus(struct iova_walk *w)
{
	const struct bus_dma_region *map;

	if (w->state == VMEM_IOVA_IDENTITY || !w->dev->dma_range_map) {
		if (add_iova(w, w->done, __sme_clr(w->done), w->end - w->done))
			w->done = w->end;
		return;
	}
	/* The regions are in no order: take the lowest that is left, until none is. */
	while (w->done < w->end) {
		const struct bus_dma_region *lowest = NULL;
		u64 start, end;

		for (map = w->dev->dma_range_map; map->size; map++) {
			if ((u64)map->dma_start + map->size > w->done &&
			    (!lowest || map->dma_start < lowest->dma_start))
				lowest = map;
		}
		if (!lowest || lowest->dma_start >= w->end) {
			w->done = w->end;
			return;
		}
		start = max_t(u64, w->done, lowest->dma_start);
		end = min_t(u64, w->end, (u64)lowest->dma_start + lowest->size);
		if (!add_iova(w, start, lowest->cpu_start + (start - lowest->dma_start),
			      end - start))
			return;
		w->done = end;
	}
}

static int iova_round(struct iova_walk *w)
{
	struct iommu_group *group = iommu_group_get(w->dev);

	w->state = VMEM_IOVA_NO_IOMMU;
	w->domain = NULL;
	if (group) {
		w->found = false;
		iommu_group_for_each_dev(group, w, walk_device);
		iommu_group_put(group);
		if (!w->found)
			return -ENODEV; /* it is just being unplugged */
		if (w->error)
			return w->error;
	}
	if (w->state == VMEM_IOVA_NO_IOMMU || w->state == VMEM_IOVA_IDENTITY)
		walk_bus(w);
	return 0;
}

static int iova_rounds(struct vmem_iova *arg, struct iova_walk *w)
{
	struct vmem_iova_run __user *out = u64_to_user_ptr(arg->runs);
	const u32 capacity = w->capacity;
	const struct iommu_domain *domain;
	unsigned int round;
	int ret;

	for (round = 0; round < ROUNDS_PER_CALL; round++) {
		domain = w->domain;
		w->count = 0;
		w->capacity = min(capacity, arg->runs_len - arg->runs_count);
		ret = iova_round(w);
		if (ret)
			return ret;
		/* A device that was given another domain in between has two answers: tell one. */
		if (round && (arg->state != w->state || domain != w->domain))
			return -EAGAIN;
		arg->state = w->state;
		if (copy_to_user(out + arg->runs_count, w->runs, w->count * sizeof(*w->runs)))
			return -EFAULT;
		arg->runs_count += w->count;
		arg->next = w->done;
		if (w->done == arg->end || arg->runs_count == arg->runs_len)
			return 0;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return 0;
}

static int vmem_iova(struct vmem_iova *arg)
{
	struct iova_walk w = {};
	struct pci_dev *pdev;
	int ret = -ENOMEM;

	if (arg->flags || arg->reserved || arg->reserved2 || arg->start % IOVA_GRANULE ||
	    arg->end % IOVA_GRANULE || arg->start > arg->end)
		return -EINVAL;
	/* The kernel's numbers of PCI domains are ints. */
	pdev = arg->domain > INT_MAX ? NULL :
		pci_get_domain_bus_and_slot(arg->domain, arg->bus, arg->devfn);
	if (!pdev)
		return -ENODEV;
	arg->runs_count = 0;
	w.dev = &pdev->dev;
	w.done = arg->start;
	w.end = arg->end;
	w.capacity = clamp_t(u32, arg->runs_len, 1, RUNS_PER_ROUND);
	w.runs = kvmalloc_array(w.capacity, sizeof(*w.runs), GFP_KERNEL);
	if (w.runs)
		ret = iova_rounds(arg, &w);
	kvfree(w.runs);
	pci_dev_put(pdev);
	return ret;
}
#else
static int vmem_iova(struct vmem_iova *arg)
{
	return -EOPNOTSUPP;
}
#endif

/* The device */

static int vmem_info(struct vmem_info *info)
{
	*info = (struct vmem_info){
		.protocol = VMEM_PROTOCOL,
		.features = VMEM_FEATURE_FRAMES,
		.page_shift = PAGE_SHIFT,
		.levels = levels_of(current->mm),
		.swap_type_shift = __ffs(__swp_entry(1, 0).val ^ __swp_entry(0, 0).val),
	};
	if (IS_ENABLED(CONFIG_PCI) && IS_ENABLED(CONFIG_IOMMU_API))
		info->features |= VMEM_FEATURE_IOVA;
#ifdef CONFIG_X86_64
	info->architecture = VMEM_ARCH_X86_64;
	/* __PHYSICAL_MASK leaves out SME's C bit and TDX's shared bit. */
	info->encryption_mask = GENMASK_ULL(51, PAGE_SHIFT) & ~(u64)__PHYSICAL_MASK;
	/* The same on all processors (pat_bp_init() and pat_ap_init(), later pat_cpu_init()). */
	if (boot_cpu_has(X86_FEATURE_PAT))
		info->pat = vmem_rdmsr(MSR_IA32_CR_PAT);
	else
		info->pat = 0x0007040600070406ULL; /* as a processor without PAT: WB, WT, UC-, UC */
#ifdef _PAGE_SAVED_DIRTY
	if (_PAGE_SAVED_DIRTY & BIT_ULL(58))
		info->features |= VMEM_FEATURE_SAVED_DIRTY;
#endif
#else
	info->architecture = VMEM_ARCH_ARM64;
	info->mair = read_sysreg(mair_el1);
	/* TCR_EL1.DS: LPA2. (With 64K granules it is not needed for 52 bits, and is 0.) */
	if (read_sysreg(tcr_el1) & BIT_ULL(59))
		info->features |= VMEM_FEATURE_LPA2;
#endif
	return 0;
}

union argument {
	u32 size;
	struct vmem_info info;
	struct vmem_resolve resolve;
	struct vmem_walk walk;
	struct vmem_frames frames;
	struct vmem_iova iova;
};

/* The size of each argument in the first version of the protocol, and now. */
static const struct {
	size_t first, now;
} sizes[] = {
	[_IOC_NR(VMEM_IOC_INFO)] = { 56, sizeof(struct vmem_info) },
	[_IOC_NR(VMEM_IOC_RESOLVE)] = { 72, sizeof(struct vmem_resolve) },
	[_IOC_NR(VMEM_IOC_WALK)] = { 160, sizeof(struct vmem_walk) },
	[_IOC_NR(VMEM_IOC_FRAMES)] = { 40, sizeof(struct vmem_frames) },
	[_IOC_NR(VMEM_IOC_IOVA)] = { 64, sizeof(struct vmem_iova) },
};

static long vmem_ioctl(struct file *file, unsigned int command, unsigned long argp)
{
	void __user *user = (void __user *)argp;
	const unsigned int nr = _IOC_NR(command);
	union argument arg;
	size_t size;
	u32 user_size;
	int ret;

	/* Again: the descriptor may have been passed on to somebody who has it not. */
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (nr >= ARRAY_SIZE(sizes) || command != _IO(VMEM_IOC_TYPE, nr))
		return -ENOTTY;
	size = sizes[nr].now;
	if (get_user(user_size, (u32 __user *)user))
		return -EFAULT;
	if (user_size < sizes[nr].first)
		return -EINVAL;
	if (user_size > PAGE_SIZE)
		return -E2BIG;
	memset(&arg, 0, sizeof(arg));
	ret = copy_struct_from_user(&arg, size, user, user_size);
	if (ret)
		return ret;

	switch (command) {
	case VMEM_IOC_INFO:
		ret = vmem_info(&arg.info);
		break;
	case VMEM_IOC_RESOLVE:
		ret = vmem_resolve(&arg.resolve);
		break;
	case VMEM_IOC_WALK:
		ret = vmem_walk(&arg.walk);
		break;
	case VMEM_IOC_FRAMES:
		ret = vmem_frames(&arg.frames);
		break;
	case VMEM_IOC_IOVA:
		ret = vmem_iova(&arg.iova);
		break;
	}
	if (ret)
		return ret;
	arg.size = user_size;
	return copy_to_user(user, &arg, min_t(size_t, size, user_size)) ? -EFAULT : 0;
}

static int vmem_open(struct inode *inode, struct file *file)
{
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (file->f_mode & FMODE_WRITE)
		return -EACCES;
	return 0;
}

static const struct file_operations vmem_fops = {
	.owner = THIS_MODULE,
	.open = vmem_open,
	.unlocked_ioctl = vmem_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice vmem_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "vmem",
	.fops = &vmem_fops,
	.mode = 0600,
};

static int __init vmem_init(void)
{
	get_random_bytes(&address_space_key, sizeof(address_space_key));
	/*
	 * Last: from here on it can be opened, so everything else is ready, and nothing may fail
	 * any more. A module whose init fails is freed even if somebody has a file of it open. If
	 * this call itself fails, nobody could open the device yet.
	 */
	return misc_register(&vmem_device);
}

static void __exit vmem_exit(void)
{
	misc_deregister(&vmem_device);
}

module_init(vmem_init);
module_exit(vmem_exit);

MODULE_DESCRIPTION("Page tables, frames and IOMMU mappings for user space to read (/dev/vmem)");
MODULE_AUTHOR("The libvmem authors");
MODULE_LICENSE("Dual MIT/GPL");
