/*
 * Preloaded into linux.uml: lets User-Mode Linux 6.1 run on processors whose
 * XSAVE area is larger than the buffer it was built for.
 *
 * The guest kernel keeps the floating point state of its processes in a buffer
 * of fixed size and hands it to PTRACE_SETREGSET. A host with AMX has a bigger
 * area and refuses a short one with EFAULT; the guest then stops at once. Here
 * a short state is completed with zeros to the host's own size, and the two
 * AMX components are marked as absent, which is true: a process has to ask the
 * host for AMX, and nothing in the guest does.
 */
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
	PEEK_FIRST = 1,			/* PTRACE_PEEKTEXT, PEEKDATA, PEEKUSER */
	PEEK_LAST = 3,
	GET_REGISTER_SET = 0x4204,
	SET_REGISTER_SET = 0x4205,
	XSTATE_SET = 0x202,		/* NT_X86_XSTATE */
	XSTATE_BV = 512,		/* offset of the bits of present components */
	XSTATE_MINIMUM = XSTATE_BV + 8,
	AMX_COMPONENTS = 3 << 17,	/* XTILECFG and XTILEDATA */
};

/* Not on the stack: the guest kernel's stacks are small. It is one thread. */
static unsigned char area[1 << 16] __attribute__((aligned(64)));

static long call(int request, int pid, void *addr, void *data)
{
	return syscall(SYS_ptrace, (long)request, (long)pid, addr, data);
}

/* The size of this host's XSAVE area, asked once of the traced process. */
static size_t host_size(int pid)
{
	static size_t known;
	struct iovec whole = { area, sizeof area };

	if (!known && call(GET_REGISTER_SET, pid, (void *)XSTATE_SET, &whole) == 0)
		known = whole.iov_len;
	return known;
}

static long set_xstate(int pid, struct iovec *given)
{
	struct iovec full = { area, host_size(pid) };
	uint64_t present;

	if (given->iov_len >= full.iov_len || given->iov_len < XSTATE_MINIMUM)
		return call(SET_REGISTER_SET, pid, (void *)XSTATE_SET, given);
	memset(area, 0, full.iov_len);
	memcpy(area, given->iov_base, given->iov_len);
	memcpy(&present, area + XSTATE_BV, sizeof present);
	present &= ~(uint64_t)AMX_COMPONENTS;
	memcpy(area + XSTATE_BV, &present, sizeof present);
	return call(SET_REGISTER_SET, pid, (void *)XSTATE_SET, &full);
}

long ptrace(int request, ...)
{
	va_list rest;
	int pid;
	void *addr, *data;

	va_start(rest, request);
	pid = va_arg(rest, int);
	addr = va_arg(rest, void *);
	data = va_arg(rest, void *);
	va_end(rest);

	if (request >= PEEK_FIRST && request <= PEEK_LAST) {
		/* The C library returns the word; the system call stores it. */
		long word = 0;

		if (call(request, pid, addr, &word) != 0)
			return -1;
		errno = 0;
		return word;
	}
	if (request == SET_REGISTER_SET && addr == (void *)XSTATE_SET)
		return set_xstate(pid, data);
	return call(request, pid, addr, data);
}
