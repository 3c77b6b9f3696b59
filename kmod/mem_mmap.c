// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * A driver that maps windows of physical memory into processes, and the reference for those who
 * write one: each line that is easily forgotten says why it is there. /dev/mem_mmap1 is the window
 * at `base`, /dev/mem_mmap2 the one behind it, and so on. mmap() of offset O maps what lies O bytes
 * into the window.
 *
 * For tests of tools that check such mappings, `fault` makes it go wrong as drivers do. debugfs
 * (mem_mmap/N/truth) always tells what the window really maps:
 *
 *   # window 0x90000000 0x4000000 cache uc fault swapped-pages
 *   # offset length physical cache
 *   0x0 0x1000 0x90000000 uc-
 *   0x1000 0x1000 0x90002000 uc-
 *   0x2000 0x1000 0x90001000 uc-
 *   0x3000 0x3ffd000 0x90003000 uc-
 *
 * A mapping shows the part of this list that its offset and size cover; "- -" is a hole.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/overflow.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string.h>

#define MAX_WINDOWS 16
/* hole and swapped-pages touch the first pages, so that small mappings show them too. */
#define MIN_FAULTY_PAGES 4

/* Readable in sysfs, not writable: what is mapped already would not follow. */
static unsigned long long base = 0x90000000;
module_param(base, ullong, 0444);
MODULE_PARM_DESC(base, "physical address of the first window (0x90000000)");

static unsigned long long len = 0x4000000;
module_param(len, ullong, 0444);
MODULE_PARM_DESC(len, "bytes of each window (0x4000000)");

static unsigned int windows = 2;
module_param(windows, uint, 0444);
MODULE_PARM_DESC(windows, "number of windows, one behind the other (2; at most 16)");

static char *cache = "uc";
module_param(cache, charp, 0444);
MODULE_PARM_DESC(cache, "uc (default): uncached; wc: write-combining; wb: write-back, as RAM is");

static char *fault = "none";
module_param(fault, charp, 0444);
MODULE_PARM_DESC(fault, "none (default), or a lie: wrong-base (the next window's memory, the last window's is the first's), shifted (one page further, the last wraps), hole (page 1 missing), swapped-pages (1 and 2), cached (write-back in spite of cache), short (second half missing), reversed (last page first)");

static bool allow_ram;
module_param(allow_ram, bool, 0444);
MODULE_PARM_DESC(allow_ram, "map memory that the kernel uses as RAM (no): whoever writes there destroys data");

enum cache_mode { CACHE_UC, CACHE_WC, CACHE_WB };
static const char * const cache_names[] = {
	[CACHE_UC] = "uc", [CACHE_WC] = "wc", [CACHE_WB] = "wb",
};

enum fault_mode {
	FAULT_NONE, FAULT_WRONG_BASE, FAULT_SHIFTED, FAULT_HOLE, FAULT_SWAPPED_PAGES, FAULT_CACHED,
	FAULT_SHORT, FAULT_REVERSED,
};

static const char * const fault_names[] = {
	[FAULT_NONE] = "none",
	[FAULT_WRONG_BASE] = "wrong-base",
	[FAULT_SHIFTED] = "shifted",
	[FAULT_HOLE] = "hole",
	[FAULT_SWAPPED_PAGES] = "swapped-pages",
	[FAULT_CACHED] = "cached",
	[FAULT_SHORT] = "short",
	[FAULT_REVERSED] = "reversed",
};

struct window {
	struct miscdevice misc;
	char name[sizeof("mem_mmap") + 10];
	phys_addr_t start;
	phys_addr_t mapped;	/* where it maps: `start`, unless the fault is wrong-base */
	bool ram;
	struct resource resource;
	void __iomem *kernel;	/* the kernel's own mapping of it; NULL for RAM */
};

static struct window *all_windows;
static struct dentry *debugfs_root;
static enum cache_mode asked_cache, true_cache;
static enum fault_mode fault_mode;

