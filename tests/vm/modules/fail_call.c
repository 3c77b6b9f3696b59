// SPDX-License-Identifier: (GPL-2.0 OR MIT)
/*
 * Lets the calls that one process makes of a kernel function take a while, and one of them fail: so
 * that a test sees what another module's init function does when it is refused at any of its
 * steps, while others have all the time they want to open what it has made visible until then.
 *
 *   insmod fail_call.ko function=misc_register pid=PID call=3 result=-12 milliseconds=50
 *
 * PID's third call of misc_register() returns -12 without having been made.
 */
#include <linux/delay.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/sched.h>

static char *function;
module_param(function, charp, 0444);
MODULE_PARM_DESC(function, "the kernel function; its arguments must fit into registers");

static int pid;
module_param(pid, int, 0444);
MODULE_PARM_DESC(pid, "the process (in the first PID namespace) whose calls count");

static unsigned int call;
module_param(call, uint, 0444);
MODULE_PARM_DESC(call, "which of its calls fails, from 1; 0 (default): none");

static long result;
module_param(result, long, 0444);
MODULE_PARM_DESC(result, "what the failed call returns");

static unsigned int milliseconds;
module_param(milliseconds, uint, 0444);
MODULE_PARM_DESC(milliseconds, "how long each call sleeps first (0)");

static unsigned int calls;
module_param(calls, uint, 0444);
MODULE_PARM_DESC(calls, "to read: how many calls there were");

typedef unsigned long function_type(unsigned long a, unsigned long b, unsigned long c,
				    unsigned long d, unsigned long e, unsigned long f);

static struct kprobe probe;
/* One process, in one system call: nothing here is for two at a time. */
static bool in_original;

/* Runs in place of the function, called by who called it: it may sleep where that may. */
static unsigned long stand_in(unsigned long a, unsigned long b, unsigned long c, unsigned long d,
			      unsigned long e, unsigned long f)
{
	unsigned long value;

	msleep(milliseconds);
	if (++calls == call)
		return result;
	in_original = true;
	value = ((function_type *)probe.addr)(a, b, c, d, e, f);
	in_original = false;
	return value;
}

static int before(struct kprobe *p, struct pt_regs *regs)
{
	if (current->tgid != pid || in_original)
		return 0;
	instruction_pointer_set(regs, (unsigned long)stand_in);
	return 1;
}

/* Only a probe that has one may move the instruction pointer where ftrace is what calls it. */
static void after(struct kprobe *p, struct pt_regs *regs, unsigned long flags)
{
}

static int __init fail_call_init(void)
{
	probe.symbol_name = function;
	probe.pre_handler = before;
	probe.post_handler = after;
	return function ? register_kprobe(&probe) : -EINVAL;
}

static void __exit fail_call_exit(void)
{
	unregister_kprobe(&probe);
}

module_init(fail_call_init);
module_exit(fail_call_exit);
MODULE_DESCRIPTION("Lets a call of a kernel function fail, for tests");
MODULE_LICENSE("Dual MIT/GPL");
