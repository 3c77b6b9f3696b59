/* SPDX-License-Identifier: (GPL-2.0 OR MIT) */
/*
 * What differs between kernels 5.10 and 7.x. Kbuild looks in the headers for what VMEM_HAVE_ stands
 * for; the commits named are the kernel's that made the difference.
 */
#ifndef VMEM_COMPAT_H
#define VMEM_COMPAT_H

#include <linux/iommu.h>
#include <linux/mm.h>
#include <linux/rmap.h>
#include <linux/time_namespace.h>

#ifdef CONFIG_X86_64
#include <asm/msr.h>

/* c435e608cf59 ("x86/msr: Rename 'rdmsrl()' to 'rdmsrq()'"), 6.16; both are macros */
static inline u64 vmem_rdmsr(u32 msr)
{
	u64 value;

#ifdef rdmsrq
	rdmsrq(msr, value);
#else
	rdmsrl(msr, value);
#endif
	return value;
}
#endif

/*
 * "timens: additional helper functions for boottime offset handling", 5.11: since then field 22 of
 * /proc/PID/stat is in the reader's time namespace; before, it was the same in all.
 */
static inline u64 vmem_boottime(u64 nsec)
{
#ifdef VMEM_HAVE_TIMENS_BOOTTIME_NS
	return timens_add_boottime_ns(nsec);
#else
	return nsec;
#endif
}

/*
 * 0b90ddae1344 ("mm: Turn page_maybe_dma_pinned() into folio_maybe_dma_pinned()"), 5.18, and
 * "mm: remove page_maybe_dma_pinned()", 6.11
 */
static inline bool vmem_maybe_pinned(struct page *head)
{
#ifdef VMEM_HAVE_FOLIO_PINNED
	return folio_maybe_dma_pinned(page_folio(head));
#else
	return page_maybe_dma_pinned(head);
#endif
}

/*
 * "mm: CONFIG_NO_PAGE_MAPCOUNT to prepare for not maintain per-page mapcounts in large folios",
 * 6.15: from then on the counters of the pages of a large folio are valid only with
 * CONFIG_PAGE_MAPCOUNT.
 */
#if defined(VMEM_HAVE_PAGE_MAPCOUNT_OPTION) && !defined(CONFIG_PAGE_MAPCOUNT)
#define VMEM_MAPCOUNT_AVERAGE
#endif

/*
 * "fs/proc: move page_mapcount() to fs/proc/internal.h", 6.11: from then on what /proc/kpagecount
 * says is put together from the page's own counter and the folio's. The caller holds a reference,
 * so that the folio stays what it is.
 */
static inline int vmem_page_mapcount(struct page *page)
{
#ifdef VMEM_HAVE_PAGE_MAPCOUNT
	/* Pages that have a type instead of a counter read as negative. */
	return max(page_mapcount(page), 0);
#else
	struct folio *folio = page_folio(page);
	int mapcount;

#ifdef VMEM_MAPCOUNT_AVERAGE
	if (folio_test_large(folio)) {
		int entire = folio_entire_mapcount(folio);
		int rest = folio_mapcount(folio) - entire;

		if (rest <= 0)
			return max(entire, 0);
		return max(entire + (int)DIV_ROUND_CLOSEST((unsigned long)rest,
							   folio_nr_pages(folio)), 1);
	}
#endif
	/* The counter shares its place with the type of pages that user space cannot map. */
	mapcount = max(atomic_read(&page->_mapcount) + 1, 0);
	if (folio_test_large(folio))
		mapcount += folio_entire_mapcount(folio);
	return mapcount;
#endif
}

#ifdef CONFIG_IOMMU_API
/*
 * "iommu: Add iommu_driver_get_domain_for_dev() helper", 6.19: of the two this is the one to be
 * called with the group's mutex held, and the other must no longer be.
 */
static inline struct iommu_domain *vmem_domain_of(struct device *dev)
{
#ifdef VMEM_HAVE_DRIVER_GET_DOMAIN
	return iommu_driver_get_domain_for_dev(dev);
#else
	return iommu_get_domain_for_dev(dev);
#endif
}
#endif

#endif