/* The frame that page `page` of the window maps; false: none. All lies but the cache's are here. */
static bool frame_of(const struct window *window, unsigned long page, unsigned long *pfn)
{
	unsigned long pages = len >> PAGE_SHIFT;

	switch (fault_mode) {
	case FAULT_SHIFTED:
		page = page + 1 < pages ? page + 1 : 0;
		break;
	case FAULT_HOLE:
		if (page == 1)
			return false;
		break;
	case FAULT_SWAPPED_PAGES:
		if (page == 1 || page == 2)
			page = 3 - page;
		break;
	case FAULT_SHORT:
		if (page >= pages / 2)
			return false;
		break;
	case FAULT_REVERSED:
		page = pages - 1 - page;
		break;
	case FAULT_NONE:
	case FAULT_WRONG_BASE:
	case FAULT_CACHED:
		break;
	}
	*pfn = (window->mapped >> PAGE_SHIFT) + page;
	return true;
}

struct run {
	unsigned long pages;
	unsigned long pfn;
	bool hole;
};

/* The run of consecutive frames, or of pages without one, from `page` on and before `end`. */
static struct run run_at(const struct window *window, unsigned long page, unsigned long end)
{
	struct run run = { .pages = 1 };
	unsigned long pfn;

	run.hole = !frame_of(window, page, &run.pfn);
	while (page + run.pages < end) {
		bool hole = !frame_of(window, page + run.pages, &pfn);

		if (hole != run.hole || (!hole && pfn != run.pfn + run.pages))
			break;
		run.pages++;
	}
	return run;
}

static pgprot_t protection(enum cache_mode mode, pgprot_t prot)
{
	switch (mode) {
	case CACHE_UC:
		/*
		 * Device registers: each access reaches the device, once, in order. On x86 this
		 * is UC-, which an MTRR may turn into write-combining; on arm64 it is
		 * Device-nGnRnE.
		 */
		return pgprot_noncached(prot);
	case CACHE_WC:
		/* Frame buffers and the like: stores are gathered and may be reordered. */
		return pgprot_writecombine(prot);
	case CACHE_WB:
		break;
	}
	/* Memory that is coherent with the processors' caches. */
	return prot;
}

/* The name of what the page-table entries of a window hold. */
static const char *cache_in_tables(const struct window *window)
{
	u64 wc, uc;

	if (IS_ENABLED(CONFIG_X86)) {
		/*
		 * One frame, one attribute: x86 gives RAM write-back, as the kernel's own mapping
		 * has it.
		 */
		if (window->ram || true_cache == CACHE_WB)
			return "wb";
		/* Without PAT (boot option nopat) there is no write-combining. */
		wc = pgprot_val(pgprot_writecombine(PAGE_SHARED));
		uc = pgprot_val(pgprot_noncached(PAGE_SHARED));
		return true_cache == CACHE_WC && wc != uc ? "wc" : "uc-";
	}
	switch (true_cache) {
	case CACHE_UC:
		return "device-nGnRnE";
	case CACHE_WC:
		return "normal-nc";
	case CACHE_WB:
		break;
	}
	return "normal";
}

static const struct vm_operations_struct mem_mmap_vm_ops = {
#ifdef CONFIG_HAVE_IOREMAP_PROT
	/*
	 * So that a debugger can read the mapping: these pages have no other way for
	 * access_process_vm().
	 */
	.access = generic_access_phys,
#endif
};

static int mem_mmap_mmap(struct file *file, struct vm_area_struct *vma)
{
	/* misc_open() left the device here. */
	const struct window *window = container_of(file->private_data, struct window, misc);
	unsigned long first = vma->vm_pgoff, pages = vma_pages(vma), end, page;
	pgprot_t prot;

	/*
	 * The one check that no driver may forget: without it a process maps whatever lies behind
	 * the window. Offset and size are the caller's and may be anything, so they are compared
	 * in pages and without a sum that could wrap.
	 */
	if (first >= len >> PAGE_SHIFT || pages > (len >> PAGE_SHIFT) - first)
		return -ENXIO;
	end = first + pages;

	/*
	 * The attribute belongs into the VMA, not only into today's entries: whatever maps a page
	 * of it later takes it from there.
	 */
	prot = protection(true_cache, vma->vm_page_prot);
	vma->vm_page_prot = prot;
	vma->vm_ops = &mem_mmap_vm_ops;

	/*
	 * All pages now, so that there is no fault handler to write. io_remap_pfn_range() marks
	 * the VMA VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP: no struct page is touched,
	 * nothing is counted, swapped, pinned for DMA or dumped, and mremap() cannot enlarge it
	 * past the check above. It differs from remap_pfn_range() on machines with memory
	 * encryption: device memory is not encrypted.
	 *
	 * A right driver needs one call, for the whole VMA; only the faults make several runs of
	 * it. On x86 only a call for the whole VMA reserves the cache attribute; the others take
	 * the one that claim() has reserved. A private mapping must be one call as well, else it
	 * is refused: whether a page of it is still the device's or was copied at a write, the
	 * kernel tells by vm_pgoff alone.
	 */
	for (page = first; page < end;) {
		unsigned long address = vma->vm_start + ((page - first) << PAGE_SHIFT);
		struct run run = run_at(window, page, end);
		int error;

		if (!run.hole) {
			error = io_remap_pfn_range(vma, address, run.pfn, run.pages << PAGE_SHIFT,
						   prot);
			/* The caller takes the VMA down, with what was mapped until now. */
			if (error)
				return error;
		}
		page += run.pages;
	}
	return 0;
}

/* No open, no release: there is nothing to set up for one process, and mappings hold the file. */
static const struct file_operations mem_mmap_fops = {
	/*
	 * Keeps the module loaded while a file or a mapping of it lives; not while mem_mmap_init()
	 * runs.
	 */
	.owner = THIS_MODULE,
	.mmap = mem_mmap_mmap,
	.llseek = noop_llseek,
};

static int truth_show(struct seq_file *seq, void *unused)
{
	const struct window *window = seq->private;
	unsigned long pages = len >> PAGE_SHIFT, page;

	seq_printf(seq, "# window %#llx %#llx cache %s fault %s\n", (u64)window->start, len,
		   cache_names[asked_cache], fault_names[fault_mode]);
	seq_puts(seq, "# offset length physical cache\n");
	for (page = 0; page < pages;) {
		struct run run = run_at(window, page, pages);

		seq_printf(seq, "%#llx %#llx ", (u64)page << PAGE_SHIFT,
			   (u64)run.pages << PAGE_SHIFT);
		if (run.hole)
			seq_puts(seq, "- -\n");
		else
			seq_printf(seq, "%#llx %s\n", (u64)run.pfn << PAGE_SHIFT,
				   cache_in_tables(window));
		page += run.pages;
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(truth);

/*
 * Makes the window this driver's. The kernel's own mapping is what a driver reads its registers
 * through; on x86 it also reserves the cache attribute, and whoever asks for the same memory with
 * another one is given this one or refused. Two attributes for one frame are undefined on both
 * architectures.
 */
static int claim(struct window *window)
{
	int overlap = region_intersects(window->start, len, IORESOURCE_SYSTEM_RAM, IORES_DESC_NONE);
	int error;

	if (overlap == REGION_MIXED) {
		pr_err("%#llx+%#llx is RAM in part\n", (u64)window->start, len);
		return -EINVAL;
	}
	window->ram = overlap != REGION_DISJOINT;
	if (window->ram) {
		if (!allow_ram) {
			pr_err("%#llx+%#llx is RAM in use: reserve it (boot option memmap=SIZE$START) or say allow_ram=1\n",
			       (u64)window->start, len);
			return -EBUSY;
		}
		/* The resource is the kernel's already, and so is the mapping. */
		pr_warn("%#llx+%#llx is RAM in use: writing there destroys data\n",
			(u64)window->start, len);
		return 0;
	}

	/*
	 * Memory that no other driver may have. A driver of a device holds this request as long as
	 * it lives. Here it is given back for a mere name in /proc/iomem, since while it is held
	 * many kernels refuse /dev/mem, through which tests compare what the windows show.
	 */
	if (!request_mem_region(window->start, len, window->name)) {
		pr_err("%#llx+%#llx is taken: see /proc/iomem\n", (u64)window->start, len);
		return -EBUSY;
	}
	release_mem_region(window->start, len);
	window->resource.start = window->start;
	window->resource.end = window->start + len - 1;
	window->resource.name = window->name;
	window->resource.flags = IORESOURCE_MEM;
	error = insert_resource(&iomem_resource, &window->resource);
	if (error)
		return error;

	switch (true_cache) {
	case CACHE_UC:
		window->kernel = ioremap(window->start, len);
		break;
	case CACHE_WC:
		window->kernel = ioremap_wc(window->start, len);
		break;
	case CACHE_WB:
		window->kernel = ioremap_cache(window->start, len);
		break;
	}
	if (!window->kernel) {
		remove_resource(&window->resource);
		pr_err("%#llx+%#llx cannot be mapped with cache=%s\n", (u64)window->start, len,
		       cache_names[true_cache]);
		return -ENOMEM;
	}
	return 0;
}

static void unclaim(struct window *window)
{
	if (!window->kernel)
		return;
	iounmap(window->kernel);
	remove_resource(&window->resource);
}

static int check_parameters(void)
{
	unsigned long long bytes, end;
	int index;

	index = sysfs_match_string(cache_names, cache);
	if (index < 0) {
		pr_err("cache=%s: must be uc, wc or wb\n", cache);
		return -EINVAL;
	}
	asked_cache = index;

	index = sysfs_match_string(fault_names, fault);
	if (index < 0) {
		pr_err("fault=%s: there is no such fault\n", fault);
		return -EINVAL;
	}
	fault_mode = index;
	true_cache = fault_mode == FAULT_CACHED ? CACHE_WB : asked_cache;

	if (!windows || windows > MAX_WINDOWS) {
		pr_err("windows=%u: must be 1 to %d\n", windows, MAX_WINDOWS);
		return -EINVAL;
	}
	/*
	 * What is mapped is whole pages: a window that begins or ends within one would show its
	 * neighbour.
	 */
	if (!len || !PAGE_ALIGNED(base) || !PAGE_ALIGNED(len)) {
		pr_err("base=%#llx len=%#llx: must be whole pages\n", base, len);
		return -EINVAL;
	}
	if (check_mul_overflow(len, (unsigned long long)windows, &bytes) ||
	    check_add_overflow(base, bytes, &end) || end > PHYS_ADDR_MAX) {
		pr_err("base=%#llx len=%#llx windows=%u: past the last physical address\n",
		       base, len, windows);
		return -EINVAL;
	}
	/* A lie that is none would let a test pass that looks for it. */
	if ((fault_mode == FAULT_WRONG_BASE && windows == 1) ||
	    (fault_mode == FAULT_CACHED && asked_cache == CACHE_WB) ||
	    (fault_mode != FAULT_NONE && len >> PAGE_SHIFT < MIN_FAULTY_PAGES)) {
		pr_err("fault=%s: takes more windows, pages or another cache\n", fault);
		return -EINVAL;
	}
	return 0;
}

static void unclaim_windows(unsigned int count)
{
	while (count--)
		unclaim(&all_windows[count]);
}

/* All of them, or none. Nobody can see them yet. */
static int claim_windows(void)
{
	unsigned int i;

	for (i = 0; i < windows; i++) {
		struct window *window = &all_windows[i];
		unsigned int mapped = i;
		int error;

		snprintf(window->name, sizeof(window->name), "mem_mmap%u", i + 1);
		window->start = base + i * len;
		if (fault_mode == FAULT_WRONG_BASE)
			mapped = (i + 1) % windows;
		window->mapped = base + mapped * len;
		error = claim(window);
		if (error) {
			unclaim_windows(i);
			return error;
		}
	}
	return 0;
}

static void deregister_windows(unsigned int count)
{
	while (count--)
		misc_deregister(&all_windows[count].misc);
}

/*
 * All of them, or none. Each node is visible at once, and mem_mmap_init() may still fail: see there
 * why nobody may get in until it cannot. A device without operations cannot be opened: misc_open()
 * finds none and returns ENODEV, without a step into this module.
 */
static int register_windows(void)
{
	unsigned int i;

	for (i = 0; i < windows; i++) {
		struct miscdevice *misc = &all_windows[i].misc;
		int error;

		/* A misc device brings its node with it: no major number, no class, no udev rule. */
		misc->minor = MISC_DYNAMIC_MINOR;
		misc->name = all_windows[i].name;
		misc->fops = NULL;
		misc->mode = 0600;	/* physical memory is root's business */
		error = misc_register(misc);
		if (error) {
			pr_err("/dev/%s cannot be registered (%d)\n", misc->name, error);
			/* Also waits until the last one has left misc_open(). */
			deregister_windows(i);
			return error;
		}
	}
	return 0;
}

/* debugfs is for those who look: a driver works without it, and so its errors are not checked. */
static void show_truth(void)
{
	unsigned int i;

	debugfs_root = debugfs_create_dir(KBUILD_MODNAME, NULL);
	for (i = 0; i < windows; i++) {
		struct dentry *directory;
		char number[12];

		snprintf(number, sizeof(number), "%u", i + 1);
		directory = debugfs_create_dir(number, debugfs_root);
		debugfs_create_file("truth", 0400, directory, &all_windows[i], &truth_fops);
	}
}

/*
 * Everything that can fail comes before anything that others can open. The kernel frees a module
 * whose init function fails, code and data, no matter who has a file of it open: .owner only keeps
 * a module loaded that has been loaded, and keeps it from rmmod. So an init function that lets
 * somebody in and then fails has left him memory that is no longer there, and he need only call
 * mmap(). That counts for a file in debugfs as well as for a device.
 *
 * A driver with one device prepares all and calls misc_register() last: if that fails, nobody could
 * open the device yet. Here the second device may be refused when the first is visible, so all are
 * registered closed, and are opened when nothing is left that could fail.
 */
static int __init mem_mmap_init(void)
{
	unsigned int i;
	int error = check_parameters();

	if (error)
		return error;
	all_windows = kcalloc(windows, sizeof(*all_windows), GFP_KERNEL);
	if (!all_windows)
		return -ENOMEM;
	error = claim_windows();
	if (error)
		goto free;
	error = register_windows();
	if (error)
		goto unclaim;

	/* From here on nothing fails. */
	show_truth();
	for (i = 0; i < windows; i++)
		WRITE_ONCE(all_windows[i].misc.fops, &mem_mmap_fops);
	if (fault_mode != FAULT_NONE)
		pr_warn("fault=%s: these windows are wrong on purpose\n", fault);
	return 0;

unclaim:
	unclaim_windows(windows);
free:
	kfree(all_windows);
	return error;
}

/*
 * Nothing is open or mapped any more, or the module could not be removed, and by .owner nothing can
 * be opened any more. So it is init backwards.
 */
static void __exit mem_mmap_exit(void)
{
	debugfs_remove_recursive(debugfs_root);
	deregister_windows(windows);
	unclaim_windows(windows);
	kfree(all_windows);
}

module_init(mem_mmap_init);
module_exit(mem_mmap_exit);
MODULE_DESCRIPTION("Maps windows of physical memory, rightly or wrong in a known way");
MODULE_LICENSE("Dual MIT/GPL");
